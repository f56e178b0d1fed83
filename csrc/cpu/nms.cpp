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
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include "../geometry.h"
#include "../nms_arguments.h"
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

// The columns of one run, with the rank (place in the order of scores) of every box. Loaded again and again, so that many
// small classes share one piece of memory.
template <typename T>
class Run {
 public:
  void load(const T* boxes, const Keyed* ranked, const int64_t* ranks, int64_t count) {
    if (static_cast<int64_t>(dead_.size()) < count) {
      numbers_.resize(5 * count);
      dead_.resize(count);
    }
    ranks_.assign(ranks, ranks + count);
    std::fill_n(dead_.begin(), count, 0);
    count_ = count;
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

  // Sets kept[rank] for every survivor, at most for `limit` of them.
  void suppress(T threshold, int64_t limit, uint8_t* kept) {
    int64_t rows[kLargeTile];
    for (int64_t tile = 0, tile_end = 0; tile < count_; tile = tile_end) {
      tile_end = std::min(tile + std::clamp((count_ - tile) / 64, kSmallTile, kLargeTile), count_);
      int64_t row_count = 0;
      for (int64_t i = tile; i < tile_end; ++i) {
        if (columns_.dead[i]) continue;
        kept[ranks_[i]] = 1;
        if (--limit == 0) return;
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
  int64_t count_ = 0;
  Columns<T> columns_{};
};

template <typename T, typename Score>
struct Problem {
  const T* boxes;          // [count, 4]
  const Score* scores;     // [count]
  const int64_t* classes;  // [count] or null for one class
  int64_t count;
  T iou_threshold;
  int64_t limit;               // no more survivors than this, at least 1
  std::optional<Score> least;  // only boxes with a score above it take part

  Problem of_image(int64_t image) const {
    Problem one = *this;
    one.boxes += 4 * count * image;
    one.scores += count * image;
    if (classes) one.classes += count * image;
    return one;
  }
};

// Indices of the survivors, best score first, ties by index.
template <typename T, typename Score>
std::vector<int64_t> survivors(const Problem<T, Score>& problem) {
  std::vector<Keyed> ranked;
  ranked.reserve(problem.count);
  for (int64_t i = 0; i < problem.count; ++i) {
    if (problem.least && !(problem.scores[i] > *problem.least)) continue;
    ranked.push_back({descending_key(problem.scores[i]), i});
  }
  sort_by_key(ranked);

  const int64_t count = static_cast<int64_t>(ranked.size());
  std::vector<int64_t> ranks(count);       // grouped by class, by score inside a class
  std::vector<int64_t> starts{0, count};  // of the classes in `ranks`
  if (problem.classes == nullptr) {
    for (int64_t i = 0; i < count; ++i) ranks[i] = i;
  } else {
    std::vector<Keyed> grouped(count);
    for (int64_t i = 0; i < count; ++i) grouped[i] = {ascending_key(problem.classes[ranked[i].index]), i};
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
  const int64_t runs_per_thread =
      static_cast<int64_t>(std::clamp(kOverlapsPerThread / overlaps_per_run, 1.0, static_cast<double>(runs)));
  torch::stable::parallel_for(0, runs, runs_per_thread, [&](int64_t first, int64_t last) {
    Run<T> run;
    for (int64_t r = first; r < last; ++r) {
      run.load(problem.boxes, ranked.data(), ranks.data() + starts[r], starts[r + 1] - starts[r]);
      run.suppress(problem.iou_threshold, problem.limit, kept.data());
    }
  });

  std::vector<int64_t> result;
  for (int64_t rank = 0; rank < count && static_cast<int64_t>(result.size()) < problem.limit; ++rank) {
    if (kept[rank]) result.push_back(ranked[rank].index);
  }
  return result;
}

// The tensors as the kernels read them: contiguous, fp32 or fp64, classes int64.
struct Arguments {
  Arguments(const Tensor& boxes, const Tensor& scores, const Tensor* idxs)
      : boxes_(contiguous_as(boxes, computed_type(boxes))), scores_(contiguous_as(scores, computed_type(scores))) {
    if (idxs) classes_ = contiguous_as(*idxs, ScalarType::Long);
  }

  // Calls body(Problem) with the types of the boxes and of the scores.
  template <typename Body>
  void with_problem(double iou_threshold, int64_t limit, std::optional<double> score_threshold, Body&& body) const {
    const auto typed = [&](auto box_type, auto score_type) {
      using T = decltype(box_type);
      using Score = decltype(score_type);
      std::optional<Score> least;
      if (score_threshold) least = static_cast<Score>(*score_threshold);
      body(Problem<T, Score>{
          boxes_.const_data_ptr<T>(), scores_.const_data_ptr<Score>(),
          classes_ ? classes_->const_data_ptr<int64_t>() : nullptr, boxes_.size(boxes_.dim() - 2),
          floor_to<T>(iou_threshold), limit, least});
    };
    const auto with_boxes = [&](auto box_type) {
      scores_.scalar_type() == ScalarType::Double ? typed(box_type, double{}) : typed(box_type, float{});
    };
    boxes_.scalar_type() == ScalarType::Double ? with_boxes(double{}) : with_boxes(float{});
  }

 private:
  Tensor boxes_, scores_;
  std::optional<Tensor> classes_;
};

Tensor suppress(const Tensor& boxes, const Tensor& scores, const Tensor* idxs, double iou_threshold) {
  check_nms_arguments(boxes, scores, idxs, false);
  std::vector<int64_t> kept;
  const int64_t count = boxes.size(0);
  if (count > 0) {
    Arguments(boxes, scores, idxs).with_problem(iou_threshold, count, std::nullopt, [&](const auto& problem) {
      kept = survivors(problem);
    });
  }
  Tensor result = torch::stable::new_empty(boxes, {static_cast<int64_t>(kept.size())}, ScalarType::Long);
  std::copy(kept.begin(), kept.end(), result.mutable_data_ptr<int64_t>());
  return result;
}

Tensor nms(const Tensor& boxes, const Tensor& scores, double iou_threshold) {
  return suppress(boxes, scores, nullptr, iou_threshold);
}

Tensor batched_nms(const Tensor& boxes, const Tensor& scores, const Tensor& idxs, double iou_threshold) {
  return suppress(boxes, scores, &idxs, iou_threshold);
}

std::tuple<Tensor, Tensor> nms_padded(
    const Tensor& boxes, const Tensor& scores, double iou_threshold, int64_t max_output, std::optional<Tensor> idxs,
    std::optional<double> score_threshold) {
  check_nms_arguments(boxes, scores, idxs ? &*idxs : nullptr, true);
  check(max_output >= 0, "max_output: expected 0 or more, got ", max_output);
  const bool batch = boxes.dim() == 3;
  const int64_t images = batch ? boxes.size(0) : 1, count = boxes.size(boxes.dim() - 2);
  const std::vector<int64_t> before = batch ? std::vector<int64_t>{images} : std::vector<int64_t>{};
  std::vector<int64_t> sizes = before;
  sizes.push_back(max_output);
  Tensor indices = torch::stable::new_empty(boxes, sizes, ScalarType::Long);
  Tensor counts = torch::stable::new_empty(boxes, before, ScalarType::Long);
  int64_t* const to = indices.mutable_data_ptr<int64_t>();
  int64_t* const counts_to = counts.mutable_data_ptr<int64_t>();
  std::fill(to, to + images * max_output, -1);
  std::fill(counts_to, counts_to + images, 0);
  if (count == 0 || max_output == 0) return {indices, counts};

  Arguments(boxes, scores, idxs ? &*idxs : nullptr)
      .with_problem(iou_threshold, max_output, score_threshold, [&](const auto& problem) {
        const double overlaps = static_cast<double>(count) * std::min(count, max_output);
        const int64_t images_per_thread =
            static_cast<int64_t>(std::clamp(kOverlapsPerThread / overlaps, 1.0, static_cast<double>(std::max<int64_t>(images, 1))));
        torch::stable::parallel_for(0, images, images_per_thread, [&](int64_t first, int64_t last) {
          for (int64_t image = first; image < last; ++image) {
            const std::vector<int64_t> kept = survivors(problem.of_image(image));
            std::copy(kept.begin(), kept.end(), to + image * max_output);
            counts_to[image] = static_cast<int64_t>(kept.size());
          }
        });
      });
  return {indices, counts};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastnas, CPU, m) {
  m.impl("nms", TORCH_BOX(&nms));
  m.impl("batched_nms", TORCH_BOX(&batched_nms));
  m.impl("nms_padded", TORCH_BOX(&nms_padded));
}

}  // namespace fastnas
