"""How GroupNorm on the GPU cuts its maps: host code, so it is compiled and run here without a GPU, for the memory of several.

Whatever the shape is, a tile must fit into the shared memory of a block, a row of packs into its threads, and the tiles together
must be the map.
"""

import os
import subprocess

import pytest

from tests.ops import ptxas

PROGRAM = """
#include <cstdio>

#include "csrc/cuda/group_norm_call.cuh"

using namespace fastnas::cuda;

// shared memory of sm_80, sm_86 (as sm_120) and sm_90
const NormDevice devices[] = {{108, 166912, 167936, 0}, {84, 101376, 102400, 1}, {132, 232448, 233472, 1}};
const int64_t channels[] = {1, 2, 3, 7, 8, 16, 24, 72, 96, 136, 256, 1000, 1024, 2048, 4096, 4104, 8192, 16384, 65536};
const int64_t pixels[] = {1, 2, 3, 4, 7, 8, 9, 16, 35, 49, 64, 100, 256, 1000, 1024, 2500, 15200, 60800, 91203, 4000000};

int main() {
  long checked = 0;
  for (const NormDevice& device : devices)
    for (const int64_t c : channels)
      for (const int64_t p : pixels)
        for (const int64_t groups : {int64_t(1), int64_t(2), int64_t(8), int64_t(32), c})
          for (const bool last : {false, true})
            for (const int bytes : {2, 4})
              for (const int pack : {1, 16 / bytes})
                for (const int maps : {0, 1, 2}) {
                  const int64_t across = last ? c : p;
                  if (c % groups != 0 || across % pack != 0 || (last && c == 1)) continue;
                  const NormCutter cutter{{2, c, p, groups, last}, device, bytes, pack, maps, maps == 2 ? 2 : 1};
                  for (const bool resident : {false, true}) {
                    if (resident && maps == 0) continue;
                    if (!resident && maps == 2) continue;  // keeps nothing
                    const NormCut cut = resident ? cutter.resident() : cutter.streamed();
                    if (cut.blocks == 0 && resident) continue;
                    ++checked;
                    const bool fits = cut.shared_bytes <= size_t(device.block_shared) &&
                        size_t(kChannelRows) * cut.bundle * sizeof(float) <= size_t(device.block_shared);
                    const bool covers = int64_t(cut.bundle) * cut.bundles >= c && int64_t(cut.bundle) * (cut.bundles - 1) < c &&
                        int64_t(cut.slice_pixels) * cut.slices >= p && int64_t(cut.slice_pixels) * (cut.slices - 1) < p &&
                        cut.blocks == 2 * int64_t(cut.bundles) * cut.slices;
                    const bool packed = cut.bundle > 0 && (last ? cut.bundle : cut.slice_pixels) % pack == 0 &&
                        (!last || cut.bundle / pack <= kNormThreads);
                    const bool whole = !resident ||
                        (cut.bundle % (c / groups) == 0 && c % cut.bundle == 0 && cut.slices <= kMaxCluster);
                    if (fits && covers && packed && whole) continue;
                    std::printf("channels %ld pixels %ld groups %ld last %d bytes %d pack %d maps %d resident %d block_shared %d:"
                                " bundle %d slice_pixels %d shared %zu; fits %d covers %d packed %d whole %d\\n",
                                long(c), long(p), long(groups), last, bytes, pack, maps, resident, device.block_shared, cut.bundle,
                                cut.slice_pixels, cut.shared_bytes, fits, covers, packed, whole);
                    return 1;
                  }
                }
  std::printf("checked %ld\\n", checked);
  return 0;
}
"""


def test_tiles_fit_and_cover_the_map(tmp_path):
    pytest.importorskip("setuptools", reason="setup.py needs setuptools")
    toolkit = ptxas.load_setup()["find_toolkit"](os.environ)
    if toolkit is None:
        pytest.skip("no nvcc in CUDA_HOME or on the PATH")
    (tmp_path / "cut.cu").write_text(PROGRAM)
    command = [toolkit.nvcc, "-std=c++17", "-arch=sm_90", f"-I{ptxas.ROOT}", tmp_path / "cut.cu", "-o", tmp_path / "cut"]
    subprocess.run(list(map(str, command)), check=True)
    done = subprocess.run([str(tmp_path / "cut")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert int(done.stdout.split()[1]) > 10_000
