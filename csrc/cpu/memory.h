// What the system should know of the memory of large results.
#pragma once

#include <cstdint>

#include "../tensor.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastnas {

// Fresh memory of a large result comes in pages that the kernel clears one fault at a time, which can take as long as the work
// itself: 62 MB are 15 thousand faults of 4 KB. Large pages, where the system allows them on request, make a few dozen of them.
inline void ask_for_large_pages(Tensor& result) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = uintptr_t(2) << 20;
  const uintptr_t data = reinterpret_cast<uintptr_t>(result.mutable_data_ptr());
  const uintptr_t begin = (data + kPage - 1) / kPage * kPage;
  const uintptr_t end = (data + static_cast<uintptr_t>(result.numel()) * result.element_size()) / kPage * kPage;
  if (begin < end) (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // a wish: failing is no harm
#else
  (void)result;
#endif
}

}  // namespace fastnas
