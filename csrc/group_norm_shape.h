// Words of GroupNorm that the kernels of both devices use. Free of torch.
#pragma once

#include <cstdint>

#include "activation.h"
#include "geometry.h"

namespace fastnas {

// x seen as [N, C, P]: P pixels, channels in equal groups.
struct GroupShape {
  int64_t images, channels, pixels, groups;
  bool channels_last;  // the layout in which all maps of the call are read and written

  FASTNAS_HD int64_t per_group() const { return channels / groups; }
  bool empty() const { return images == 0 || channels == 0 || pixels == 0; }
};

// Elements between neighbouring images, channels and pixels of a map that is one run of pixels.
template <typename T>
struct MapView {
  T* data = nullptr;
  int64_t image = 0, channel = 0, pixel = 0;
};

}  // namespace fastnas
