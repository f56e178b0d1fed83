// What the system should know of a result's memory.
#pragma once

#include <cstdint>

#include "../tensor.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastnas {

// Asks for pages of 2 MB behind a large result, where the system leaves that to the program (transparent_hugepage=madvise,
// the default of most distributions). Results from some MB on are often fresh memory, and the first touch of each 4 KB page
// is a call of the kernel: measured, half the time of the backward pass of a pooled node of 33 MB.
inline void prefer_huge_pages(Tensor& result) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kHuge = 2 << 20, kLeast = 2 * kHuge;
  const uintptr_t bytes = static_cast<uintptr_t>(result.numel()) * result.element_size();
  if (bytes < kLeast) return;
  const uintptr_t data = reinterpret_cast<uintptr_t>(result.mutable_data_ptr());
  const uintptr_t begin = (data + kHuge - 1) / kHuge * kHuge, end = (data + bytes) / kHuge * kHuge;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // advice: no harm where it is refused
#else
  (void)result;
#endif
}

}  // namespace fastnas
