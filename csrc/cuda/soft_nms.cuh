// Soft-NMS on the GPU, without torch: see csrc/soft_decay.h for the formula.
//
// One block does everything, because every chosen box hangs on all that were chosen before. Thread t owns the boxes t,
// t + threads, ...: per chosen box it multiplies their decays, drops what has fallen to the threshold and notes its best; the
// block then votes for the next box with one barrier (warp maxima into shared memory, which every warp reduces again for
// itself; two sets of them alternate, so no second barrier is needed). The boxes live in shared memory as long as they fit
// (28 bytes each, 36 with classes: 8000 boxes on sm_90), else in global memory, which is the same code at the latency of L2.
// Bound: chosen * (barrier + boxes / threads overlaps), about 0.3 us per chosen box at 2000 boxes; not bytes.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../soft_decay.h"

namespace fastnas::cuda {

constexpr int kSoftThreads = 1024;
constexpr int kSoftWarp = 32;

// Per box, `count` each: in this order one after the other, so that each array is aligned to its type.
struct SoftState {
  float4* corners;   // [count]
  int64_t* classes;  // [count], or null for one class
  float* scores;
  float* decays;
  int32_t* orders;  // score_order of score * decay, or kOutOfPlay

  __host__ __device__ static size_t bytes_per_box(bool classes) { return 16 + (classes ? 8 : 0) + 3 * 4; }

  __host__ __device__ static SoftState in(void* memory, int64_t count, bool with_classes) {
    SoftState state;
    state.corners = static_cast<float4*>(memory);
    char* rest = reinterpret_cast<char*>(state.corners + count);
    state.classes = with_classes ? reinterpret_cast<int64_t*>(rest) : nullptr;
    rest += with_classes ? 8 * count : 0;
    state.scores = reinterpret_cast<float*>(rest);
    state.decays = state.scores + count;
    state.orders = reinterpret_cast<int32_t*>(state.decays + count);
    return state;
  }
};

struct SoftInput {
  const float* boxes;      // [count, 4]
  const float* scores;     // [count]
  const int64_t* classes;  // [count] or null
  int64_t count;           // below 2^32
  SoftDecay<float> decay;
  float least;   // only scores above it are in play
  int64_t most;  // no more boxes than this
};

struct SoftOutput {
  int64_t* indices;  // [most]
  float* rescored;   // [most]
  float* decays;     // [most]
  int64_t* chosen;   // [1] how many
};

// Greater for a higher order, then for a lower index; 0 for nothing in play.
__device__ __forceinline__ uint64_t ballot_paper(int32_t order, int64_t index) {
  if (order == kOutOfPlay<int32_t>) return 0;
  const uint32_t place = static_cast<uint32_t>(order) ^ 0x80000000u;
  return uint64_t(place) << 32 | (0xffffffffu - static_cast<uint32_t>(index));
}

__device__ __forceinline__ uint64_t warp_greatest(uint64_t paper) {
  for (int offset = kSoftWarp / 2; offset > 0; offset /= 2) {
    const uint64_t other = __shfl_xor_sync(0xffffffffu, static_cast<unsigned long long>(paper), offset);
    paper = other > paper ? other : paper;
  }
  return paper;
}

// `global`: memory for count boxes, or null for dynamic shared memory. One block, a multiple of 32 threads.
template <bool kGaussian>
__global__ void __launch_bounds__(kSoftThreads) soft_nms(SoftInput input, void* global, SoftOutput output) {
  extern __shared__ float4 dynamic_shared[];
  __shared__ uint64_t papers[2][kSoftThreads / kSoftWarp];
  const SoftState state = SoftState::in(global ? global : dynamic_shared, input.count, input.classes != nullptr);
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int lane = thread % kSoftWarp, warp = thread / kSoftWarp, warps = threads / kSoftWarp;

  uint64_t best = 0;
  for (int64_t i = thread; i < input.count; i += threads) {
    const float* box = input.boxes + 4 * i;
    const float score = input.scores[i];
    const int32_t order = score > input.least ? score_order(score) : kOutOfPlay<int32_t>;
    state.corners[i] = make_float4(box[0], box[1], box[2], box[3]);
    state.scores[i] = score;
    state.decays[i] = 1.0f;
    state.orders[i] = order;
    if (state.classes) state.classes[i] = input.classes[i];
    const uint64_t paper = ballot_paper(order, i);
    best = paper > best ? paper : best;
  }

  int64_t chosen = 0;
  for (; chosen < input.most; ++chosen) {
    uint64_t* const vote = papers[chosen % 2];
    best = warp_greatest(best);
    if (lane == 0) vote[warp] = best;
    __syncthreads();  // after it the writes of the pass before are seen, and the other set of papers is free
    const uint64_t winner = warp_greatest(lane < warps ? vote[lane] : 0);
    if (winner == 0) break;  // the same on all threads
    const int64_t index = 0xffffffffu - static_cast<uint32_t>(winner);
    const float4 corners = state.corners[index];
    const Box<float> box{corners.x, corners.y, corners.z, corners.w};
    const float box_area = area(box);
    const int64_t box_class = state.classes ? state.classes[index] : 0;
    if (thread == 0) {
      const float decay = state.decays[index];  // nobody writes it again: the pass below skips the chosen box
      output.indices[chosen] = index;
      output.rescored[chosen] = state.scores[index] * decay;
      output.decays[chosen] = decay;
    }
    best = 0;
    for (int64_t i = thread; i < input.count; i += threads) {
      int32_t order = state.orders[i];
      if (order == kOutOfPlay<int32_t>) continue;
      if (i == index) {
        state.orders[i] = kOutOfPlay<int32_t>;
        continue;
      }
      if (!state.classes || state.classes[i] == box_class) {
        const float4 own = state.corners[i];
        const Box<float> other{own.x, own.y, own.z, own.w};
        const float decay = state.decays[i] * input.decay.factor<kGaussian>(box, box_area, other, area(other));
        const float value = state.scores[i] * decay;
        order = value > input.least ? score_order(value) : kOutOfPlay<int32_t>;
        state.decays[i] = decay;
        state.orders[i] = order;
      }
      const uint64_t paper = ballot_paper(order, i);
      best = paper > best ? paper : best;
    }
  }
  if (thread == 0) *output.chosen = chosen;
}

}  // namespace fastnas::cuda
