// act(GroupNorm(x) * weight + bias + residual) on the GPU (Group Normalization, Wu & He 2018), forward. Free of torch.
//
// Resident: a block owns a bundle of whole groups x a slice of the pixels of one image and keeps it in shared memory; the blocks
// of a bundle are one cluster and exchange two floats per group through distributed shared memory. x is read once and the result
// written once: the floor of 2 S bytes. Streamed, for bundles that no cluster holds (and on sm_80 no block): moments per
// tile, a small kernel that joins them, then a second pass over x: 3 S bytes.
// Moments: the mean of the tile's channel first, then deviations from it on the resident data, whose own mean corrects the first
// one's rounding; tiles are joined by the formula of Chan et al. 1979. Nothing is E[x^2] - E[x]^2.
#pragma once

#include "group_norm_call.cuh"

namespace fastnas::cuda {

struct GroupMoments {
  float count, mean, deviation;

  __device__ __forceinline__ void join(const GroupMoments& other) {
    const float all = count + other.count;
    if (all == 0.0f) return;
    const float delta = other.mean - mean, share = other.count / all;
    mean += delta * share;
    deviation += other.deviation + delta * delta * (count * share);
    count = all;
  }
  __device__ __forceinline__ GroupMoments from_lane(int offset) const {
    return {__shfl_down_sync(0xffffffffu, count, offset), __shfl_down_sync(0xffffffffu, mean, offset),
            __shfl_down_sync(0xffffffffu, deviation, offset)};
  }
  // Lane 0 gets all lanes' together.
  __device__ __forceinline__ void join_warp() {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) join(from_lane(offset));
  }
};

// kTotal0, kTotal1 = mean and squared deviations of each channel of the tile; its data is in `data` afterwards.
template <typename S, bool kLast, int kPack>
__device__ __forceinline__ void tile_moments(
    const NormCall<S>& call, const NormTile& tile, const NormShared<S>& shared, S* data) {
  using Pack = fastnas::cuda::Pack<S, kPack>;
  const float pixels = static_cast<float>(tile.pixels);
  channel_sums<kLast, kPack, kBatchForward, 1>(
      tile, [&](const Place& at) { return load_pack<kPack>(tile_address(call.x, tile, at.channel, at.pixel)); },
      [&](const Place& at, const Pack& pack, float (&sums)[1][kPack]) {
        store_pack(data + slot<kLast>(tile, call.cut, at), pack);
#pragma unroll
        for (int e = 0; e < kPack; ++e) sums[0][e] += widen(pack.value[e]);
      },
      shared.scratch, shared.row(kTotal0), shared.bundle);
  float* mean = shared.row(kMean);
  for (int c = threadIdx.x; c < tile.channels; c += blockDim.x) mean[c] = shared.row(kTotal0)[c] / pixels;
  __syncthreads();
  channel_sums<kLast, kPack, kBatchShared, 2>(
      tile, [&](const Place& at) { return load_pack<kPack>(data + slot<kLast>(tile, call.cut, at)); },
      [&](const Place& at, const Pack& pack, float (&sums)[2][kPack]) {
#pragma unroll
        for (int e = 0; e < kPack; ++e) {
          const float deviation = widen(pack.value[e]) - mean[channel_of<kLast>(at, e)];
          sums[0][e] += deviation;
          sums[1][e] += deviation * deviation;
        }
      },
      shared.scratch, shared.row(kTotal0), shared.bundle);
  for (int c = threadIdx.x; c < tile.channels; c += blockDim.x) {
    const float sum = shared.row(kTotal0)[c], shift = sum / pixels;
    const float deviation = shared.row(kTotal1)[c] - sum * shift;
    shared.row(kTotal0)[c] = mean[c] + shift;
    shared.row(kTotal1)[c] = deviation < 0.0f ? 0.0f : deviation;
  }
  __syncthreads();
}

// kMean, kScale, kOffset of the tile's channels from the means and deviations of their groups.
template <typename S>
__device__ __forceinline__ void load_parameters(
    const NormCall<S>& call, const NormTile& tile, const NormShared<S>& shared, const float* mean, const float* rstd) {
  const int per_group = static_cast<int>(call.shape.per_group());
  for (int c = threadIdx.x; c < tile.channels; c += blockDim.x) {
    const int group = (tile.channel + c) / per_group;
    shared.row(kMean)[c] = mean[group];
    shared.row(kScale)[c] = rstd[group] * call.weight.at(tile.channel + c, 1.0f);
    shared.row(kOffset)[c] = call.bias.at(tile.channel + c, 0.0f);
  }
  __syncthreads();
}

// out = act((x - mean) * scale + offset + residual) for the tile; x comes from `data`, or from the map if that is null.
template <typename S, bool kLast, int kPack>
__device__ __forceinline__ void apply_tile(
    const NormCall<S>& call, const NormTile& tile, const NormShared<S>& shared, const S* data) {
  struct Fetched {
    Pack<S, kPack> x, residual;
  };
  const float *mean = shared.row(kMean), *scale = shared.row(kScale), *offset = shared.row(kOffset);
  walk<kLast, kPack, kBatchApply>(
      tile,
      [&](const Place& at) {
        Fetched fetched;
        fetched.x = data ? load_pack<kPack>(data + slot<kLast>(tile, call.cut, at))
                         : load_pack<kPack>(tile_address(call.x, tile, at.channel, at.pixel));
        fetch_residual<kPack>(call, tile, at, fetched.residual);
        return fetched;
      },
      [&](const Place& at, const Fetched& fetched) {
        float z[kPack];
#pragma unroll
        for (int e = 0; e < kPack; ++e) {
          const int c = channel_of<kLast>(at, e);
          z[e] = (widen(fetched.x.value[e]) - mean[c]) * scale[c] + offset[c];
        }
        add_residual<kPack>(call, tile, at, fetched.residual, z);
        Pack<S, kPack> result;
#pragma unroll
        for (int e = 0; e < kPack; ++e) narrow(activate(call.activation, z[e]), result.value[e]);
        store_pack(tile_address(call.out, tile, at.channel, at.pixel), result);
      });
}

template <typename S, bool kLast, int kPack>
__global__ void __launch_bounds__(kNormThreads, 3) norm_resident(const __grid_constant__ NormCall<S> call) {
  extern __shared__ __align__(16) unsigned char memory[];
  const NormTile tile = norm_tile(call.shape, call.cut);
  const NormShared<S> shared(memory, call.cut);
  S* data = tile_data<S>(memory, call.cut, 0, 1);
  tile_moments<S, kLast, kPack>(call, tile, shared, data);

  // A warp per group joins its channels, then a thread per group the blocks of the cluster, all of them in the same order.
  const int per_group = static_cast<int>(call.shape.per_group()), groups = tile.channels / per_group;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int g = warp; g < groups; g += kNormWarps) {
    GroupMoments moments{0.0f, 0.0f, 0.0f};
    for (int c = g * per_group + lane; c < (g + 1) * per_group; c += 32) {
      moments.join({static_cast<float>(tile.pixels), shared.row(kTotal0)[c], shared.row(kTotal1)[c]});
    }
    moments.join_warp();
    if (lane == 0) {
      shared.row(kGroup0)[g] = moments.mean;
      shared.row(kGroup1)[g] = moments.deviation;
    }
  }
  __syncthreads();
  cluster_arrive(call.cut);
  cluster_wait(call.cut);
  float* means = shared.row(kLift);  // of groups; those rows serve the backward pass only
  float* rstds = shared.row(kSlope);
  for (int g = threadIdx.x; g < groups; g += blockDim.x) {
    GroupMoments moments{0.0f, 0.0f, 0.0f};
    for (int rank = 0; rank < call.cut.slices; ++rank) {
      const int64_t begin = static_cast<int64_t>(rank) * call.cut.slice_pixels;
      const float count = static_cast<float>(smaller_int(call.cut.slice_pixels, call.shape.pixels - begin) * per_group);
      const float* mean = call.cut.slices > 1 ? of_rank(shared.row(kGroup0), rank) : shared.row(kGroup0);
      const float* deviation = call.cut.slices > 1 ? of_rank(shared.row(kGroup1), rank) : shared.row(kGroup1);
      moments.join({count, mean[g], deviation[g]});
    }
    means[g] = moments.mean;
    rstds[g] = rsqrtf(moments.deviation / moments.count + call.eps);
    if (tile.slice == 0) {
      const int64_t at = tile.image * call.shape.groups + tile.channel / per_group + g;
      call.mean[at] = means[g];
      call.rstd[at] = rstds[g];
    }
  }
  __syncthreads();
  cluster_arrive(call.cut);  // this block reads no other's memory any more
  const int first_group = tile.channel / per_group;
  load_parameters(call, tile, shared, means - first_group, rstds - first_group);
  apply_tile<S, kLast, kPack>(call, tile, shared, data);
  cluster_wait(call.cut);  // nor does another read this one's: it may end
}

// Streamed, first pass: moments of every channel of every slice.
template <typename S, bool kLast, int kPack>
__global__ void __launch_bounds__(kNormThreads, 2) norm_moments(const __grid_constant__ NormCall<S> call) {
  extern __shared__ __align__(16) unsigned char memory[];
  const NormTile tile = norm_tile(call.shape, call.cut);
  const NormShared<S> shared(memory, call.cut);
  tile_moments<S, kLast, kPack>(call, tile, shared, tile_data<S>(memory, call.cut, 0, 1));
  for (int c = threadIdx.x; c < tile.channels; c += blockDim.x) {
    call.partial(tile, 0)[c] = shared.row(kTotal0)[c];
    call.partial(tile, 1)[c] = shared.row(kTotal1)[c];
  }
}

// Streamed: one block joins the slices and channels of one group of one image.
constexpr int kSettleThreads = 128;
template <typename S>
__global__ void __launch_bounds__(kSettleThreads) norm_settle(const __grid_constant__ NormCall<S> call) {
  __shared__ GroupMoments warps[kSettleThreads / 32];
  const int64_t image = blockIdx.x / call.shape.groups, group = blockIdx.x % call.shape.groups;
  const int64_t per_group = call.shape.per_group();
  GroupMoments moments{0.0f, 0.0f, 0.0f};
  for (int64_t i = threadIdx.x; i < call.cut.slices * per_group; i += kSettleThreads) {
    const int64_t slice = i / per_group, channel = group * per_group + i % per_group;
    const float* partial = call.partials + ((image * call.cut.slices + slice) * 2) * call.shape.channels + channel;
    const int pixels = smaller_int(call.cut.slice_pixels, call.shape.pixels - slice * call.cut.slice_pixels);
    moments.join({static_cast<float>(pixels), partial[0], partial[call.shape.channels]});
  }
  moments.join_warp();
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = moments;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 1; w < kSettleThreads / 32; ++w) moments.join(warps[w]);
    call.mean[blockIdx.x] = moments.mean;
    call.rstd[blockIdx.x] = rsqrtf(moments.deviation / moments.count + call.eps);
  }
}

template <typename S, bool kLast, int kPack>
__global__ void __launch_bounds__(kNormThreads, 3) norm_apply(const __grid_constant__ NormCall<S> call) {
  extern __shared__ __align__(16) unsigned char memory[];
  const NormTile tile = norm_tile(call.shape, call.cut);
  const NormShared<S> shared(memory, call.cut);
  const int64_t groups = tile.image * call.shape.groups;
  load_parameters(call, tile, shared, call.mean + groups, call.rstd + groups);
  apply_tile<S, kLast, kPack>(call, tile, shared, nullptr);
}

// call.cut is chosen, and call.partials set where it is streamed. `streamed` joins three kernels; else there is one.
template <typename S, bool kLast, int kPack>
cudaError_t norm_forward(const NormCall<S>& call, cudaStream_t stream) {
  if (call.cut.resident) {
    return launch_tiles(norm_resident<S, kLast, kPack>, call, call.cut.shared_bytes, true, stream);
  }
  cudaError_t status = launch_tiles(norm_moments<S, kLast, kPack>, call, call.cut.shared_bytes, false, stream);
  if (status != cudaSuccess) return status;
  norm_settle<S><<<static_cast<unsigned>(call.shape.images * call.shape.groups), kSettleThreads, 0, stream>>>(call);
  status = cudaGetLastError();
  if (status != cudaSuccess) return status;
  const size_t parameters = kChannelRows * call.cut.bundle * sizeof(float);
  return launch_tiles(norm_apply<S, kLast, kPack>, call, parameters, false, stream);
}

}  // namespace fastnas::cuda
