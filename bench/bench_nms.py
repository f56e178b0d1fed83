"""nms and batched_nms on the CPU against torchvision's, sorting included on both sides.

Uniform boxes survive for the most part (the quadratic case); clustered ones are what a detector produces.
"""

import torch
import torchvision
from _ab import compare, report, threads_from_arguments

from fastnas import ops

SECONDS_PER_ROW = 1.0


def uniform(count: int, generator: torch.Generator) -> torch.Tensor:
    corners = torch.rand(count, 2, generator=generator) * 1000
    return torch.cat([corners, corners + 5 + 100 * torch.rand(count, 2, generator=generator)], 1)


def clustered(count: int, generator: torch.Generator) -> torch.Tensor:
    centres = torch.rand(50, 2, generator=generator) * 1000
    corners = centres[torch.randint(0, 50, (count,), generator=generator)] + 4 * torch.randn(
        count, 2, generator=generator
    )
    return torch.cat([corners, corners + 60 + 20 * torch.rand(count, 2, generator=generator)], 1)


def main() -> None:
    rows = []
    for threads in threads_from_arguments():
        torch.set_num_threads(threads)
        for make in (uniform, clustered):
            for count in (100, 1000, 5000, 10_000):
                generator = torch.Generator().manual_seed(count)
                boxes, scores = make(count, generator), torch.rand(count, generator=generator)
                idxs = torch.randint(0, 80, (count,), generator=generator)
                assert torch.equal(ops.nms(boxes, scores, 0.5), torchvision.ops.nms(boxes, scores, 0.5))
                for case, ours, theirs, extra in (
                    ("nms", ops.nms, torchvision.ops.nms, ()),
                    ("batched_nms 80 classes", ops.batched_nms, torchvision.ops.batched_nms, (idxs,)),
                ):
                    def call(function, b=boxes, s=scores, e=extra):
                        return lambda: function(b, s, *e, 0.5)

                    timings = compare({"fastnas": call(ours), "torchvision": call(theirs)}, SECONDS_PER_ROW)
                    name = f"{case} {make.__name__} {count}"
                    rows.append({"case": name, "threads": threads, "timings": timings})
    report("nms-cpu", rows, baseline="torchvision")


if __name__ == "__main__":
    main()
