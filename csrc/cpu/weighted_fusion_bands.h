// One band of rows of one image of a BiFPN node on the CPU, forward and backward: small enough for its rows to stay in the
// cache between the steps (bring to size, combine; slope, dot products, bring back). Instantiated per storage type and
// instruction set in weighted_fusion.cpp.
#pragma once

#include <algorithm>
#include <cstdint>

#include "weighted_fusion_math.h"
#include "weighted_fusion_resample.h"

namespace fastnas {

// What a band needs of one input.
template <typename S>
struct EdgeJob {
  Resample resample;
  UpAxis up_rows, up_cols;
  PoolAxis pool_rows, pool_cols;
  int64_t row;                   // numbers in a row of the input
  int32_t height, width;         // cells of the input
  accumulator_t<S> share;
  const S* map;                  // the input's image
  S* buffer;                     // rows at the node's size; not used by Resample::kSame
  S* gradient;                   // the image of the input's gradient (backward)
  int32_t* places;               // of the maxima, laid out like `dz` (backward, Resample::kDown); places[-1] can be read
};

template <typename S>
struct BandJob {
  int count;                     // inputs
  EdgeJob<S> edges[kMostInputs];
  Activation activation;
  int64_t inner;                 // numbers of a cell
  int64_t row;                   // numbers of a row of the node
  int32_t from, to;              // the rows of this band
  accumulator_t<S>* lines;       // scratch of pool_lines(windows) numbers where a cell is one number
  S* out;                        // the node's image (forward)

  const S* grad;                 // gradient of the node's image (backward)
  int32_t reach_from, reach_to;  // the rows whose dz the band needs to bring gradients back: from - 1 to to + 2 at most
  accumulator_t<S>* dz;          // [reach_to - reach_from, row]; dz[-1] can be read
  bool weighted;                 // whether `dots` are wanted
  double* dots;                  // <dz, input at the node's size> over the band's own rows, one for each input
};

constexpr int64_t kChunk = 1024;  // numbers that a step handles before the next step reads them again

// The rows [from, to) of every input at the node's size: `rows[i]` points at row `from`.
template <bool kPlaces, typename S>
FASTNAS_INLINE void bring_to_size(const BandJob<S>& job, int32_t from, int32_t to, const S** rows) {
  for (int i = 0; i < job.count; ++i) {
    const EdgeJob<S>& edge = job.edges[i];
    rows[i] = edge.resample == Resample::kSame ? edge.map + from * job.row : edge.buffer;
    for (int32_t y = from; y < to; ++y) {
      S* target = edge.buffer + (y - from) * job.row;
      if (edge.resample == Resample::kUp) {
        up_row(edge.map + edge.up_rows.source(y) * edge.row, edge.up_cols, job.inner, target);
      } else if (edge.resample == Resample::kDown) {
        int32_t* places = kPlaces ? edge.places + (y - from) * job.row : nullptr;
        down_row<kPlaces>(edge.map, edge.pool_rows, edge.pool_cols, y, job.inner, job.lines, target, places);
      }
    }
  }
}

template <int kCount, typename S>
struct Combination {
  using A = accumulator_t<S>;
  const S *__restrict a, *__restrict b, *__restrict c;
  A wa, wb, wc;

  FASTNAS_INLINE Combination(const BandJob<S>& job, const S* const* rows)
      : a(rows[0]), b(rows[1]), c(rows[kCount - 1]), wa(job.edges[0].share), wb(job.edges[1].share),
        wc(job.edges[kCount - 1].share) {}
  FASTNAS_INLINE A operator()(int64_t i) const {
    const A two = widen(a[i]) * wa + widen(b[i]) * wb;
    return kCount == 3 ? two + widen(c[i]) * wc : two;
  }
};

template <int kCount, Activation kActivation, typename S>
FASTNAS_INLINE void combine(const BandJob<S>& job, const S* const* rows, int64_t count, S* __restrict out) {
  const Combination<kCount, S> sum(job, rows);
  for (int64_t i = 0; i < count; ++i) narrow(activate<kActivation>(sum(i)), out[i]);
}

// dz = grad * activation'(sum)
template <int kCount, Activation kActivation, typename S>
FASTNAS_INLINE void slope(
    const BandJob<S>& job, const S* const* rows, int64_t count, const S* __restrict grad, accumulator_t<S>* __restrict dz) {
  const Combination<kCount, S> sum(job, rows);
  for (int64_t i = 0; i < count; ++i) dz[i] = widen(grad[i]) * activation_slope<kActivation>(sum(i));
}

// Calls body(count, activation) with the run-time choice as compile-time constants.
template <typename S, typename Body>
FASTNAS_INLINE void with_choice(const BandJob<S>& job, Body&& body) {
  const auto with_activation = [&](auto count) FASTNAS_LAMBDA_INLINE {
    switch (job.activation) {
      case Activation::kNone: return body(count, std::integral_constant<Activation, Activation::kNone>{});
      case Activation::kRelu: return body(count, std::integral_constant<Activation, Activation::kRelu>{});
      case Activation::kSilu: return body(count, std::integral_constant<Activation, Activation::kSilu>{});
      case Activation::kRelu6: return;  // no name of a fusion's activation
    }
  };
  if (job.count == 2) {
    with_activation(std::integral_constant<int, 2>{});
  } else {
    with_activation(std::integral_constant<int, 3>{});
  }
}

// `runs` runs of `length` numbers: cells of a row (coarse ones are read where they lie), or whole rows that were brought to
// size before, as a single run.
template <typename S>
FASTNAS_INLINE void combine_runs(const BandJob<S>& job, const S* const* rows, int32_t runs, int64_t length, S* out) {
  with_choice(job, [&](auto inputs, auto activation) FASTNAS_LAMBDA_INLINE {
    for (int32_t x = 0; x < runs; ++x) {
      const S* cells[kMostInputs] = {};
      for (int i = 0; i < inputs.value; ++i) {
        const bool up = job.edges[i].resample == Resample::kUp;
        cells[i] = rows[i] + (up ? job.edges[i].up_cols.source(x) : x) * length;
      }
      combine<inputs.value, activation.value>(job, cells, length, out + x * length);
    }
  });
}

template <typename S>
FASTNAS_INLINE void forward_band(const BandJob<S>& job) {
  const S* rows[kMostInputs] = {};
  if (job.inner == 1) {
    bring_to_size<false>(job, job.from, job.to, rows);
    combine_runs(job, rows, 1, (job.to - job.from) * job.row, job.out + job.from * job.row);
    return;
  }
  for (int32_t y = job.from; y < job.to; ++y) {
    for (int i = 0; i < job.count; ++i) {
      const EdgeJob<S>& edge = job.edges[i];
      if (edge.resample == Resample::kSame) rows[i] = edge.map + y * job.row;
      if (edge.resample == Resample::kUp) rows[i] = edge.map + edge.up_rows.source(y) * edge.row;
      if (edge.resample == Resample::kDown) {
        down_row<false>(edge.map, edge.pool_rows, edge.pool_cols, y, job.inner, job.lines, edge.buffer, nullptr);
        rows[i] = edge.buffer;
      }
    }
    combine_runs(job, rows, static_cast<int32_t>(job.row / job.inner), job.inner, job.out + y * job.row);
  }
}

// <a, b> in a fixed order: 32 running sums, so that the loop needs no reassociation to become vector code.
template <typename S>
FASTNAS_INLINE double dot(const accumulator_t<S>* __restrict a, const S* __restrict b, int64_t count) {
  using A = accumulator_t<S>;
  constexpr int kLanes = 32;
  A lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) lanes[l] += a[i + l] * widen(b[i + l]);
  }
  double sum = 0;
  for (; i < count; ++i) sum += static_cast<double>(a[i]) * static_cast<double>(widen(b[i]));
  for (int l = 0; l < kLanes; ++l) sum += lanes[l];
  return sum;
}

// dz of the rows [from, to); for the band's own rows also the dot products and the gradients of inputs of the node's size.
template <bool kOwn, typename S>
FASTNAS_INLINE void slope_rows(const BandJob<S>& job, const S* const* reach_rows, int32_t from, int32_t to) {
  const int64_t skipped = (from - job.reach_from) * job.row, all = (to - from) * job.row;
  for (int64_t begin = 0; begin < all; begin += kChunk) {
    const int64_t count = std::min(kChunk, all - begin), at = skipped + begin;
    const S* rows[kMostInputs] = {};
    for (int i = 0; i < job.count; ++i) rows[i] = reach_rows[i] + at;
    accumulator_t<S>* dz = job.dz + at;
    const S* grad = job.grad + from * job.row + begin;
    with_choice(job, [&](auto inputs, auto activation) FASTNAS_LAMBDA_INLINE {
      slope<inputs.value, activation.value>(job, rows, count, grad, dz);
    });
    if (!kOwn) continue;
    for (int i = 0; i < job.count; ++i) {
      const EdgeJob<S>& edge = job.edges[i];
      if (job.weighted) job.dots[i] += dot(dz, rows[i], count);
      if (edge.resample != Resample::kSame) continue;
      S* __restrict gradient = edge.gradient + from * job.row + begin;
      const accumulator_t<S>* __restrict slopes = dz;
      for (int64_t k = 0; k < count; ++k) narrow(edge.share * slopes[k], gradient[k]);
    }
  }
}

template <typename S>
FASTNAS_INLINE void backward_band(const BandJob<S>& job) {
  const S* rows[kMostInputs] = {};
  bring_to_size<true>(job, job.reach_from, job.reach_to, rows);
  slope_rows<false>(job, rows, job.reach_from, job.from);
  slope_rows<true>(job, rows, job.from, job.to);
  slope_rows<false>(job, rows, job.to, job.reach_to);
  for (int i = 0; i < job.count; ++i) {
    const EdgeJob<S>& edge = job.edges[i];
    if (edge.resample == Resample::kUp) {
      int32_t y = edge.up_rows.source(job.from);
      if (edge.up_rows.first(y) < job.from) ++y;
      for (; y < edge.height && edge.up_rows.first(y) < job.to; ++y) {
        up_row_gradient<S>(
            job.dz, job.reach_from, edge.up_rows, edge.up_cols, y, edge.width, job.inner, edge.share,
            edge.gradient + y * edge.row);
      }
    } else if (edge.resample == Resample::kDown) {
      const int32_t end = edge.pool_rows.end_owned(job.to);
      for (int32_t y = edge.pool_rows.first_owned(job.from); y < end; ++y) {
        down_row_gradient<S>(
            job.dz, edge.places, job.reach_from, edge.pool_rows, edge.pool_cols, y, job.inner, edge.share,
            edge.gradient + y * edge.row);
      }
    }
  }
}

}  // namespace fastnas
