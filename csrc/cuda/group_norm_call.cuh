// One call of GroupNorm on the GPU as its kernels see it: the maps, the parameters, how they are cut, and the choice of the cut.
// Free of torch.
#pragma once

#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "group_norm_tile.cuh"

namespace fastnas::cuda {

// weight or bias [C] in whatever type it has; null: `otherwise` for every channel.
enum class ValueType { kFloat, kHalf, kBFloat16 };
struct ChannelValues {
  const void* data;
  ValueType type;

  __device__ __forceinline__ float at(int channel, float otherwise) const {
    if (!data) return otherwise;
    if (type == ValueType::kHalf) return widen(static_cast<const __half*>(data)[channel]);
    if (type == ValueType::kBFloat16) return widen(static_cast<const __nv_bfloat16*>(data)[channel]);
    return static_cast<const float*>(data)[channel];
  }
};

// S: type of x, grad and the results. A residual and its gradient are of type S or fp32.
template <typename S>
struct NormCall {
  GroupShape shape;
  NormCut cut;
  Activation activation;
  MapView<const S> x, grad;
  MapView<const S> residual;
  MapView<const float> wide_residual;
  MapView<S> out;  // the forward result or dx; null: not wanted
  MapView<S> residual_grad;
  MapView<float> wide_residual_grad;
  ChannelValues weight, bias;
  float eps;
  float* mean;      // [N, groups]: written forward, read backward
  float* rstd;      // [N, groups]
  float* partials;  // [N, slices, 2, C]: means and squared deviations, or sums of dz * x^ and of dz
  float* lift;      // [N, groups] for a backward pass that is not resident: dx = scale * dz - lift - slope * (x - mean)
  float* slope;     // [N, groups]

  __device__ __forceinline__ float* partial(const NormTile& tile, int value) const {
    return partials + ((tile.image * cut.slices + tile.slice) * 2 + value) * shape.channels + tile.channel;
  }
};

// Floats of a tile in shared memory before its data: parameters and totals per channel, totals per group, scratch.
constexpr int kChannelRows = 9;
enum ChannelRow { kMean, kScale, kOffset, kLift, kSlope, kTotal0, kTotal1, kGroup0, kGroup1 };

// The shared memory of a block. Group totals are exchanged between the blocks of a cluster.
template <typename S>
struct NormShared {
  float* rows;     // [kChannelRows][bundle]
  float* scratch;
  int bundle;

  __device__ __forceinline__ NormShared(unsigned char* memory, const NormCut& cut)
      : rows(reinterpret_cast<float*>(memory)), scratch(rows + kChannelRows * cut.bundle), bundle(cut.bundle) {}
  __device__ __forceinline__ float* row(int which) const { return rows + which * bundle; }
};

// The data of the tile lies behind everything else, at a multiple of 16 bytes.
template <typename S>
__device__ __forceinline__ S* tile_data(unsigned char* memory, const NormCut& cut, int which, int maps) {
  const size_t elements = static_cast<size_t>(cut.bundle) * cut.slice_pixels;
  return reinterpret_cast<S*>(memory + cut.shared_bytes) - (maps - which) * elements;
}

// A residual of type S is fetched with x, several packs ahead. One of fp32 beside narrower maps is rarer and would take more
// registers than there are: it is read where it is used.
template <int kPack, typename S>
__device__ __forceinline__ void fetch_residual(
    const NormCall<S>& call, const NormTile& tile, const Place& at, Pack<S, kPack>& fetched) {
  if (call.residual.data) fetched = load_pack<kPack>(tile_address(call.residual, tile, at.channel, at.pixel));
}
template <int kPack, typename S>
__device__ __forceinline__ void add_residual(
    const NormCall<S>& call, const NormTile& tile, const Place& at, const Pack<S, kPack>& fetched, float (&z)[kPack]) {
  if (call.residual.data) {
#pragma unroll
    for (int e = 0; e < kPack; ++e) z[e] += widen(fetched.value[e]);
  } else if (call.wide_residual.data) {
    constexpr int kPart = kPack < 4 ? kPack : 4;
    const float* from = tile_address(call.wide_residual, tile, at.channel, at.pixel);
#pragma unroll
    for (int part = 0; part < kPack; part += kPart) {
      const auto pack = load_pack<kPart>(from + part);
#pragma unroll
      for (int e = 0; e < kPart; ++e) z[part + e] += pack.value[e];
    }
  }
}

__device__ __forceinline__ float sigmoid(float z) { return 1.0f / (1.0f + __expf(-z)); }

// act(z); comparisons let NaN through, as torch does.
__device__ __forceinline__ float activate(Activation activation, float z) {
  if (activation == Activation::kRelu) return z < 0.0f ? 0.0f : z;
  if (activation == Activation::kSilu) return z / (1.0f + __expf(-z));
  return z;
}
// grad * act'(z)
__device__ __forceinline__ float activation_gradient(Activation activation, float grad, float z) {
  if (activation == Activation::kRelu) return z <= 0.0f ? 0.0f : grad;
  if (activation == Activation::kSilu) {
    const float s = sigmoid(z);
    return grad * s * (1.0f + z * (1.0f - s));
  }
  return grad;
}

// ---------------------------------------------------------------------------------------------------------------------
// Clusters (sm_90 and newer; elsewhere a tile is resident only when one block holds its whole bundle)

__device__ __forceinline__ void cluster_arrive(const NormCut& cut) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if (cut.slices > 1) cooperative_groups::this_cluster().barrier_arrive();
#endif
}
__device__ __forceinline__ void cluster_wait(const NormCut& cut) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if (cut.slices > 1) cooperative_groups::this_cluster().barrier_wait();
#endif
}
// `own`, an address in shared memory, in the block of that rank.
__device__ __forceinline__ const float* of_rank(float* own, int rank) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  return cooperative_groups::this_cluster().map_shared_rank(own, rank);
#else
  return own;
#endif
}

// ---------------------------------------------------------------------------------------------------------------------
// The cut

struct NormDevice {
  int multiprocessors, block_shared, all_shared, clusters;

  static cudaError_t current(NormDevice& device) {
    int index = 0;
    cudaError_t status = cudaGetDevice(&index);
    const auto ask = [&](int& value, cudaDeviceAttr attribute) {
      if (status == cudaSuccess) status = cudaDeviceGetAttribute(&value, attribute, index);
    };
    ask(device.multiprocessors, cudaDevAttrMultiProcessorCount);
    ask(device.block_shared, cudaDevAttrMaxSharedMemoryPerBlockOptin);
    ask(device.all_shared, cudaDevAttrMaxSharedMemoryPerMultiprocessor);
    ask(device.clusters, cudaDevAttrClusterLaunch);
    return status;
  }
};

constexpr int kMaxCluster = 8;         // what every device with clusters accepts
constexpr int kBatchForward = 4;       // packs in flight per thread
constexpr int kBatchShared = 1;        // of what comes from shared memory
constexpr int kBatchApply = 2;         // of x and the residual
constexpr int kBatchBackward = 2;      // of each of two or three maps
constexpr int kStreamBytes = 32 << 10; // of a tile that is not resident
constexpr int kStreamChannels = 512;   // of such a tile: their parameters are in shared memory too, 36 bytes each

// element_bytes: of x. maps: that stay in shared memory. batch: the smallest that the kernels sum with (it needs most scratch).
struct NormCutter {
  GroupShape shape;
  NormDevice device;
  int element_bytes, pack, maps, batch;

  size_t bytes_before_data(int bundle, int64_t slice_pixels) const {
    const int across = static_cast<int>(shape.channels_last ? bundle / pack : (slice_pixels + pack - 1) / pack);
    int64_t scratch = 0;
    if (shape.channels_last) {
      // A last bundle with fewer channels may need more rows, but never more than one per thread.
      const bool even = shape.channels % bundle == 0;
      scratch = 2 * (even ? int64_t(scratch_rows(across, kNormThreads)) * bundle : int64_t(kNormThreads) * pack);
    } else {
      const int64_t units = (across + 32 * batch - 1) / (32 * batch);
      scratch = 2 * units * bundle;
    }
    return (static_cast<size_t>(kChannelRows * bundle + scratch) * sizeof(float) + 15) / 16 * 16;
  }

  NormCut cut(int bundle, int64_t slices, bool resident) const {
    NormCut result{};
    const int64_t pixels = (shape.pixels + slices - 1) / slices;
    result.bundle = bundle;
    result.slice_pixels = static_cast<int>((pixels + pack - 1) / pack * pack);
    result.slices = static_cast<int>((shape.pixels + result.slice_pixels - 1) / result.slice_pixels);
    result.bundles = static_cast<int>((shape.channels + bundle - 1) / bundle);
    result.resident = resident;
    result.shared_limit = device.block_shared;
    result.blocks = shape.images * result.bundles * result.slices;
    result.shared_bytes = bytes_before_data(bundle, result.slice_pixels) + data_bytes(result);
    return result;
  }
  size_t data_bytes(const NormCut& cut) const {
    const size_t bytes = static_cast<size_t>(cut.bundle) * cut.slice_pixels * element_bytes * maps;
    return (bytes + 15) / 16 * 16;
  }
  // A row of a pack's neighbours must fit the threads of a block.
  bool fits_threads(int bundle) const {
    return bundle % pack == 0 && (!shape.channels_last || bundle / pack <= kNormThreads);
  }

  // The best cut whose bundles of whole groups stay on the chip; blocks == 0 if there is none.
  // Worth: lines that are read whole, multiprocessors that all have work, two blocks on each (one reads while the other
  // writes), and tiles that are long against the fixed cost of a block.
  NormCut resident() const {
    NormCut best{};
    double best_worth = 0;
    for (int64_t groups = 1; groups <= shape.groups; ++groups) {
      const int64_t bundle = groups * shape.per_group();
      if (shape.groups % groups != 0 || bundle > 4096 || !fits_threads(static_cast<int>(bundle))) continue;
      for (int slices = 1; slices <= (device.clusters ? kMaxCluster : 1); slices *= 2) {
        if (shape.pixels / slices > device.block_shared) continue;  // far too many, and no int
        const NormCut candidate = cut(static_cast<int>(bundle), slices, true);
        if (candidate.slices != slices || candidate.shared_bytes > static_cast<size_t>(device.block_shared)) continue;
        const double bytes = static_cast<double>(data_bytes(candidate));
        const double line = static_cast<double>(bundle * element_bytes);
        const double whole_lines = !shape.channels_last || line >= 128 ? 1.0 : line >= 64 ? 0.95 : line >= 32 ? 0.7 : 0.35;
        const double busy = std::min(1.0, static_cast<double>(candidate.blocks) / device.multiprocessors);
        const bool two = 2 * (candidate.shared_bytes + 1024) <= static_cast<size_t>(device.all_shared);
        const double worth = whole_lines * busy * (two ? 1.0 : 0.85) * bytes / (bytes + 4096);
        if (worth > best_worth * 1.0001) {
          best = candidate;
          best_worth = worth;
        }
      }
    }
    return best;
  }

  // Tiles that need not hold whole groups.
  NormCut streamed() const {
    const int64_t line = std::max<int64_t>(pack, 128 / element_bytes);
    if (shape.channels_last) {
      const int bundle = static_cast<int>(std::min<int64_t>(shape.channels, line));
      const int64_t pixels = std::max<int64_t>(1, kStreamBytes / (int64_t(bundle) * element_bytes));
      return cut(bundle, (shape.pixels + pixels - 1) / pixels, false);
    }
    const int64_t slices = (shape.pixels * element_bytes + kStreamBytes - 1) / kStreamBytes;
    const int64_t fit = std::max<int64_t>(1, kStreamBytes / (shape.pixels * element_bytes));
    const int64_t channels = std::min<int64_t>(fit, kStreamChannels);
    return cut(static_cast<int>(std::min(channels, shape.channels)), slices, false);
  }
};

// Launches with the cut's grid; blocks of a resident bundle form a cluster.
template <typename Call>
cudaError_t launch_tiles(void (*kernel)(Call), const Call& call, size_t shared_bytes, bool cluster, cudaStream_t stream) {
  if (shared_bytes > 48 * 1024) {
    // Always the most: a smaller limit could undercut another thread's between its setting and its launch.
    const cudaError_t status = cudaFuncSetAttribute(
        reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, call.cut.shared_limit);
    if (status != cudaSuccess) return status;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(call.cut.blocks));
  config.blockDim = dim3(kNormThreads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = static_cast<unsigned>(call.cut.slices);
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  config.attrs = &attribute;
  config.numAttrs = cluster && call.cut.slices > 1 ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, call);
}

}  // namespace fastnas::cuda
