// What nms, batched_nms, nms_padded and soft_nms accept, refused with the same words on every device.
#pragma once

#include <optional>

#include "tensor.h"

namespace fastnas {

inline bool is_integral(ScalarType type) {
  return type == ScalarType::Long || type == ScalarType::Int || type == ScalarType::Short || type == ScalarType::Char ||
      type == ScalarType::Byte || type == ScalarType::Bool;
}

// As the kernels read it. What is so already is passed on: on a few hundred boxes calls into torch are what costs.
inline Tensor contiguous_as(const Tensor& tensor, ScalarType type) {
  if (tensor.scalar_type() != type) return torch::stable::contiguous(torch::stable::to(tensor, type));
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// fp64 stays, everything narrower is computed in fp32.
inline ScalarType computed_type(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// boxes [N, 4] or, where `batches` are accepted, [images, N, 4]; scores and idxs have the sizes before the 4.
inline void check_nms_arguments(const Tensor& boxes, const Tensor& scores, const Tensor* idxs, bool batches) {
  const int64_t dims = boxes.dim();
  check((dims == 2 || (batches && dims == 3)) && boxes.size(dims - 1) == 4, "boxes: expected ",
        batches ? "[N, 4] or [images, N, 4]" : "[N, 4]", ", got ", shape_text(boxes));
  check_floating(boxes, "boxes");
  const auto check_beside = [&](const Tensor& tensor, const char* name) {
    bool same = tensor.dim() == dims - 1;
    for (int64_t d = 0; same && d < dims - 1; ++d) same = tensor.size(d) == boxes.size(d);
    std::string expected = shape_text(boxes);
    expected.erase(expected.rfind(','));  // "[N, 4]" -> "[N"
    check(same, name, ": expected ", expected, "], one for each box, got ", shape_text(tensor));
    check(same_device(tensor, boxes), name, ": expected on the device of the boxes, got another device");
  };
  check_beside(scores, "scores");
  check_floating(scores, "scores");
  if (idxs == nullptr) return;
  check_beside(*idxs, "idxs");
  check(is_integral(idxs->scalar_type()), "idxs: expected an integer type such as int64, got ",
        type_name(idxs->scalar_type()));
}

inline void check_soft_nms_arguments(
    const Tensor& boxes, const Tensor& scores, const Tensor* idxs, bool gaussian, double sigma, int64_t max_output) {
  check_nms_arguments(boxes, scores, idxs, false);
  check(!gaussian || sigma > 0, "sigma: expected a number above 0, got ", sigma);
  check(max_output >= 0, "max_output: expected 0 or more, got ", max_output);
}

}  // namespace fastnas
