// From the tensors of a call to the kernels' view of it, shared by the two bindings of GroupNorm.
#pragma once

#include <optional>

#include "../group_norm.h"
#include "group_norm_call.cuh"
#include "storage.h"

namespace fastnas {

// A contiguous copy in a type that kernels read; the copy lives as long as the caller's variable.
inline cuda::ChannelValues channel_values(std::optional<Tensor>& values) {
  if (!values) return {nullptr, cuda::ValueType::kFloat};
  if (values->scalar_type() == ScalarType::Double) values = torch::stable::to(*values, ScalarType::Float);
  values = torch::stable::contiguous(*values);
  const cuda::ValueType type = values->scalar_type() == ScalarType::Half ? cuda::ValueType::kHalf
      : values->scalar_type() == ScalarType::BFloat16                   ? cuda::ValueType::kBFloat16
                                                                        : cuda::ValueType::kFloat;
  return {values->const_data_ptr(), type};
}

// Whether packs of `count` elements may be read and written everywhere in the map.
template <typename T>
bool packable(const MapView<T>& view, const GroupShape& shape, int count) {
  if (!view.data) return true;
  constexpr int kMost = 16 / static_cast<int>(sizeof(T));  // wider packs are moved in parts of 16 bytes
  const int part = count < kMost ? count : kMost;
  const int64_t rows = shape.channels_last ? shape.pixels : shape.channels;
  const int64_t row = shape.channels_last ? view.pixel : view.channel;
  return cuda::aligned(view.data, shape.images > 1 ? view.image : 0, part) && (rows == 1 || row % part == 0);
}

template <typename S>
int pack_size(const cuda::NormCall<S>& call) {
  constexpr int kWide = cuda::kWide<S>;
  const GroupShape& shape = call.shape;
  const bool fits = (shape.channels_last ? shape.channels : shape.pixels) % kWide == 0 && packable(call.x, shape, kWide) &&
      packable(call.grad, shape, kWide) && packable(call.residual, shape, kWide) &&
      packable(call.wide_residual, shape, kWide) && packable(call.out, shape, kWide) &&
      packable(call.residual_grad, shape, kWide) && packable(call.wide_residual_grad, shape, kWide);
  return fits ? kWide : 1;
}

inline void set_residual(const std::optional<Tensor>& residual, cuda::NormCall<float>& call) {
  if (residual) call.residual = read_view<float>(*residual);
}
template <typename S>
void set_residual(const std::optional<Tensor>& residual, cuda::NormCall<S>& call) {
  if (!residual) return;
  if (residual->scalar_type() == ScalarType::Float) {
    call.wide_residual = read_view<float>(*residual);
  } else {
    call.residual = read_view<S>(*residual);
  }
}

// Chooses the cut. maps: that would stay in shared memory; want_resident: whether the call is one that a resident tile serves.
template <typename S>
int choose_cut(cuda::NormCall<S>& call, int maps, int batch, bool want_resident) {
  const int pack = pack_size(call);
  cuda::NormDevice device{};
  check_cuda(cuda::NormDevice::current(device), "group_norm_act");
  cuda::NormCutter cutter{call.shape, device, static_cast<int>(sizeof(S)), pack, maps, batch};
  if (want_resident) call.cut = cutter.resident();
  if (call.cut.blocks == 0) {
    if (maps == 2) cutter.maps = 0;  // the streamed backward pass keeps nothing
    call.cut = cutter.streamed();
  }
  check(call.cut.blocks <= 0x7fffffff && call.shape.images * call.shape.groups <= 0x7fffffff,
        "input: too large for the CUDA kernels: ", call.cut.blocks, " tiles");
  return pack;
}

}  // namespace fastnas
