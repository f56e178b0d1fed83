"""multiscale_roi_align on the CPU against torchvision's MultiScaleRoIAlign, forward and forward + backward.

`fastnas` reads channels-last features, as the training does; `fastnas nchw` and `torchvision` read contiguous ones
(torchvision would convert channels-last features first, `torchvision channels-last`). torchvision has no bf16: under
autocast it computes in fp32, so that is what bf16 is compared with, conversions of the features left out.
"""

import torch
import torchvision
from _ab import compare, report, threads_from_arguments

from fastnas import ops

SECONDS_PER_ROW = 2
STRIDES = [4, 8, 16, 32]

# name, images, channels, height, width, boxes per image
CASES = [
    ("training 8x64 320x240, 64 boxes each", 8, 64, 240, 320, 64),
    ("detection 1x256 1216x800, 256 boxes", 1, 256, 800, 1216, 256),
]


def pyramid(images: int, channels: int, height: int, width: int, dtype: torch.dtype, layout: torch.memory_format):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(images, channels, -(-height // stride), -(-width // stride), generator=generator)
        .to(dtype)
        .contiguous(memory_format=layout)
        .requires_grad_()
        for stride in STRIDES
    ]


def boxes_of_all_sizes(images: int, height: int, width: int, count: int) -> list[torch.Tensor]:
    """Sides from 8 pixels to the whole image, evenly in their logarithm, as a pyramid sees them."""
    generator = torch.Generator().manual_seed(1)
    limit = torch.tensor([float(width), float(height)])
    result = []
    for _ in range(images):
        sides = 8 * (limit / 8) ** torch.rand(count, 2, generator=generator)
        corners = torch.rand(count, 2, generator=generator) * (limit - sides)
        result.append(torch.cat([corners, corners + sides], 1))
    return result


def steps(pool, features):
    """The forward pass alone, and both passes (the gradient of the output is made beforehand)."""
    gradient = torch.randn_like(pool(features)).detach()

    def forward():
        with torch.no_grad():
            return pool(features)

    def both():
        return torch.autograd.grad(pool(features), features, gradient)

    return forward, both


def main() -> None:
    rows = []
    for threads in threads_from_arguments():
        torch.set_num_threads(threads)
        for name, images, channels, height, width, count in CASES:
            shape = (images, channels, height, width)
            per_image = boxes_of_all_sizes(images, height, width, count)
            image = torch.arange(images).repeat_interleave(count)[:, None].float()
            rois = torch.cat([image, torch.cat(per_image)], 1)
            module = torchvision.ops.MultiScaleRoIAlign([str(s) for s in STRIDES], 7, 2)

            def ours(features, rois=rois):
                return ops.multiscale_roi_align(features, rois, 7, STRIDES)

            def theirs(features, module=module, per_image=per_image, size=(height, width)):
                levels = {str(stride): level for stride, level in zip(STRIDES, features, strict=True)}
                return module(levels, per_image, [size] * len(per_image))

            last, first = torch.channels_last, torch.contiguous_format
            candidates = {
                "fastnas": steps(ours, pyramid(*shape, torch.float32, last)),
                "fastnas bf16": steps(ours, pyramid(*shape, torch.bfloat16, last)),
                "fastnas nchw": steps(ours, pyramid(*shape, torch.float32, first)),
                "torchvision": steps(theirs, pyramid(*shape, torch.float32, first)),
                "torchvision channels-last": steps(theirs, pyramid(*shape, torch.float32, last)),
            }
            torch.testing.assert_close(candidates["fastnas"][0](), candidates["torchvision"][0](), rtol=1e-4, atol=1e-4)
            for part, title in enumerate(("forward", "forward+backward")):
                timings = compare({who: both[part] for who, both in candidates.items()}, SECONDS_PER_ROW, least=3)
                rows.append({"case": f"{title}, {name}", "threads": threads, "timings": timings})
    report("roi_align-cpu", rows, baseline="torchvision")


if __name__ == "__main__":
    main()
