// What both devices ask of a tensor: names for messages, the layout rule, new results. Includes torch's stable headers only.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <vector>

#include "check.h"

namespace fastnas {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline const char* type_name(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return "fp32";
    case ScalarType::Double: return "fp64";
    case ScalarType::Half: return "fp16";
    case ScalarType::BFloat16: return "bf16";
    case ScalarType::Long: return "int64";
    case ScalarType::Int: return "int32";
    case ScalarType::Bool: return "bool";
    default: return "another type";
  }
}

inline bool is_floating(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::Half ||
      type == ScalarType::BFloat16;
}

inline std::string shape_text(const Tensor& tensor) {
  std::string text = "[";
  for (int64_t d = 0; d < tensor.dim(); ++d) text += (d ? ", " : "") + std::to_string(tensor.size(d));
  return text + "]";
}

inline void check_floating(const Tensor& tensor, const char* name) {
  check(is_floating(tensor.scalar_type()), name, ": expected fp32, fp64, fp16 or bf16, got ",
        type_name(tensor.scalar_type()));
}

inline bool same_device(const Tensor& a, const Tensor& b) { return a.device() == b.device(); }

// torch's own functions, but a tensor that is right already does not pass its dispatcher: small maps would feel it.
inline Tensor as_type(const Tensor& tensor, ScalarType type) {
  return tensor.scalar_type() == type ? tensor : torch::stable::to(tensor, type);
}
inline Tensor as_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// fp64 stays, everything narrower is computed in fp32.
inline Tensor computable(const Tensor& tensor) {
  const bool wide = tensor.scalar_type() == ScalarType::Double;
  return as_contiguous(as_type(tensor, wide ? ScalarType::Double : ScalarType::Float));
}

// The layout rule of all operators on maps [N, C, H, W], mirrored by `is_channels_last` in fastnas/ops/_layout.py: where the
// channels are innermost the result is channels-last, else contiguous.
inline bool is_channels_last(const Tensor& tensor) { return tensor.size(1) > 1 && tensor.stride(1) == 1; }

inline Tensor with_inner_channels(const Tensor& tensor) {
  if (tensor.size(1) == 1 || tensor.stride(1) == 1) return tensor;
  return torch::stable::contiguous(tensor, MemoryFormat::ChannelsLast);
}

inline Tensor empty_in_layout(std::vector<int64_t> sizes, ScalarType type, const Tensor& like, bool channels_last) {
  return torch::stable::empty(
      sizes, type, std::nullopt, like.device(), std::nullopt,
      channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

}  // namespace fastnas
