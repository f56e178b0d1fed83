// The activation that group_norm_act, batch_norm_act and weighted_fusion end with, in the order of their arguments' names; relu6
// is batch_norm_act's alone.
// Free of torch.
#pragma once

#include <cstdint>

namespace fastnas {

enum class Activation : int64_t { kNone = 0, kRelu = 1, kSilu = 2, kRelu6 = 3 };

}  // namespace fastnas
