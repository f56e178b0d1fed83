// The backward pass of act(GroupNorm(x) * weight + bias + residual) on the GPU. Free of torch.
//
// With dz = grad * act'(z), z computed again from x (and the residual), n numbers in a group, x^ = (x - mean) * rstd:
//   dbias_c = sum dz      dweight_c = sum dz * x^      dresidual = dz
//   dx = rstd * (weight_c * dz - sum_group(weight * dz) / n - x^ * sum_group(weight * dz * x^) / n)
// Resident: the block keeps x and grad of its tile in shared memory, the blocks of a bundle are a cluster that exchanges two floats
// per group: 3 S bytes, the floor (a residual is read twice, the second time mostly from L2). Streamed: sums, a small kernel
// that joins them, a second pass: 5 S bytes. Either way tiles leave two sums per channel, and a last small kernel adds them up
// for weight and bias in a fixed order.
#pragma once

#include "group_norm_forward.cuh"

namespace fastnas::cuda {

template <typename S, int kPack>
struct GradientPacks {
  Pack<S, kPack> x, grad, residual;
};

template <typename S, bool kLast, int kPack>
__device__ __forceinline__ GradientPacks<S, kPack> load_gradient_packs(
    const NormCall<S>& call, const NormTile& tile, const Place& at, const S* x, const S* grad) {
  GradientPacks<S, kPack> packs;
  packs.x = x ? load_pack<kPack>(x + slot<kLast>(tile, call.cut, at))
              : load_pack<kPack>(tile_address(call.x, tile, at.channel, at.pixel));
  packs.grad = grad ? load_pack<kPack>(grad + slot<kLast>(tile, call.cut, at))
                    : load_pack<kPack>(tile_address(call.grad, tile, at.channel, at.pixel));
  fetch_residual<kPack>(call, tile, at, packs.residual);
  return packs;
}

// z = (x - mean) * scale + offset + residual
template <typename S, bool kLast, int kPack>
__device__ __forceinline__ void input_of_activation(
    const NormCall<S>& call, const NormTile& tile, const NormShared<S>& shared, const Place& at,
    const GradientPacks<S, kPack>& packs, float (&z)[kPack]) {
#pragma unroll
  for (int e = 0; e < kPack; ++e) {
    const int c = channel_of<kLast>(at, e);
    z[e] = (widen(packs.x.value[e]) - shared.row(kMean)[c]) * shared.row(kScale)[c] + shared.row(kOffset)[c];
  }
  add_residual<kPack>(call, tile, at, packs.residual, z);
}

// kTotal0, kTotal1 = sums of dz * x^ and of dz of each channel of the tile, also written to the partial sums. x and grad, if
// not null, get a copy of the tile's data.
template <typename S, bool kLast, int kPack>
__device__ __forceinline__ void tile_gradient_sums(
    const NormCall<S>& call, const NormTile& tile, const NormShared<S>& shared, S* x, S* grad) {
  const float* mean = shared.row(kMean);
  channel_sums<kLast, kPack, kBatchBackward, 2>(
      tile,
      [&](const Place& at) { return load_gradient_packs<S, kLast, kPack>(call, tile, at, nullptr, nullptr); },
      [&](const Place& at, const GradientPacks<S, kPack>& packs, float (&sums)[2][kPack]) {
        if (x) {
          store_pack(x + slot<kLast>(tile, call.cut, at), packs.x);
          store_pack(grad + slot<kLast>(tile, call.cut, at), packs.grad);
        }
        float z[kPack];
        input_of_activation<S, kLast, kPack>(call, tile, shared, at, packs, z);
#pragma unroll
        for (int e = 0; e < kPack; ++e) {
          const float dz = activation_gradient(call.activation, widen(packs.grad.value[e]), z[e]);
          sums[0][e] += dz * (widen(packs.x.value[e]) - mean[channel_of<kLast>(at, e)]);
          sums[1][e] += dz;
        }
      },
      shared.scratch, shared.row(kTotal0), shared.bundle);
  const float* rstd = call.rstd + tile.image * call.shape.groups;
  const int per_group = static_cast<int>(call.shape.per_group());
  for (int c = threadIdx.x; c < tile.channels; c += blockDim.x) {
    shared.row(kTotal0)[c] *= rstd[(tile.channel + c) / per_group];
    call.partial(tile, 0)[c] = shared.row(kTotal0)[c];
    call.partial(tile, 1)[c] = shared.row(kTotal1)[c];
  }
  __syncthreads();
}

// dx and dresidual of the tile, as far as they are wanted.
template <typename S, bool kLast, int kPack>
__device__ __forceinline__ void apply_gradients(
    const NormCall<S>& call, const NormTile& tile, const NormShared<S>& shared, const S* x, const S* grad) {
  const float *mean = shared.row(kMean), *scale = shared.row(kScale);
  const float *lift = shared.row(kLift), *slope = shared.row(kSlope);
  walk<kLast, kPack, kBatchBackward>(
      tile, [&](const Place& at) { return load_gradient_packs<S, kLast, kPack>(call, tile, at, x, grad); },
      [&](const Place& at, const GradientPacks<S, kPack>& packs) {
        Pack<S, kPack> result;
        float dz[kPack];
        input_of_activation<S, kLast, kPack>(call, tile, shared, at, packs, dz);
#pragma unroll
        for (int e = 0; e < kPack; ++e) {
          const int c = channel_of<kLast>(at, e);
          dz[e] = activation_gradient(call.activation, widen(packs.grad.value[e]), dz[e]);
          narrow(scale[c] * dz[e] - (lift[c] + slope[c] * (widen(packs.x.value[e]) - mean[c])), result.value[e]);
        }
        if (call.out.data) store_pack(tile_address(call.out, tile, at.channel, at.pixel), result);
        if (call.residual_grad.data) {
#pragma unroll
          for (int e = 0; e < kPack; ++e) narrow(dz[e], result.value[e]);
          store_pack(tile_address(call.residual_grad, tile, at.channel, at.pixel), result);
        }
        if (call.wide_residual_grad.data) {
          constexpr int kPart = kPack < 4 ? kPack : 4;
          float* to = tile_address(call.wide_residual_grad, tile, at.channel, at.pixel);
#pragma unroll
          for (int part = 0; part < kPack; part += kPart) {
            Pack<float, kPart> pack;
#pragma unroll
            for (int e = 0; e < kPart; ++e) pack.value[e] = dz[part + e];
            store_pack(to + part, pack);
          }
        }
      });
}

template <typename S>
__device__ __forceinline__ void load_saved_parameters(
    const NormCall<S>& call, const NormTile& tile, const NormShared<S>& shared) {
  const int64_t groups = tile.image * call.shape.groups;
  load_parameters(call, tile, shared, call.mean + groups, call.rstd + groups);
}

template <typename S, bool kLast, int kPack>
__global__ void __launch_bounds__(kNormThreads, 2) norm_backward_resident(const __grid_constant__ NormCall<S> call) {
  extern __shared__ __align__(16) unsigned char memory[];
  const NormTile tile = norm_tile(call.shape, call.cut);
  const NormShared<S> shared(memory, call.cut);
  S* x = tile_data<S>(memory, call.cut, 0, 2);
  S* grad = tile_data<S>(memory, call.cut, 1, 2);
  load_saved_parameters(call, tile, shared);
  tile_gradient_sums<S, kLast, kPack>(call, tile, shared, x, grad);

  const int per_group = static_cast<int>(call.shape.per_group()), groups = tile.channels / per_group;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int g = warp; g < groups; g += kNormWarps) {
    float along = 0.0f, plain = 0.0f;
    for (int c = g * per_group + lane; c < (g + 1) * per_group; c += 32) {
      along += shared.row(kScale)[c] * shared.row(kTotal0)[c];
      plain += shared.row(kScale)[c] * shared.row(kTotal1)[c];
    }
    along = warp_sum(along);
    plain = warp_sum(plain);
    if (lane == 0) {
      shared.row(kGroup0)[g] = along;
      shared.row(kGroup1)[g] = plain;
    }
  }
  __syncthreads();
  cluster_arrive(call.cut);
  cluster_wait(call.cut);
  // Per channel rather than per group: the few floats of other blocks are read some times more, but nothing waits in between.
  const float count = static_cast<float>(per_group) * static_cast<float>(call.shape.pixels);
  const float* rstd = call.rstd + tile.image * call.shape.groups + tile.channel / per_group;
  for (int c = threadIdx.x; c < tile.channels; c += blockDim.x) {
    const int g = c / per_group;
    float along = 0.0f, plain = 0.0f;
    for (int rank = 0; rank < call.cut.slices; ++rank) {
      along += (call.cut.slices > 1 ? of_rank(shared.row(kGroup0), rank) : shared.row(kGroup0))[g];
      plain += (call.cut.slices > 1 ? of_rank(shared.row(kGroup1), rank) : shared.row(kGroup1))[g];
    }
    shared.row(kLift)[c] = plain / count;
    shared.row(kSlope)[c] = rstd[g] * along / count;
  }
  __syncthreads();
  cluster_arrive(call.cut);  // this block reads no other's memory any more
  apply_gradients<S, kLast, kPack>(call, tile, shared, x, grad);
  cluster_wait(call.cut);  // nor does another read this one's: it may end
}

// Streamed, first pass.
template <typename S, bool kLast, int kPack>
__global__ void __launch_bounds__(kNormThreads, 2) norm_gradient_sums(const __grid_constant__ NormCall<S> call) {
  extern __shared__ __align__(16) unsigned char memory[];
  const NormTile tile = norm_tile(call.shape, call.cut);
  const NormShared<S> shared(memory, call.cut);
  load_saved_parameters(call, tile, shared);
  tile_gradient_sums<S, kLast, kPack>(call, tile, shared, nullptr, nullptr);
}

// Streamed: one block joins the slices and channels of one group of one image.
template <typename S>
__global__ void __launch_bounds__(kSettleThreads) norm_gradient_settle(const __grid_constant__ NormCall<S> call) {
  __shared__ float warps[2][kSettleThreads / 32];
  const int64_t image = blockIdx.x / call.shape.groups, group = blockIdx.x % call.shape.groups;
  const int64_t per_group = call.shape.per_group();
  float along = 0.0f, plain = 0.0f;
  for (int64_t i = threadIdx.x; i < call.cut.slices * per_group; i += kSettleThreads) {
    const int64_t slice = i / per_group, channel = group * per_group + i % per_group;
    const float* partial = call.partials + ((image * call.cut.slices + slice) * 2) * call.shape.channels + channel;
    const float weight = call.weight.at(static_cast<int>(channel), 1.0f);
    along += weight * partial[0];
    plain += weight * partial[call.shape.channels];
  }
  along = warp_sum(along);
  plain = warp_sum(plain);
  if (threadIdx.x % 32 == 0) {
    warps[0][threadIdx.x / 32] = along;
    warps[1][threadIdx.x / 32] = plain;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 1; w < kSettleThreads / 32; ++w) {
      along += warps[0][w];
      plain += warps[1][w];
    }
    const float rstd = call.rstd[blockIdx.x];
    const float count = static_cast<float>(per_group) * static_cast<float>(call.shape.pixels);
    call.lift[blockIdx.x] = rstd * plain / count;
    call.slope[blockIdx.x] = rstd * rstd * along / count;
  }
}

// Streamed, second pass. Without lift only dresidual is wanted.
template <typename S, bool kLast, int kPack>
__global__ void __launch_bounds__(kNormThreads, 2) norm_gradients(const __grid_constant__ NormCall<S> call) {
  extern __shared__ __align__(16) unsigned char memory[];
  const NormTile tile = norm_tile(call.shape, call.cut);
  const NormShared<S> shared(memory, call.cut);
  const int64_t groups = tile.image * call.shape.groups;
  const int per_group = static_cast<int>(call.shape.per_group());
  for (int c = threadIdx.x; c < tile.channels; c += blockDim.x) {
    const int64_t group = groups + (tile.channel + c) / per_group;
    shared.row(kLift)[c] = call.lift ? call.lift[group] : 0.0f;
    shared.row(kSlope)[c] = call.slope ? call.slope[group] : 0.0f;
  }
  load_saved_parameters(call, tile, shared);
  apply_gradients<S, kLast, kPack>(call, tile, shared, nullptr, nullptr);
}

// dweight and dbias: a block owns 32 channels; its rows of threads share out the tiles' sums and are added in order.
constexpr int kSumRows = 16;
static __global__ void __launch_bounds__(32 * kSumRows) norm_channel_gradients(
    const float* __restrict__ partials, int64_t rows, int64_t channels, float* __restrict__ weight_grad,
    float* __restrict__ bias_grad) {
  __shared__ float sums[2][kSumRows][32];
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * 32 + threadIdx.x;
  float along = 0.0f, plain = 0.0f;
  if (channel < channels) {
    for (int64_t row = threadIdx.y; row < rows; row += kSumRows) {
      along += partials[2 * row * channels + channel];
      plain += partials[(2 * row + 1) * channels + channel];
    }
  }
  sums[0][threadIdx.y][threadIdx.x] = along;
  sums[1][threadIdx.y][threadIdx.x] = plain;
  __syncthreads();
  if (threadIdx.y != 0 || channel >= channels) return;
  for (int r = 1; r < kSumRows; ++r) {
    along += sums[0][r][threadIdx.x];
    plain += sums[1][r][threadIdx.x];
  }
  if (weight_grad) weight_grad[channel] = along;
  if (bias_grad) bias_grad[channel] = plain;
}

// weight_grad, bias_grad: [C] in fp32, or null where not wanted. call.lift and call.slope are set where dx is wanted of a streamed
// cut, call.partials where dx or these are.
template <typename S, bool kLast, int kPack>
cudaError_t norm_backward(const NormCall<S>& call, float* weight_grad, float* bias_grad, cudaStream_t stream) {
  cudaError_t status = cudaSuccess;
  if (call.cut.resident) {
    status = launch_tiles(norm_backward_resident<S, kLast, kPack>, call, call.cut.shared_bytes, true, stream);
    if (status != cudaSuccess) return status;
  } else {
    if (call.partials) {
      status = launch_tiles(norm_gradient_sums<S, kLast, kPack>, call, call.cut.shared_bytes, false, stream);
      if (status != cudaSuccess) return status;
    }
    if (call.out.data) {
      norm_gradient_settle<S>
          <<<static_cast<unsigned>(call.shape.images * call.shape.groups), kSettleThreads, 0, stream>>>(call);
      status = cudaGetLastError();
      if (status != cudaSuccess) return status;
    }
    if (call.out.data || call.residual_grad.data || call.wide_residual_grad.data) {
      const size_t parameters = kChannelRows * call.cut.bundle * sizeof(float);
      status = launch_tiles(norm_gradients<S, kLast, kPack>, call, parameters, false, stream);
      if (status != cudaSuccess) return status;
    }
  }
  if (!weight_grad && !bias_grad) return cudaSuccess;
  norm_channel_gradients<<<static_cast<unsigned>((call.shape.channels + 31) / 32), dim3(32, kSumRows), 0, stream>>>(
      call.partials, call.shape.images * call.cut.slices, call.shape.channels, weight_grad, bias_grad);
  return cudaGetLastError();
}

}  // namespace fastnas::cuda
