// Binding of nms.cuh and nms_order.cuh to torch: memory, sorting of many boxes, the stream.
//
// Up to 2048 boxes per image that is three launches; above, torch sorts. nms_padded never waits for the GPU and allocates
// by the shapes alone, so it can be captured in a CUDA graph; nms and batched_nms are the same and then one read of the
// count, which is the size of their result.
#include <torch/csrc/stable/library.h>

#include <array>
#include <optional>
#include <tuple>
#include <vector>

#include "../nms_arguments.h"
#include "nms.cuh"
#include "nms_order.cuh"
#include "nms_result.h"
#include "storage.h"

namespace fastnas {
namespace {

// aten::sort.stable(self, *, stable, dim, descending) -> (values, indices), along the last dimension
std::tuple<Tensor, Tensor> sort(const Tensor& values, bool descending) {
  std::array<StableIValue, 4> stack{
      torch::stable::detail::from(values), torch::stable::detail::from(std::optional<bool>(true)),
      torch::stable::detail::from(int64_t(-1)), torch::stable::detail::from(descending)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  Tensor sorted = torch::stable::detail::to<Tensor>(stack[0]);
  return {torch::stable::contiguous(sorted), torch::stable::contiguous(torch::stable::detail::to<Tensor>(stack[1]))};
}

// aten::gather(self, dim, index, *, sparse_grad) along the last dimension
Tensor gather(const Tensor& values, const Tensor& index) {
  std::array<StableIValue, 4> stack{
      torch::stable::detail::from(values), torch::stable::detail::from(int64_t(-1)), torch::stable::detail::from(index),
      torch::stable::detail::from(false)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::gather", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// Parts of one allocation, each on a 256-byte boundary: first all sizes are added up, then the parts are handed out.
class Workspace {
 public:
  template <typename T>
  size_t reserve(int64_t count) {
    const size_t offset = size_;
    size_ += (static_cast<size_t>(count) * sizeof(T) + 255) / 256 * 256;
    return offset;
  }
  void allocate(const Tensor& like) {
    memory_ = torch::stable::new_empty(like, {static_cast<int64_t>(size_)}, ScalarType::Byte);
    base_ = static_cast<char*>(memory_->data_ptr());
  }
  template <typename T>
  T* at(size_t offset) const {
    return reinterpret_cast<T*>(base_ + offset);
  }

 private:
  size_t size_ = 0;
  std::optional<Tensor> memory_;
  char* base_ = nullptr;
};

// The launches. boxes [images, count, 4], scores and classes [images, count], contiguous, fp32 or fp64, none empty.
template <typename T, typename Score>
void run(
    const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& classes, int64_t images, int64_t count,
    double iou_threshold, std::optional<double> score_threshold, int64_t max_output, Tensor& indices, Tensor& counts) {
  const cudaStream_t stream = current_stream(boxes);
  const int64_t total = images * count, tiles = cuda::tile_count(count);
  check(images * tiles < (int64_t(1) << 31), "boxes: too many for one call, got ", shape_text(boxes));
  const bool small = count <= cuda::kSmallSort;

  Workspace space;
  const size_t corners_at = space.reserve<cuda::Corners<T>>(total);
  const size_t published_at = space.reserve<uint64_t>(images * tiles * cuda::kPublishedWords);
  const size_t ticket_at = space.reserve<unsigned long long>(1);
  const size_t candidates_at = space.reserve<bool>(total);
  const size_t kept_at = space.reserve<bool>(total);
  const size_t by_score_at = space.reserve<int64_t>(small ? total : 0);
  const size_t classes_at = space.reserve<int64_t>(small && classes ? total : 0);
  const size_t ranks_at = space.reserve<int64_t>(small && classes ? total : 0);
  space.allocate(boxes);

  cuda::NmsInput<T, Score> input{
      boxes.const_data_ptr<T>(), scores.const_data_ptr<Score>(), classes ? classes->const_data_ptr<int64_t>() : nullptr,
      score_threshold.has_value(), static_cast<Score>(score_threshold.value_or(0))};
  const cuda::NmsProgress progress{space.at<uint64_t>(published_at), space.at<unsigned long long>(ticket_at)};
  cuda::NmsRows<T> rows{space.at<cuda::Corners<T>>(corners_at), nullptr, nullptr, space.at<bool>(candidates_at), images, count};
  const int64_t* by_score = nullptr;
  std::optional<Tensor> sorted_by_score, sorted_classes, sorted_ranks;  // keep what torch has made until the launches
  if (small) {
    int64_t* const order = space.at<int64_t>(by_score_at);
    int64_t* const row_classes = classes ? space.at<int64_t>(classes_at) : nullptr;
    int64_t* const row_ranks = classes ? space.at<int64_t>(ranks_at) : nullptr;
    const int size = cuda::next_power_of_two(count);
    const int threads = smaller(larger(size / 2, 64), cuda::kSmallSort / 2);
    cuda::order_small<T, Score><<<static_cast<unsigned>(images), threads, 0, stream>>>(
        input, static_cast<int>(count), size, order, rows.boxes, row_classes, row_ranks, rows.candidates, progress);
    by_score = order;
    rows.classes = row_classes;
    rows.ranks = row_ranks;
  } else {
    sorted_by_score = std::get<1>(sort(scores, true));
    by_score = sorted_by_score->const_data_ptr<int64_t>();
    if (classes) {
      auto [values, places] = sort(gather(*classes, *sorted_by_score), false);
      sorted_classes = values;
      sorted_ranks = places;
      rows.classes = sorted_classes->const_data_ptr<int64_t>();
      rows.ranks = sorted_ranks->const_data_ptr<int64_t>();
    }
    const int64_t blocks = smaller<int64_t>((total + cuda::kGatherThreads - 1) / cuda::kGatherThreads, 1 << 16);
    cuda::gather_rows<T, Score><<<static_cast<unsigned>(blocks), cuda::kGatherThreads, 0, stream>>>(
        input, images, count, by_score, rows.ranks, rows.boxes, rows.candidates, progress);
  }
  check_cuda(cudaGetLastError(), "nms: ordering");
  cuda::decide<T><<<static_cast<unsigned>(images * tiles), cuda::kDecideThreads, 0, stream>>>(
      rows, floor_to<T>(iou_threshold), progress, space.at<bool>(kept_at));
  check_cuda(cudaGetLastError(), "nms: suppression");
  cuda::collect<<<static_cast<unsigned>(images), cuda::kCollectThreads, 0, stream>>>(
      space.at<bool>(kept_at), by_score, count, max_output, indices.mutable_data_ptr<int64_t>(),
      counts.mutable_data_ptr<int64_t>());
  check_cuda(cudaGetLastError(), "nms: collection");
}

std::tuple<Tensor, Tensor> nms_padded(
    const Tensor& boxes, const Tensor& scores, double iou_threshold, int64_t max_output, std::optional<Tensor> idxs,
    std::optional<double> score_threshold) {
  check_nms_arguments(boxes, scores, idxs ? &*idxs : nullptr, true);
  check(max_output >= 0, "max_output: expected 0 or more, got ", max_output);
  const torch::stable::accelerator::DeviceGuard guard(boxes.get_device_index());
  const bool batch = boxes.dim() == 3;
  const int64_t images = batch ? boxes.size(0) : 1, count = boxes.size(boxes.dim() - 2);
  const std::vector<int64_t> before = batch ? std::vector<int64_t>{images} : std::vector<int64_t>{};
  std::vector<int64_t> sizes = before;
  sizes.push_back(max_output);
  Tensor indices = torch::stable::new_empty(boxes, sizes, ScalarType::Long);
  Tensor counts = torch::stable::new_empty(boxes, before, ScalarType::Long);
  if (images == 0 || count == 0 || max_output == 0) {
    torch::stable::fill_(indices, -1);
    torch::stable::fill_(counts, 0);
    return {indices, counts};
  }
  const Tensor numbers = contiguous_as(boxes, computed_type(boxes)), ranking = contiguous_as(scores, computed_type(scores));
  std::optional<Tensor> classes;
  if (idxs) classes = contiguous_as(*idxs, ScalarType::Long);
  const auto typed = [&](auto box_type, auto score_type) {
    run<decltype(box_type), decltype(score_type)>(
        numbers, ranking, classes, images, count, iou_threshold, score_threshold, max_output, indices, counts);
  };
  const auto with_boxes = [&](auto box_type) {
    ranking.scalar_type() == ScalarType::Double ? typed(box_type, double{}) : typed(box_type, float{});
  };
  numbers.scalar_type() == ScalarType::Double ? with_boxes(double{}) : with_boxes(float{});
  return {indices, counts};
}

Tensor suppress(const Tensor& boxes, const Tensor& scores, const Tensor* idxs, double iou_threshold) {
  check_nms_arguments(boxes, scores, idxs, false);
  if (boxes.size(0) == 0) return torch::stable::new_empty(boxes, {0}, ScalarType::Long);
  std::optional<Tensor> classes;
  if (idxs) classes = *idxs;
  auto [indices, count] = nms_padded(boxes, scores, iou_threshold, boxes.size(0), classes, std::nullopt);
  return first_of(indices, read_count(count));
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
  m.impl("nms_padded", TORCH_BOX(&nms_padded));
}

}  // namespace fastnas
