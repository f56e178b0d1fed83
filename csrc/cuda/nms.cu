// Binding of nms.cuh to torch: sorting, memory and the stream. One host synchronisation, inside masked_select, because the
// number of kept boxes is the size of the result.
#include <torch/csrc/stable/library.h>

#include <array>
#include <optional>

#include "nms.cuh"
#include "storage.h"

namespace fastnas {
namespace {

// aten::sort.stable(self, *, stable, dim, descending) -> (values, indices)
Tensor descending_order(const Tensor& scores) {
  std::array<StableIValue, 4> stack{
      torch::stable::detail::from(scores), torch::stable::detail::from(std::optional<bool>(true)),
      torch::stable::detail::from(int64_t(0)), torch::stable::detail::from(true)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);  // takes the values, so that they are freed
  return torch::stable::detail::to<Tensor>(stack[1]);
}

Tensor masked_select(const Tensor& values, const Tensor& mask) {
  std::array<StableIValue, 2> stack{torch::stable::detail::from(values), torch::stable::detail::from(mask)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::masked_select", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

template <typename T>
void run(const Tensor& boxes, const Tensor& order, const int64_t* classes, double iou_threshold, Tensor& kept) {
  const cuda::NmsShape shape = cuda::nms_shape(boxes.size(0));
  check(shape.words <= 46340, "boxes: too many for the CUDA kernel: ", shape.boxes);  // words^2 blocks fit a grid
  const Tensor masks = torch::stable::new_empty(boxes, {shape.boxes, shape.words}, ScalarType::Long);
  const Tensor spill = torch::stable::new_empty(boxes, {shape.words}, ScalarType::Long);
  const cudaError_t status = cuda::suppress<T>(
      boxes.const_data_ptr<T>(), order.const_data_ptr<int64_t>(), classes, shape, floor_to<T>(iou_threshold),
      reinterpret_cast<uint64_t*>(masks.mutable_data_ptr<int64_t>()),
      reinterpret_cast<uint64_t*>(spill.mutable_data_ptr<int64_t>()), kept.mutable_data_ptr<bool>(),
      current_stream(boxes));
  check_cuda(status, "nms");
}

Tensor suppress(const Tensor& boxes, const Tensor& scores, const Tensor* idxs, double iou_threshold) {
  check(boxes.dim() == 2 && boxes.size(1) == 4, "boxes: expected [N, 4], got ", boxes.dim(), " dimensions",
        boxes.dim() == 2 ? " with a last size other than 4" : "");
  check_floating(boxes, "boxes");
  const int64_t count = boxes.size(0);
  const auto beside_boxes = [&](const Tensor& tensor) {
    return tensor.dim() == 1 && tensor.size(0) == count && tensor.is_cuda() &&
        tensor.get_device_index() == boxes.get_device_index();
  };
  check(beside_boxes(scores) && is_floating(scores.scalar_type()), "scores: expected [", count,
        "] of a floating type on the device of the boxes");
  check(!idxs || (beside_boxes(*idxs) && !is_floating(idxs->scalar_type())), "idxs: expected [", count,
        "] of an integer type on the device of the boxes");
  if (count == 0) return torch::stable::new_empty(boxes, {0}, ScalarType::Long);

  const torch::stable::accelerator::DeviceGuard guard(boxes.get_device_index());
  const bool wide = boxes.scalar_type() == ScalarType::Double;
  const Tensor numbers =
      torch::stable::contiguous(torch::stable::to(boxes, wide ? ScalarType::Double : ScalarType::Float));
  const Tensor order = torch::stable::contiguous(descending_order(scores));
  Tensor classes = order;
  if (idxs) classes = torch::stable::contiguous(torch::stable::to(*idxs, ScalarType::Long));
  const int64_t* class_ids = idxs ? classes.const_data_ptr<int64_t>() : nullptr;
  Tensor kept = torch::stable::new_empty(boxes, {count}, ScalarType::Bool);
  if (wide) {
    run<double>(numbers, order, class_ids, iou_threshold, kept);
  } else {
    run<float>(numbers, order, class_ids, iou_threshold, kept);
  }
  return masked_select(order, kept);
}

Tensor nms(const Tensor& boxes, const Tensor& scores, double iou_threshold) {
  return suppress(boxes, scores, nullptr, iou_threshold);
}

Tensor batched_nms(const Tensor& boxes, const Tensor& scores, const Tensor& idxs, double iou_threshold) {
  return suppress(boxes, scores, &idxs, iou_threshold);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastnas, CUDA, m) {
  m.impl("nms", TORCH_BOX(&nms));
  m.impl("batched_nms", TORCH_BOX(&batched_nms));
}

}  // namespace fastnas
