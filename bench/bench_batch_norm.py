"""batch_norm_act against torch's batch_norm, addition and activation, eager and compiled, both layouts.

Rows are what ours does in that layout; peers run in both layouts ("nhwc" is channels-last), so that the strongest one is the best
that a user could choose. Parameters and statistics are fp32 for all, as under autocast; the eager addition and activation work in
place, as models write them. "inference" rows use given statistics, "forward" those of the batch, "backward" rows run the gradients
of a graph that is kept, "both" rows build it anew each time. Shapes: ResNet-50 at 192x256 and 800x1312, EfficientDet-D0 at 256x256.
"""

from collections.abc import Callable, Iterator

import torch
import torch._functorch.config
import torch.nn.functional as F
from _bench import Case, main
from bench_group_norm import ACTIVATIONS, DTYPES, LAYOUTS, Work

from fastnas.ops import batch_norm_act

torch._functorch.config.donated_buffer = False  # a compiled graph that is kept may not give its memory away

# images, channels, height, width, activation, residual
SHAPES = [(2, 64, 96, 128, "relu", False), (2, 256, 48, 64, "relu", True), (2, 1024, 12, 16, "relu", True),
          (1, 256, 200, 328, "relu", True), (2, 96, 128, 128, "silu", False), (2, 240, 32, 32, "silu", False),
          (2, 64, 32, 32, "silu", False)]  # fmt: skip


def eager_norm(statistics: list[torch.Tensor], activation: str, training: bool) -> Callable:
    def run(x, weight, bias, residual):
        values = F.batch_norm(x, *statistics, weight, bias, training)
        return ACTIVATIONS[activation](values if residual is None else values.add_(residual))

    return run


def compiled_norm(statistics: list[torch.Tensor], activation: str, training: bool) -> Callable:
    def run(x, weight, bias, residual):
        values = F.batch_norm(x, *statistics, weight, bias, training)
        values = values if residual is None else values + residual
        return F.relu(values) if activation == "relu" else F.silu(values)

    return torch.compile(run)


def our_norm(statistics: list[torch.Tensor], activation: str, training: bool) -> Callable:
    def run(x, weight, bias, residual):
        return batch_norm_act(x, *statistics, weight, bias, training, activation=activation, residual=residual)

    return run


def passes(norm_of: Callable, work: Work, activation: str) -> dict[str, Callable]:
    """Each with statistics of its own: eager PyTorch refuses to run a kept graph once running statistics have moved."""

    def norm(training: bool) -> Callable:
        channels, device = work.x.size(1), work.x.device
        return norm_of([torch.zeros(channels, device=device), torch.ones(channels, device=device)], activation, training)

    of_training = {name: work.passes(norm(True), torch.float32)[name] for name in ("forward", "backward", "both")}
    return {"inference": work.passes(norm(False), torch.float32)["forward"], **of_training}


def largest_error(work: Work, out: torch.Tensor, activation: str) -> float:
    values = F.batch_norm(work.x.detach().double(), None, None, work.weight.double(), work.bias.double(), True)
    if work.residual is not None:
        values = values + work.residual.double()
    return float((out.double() - ACTIVATIONS[activation](values)).abs().max())


def cases(device: torch.device) -> Iterator[Case]:
    for *shape, activation, residual in SHAPES if device.type == "cpu" else SHAPES[:1]:  # on a GPU ours is torch's
        shape = tuple(shape)
        for dtype_name, dtype in DTYPES.items():
            works = {layout: Work(shape, residual, dtype, layout, device) for layout in LAYOUTS}
            peers = {}
            for layout, work in works.items():
                peers[f"eager {layout}"] = passes(eager_norm, work, activation)
                peers[f"compiled {layout}"] = passes(compiled_norm, work, activation)
            for layout, work in works.items():
                ours = passes(our_norm, work, activation)
                error = largest_error(work, ours["forward"](), activation)
                map_bytes = work.x.numel() * work.x.element_size()
                maps = {"inference": 2 + residual, "forward": 2 + residual, "backward": 3 + 2 * residual, "both": 5 + 3 * residual}
                title = f"{'x'.join(map(str, shape))} {activation}{' residual' if residual else ''}"
                for direction, run in ours.items():
                    yield Case(
                        "batch_norm_act", title, dtype_name, layout, direction,
                        {"fastnas": run, **{name: own[direction] for name, own in peers.items()}},
                        floor_bytes=maps[direction] * map_bytes, max_error=error,
                    )  # fmt: skip


if __name__ == "__main__":
    main("batch_norm", cases)
