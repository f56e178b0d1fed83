// Binding of soft_nms.cuh to torch: memory, the stream, and one read of the number of chosen boxes, the size of the result.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>
#include <utility>

#include "../nms_arguments.h"
#include "nms_result.h"
#include "soft_nms.cuh"
#include "storage.h"

namespace fastnas {
namespace {

template <bool kGaussian>
void launch(const cuda::SoftInput& input, const Tensor& boxes, const cuda::SoftOutput& output) {
  const size_t bytes = static_cast<size_t>(input.count) * cuda::SoftState::bytes_per_box(input.classes != nullptr);
  constexpr int kFixed = 1024;  // what the kernel declares itself, rounded up
  int allowed = 0;
  check_cuda(
      cudaDeviceGetAttribute(&allowed, cudaDevAttrMaxSharedMemoryPerBlockOptin, boxes.get_device_index()), "soft_nms");
  const bool fits = bytes + kFixed <= static_cast<size_t>(allowed);
  std::optional<Tensor> memory;
  if (fits) {
    check_cuda(
        cudaFuncSetAttribute(
            cuda::soft_nms<kGaussian>, cudaFuncAttributeMaxDynamicSharedMemorySize, allowed - kFixed),
        "soft_nms");
  } else {
    memory = torch::stable::new_empty(boxes, {static_cast<int64_t>(bytes)}, ScalarType::Byte);
  }
  const int64_t in_warps = (input.count + cuda::kSoftWarp - 1) / cuda::kSoftWarp * cuda::kSoftWarp;
  const int threads = static_cast<int>(smaller<int64_t>(in_warps, cuda::kSoftThreads));
  cuda::soft_nms<kGaussian><<<1, threads, fits ? bytes : 0, current_stream(boxes)>>>(
      input, fits ? nullptr : memory->data_ptr(), output);
  check_cuda(cudaGetLastError(), "soft_nms");
}

std::tuple<Tensor, Tensor, Tensor> soft_nms(
    const Tensor& boxes, const Tensor& scores, bool gaussian, double iou_threshold, double sigma, double score_threshold,
    int64_t max_output, std::optional<Tensor> idxs) {
  check_soft_nms_arguments(boxes, scores, idxs ? &*idxs : nullptr, gaussian, sigma, max_output);
  for (const auto& [tensor, name] : {std::pair{&boxes, "boxes"}, std::pair{&scores, "scores"}}) {
    check(tensor->scalar_type() != ScalarType::Double, name, ": expected fp32, fp16 or bf16 on the GPU, got fp64");
  }
  const int64_t count = boxes.size(0), most = smaller(max_output, count);
  check(count < (int64_t(1) << 31), "boxes: expected fewer than 2^31 on the GPU, got ", shape_text(boxes));
  const torch::stable::accelerator::DeviceGuard guard(boxes.get_device_index());
  Tensor indices = torch::stable::new_empty(boxes, {most}, ScalarType::Long);
  Tensor rescored = torch::stable::new_empty(boxes, {most}, ScalarType::Float);
  Tensor decays = torch::stable::new_empty(boxes, {most}, ScalarType::Float);
  int64_t size = 0;
  if (most > 0) {
    Tensor chosen = torch::stable::new_empty(boxes, {1}, ScalarType::Long);
    std::optional<Tensor> classes;
    if (idxs) classes = contiguous_as(*idxs, ScalarType::Long);
    const Tensor numbers = contiguous_as(boxes, computed_type(boxes)), ranking = contiguous_as(scores, computed_type(scores));
    const cuda::SoftInput input{
        numbers.const_data_ptr<float>(), ranking.const_data_ptr<float>(),
        classes ? classes->const_data_ptr<int64_t>() : nullptr, count,
        {floor_to<float>(iou_threshold), static_cast<float>(1 / sigma)}, static_cast<float>(score_threshold), most};
    const cuda::SoftOutput output{
        indices.mutable_data_ptr<int64_t>(), rescored.mutable_data_ptr<float>(), decays.mutable_data_ptr<float>(),
        chosen.mutable_data_ptr<int64_t>()};
    gaussian ? launch<true>(input, boxes, output) : launch<false>(input, boxes, output);
    size = read_count(chosen);
  }
  return {first_of(indices, size), torch::stable::to(first_of(rescored, size), scores.scalar_type()), first_of(decays, size)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastnas, CUDA, m) { m.impl("soft_nms", TORCH_BOX(&soft_nms)); }

}  // namespace fastnas
