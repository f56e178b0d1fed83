// Stable order by one number per element, least first: radix sort on 64-bit keys, skipping the digits that all share.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "../order.h"

namespace fastnas {

struct Keyed {
  uint64_t key;
  int64_t index;
};

inline void sort_by_key(std::vector<Keyed>& items) {
  if (items.size() < 256) {  // the histograms below would cost more than comparing
    std::stable_sort(items.begin(), items.end(), [](const Keyed& a, const Keyed& b) { return a.key < b.key; });
    return;
  }
  uint64_t differing = 0;
  for (const Keyed& item : items) differing |= item.key ^ items[0].key;
  constexpr int kBits = 11;
  constexpr uint64_t kMask = (1u << kBits) - 1;
  std::vector<Keyed> other(items.size());
  for (int shift = 0; shift < 64; shift += kBits) {
    if (!((differing >> shift) & kMask)) continue;
    std::array<int64_t, kMask + 1> starts{};
    for (const Keyed& item : items) ++starts[(item.key >> shift) & kMask];
    int64_t total = 0;
    for (int64_t& start : starts) {
      const int64_t count = start;
      start = total;
      total += count;
    }
    for (const Keyed& item : items) other[starts[(item.key >> shift) & kMask]++] = item;
    items.swap(other);
  }
}

}  // namespace fastnas
