// Packs: several elements that travel in one load or store of up to 16 bytes, and their conversion to fp32.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace fastnas::cuda {

template <typename S, int kCount>
struct alignas(sizeof(S) * kCount) Pack {
  S value[kCount];
};

// How many elements one 16-byte access moves.
template <typename S>
constexpr int kWide = 16 / static_cast<int>(sizeof(S));

// The address must be a multiple of sizeof(Pack): `aligned` says so for a base pointer and an element stride.
template <int kCount, typename S>
__device__ __forceinline__ Pack<S, kCount> load_pack(const S* __restrict__ from) {
  return *reinterpret_cast<const Pack<S, kCount>*>(from);
}
template <int kCount, typename S>
__device__ __forceinline__ void store_pack(S* __restrict__ to, const Pack<S, kCount>& pack) {
  *reinterpret_cast<Pack<S, kCount>*>(to) = pack;
}
template <typename S>
inline bool aligned(const S* base, int64_t stride, int count) {
  return reinterpret_cast<uintptr_t>(base) % (sizeof(S) * count) == 0 && stride % count == 0;
}

__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ float widen(__half value) { return __half2float(value); }
__device__ __forceinline__ float widen(__nv_bfloat16 value) { return __bfloat162float(value); }

__device__ __forceinline__ void narrow(float value, float& to) { to = value; }
__device__ __forceinline__ void narrow(float value, __half& to) { to = __float2half_rn(value); }
__device__ __forceinline__ void narrow(float value, __nv_bfloat16& to) { to = __float2bfloat16_rn(value); }

}  // namespace fastnas::cuda
