// Greedy non-maximum suppression on the GPU in one launch for all classes of all images, without torch and without an N x N
// mask. csrc/cuda/nms_order.cuh sorts the boxes by class and score before it and collects the kept ones after it.
//
// One block owns a tile: 64 boxes in that order. A box survives if no kept box of its own class before it overlaps it.
//   (1) The 64 x 64 overlaps inside the tile become one 64-bit word per box, which one warp holds in registers.
//   (2) Boxes whose class begins inside the tile hang on nothing else: they are decided and published ("early").
//   (3) Boxes of the class that continues from the tile before wait for the earlier tiles of that class, and only for them.
//       Each warp takes every eighth of those: where the tile is already decided only its kept boxes are compared, else
//       all are compared while waiting, so that between two tiles of a class stand one 32-byte read from L2, one vote
//       and one store. Then they are decided and published ("late").
// Blocks take tiles in the order in which they start to run, so a block only ever waits for blocks that already run: no
// order of scheduling can hang. What is published carries its own "ready" bit in the same 64-bit word, so no fence is needed.
// Work: sum over classes of n^2 / 2 overlaps at most. Bytes: 33 N read, 1 N + N / 2 written. Chain: n / 64 steps of the
// largest class.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../geometry.h"

namespace fastnas::cuda {

constexpr int kTile = 64;
constexpr int kWarp = 32;
constexpr int kDecideThreads = 256;
constexpr int kDecideWarps = kDecideThreads / kWarp;
constexpr unsigned kAllLanes = 0xffffffffu;

inline int64_t tile_count(int64_t boxes) { return (boxes + kTile - 1) / kTile; }

// The corners of a box in memory of ours, moved in one access.
template <typename T>
struct alignas(4 * sizeof(T)) Corners {
  T x1, y1, x2, y2;
  __device__ __forceinline__ Box<T> box() const { return {x1, y1, x2, y2}; }
};

// The boxes of all images in working order: by class and, inside a class, by score. All arrays are [images, count].
template <typename T>
struct NmsRows {
  Corners<T>* boxes;
  const int64_t* classes;  // null for one class
  const int64_t* ranks;    // place by score alone; null where that is the working order
  bool* candidates;        // the score is above the threshold
  int64_t images, count;
};

// What blocks tell each other. `published` [images * tiles][early, late][low, high half]: 32 bits that say which boxes are
// kept, and above them the bit kReady. All zero before the launch, `ticket` too.
struct NmsProgress {
  uint64_t* published;
  unsigned long long* ticket;
};
constexpr uint64_t kReady = uint64_t(1) << 32;
constexpr int kEarly = 0, kLate = 2, kPublishedWords = 4;

__device__ __forceinline__ uint64_t join(uint32_t low, uint32_t high) { return uint64_t(high) << 32 | low; }

// The lowest `count` bits.
__device__ __forceinline__ uint64_t first_bits(int count) {
  return count >= 64 ? ~uint64_t(0) : (uint64_t(1) << count) - 1;
}

// Whole warp. The kept bits of one part of a tile, or false if they are not published yet; the same on all lanes.
__device__ __forceinline__ bool read_published(const uint64_t* part, int lane, uint64_t& kept) {
  // volatile: read from L2 every time, for another multiprocessor writes it
  const uint64_t word = lane < 2 ? *static_cast<const volatile uint64_t*>(part + lane) : kReady;
  if (__ballot_sync(kAllLanes, (word & kReady) != 0) != kAllLanes) return false;
  const uint32_t bits = static_cast<uint32_t>(word);
  kept = join(__shfl_sync(kAllLanes, bits, 0), __shfl_sync(kAllLanes, bits, 1));
  return true;
}

// Whole warp.
__device__ __forceinline__ void publish(uint64_t* part, int lane, uint64_t kept) {
  if (lane < 2) *static_cast<volatile uint64_t*>(part + lane) = kReady | (kept >> (32 * lane) & 0xffffffffu);
}

// Whole warp. Of the candidates those that no kept candidate before them overlaps. `low` and `high` hold the earlier boxes
// that overlap box `lane` and box `lane + 32`. Every round decides at least one more box for good (box k is right after k
// rounds, as it hangs on earlier ones only), most rounds decide all that hang on chains of that length: 3 to 8 in practice.
__device__ __forceinline__ uint64_t greedy(uint64_t candidates, uint64_t low, uint64_t high, int lane) {
  const bool low_takes_part = candidates >> lane & 1, high_takes_part = candidates >> (lane + 32) & 1;
  uint64_t kept = candidates, before;
  do {
    before = kept;
    const uint32_t low_kept = __ballot_sync(kAllLanes, low_takes_part && (low & before) == 0);
    const uint32_t high_kept = __ballot_sync(kAllLanes, high_takes_part && (high & before) == 0);
    kept = join(low_kept, high_kept);
  } while (kept != before);
  return kept;
}

// As `overlaps`, without the division for most pairs. fl(i / u) > t needs i / u > t, and that, for u > 0, i >= fl(t * u),
// because rounding keeps order; where u is not positive the product is not above i, so the quotient decides.
template <typename T>
__device__ __forceinline__ bool overlaps_quickly(
    const Box<T>& kept, T kept_area, const Box<T>& box, T box_area, T threshold) {
  const T width = larger(T(0), smaller(kept.x2, box.x2) - larger(kept.x1, box.x1));
  const T height = larger(T(0), smaller(kept.y2, box.y2) - larger(kept.y1, box.y1));
  const T intersection = width * height;
  const T both = kept_area + box_area - intersection;
  if (intersection < threshold * both && threshold >= T(0)) return false;
  return intersection / both > threshold;
}

// The first row of the class of row `row`, which has the same class as the row before it: classes ascend.
__device__ __forceinline__ int64_t class_begin(const int64_t* classes, int64_t row) {
  if (classes == nullptr) return 0;
  const int64_t value = classes[row];
  int64_t low = 0, high = row;  // the answer is in [low, high]
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (classes[middle] < value) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// kept: [images, count] by rank. Grid: images * tile_count(count) blocks.
template <typename T>
__global__ void __launch_bounds__(kDecideThreads, sizeof(T) == 8 ? 2 : 4) decide(  // two, as fp64 needs more registers
    NmsRows<T> rows, T threshold, NmsProgress progress, bool* __restrict__ kept) {
  __shared__ Corners<T> boxes[kTile];
  __shared__ T areas[kTile];
  __shared__ int64_t classes[kTile];
  __shared__ uint16_t overlapped[kTile][4];  // as one 64-bit number: the earlier boxes of the tile that overlap this one
  __shared__ Corners<T> others[kDecideWarps][kTile];
  __shared__ T other_areas[kDecideWarps][kTile];
  __shared__ unsigned long long dead;  // of the boxes that wait: overlapped by a kept box of an earlier tile
  __shared__ uint64_t candidates, final_kept;
  __shared__ uint32_t halves[2][2];  // candidates, then boxes of the continuing class
  __shared__ int64_t block_tile;

  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
  if (thread == 0) {
    block_tile = static_cast<int64_t>(atomicAdd(progress.ticket, 1ull));
    dead = 0;
  }
  __syncthreads();
  const int64_t tiles = (rows.count + kTile - 1) / kTile;
  const int64_t image = block_tile / tiles, tile = block_tile % tiles;
  const int64_t first = tile * kTile;  // row in the image
  const Corners<T>* const image_boxes = rows.boxes + image * rows.count;
  const int64_t* const image_classes = rows.classes ? rows.classes + image * rows.count : nullptr;
  uint64_t* const image_published = progress.published + image * tiles * kPublishedWords;
  uint64_t* const published = image_published + tile * kPublishedWords;
  const int size = static_cast<int>(smaller<int64_t>(kTile, rows.count - first));

  if (thread < kTile) {  // warps 0 and 1
    const bool inside = thread < size;
    const Corners<T> corners = inside ? image_boxes[first + thread] : Corners<T>{};
    const int64_t value = inside && image_classes ? image_classes[first + thread] : 0;
    boxes[thread] = corners;
    areas[thread] = area(corners.box());
    classes[thread] = value;
    const bool takes_part = inside && rows.candidates[image * rows.count + first + thread];
    const bool continues =
        inside && tile > 0 && (image_classes == nullptr || value == image_classes[first - 1]);  // classes ascend: a prefix
    const uint32_t part = __ballot_sync(kAllLanes, takes_part);
    const uint32_t prefix = __ballot_sync(kAllLanes, continues);
    if (lane == 0) {
      halves[0][warp] = part;
      halves[1][warp] = prefix;
    }
  }
  __syncthreads();

  {  // (1) thread = (quarter of the rows, column); no barrier is needed before: everything above is only read
    const int column = thread % kTile, quarter = thread / kTile;
    const Box<T> box = boxes[column].box();
    uint32_t word = 0;
    for (int bit = 0; bit < 16; ++bit) {
      const int row = quarter * 16 + bit;
      if (row < column && column < size && classes[row] == classes[column] &&
          overlaps_quickly(boxes[row].box(), areas[row], box, areas[column], threshold)) {
        word |= 1u << bit;
      }
    }
    overlapped[column][quarter] = static_cast<uint16_t>(word);
    if (thread == 0) candidates = join(halves[0][0], halves[0][1]);
  }
  __syncthreads();

  const uint64_t waiting = join(halves[1][0], halves[1][1]);  // the boxes of the continuing class
  const auto word_of = [&](int column) {
    return uint64_t(overlapped[column][0]) | uint64_t(overlapped[column][1]) << 16 |
        uint64_t(overlapped[column][2]) << 32 | uint64_t(overlapped[column][3]) << 48;
  };
  uint64_t early = 0;
  if (warp == 0) {  // (2)
    early = greedy(candidates & ~waiting, word_of(lane), word_of(lane + 32), lane);
    publish(published + kEarly, lane, early);
  }

  const uint64_t hoping = candidates & waiting;
  if (hoping != 0) {  // (3), the same for the whole block
    const Box<T> low_box = boxes[lane].box(), high_box = boxes[lane + 32].box();
    const T low_area = areas[lane], high_area = areas[lane + 32];
    const int64_t begin = class_begin(image_classes, first);
    const int64_t first_tile = begin / kTile;
    for (int64_t earlier = first_tile + warp; earlier < tile; earlier += kDecideWarps) {
      const auto all_dead = [&] {
        const unsigned long long now = lane == 0 ? atomicOr(&dead, 0ull) : 0ull;
        return (hoping & ~__shfl_sync(kAllLanes, now, 0)) == 0;
      };
      if (all_dead()) break;
      // Where the class begins inside a tile its boxes are decided early, from the row where it begins to the last.
      const bool begins_here = earlier == first_tile;
      const uint64_t same_class = begins_here ? ~first_bits(static_cast<int>(begin % kTile)) : ~uint64_t(0);
      const uint64_t* const part = image_published + earlier * kPublishedWords + (begins_here ? kEarly : kLate);
      uint64_t earlier_kept = 0;
      bool known = read_published(part, lane, earlier_kept);
      const uint64_t compared = same_class & (known ? earlier_kept : ~uint64_t(0));
      if (compared == 0) continue;

      __syncwarp();  // the lanes have read what they overwrite now
      for (int row = lane; row < kTile; row += kWarp) {
        const Corners<T> corners = image_boxes[earlier * kTile + row];  // an earlier tile is a full one
        others[warp][row] = corners;
        other_areas[warp][row] = area(corners.box());
      }
      __syncwarp();
      uint64_t low_hits = 0, high_hits = 0;
      for (int half = 0; half < 2; ++half) {
        uint32_t low_bits = 0, high_bits = 0;
        for (uint32_t left = static_cast<uint32_t>(compared >> (32 * half)); left != 0; left &= left - 1) {
          const uint32_t bit = left & (0u - left);
          const int row = 32 * half + __ffs(static_cast<int>(left)) - 1;
          const Box<T> other = others[warp][row].box();
          const T other_area = other_areas[warp][row];
          if (overlaps_quickly(other, other_area, low_box, low_area, threshold)) low_bits |= bit;
          if (overlaps_quickly(other, other_area, high_box, high_area, threshold)) high_bits |= bit;
        }
        low_hits |= uint64_t(low_bits) << (32 * half);
        high_hits |= uint64_t(high_bits) << (32 * half);
      }
      while (!known) {
        known = read_published(part, lane, earlier_kept);
        if (known || all_dead()) break;  // all dead: decided already, and earlier_kept stays 0
        // The turn of this tile comes after all tiles between, each of which takes longer than this.
        __nanosleep(static_cast<unsigned>(smaller<int64_t>(100 * (tile - earlier - 1), 20000)));
      }
      const uint64_t striking = earlier_kept & same_class;
      const uint32_t low_dead = __ballot_sync(kAllLanes, (low_hits & striking) != 0);
      const uint32_t high_dead = __ballot_sync(kAllLanes, (high_hits & striking) != 0);
      if (lane == 0 && (low_dead | high_dead) != 0) atomicOr(&dead, static_cast<unsigned long long>(join(low_dead, high_dead)));
    }
  }
  __syncthreads();
  if (warp == 0) {
    const uint64_t late = greedy(hoping & ~dead, word_of(lane), word_of(lane + 32), lane);
    publish(published + kLate, lane, late);
    if (lane == 0) final_kept = early | late;
  }
  __syncthreads();
  if (thread < size) {
    const int64_t row = image * rows.count + first + thread;
    const int64_t rank = rows.ranks ? rows.ranks[row] : first + thread;
    kept[image * rows.count + rank] = final_kept >> thread & 1;
  }
}

}  // namespace fastnas::cuda
