"""roi_align and multiscale_roi_align against torchvision's, forward, backward and both.

Peers get each layout: `torchvision` reads contiguous features, which is its best, `torchvision channels-last` what a channels-last
model hands it (it converts them first). torchvision has no bf16: under autocast it computes in fp32, so bf16 rows give it fp32
features, their conversion left out, and on the GPU also fp16. Boxes are as a pyramid sees them: sides evenly in their logarithm,
for a pyramid from 8 pixels to the whole image of 800 x 1216, for the finest level alone from 8 to 112. `fastnas deterministic` is
the gradient under torch.use_deterministic_algorithms(True), which also makes torch fill new memory.

floor_bytes: every distinct cell that the boxes read, once, and the output, written once; backward: the gradient of the output, and
every cell of the maps written once.
"""

import math
from collections.abc import Callable, Iterator

import torch
import torchvision
from _bench import Case, main

from fastnas import ops

STRIDES = [4, 8, 16, 32]
HEIGHT, WIDTH = 800, 1216
BINS, SAMPLES = 7, 2

# name of the row, images, channels, boxes per image
PYRAMIDS = {"cpu": [(1, 256, 512)], "cuda": [(2, 256, 512), (1, 256, 1000)]}
SINGLE = {"cpu": [(1, 256, 128)], "cuda": [(2, 256, 512)]}
DTYPES = {"cpu": [torch.float32, torch.bfloat16], "cuda": [torch.bfloat16, torch.float32]}
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16"}


def pyramid(images: int, channels: int, strides: list[int], dtype: torch.dtype, device: torch.device) -> list[torch.Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    return [
        torch.randn(images, channels, HEIGHT // stride, WIDTH // stride, generator=generator, device=device)
        .to(dtype)
        .contiguous(memory_format=torch.channels_last)
        .requires_grad_()
        for stride in strides
    ]


def boxes_of_all_sizes(images: int, count: int, device: torch.device, largest: float = math.inf) -> list[torch.Tensor]:
    """One [count, 4] per image, sides from 8 pixels to `largest`."""
    generator = torch.Generator().manual_seed(1)
    limit = torch.tensor([float(WIDTH), float(HEIGHT)])
    result = []
    for _ in range(images):
        sides = 8 * (limit.clamp(max=largest) / 8) ** torch.rand(count, 2, generator=generator)
        corners = torch.rand(count, 2, generator=generator) * (limit - sides)
        result.append(torch.cat([corners, corners + sides], 1).to(device))
    return result


def with_image(per_image: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([torch.nn.functional.pad(boxes, (1, 0), value=float(i)) for i, boxes in enumerate(per_image)])


Pool = Callable[[list[torch.Tensor]], torch.Tensor]


def runs(pool: Pool, maps: list[torch.Tensor], deterministic: bool = False) -> dict[str, Callable]:
    """What one candidate does for each direction. The gradient has the layout of the output."""
    out = pool(maps)
    gradient = torch.randn_like(out)

    def forward():
        with torch.no_grad():
            return pool(maps)

    def backward(out=out):
        if not deterministic:
            return torch.autograd.grad(out, maps, gradient, retain_graph=True)
        before = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(True)
        try:
            return torch.autograd.grad(out, maps, gradient, retain_graph=True)
        finally:
            torch.use_deterministic_algorithms(before)

    def both():
        return torch.autograd.grad(pool(maps), maps, gradient)

    return {"forward": forward, "backward": backward, "both": both}


def candidates(ours: Pool, theirs: Pool, last: list[torch.Tensor]) -> dict[str, dict[str, Callable]]:
    """By name, then by direction."""
    first = [level.detach().contiguous().requires_grad_() for level in last]
    wide = [level if level.dtype == torch.float32 else level.detach().float().requires_grad_() for level in last]
    wide_first = [level.detach().contiguous().requires_grad_() for level in wide]
    found = {
        "fastnas": runs(ours, last),
        "fastnas deterministic": runs(ours, last, deterministic=True),
        "fastnas nchw": runs(ours, first),
        "torchvision": runs(theirs, wide_first),
        "torchvision channels-last": runs(theirs, wide),
    }
    del found["fastnas deterministic"]["forward"], found["fastnas deterministic"]["both"]
    if last[0].device.type == "cpu":
        del found["fastnas deterministic"]  # the CPU has one way only
    elif last[0].dtype != torch.float32:
        half = [level.detach().half().requires_grad_() for level in wide_first]
        found["torchvision fp16"] = runs(theirs, half)
    return found


def cells_read(maps: list[torch.Tensor], ours: Pool) -> int:
    """How many cells of the maps the boxes read: those that get a gradient when every bin has one."""
    narrow = [level.detach()[:, :8].float().contiguous(memory_format=torch.channels_last).requires_grad_() for level in maps]
    gradients = torch.autograd.grad(ours(narrow).sum(), narrow)
    return sum(int((gradient[:, 0] != 0).sum()) for gradient in gradients)


def rows(operator: str, name: str, ours: Pool, theirs: Pool, last: list[torch.Tensor], goals: dict[str, float]) -> Iterator[Case]:
    dtype, channels = last[0].dtype, last[0].size(1)
    exact = theirs([level.detach().double().contiguous() for level in last])
    error = (ours(last).double() - exact).abs().max().item()
    size = last[0].element_size()
    out_bytes, map_bytes = exact.numel() * size, sum(level.numel() for level in last) * size
    floors = {"forward": cells_read(last, ours) * channels * size + out_bytes, "backward": out_bytes + map_bytes}
    floors["both"] = floors["forward"] + floors["backward"]
    del exact
    found = candidates(ours, theirs, last)
    for direction, goal in goals.items():
        mine = {who: each[direction] for who, each in found.items() if direction in each}
        max_error = error if direction == "forward" else None
        yield Case(operator, name, NAMES[dtype], "nhwc", direction, mine, goal, floors[direction], max_error)


def cases(device: torch.device) -> Iterator[Case]:
    cuda = device.type == "cuda"
    for dtype in DTYPES[device.type]:
        judged = dtype == (torch.bfloat16 if cuda else torch.float32)  # the goals are for this type

        def goals(forward: float, backward: float | None, both: float | None, judged=judged) -> dict[str, float | None]:
            wanted = {"forward": forward, "backward": backward, "both": both}
            return wanted if judged else dict.fromkeys(wanted)

        for images, channels, count in SINGLE[device.type]:
            rois = with_image(boxes_of_all_sizes(images, count, device, largest=112))
            arguments = (rois, BINS, 1 / STRIDES[0], SAMPLES)

            def one(maps, a=arguments):
                return ops.roi_align(maps[0], *a)

            def peer(maps, a=arguments):
                return torchvision.ops.roi_align(maps[0], a[0].to(maps[0].dtype), *a[1:])

            maps = pyramid(images, channels, STRIDES[:1], dtype, device)
            name = f"{images}x{channels}x{HEIGHT // STRIDES[0]}x{WIDTH // STRIDES[0]}, {count} boxes each"
            yield from rows("roi_align", name, one, peer, maps, goals(3, 3, None) if cuda else goals(20, 15, None))

        for images, channels, count in PYRAMIDS[device.type]:
            per_image = boxes_of_all_sizes(images, count, device)
            rois = with_image(per_image)
            module = torchvision.ops.MultiScaleRoIAlign([str(stride) for stride in STRIDES], BINS, SAMPLES)

            def many(maps, rois=rois):
                return ops.multiscale_roi_align(maps, rois, BINS, STRIDES, SAMPLES)

            def peers(maps, module=module, per_image=per_image):
                levels = {str(stride): level for stride, level in zip(STRIDES, maps, strict=True)}
                typed = [boxes.to(maps[0].dtype) for boxes in per_image]
                return module(levels, typed, [(HEIGHT, WIDTH)] * len(typed))

            maps = pyramid(images, channels, STRIDES, dtype, device)
            name = f"{images}x{channels} P2-P5 of {HEIGHT}x{WIDTH}, {count} boxes each"
            yield from rows("multiscale_roi_align", name, many, peers, maps, goals(5, None, 4) if cuda else goals(20, None, 20))


if __name__ == "__main__":
    main("roi_align", cases)
