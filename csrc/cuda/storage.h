// What every CUDA binding needs of torch: the element type of a tensor on the GPU, the current stream, errors of a launch.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "../tensor.h"

namespace fastnas {

// Calls body(S{}) with the storage type. fp64 is for the CPU: GPU kernels sum in fp32.
template <typename Body>
void with_storage(ScalarType type, const char* name, Body&& body) {
  switch (type) {
    case ScalarType::Float: return body(float{});
    case ScalarType::BFloat16: return body(__nv_bfloat16{});
    case ScalarType::Half: return body(__half{});
    default: check(false, name, ": expected fp32, fp16 or bf16 on the GPU, got ", type_name(type));
  }
}

// Work is always queued on the stream that torch currently uses: another one would race with the caller's and break graphs.
inline cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

inline void check_cuda(cudaError_t status, const char* operation) {
  check(status == cudaSuccess, operation, ": CUDA says: ", cudaGetErrorString(status));
}

}  // namespace fastnas
