// The activation that group_norm_act and weighted_fusion end with: one type for both, in the order of their arguments' names.
// Free of torch.
#pragma once

#include <cstdint>

namespace fastnas {

enum class Activation : int64_t { kNone = 0, kRelu = 1, kSilu = 2 };

}  // namespace fastnas
