// What comes before and after csrc/cuda/nms.cuh, without torch: boxes into working order, kept boxes into a list.
//
// `order_small` does the whole ordering of an image of up to 2048 boxes in one block, by bitonic sorting in shared memory;
// above that torch's radix sort has ordered and `gather_rows` only fetches. `collect` writes the indices of the kept boxes,
// best score first, padded with -1, and their number, one block per image. All of them are bound by launch and latency:
// they move 60 bytes per box.
#pragma once

#include "../order.h"
#include "nms.cuh"

namespace fastnas::cuda {

constexpr int kSmallSort = 2048;
constexpr int kGatherThreads = 256;
constexpr int kCollectThreads = 1024, kFlagsPerThread = 8;

// As the caller gives them, contiguous; all arrays are [images, count].
template <typename T, typename Score>
struct NmsInput {
  const T* boxes;  // [images, count, 4]
  const Score* scores;
  const int64_t* classes;  // null for one class
  bool filtered;           // then only scores above `least` take part
  Score least;

  __device__ __forceinline__ bool takes_part(int64_t i) const { return !filtered || scores[i] > least; }
  __device__ __forceinline__ Corners<T> corners(int64_t i) const {
    const T* box = boxes + 4 * i;
    return {box[0], box[1], box[2], box[3]};
  }
};

inline int next_power_of_two(int64_t count) {
  int size = 2;
  while (size < count) size *= 2;
  return size;
}

// Whole block: ascending by key, then by item. `size` is a power of two; items differ.
static __device__ __forceinline__ void sort_shared(uint64_t* keys, int* items, int size) {
  for (int run = 2; run <= size; run *= 2) {
    for (int step = run / 2; step > 0; step /= 2) {
      __syncthreads();
      for (int i = static_cast<int>(threadIdx.x); i < size / 2; i += static_cast<int>(blockDim.x)) {
        const int low = 2 * i - (i & (step - 1)), high = low + step;
        const bool ascending = (low & run) == 0;
        const bool greater = keys[low] > keys[high] || (keys[low] == keys[high] && items[low] > items[high]);
        if (greater != ascending) continue;
        const uint64_t key = keys[low];
        keys[low] = keys[high];
        keys[high] = key;
        const int item = items[low];
        items[low] = items[high];
        items[high] = item;
      }
    }
  }
  __syncthreads();
}

// One block per image, `size` = next_power_of_two(count) <= kSmallSort. Fills by_score [images, count] (rank -> index),
// the rows (classes and ranks only where there are classes), and the zeros of `progress`.
template <typename T, typename Score>
__global__ void __launch_bounds__(kSmallSort / 2) order_small(
    NmsInput<T, Score> input, int count, int size, int64_t* __restrict__ by_score, Corners<T>* __restrict__ boxes,
    int64_t* __restrict__ classes, int64_t* __restrict__ ranks, bool* __restrict__ candidates, NmsProgress progress) {
  __shared__ uint64_t keys[kSmallSort];
  __shared__ int items[kSmallSort];
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int64_t base = static_cast<int64_t>(blockIdx.x) * count;

  if (blockIdx.x == 0 && thread == 0) *progress.ticket = 0;
  const int words = (count + kTile - 1) / kTile * kPublishedWords;
  for (int i = thread; i < words; i += threads) progress.published[static_cast<int64_t>(blockIdx.x) * words + i] = 0;

  // What fills up to `size` sorts last: its key is the greatest there is and its item is greater than any real one.
  for (int i = thread; i < size; i += threads) {
    keys[i] = i < count ? descending_key(input.scores[base + i]) : ~uint64_t(0);
    items[i] = i;
  }
  sort_shared(keys, items, size);
  for (int rank = thread; rank < count; rank += threads) by_score[base + rank] = items[rank];
  if (input.classes != nullptr) {
    for (int rank = thread; rank < size; rank += threads) {
      keys[rank] = rank < count ? ascending_key(input.classes[base + items[rank]]) : ~uint64_t(0);
      items[rank] = rank;
    }
    sort_shared(keys, items, size);
  }
  // by_score is read below by other threads than wrote it: sort_shared ends with a barrier, which orders them.
  for (int row = thread; row < count; row += threads) {
    int64_t index = items[row];
    if (input.classes != nullptr) {
      ranks[base + row] = items[row];
      index = by_score[base + items[row]];
      classes[base + row] = input.classes[base + index];
    }
    boxes[base + row] = input.corners(base + index);
    candidates[base + row] = input.takes_part(base + index);
  }
}

// Rows from orders that exist: by_score [images, count] and, with classes, ranks [images, count]. Grid-stride.
template <typename T, typename Score>
__global__ void __launch_bounds__(kGatherThreads) gather_rows(
    NmsInput<T, Score> input, int64_t images, int64_t count, const int64_t* __restrict__ by_score,
    const int64_t* __restrict__ ranks, Corners<T>* __restrict__ boxes, bool* __restrict__ candidates,
    NmsProgress progress) {
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  if (begin == 0) *progress.ticket = 0;
  const int64_t words = images * ((count + kTile - 1) / kTile) * kPublishedWords;
  for (int64_t i = begin; i < words; i += step) progress.published[i] = 0;
  for (int64_t row = begin; row < images * count; row += step) {
    const int64_t base = row / count * count;
    const int64_t index = base + by_score[ranks ? base + ranks[row] : row];
    boxes[row] = input.corners(index);
    candidates[row] = input.takes_part(index);
  }
}

// Whole block: the sum of `value` over the threads before this one; `total` over all of them.
static __device__ __forceinline__ int sum_before(int value, int* warp_sums, int& total) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  int sum = value;
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const int before = __shfl_up_sync(kAllLanes, sum, offset);
    if (lane >= offset) sum += before;
  }
  if (lane == kWarp - 1) warp_sums[warp] = sum;
  __syncthreads();
  int ahead = 0;
  total = 0;
  for (int w = 0; w < kCollectThreads / kWarp; ++w) {
    if (w < warp) ahead += warp_sums[w];
    total += warp_sums[w];
  }
  __syncthreads();  // before warp_sums is written again
  return ahead + sum - value;
}

// kept [images, count] by rank, by_score [images, count] -> indices [images, most], counts [images]. One block per image.
static __global__ void __launch_bounds__(kCollectThreads) collect(
    const bool* __restrict__ kept, const int64_t* __restrict__ by_score, int64_t count, int64_t most,
    int64_t* __restrict__ indices, int64_t* __restrict__ counts) {
  __shared__ int warp_sums[kCollectThreads / kWarp];
  const int64_t base = static_cast<int64_t>(blockIdx.x) * count;
  int64_t* const to = indices + static_cast<int64_t>(blockIdx.x) * most;
  int64_t done = 0;
  for (int64_t begin = 0; begin < count && done < most; begin += kCollectThreads * kFlagsPerThread) {
    const int64_t mine = begin + static_cast<int64_t>(threadIdx.x) * kFlagsPerThread;
    uint32_t flags = 0;
    for (int i = 0; i < kFlagsPerThread; ++i) {
      if (mine + i < count && kept[base + mine + i]) flags |= 1u << i;
    }
    int total = 0;
    int64_t place = done + sum_before(__popc(flags), warp_sums, total);
    for (int i = 0; i < kFlagsPerThread; ++i) {
      if ((flags >> i & 1) == 0) continue;
      if (place < most) to[place] = by_score[base + mine + i];
      ++place;
    }
    done += total;
  }
  done = smaller(done, most);
  for (int64_t i = done + threadIdx.x; i < most; i += kCollectThreads) to[i] = -1;
  if (threadIdx.x == 0) counts[blockIdx.x] = done;
}

}  // namespace fastnas::cuda
