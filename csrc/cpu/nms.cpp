// Greedy non-maximum suppression on the CPU, alone and per class.
//
// Boxes are laid out as columns (structure of arrays) in the order of their scores and worked off in tiles of rows: a tile
// decides among its own rows, then its kept rows strike out boxes of the tail, which is split in blocks that stay in the
// first-level cache and are shared out to threads. Whenever more than half of the tail is struck out, it is closed up, so
// clustered boxes cost little. The work is N * kept overlaps in the worst case, 16 per step with AVX-512.
// Classes never meet: each is its own run over its own columns.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "../geometry.h"
#include "../tensor.h"
#include "sort.h"
#include "vector.h"

namespace fastnas {
namespace {

// Rows of a tile: few, for they are compared one at a time; more where many boxes are left, because each tile is one
// parallel region and on a busy machine every region may wait for a time slice.
constexpr int64_t kSmallTile = 64, kLargeTile = 512;
constexpr int64_t kBlock = 512;  // columns of a block: 12 KB in fp32
constexpr int64_t kOverlapsPerThread = 1 << 22;  // about 2 ms: less is not worth waking a thread

// A mask as wide as the numbers, so that one comparison fills whole vectors.
template <typename T>
using mask_t = std::conditional_t<std::is_same_v<T, double>, int64_t, int32_t>;

template <typename T>
struct Columns {
  T *x1, *y1, *x2, *y2, *area;
  mask_t<T>* dead;  // -1: suppressed, 0: alive

  FASTNAS_INLINE Box<T> box(int64_t i) const { return {x1[i], y1[i], x2[i], y2[i]}; }
};

template <typename T>
FASTNAS_INLINE void strike_out_body(
    const Columns<T>& all, const int64_t* rows, int64_t row_count, int64_t begin, int64_t end, T threshold) {
  const T* __restrict x1 = all.x1;
  const T* __restrict y1 = all.y1;
  const T* __restrict x2 = all.x2;
  const T* __restrict y2 = all.y2;
  const T* __restrict areas = all.area;
  mask_t<T>* __restrict dead = all.dead;
  for (int64_t r = 0; r < row_count; ++r) {
    const Box<T> kept = all.box(rows[r]);
    const T kept_area = all.area[rows[r]];
    for (int64_t i = begin; i < end; ++i) {
      const Box<T> box{x1[i], y1[i], x2[i], y2[i]};
      dead[i] |= overlaps(kept, kept_area, box, areas[i], threshold) ? mask_t<T>(-1) : mask_t<T>(0);
    }
  }
}

// Marks every box of [begin, end) that overlaps one of the kept `rows`.
FASTNAS_CLONES void strike_out(
    const Columns<float>& all, const int64_t* rows, int64_t row_count, int64_t begin, int64_t end, float threshold) {
  strike_out_body(all, rows, row_count, begin, end, threshold);
}
FASTNAS_CLONES void strike_out(
    const Columns<double>& all, const int64_t* rows, int64_t row_count, int64_t begin, int64_t end, double threshold) {
  strike_out_body(all, rows, row_count, begin, end, threshold);
}

// The columns of one run, with the rank (place in the order of scores) of every box.
template <typename T>
class Run {
 public:
  Run(const T* boxes, const Keyed* ranked, const int64_t* ranks, int64_t count)
      : numbers_(5 * count), dead_(count, 0), ranks_(ranks, ranks + count), count_(count) {
    T* base = numbers_.data();
    columns_ = {base, base + count, base + 2 * count, base + 3 * count, base + 4 * count, dead_.data()};
    for (int64_t i = 0; i < count; ++i) {
      const T* box = boxes + 4 * ranked[ranks[i]].index;
      columns_.x1[i] = box[0];
      columns_.y1[i] = box[1];
      columns_.x2[i] = box[2];
      columns_.y2[i] = box[3];
      columns_.area[i] = area(columns_.box(i));
    }
  }

  // Sets kept[rank] for every survivor.
  void suppress(T threshold, uint8_t* kept) {
    int64_t rows[kLargeTile];
    for (int64_t tile = 0, tile_end = 0; tile < count_; tile = tile_end) {
      tile_end = std::min(tile + std::clamp((count_ - tile) / 64, kSmallTile, kLargeTile), count_);
      int64_t row_count = 0;
      for (int64_t i = tile; i < tile_end; ++i) {
        if (columns_.dead[i]) continue;
        kept[ranks_[i]] = 1;
        rows[row_count++] = i;
        strike_out(columns_, &i, 1, i + 1, tile_end, threshold);
      }
      if (row_count == 0 || tile_end == count_) continue;
      const int64_t blocks = (count_ - tile_end + kBlock - 1) / kBlock;
      const int64_t blocks_per_thread = std::max<int64_t>(1, kOverlapsPerThread / (row_count * kBlock));
      torch::stable::parallel_for(0, blocks, blocks_per_thread, [&](int64_t first, int64_t last) {
        for (int64_t block = first; block < last; ++block) {
          const int64_t begin = tile_end + block * kBlock;
          strike_out(columns_, rows, row_count, begin, std::min(begin + kBlock, count_), threshold);
        }
      });
      close_up(tile_end);
    }
  }

 private:
  void close_up(int64_t begin) {
    int64_t dead = 0;
    for (int64_t i = begin; i < count_; ++i) dead -= columns_.dead[i];
    if (2 * dead <= count_ - begin) return;
    int64_t to = begin;
    for (int64_t i = begin; i < count_; ++i) {
      if (columns_.dead[i]) continue;
      for (T* column : {columns_.x1, columns_.y1, columns_.x2, columns_.y2, columns_.area}) column[to] = column[i];
      columns_.dead[to] = 0;
      ranks_[to++] = ranks_[i];
    }
    count_ = to;
  }

  std::vector<T> numbers_;
  std::vector<mask_t<T>> dead_;
  std::vector<int64_t> ranks_;
  int64_t count_;
  Columns<T> columns_;
};

// classes: [N] or null for one class. Indices of the survivors, best score first, ties by index.
template <typename T, typename Score>
std::vector<int64_t> survivors(
    const T* boxes, const Score* scores, const int64_t* classes, int64_t count, double iou_threshold) {
  const T threshold = floor_to<T>(iou_threshold);
  std::vector<Keyed> ranked(count);
  for (int64_t i = 0; i < count; ++i) ranked[i] = {descending_key(scores[i]), i};
  sort_by_key(ranked);

  std::vector<int64_t> ranks(count);       // grouped by class, by score inside a class
  std::vector<int64_t> starts{0, count};  // of the classes in `ranks`
  if (classes == nullptr) {
    for (int64_t i = 0; i < count; ++i) ranks[i] = i;
  } else {
    std::vector<Keyed> grouped(count);
    for (int64_t i = 0; i < count; ++i) grouped[i] = {ascending_key(classes[ranked[i].index]), i};
    sort_by_key(grouped);
    starts.assign(1, 0);
    for (int64_t i = 0; i < count; ++i) {
      ranks[i] = grouped[i].index;
      if (i > 0 && grouped[i].key != grouped[i - 1].key) starts.push_back(i);
    }
    starts.push_back(count);
  }

  std::vector<uint8_t> kept(count, 0);
  const int64_t runs = static_cast<int64_t>(starts.size()) - 1;
  const double overlaps_per_run = static_cast<double>(count) / runs * count / runs / 2;
  const int64_t runs_per_thread = std::max<int64_t>(1, static_cast<int64_t>(kOverlapsPerThread / overlaps_per_run));
  torch::stable::parallel_for(0, runs, runs_per_thread, [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r) {
      Run<T>(boxes, ranked.data(), ranks.data() + starts[r], starts[r + 1] - starts[r])
          .suppress(threshold, kept.data());
    }
  });

  std::vector<int64_t> result;
  for (int64_t rank = 0; rank < count; ++rank) {
    if (kept[rank]) result.push_back(ranked[rank].index);
  }
  return result;
}

Tensor suppress(const Tensor& boxes, const Tensor& scores, const Tensor* classes, double iou_threshold) {
  check(boxes.dim() == 2 && boxes.size(1) == 4, "boxes: expected [N, 4], got ", boxes.dim(), " dimensions",
        boxes.dim() == 2 ? " with a last size other than 4" : "");
  check_floating(boxes, "boxes");
  const int64_t count = boxes.size(0);
  check(scores.dim() == 1 && scores.size(0) == count, "scores: expected [", count, "], one for each box");
  check(scores.is_cpu() && is_floating(scores.scalar_type()), "scores: expected a floating type on the CPU");

  const Tensor boxes_ = computable(boxes);
  const Tensor scores_ = computable(scores);
  Tensor classes_ = boxes_;
  const int64_t* class_ids = nullptr;
  if (classes != nullptr) {
    check(classes->dim() == 1 && classes->size(0) == count, "idxs: expected [", count, "], one for each box");
    check(classes->is_cpu() && !is_floating(classes->scalar_type()), "idxs: expected an integer type on the CPU");
    classes_ = torch::stable::contiguous(torch::stable::to(*classes, ScalarType::Long));
    class_ids = classes_.const_data_ptr<int64_t>();
  }

  std::vector<int64_t> kept;
  const auto with_scores = [&](auto* box_data) {
    kept = scores_.scalar_type() == ScalarType::Double
        ? survivors(box_data, scores_.const_data_ptr<double>(), class_ids, count, iou_threshold)
        : survivors(box_data, scores_.const_data_ptr<float>(), class_ids, count, iou_threshold);
  };
  if (count > 0) {
    if (boxes_.scalar_type() == ScalarType::Double) {
      with_scores(boxes_.const_data_ptr<double>());
    } else {
      with_scores(boxes_.const_data_ptr<float>());
    }
  }
  const int64_t size = static_cast<int64_t>(kept.size());
  Tensor result = torch::stable::new_empty(boxes, {size}, ScalarType::Long);
  std::copy(kept.begin(), kept.end(), result.mutable_data_ptr<int64_t>());
  return result;
}

Tensor nms(const Tensor& boxes, const Tensor& scores, double iou_threshold) {
  return suppress(boxes, scores, nullptr, iou_threshold);
}

Tensor batched_nms(const Tensor& boxes, const Tensor& scores, const Tensor& idxs, double iou_threshold) {
  return suppress(boxes, scores, &idxs, iou_threshold);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastnas, CPU, m) {
  m.impl("nms", TORCH_BOX(&nms));
  m.impl("batched_nms", TORCH_BOX(&batched_nms));
}

}  // namespace fastnas
