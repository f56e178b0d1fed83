// Ways to write results that are larger than the caches.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "../tensor.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__SSE2__)
#include <emmintrin.h>
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

// Copies past the caches, which saves reading the target's lines first: for results of which nothing would still be in a cache
// when they are used. After the last one, and before another thread reads: end_streaming().
inline void stream(const void* from, void* to, int64_t bytes) {
  const char* source = static_cast<const char*>(from);
  char* target = static_cast<char*>(to);
#if defined(__SSE2__)
  const int64_t head = std::min<int64_t>(bytes, -reinterpret_cast<uintptr_t>(target) & 15);
  std::memcpy(target, source, head);
  int64_t i = head;
  for (; i + 16 <= bytes; i += 16) {
    _mm_stream_si128(reinterpret_cast<__m128i*>(target + i), _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + i)));
  }
  std::memcpy(target + i, source + i, bytes - i);
#else
  std::memcpy(target, source, bytes);
#endif
}
inline void end_streaming() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

}  // namespace fastnas
