// Soft-NMS on the CPU: see csrc/soft_decay.h for the formula and fastnas/ops/soft_nms.py for what is promised.
//
// Boxes are laid out as columns. One pass over them per chosen box multiplies the decays, drops what has fallen to the
// threshold and finds the greatest score of every block, so that the next box costs a look at the blocks and at one of
// them. When half of the columns are out of play they are closed up. Classes never meet: each is its own run, and the runs
// are merged by always taking the best of their next boxes, which is the order in which one run over all would choose.
// Work: boxes * chosen overlaps per class, 16 per step with AVX-512.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <queue>
#include <tuple>
#include <type_traits>
#include <vector>

#include "../nms_arguments.h"
#include "../soft_decay.h"
#include "sort.h"
#include "vector.h"

namespace fastnas {
namespace {

constexpr int64_t kBlock = 256;

template <typename T>
using order_t = decltype(score_order(T{}));

template <typename T>
struct Columns {
  T *x1, *y1, *x2, *y2, *area, *score, *decay;
  order_t<T>* order;  // of score * decay, or kOutOfPlay

  FASTNAS_INLINE Box<T> box(int64_t i) const { return {x1[i], y1[i], x2[i], y2[i]}; }
};

// Decays [begin, end) by the chosen box; returns the greatest order that is left.
template <bool kGaussian, typename T>
FASTNAS_INLINE order_t<T> decay_body(
    const Columns<T>& all, const Box<T>& chosen, T chosen_area, const SoftDecay<T>& rule, T least, int64_t begin, int64_t end) {
  const T* __restrict x1 = all.x1;
  const T* __restrict y1 = all.y1;
  const T* __restrict x2 = all.x2;
  const T* __restrict y2 = all.y2;
  const T* __restrict areas = all.area;
  const T* __restrict scores = all.score;
  T* __restrict decays = all.decay;
  order_t<T>* __restrict orders = all.order;
  const SoftDecay<T> local = rule;  // copies: what is written below could otherwise be these
  const Box<T> by = chosen;
  for (int64_t i = begin; i < end; ++i) {
    const Box<T> box{x1[i], y1[i], x2[i], y2[i]};
    const T decayed = decays[i] * local.template factor<kGaussian>(by, chosen_area, box, areas[i]);
    const T value = scores[i] * decayed;
    const order_t<T> before = orders[i];
    const order_t<T> in_play = value > least ? score_order(value) : kOutOfPlay<order_t<T>>;
    decays[i] = decayed;
    orders[i] = before == kOutOfPlay<order_t<T>> ? before : in_play;
  }
  // In a loop of its own: together with the conditions above GCC 12 does not vectorise it.
  order_t<T> greatest = kOutOfPlay<order_t<T>>;
  for (int64_t i = begin; i < end; ++i) greatest = std::max(greatest, orders[i]);
  return greatest;
}

#define FASTNAS_DECAY(name, kGaussian, T)                                                                               \
  FASTNAS_CLONES order_t<T> name(                                                                                       \
      const Columns<T>& all, const Box<T>& chosen, T chosen_area, const SoftDecay<T>& rule, T least, int64_t begin,     \
      int64_t end) {                                                                                                    \
    return decay_body<kGaussian>(all, chosen, chosen_area, rule, least, begin, end);                                    \
  }
FASTNAS_DECAY(decay_linear, false, float)
FASTNAS_DECAY(decay_linear, false, double)
FASTNAS_DECAY(decay_gaussian, true, float)
FASTNAS_DECAY(decay_gaussian, true, double)
#undef FASTNAS_DECAY

template <typename T>
struct Chosen {
  int64_t index;
  T rescored, decay;
};

template <typename T>
struct Rule {
  SoftDecay<T> decay;
  bool gaussian;
  T least;        // only scores above it are in play
  int64_t limit;  // no more boxes than this
};

// One class: columns in the order of the indices, so that the first of equal scores is the one with the lowest index.
template <typename T>
class Run {
 public:
  Run(const T* boxes, const T* scores, const int64_t* indices, int64_t count)
      : indices_(indices, indices + count), numbers_(7 * count), orders_(count), count_(count) {
    T* base = numbers_.data();
    columns_ = {base, base + count, base + 2 * count, base + 3 * count, base + 4 * count, base + 5 * count, base + 6 * count,
                orders_.data()};
    for (int64_t i = 0; i < count; ++i) {
      const T* box = boxes + 4 * indices[i];
      columns_.x1[i] = box[0];
      columns_.y1[i] = box[1];
      columns_.x2[i] = box[2];
      columns_.y2[i] = box[3];
      columns_.area[i] = area(columns_.box(i));
      columns_.score[i] = scores[indices[i]];
      columns_.decay[i] = 1;
      columns_.order[i] = score_order(columns_.score[i]);
    }
  }

  std::vector<Chosen<T>> choose(const Rule<T>& rule) {
    std::vector<Chosen<T>> result;
    std::vector<order_t<T>> greatest((count_ + kBlock - 1) / kBlock);
    for (int64_t b = 0; b < blocks(); ++b) greatest[b] = *std::max_element(columns_.order + b * kBlock, columns_.order + end(b));
    while (static_cast<int64_t>(result.size()) < rule.limit && blocks() > 0) {
      const int64_t block = std::max_element(greatest.begin(), greatest.begin() + blocks()) - greatest.begin();
      if (greatest[block] == kOutOfPlay<order_t<T>>) break;
      const int64_t i = std::find(columns_.order + block * kBlock, columns_.order + end(block), greatest[block]) - columns_.order;
      result.push_back({indices_[i], columns_.score[i] * columns_.decay[i], columns_.decay[i]});
      columns_.order[i] = kOutOfPlay<order_t<T>>;
      const Box<T> chosen = columns_.box(i);
      const T chosen_area = columns_.area[i];
      for (int64_t b = 0; b < blocks(); ++b) {
        greatest[b] = rule.gaussian
            ? decay_gaussian(columns_, chosen, chosen_area, rule.decay, rule.least, b * kBlock, end(b))
            : decay_linear(columns_, chosen, chosen_area, rule.decay, rule.least, b * kBlock, end(b));
      }
      if (result.size() % 64 == 0) close_up(greatest);
    }
    return result;
  }

 private:
  int64_t blocks() const { return (count_ + kBlock - 1) / kBlock; }
  int64_t end(int64_t block) const { return std::min((block + 1) * kBlock, count_); }

  void close_up(std::vector<order_t<T>>& greatest) {
    const int64_t out = std::count(columns_.order, columns_.order + count_, kOutOfPlay<order_t<T>>);
    if (2 * out <= count_) return;
    int64_t to = 0;
    for (int64_t i = 0; i < count_; ++i) {
      if (columns_.order[i] == kOutOfPlay<order_t<T>>) continue;
      for (T* column : {columns_.x1, columns_.y1, columns_.x2, columns_.y2, columns_.area, columns_.score, columns_.decay}) {
        column[to] = column[i];
      }
      columns_.order[to] = columns_.order[i];
      indices_[to++] = indices_[i];
    }
    count_ = to;
    for (int64_t b = 0; b < blocks(); ++b) greatest[b] = *std::max_element(columns_.order + b * kBlock, columns_.order + end(b));
  }

  std::vector<int64_t> indices_;
  std::vector<T> numbers_;
  std::vector<order_t<T>> orders_;
  int64_t count_;
  Columns<T> columns_;
};

// Always the best of the next boxes of all runs, the lower index of equals.
template <typename T>
std::vector<Chosen<T>> merged(const std::vector<std::vector<Chosen<T>>>& runs, int64_t limit) {
  if (runs.size() == 1) return runs[0];
  struct Next {
    Chosen<T> box;
    size_t run, place;
    bool operator<(const Next& other) const {  // the greatest comes out first
      return box.rescored < other.box.rescored || (box.rescored == other.box.rescored && box.index > other.box.index);
    }
  };
  std::priority_queue<Next> heads;
  for (size_t r = 0; r < runs.size(); ++r) {
    if (!runs[r].empty()) heads.push({runs[r][0], r, 0});
  }
  std::vector<Chosen<T>> result;
  while (!heads.empty() && static_cast<int64_t>(result.size()) < limit) {
    const Next next = heads.top();
    heads.pop();
    result.push_back(next.box);
    if (next.place + 1 < runs[next.run].size()) heads.push({runs[next.run][next.place + 1], next.run, next.place + 1});
  }
  return result;
}

// boxes [count, 4], scores [count], classes [count] or null.
template <typename T>
std::vector<Chosen<T>> choose(
    const T* boxes, const T* scores, const int64_t* classes, int64_t count, const Rule<T>& rule) {
  std::vector<int64_t> indices;  // grouped by class, ascending in a class
  std::vector<int64_t> starts{0};
  if (classes == nullptr) {
    for (int64_t i = 0; i < count; ++i) {
      if (scores[i] > rule.least) indices.push_back(i);
    }
  } else {
    std::vector<Keyed> grouped;
    for (int64_t i = 0; i < count; ++i) {
      if (scores[i] > rule.least) grouped.push_back({ascending_key(classes[i]), i});
    }
    sort_by_key(grouped);
    for (size_t i = 0; i < grouped.size(); ++i) {
      if (i > 0 && grouped[i].key != grouped[i - 1].key) starts.push_back(static_cast<int64_t>(i));
      indices.push_back(grouped[i].index);
    }
  }
  starts.push_back(static_cast<int64_t>(indices.size()));
  std::vector<std::vector<Chosen<T>>> runs(starts.size() - 1);
  for (size_t r = 0; r < runs.size(); ++r) {
    runs[r] = Run<T>(boxes, scores, indices.data() + starts[r], starts[r + 1] - starts[r]).choose(rule);
  }
  return merged(runs, rule.limit);
}

std::tuple<Tensor, Tensor, Tensor> soft_nms(
    const Tensor& boxes, const Tensor& scores, bool gaussian, double iou_threshold, double sigma, double score_threshold,
    int64_t max_output, std::optional<Tensor> idxs) {
  check_soft_nms_arguments(boxes, scores, idxs ? &*idxs : nullptr, gaussian, sigma, max_output);
  std::optional<Tensor> classes;
  if (idxs) classes = contiguous_as(*idxs, ScalarType::Long);
  const bool wide = boxes.scalar_type() == ScalarType::Double || scores.scalar_type() == ScalarType::Double;
  const ScalarType type = wide ? ScalarType::Double : ScalarType::Float;
  const Tensor numbers = contiguous_as(boxes, type);
  const Tensor ranking = contiguous_as(scores, type);

  const auto typed = [&](auto zero) -> std::tuple<Tensor, Tensor, Tensor> {
    using T = decltype(zero);
    const Rule<T> rule{
        {floor_to<T>(iou_threshold), static_cast<T>(1 / sigma)}, gaussian, static_cast<T>(score_threshold), max_output};
    const std::vector<Chosen<T>> chosen = choose(
        numbers.const_data_ptr<T>(), ranking.const_data_ptr<T>(), classes ? classes->const_data_ptr<int64_t>() : nullptr,
        boxes.size(0), rule);
    const int64_t size = static_cast<int64_t>(chosen.size());
    Tensor indices = torch::stable::new_empty(boxes, {size}, ScalarType::Long);
    Tensor rescored = torch::stable::new_empty(boxes, {size}, type);
    Tensor decay = torch::stable::new_empty(boxes, {size}, type);
    int64_t* const indices_to = indices.mutable_data_ptr<int64_t>();
    T* const rescored_to = rescored.mutable_data_ptr<T>();
    T* const decay_to = decay.mutable_data_ptr<T>();
    for (int64_t i = 0; i < size; ++i) {
      indices_to[i] = chosen[i].index;
      rescored_to[i] = chosen[i].rescored;
      decay_to[i] = chosen[i].decay;
    }
    return {indices, torch::stable::to(rescored, scores.scalar_type()), decay};
  };
  return wide ? typed(double{}) : typed(float{});
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastnas, CPU, m) { m.impl("soft_nms", TORCH_BOX(&soft_nms)); }

}  // namespace fastnas
