// Results whose size is known only on the GPU: the one place where nms, batched_nms and soft_nms wait for it.
#pragma once

#include "storage.h"

namespace fastnas {

// The number in an int64 tensor of one element, once everything queued before has run.
inline int64_t read_count(const Tensor& count) {
  int64_t value = 0;
  const cudaStream_t stream = current_stream(count);
  check_cuda(
      cudaMemcpyAsync(&value, count.const_data_ptr<int64_t>(), sizeof(value), cudaMemcpyDeviceToHost, stream),
      "nms: reading the number of kept boxes");
  check_cuda(cudaStreamSynchronize(stream), "nms: reading the number of kept boxes");
  return value;
}

// The first `count` elements, in memory of their own where most of it would be held for nothing.
inline Tensor first_of(Tensor& values, int64_t count) {
  const Tensor part = torch::stable::narrow(values, 0, 0, count);
  return 2 * count < values.size(0) ? torch::stable::clone(part) : part;
}

}  // namespace fastnas
