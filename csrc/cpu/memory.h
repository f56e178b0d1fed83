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
