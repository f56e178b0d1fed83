"""Weight standardisation of all 53 convolutions of ResNet-50: one call of ours against a loop over the layers.

`eager` is timm's way (training-mode batch_norm of the reshaped weight, a cast where one is wanted), the fastest way in eager
PyTorch; `eager paper` is the authors' code; `compiled` is torch.compile of timm's loop, all layers in one graph.
`fastnas per layer` is our operator in a loop. Backward: the gradients of all weights from those of all results.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
import torchvision
from _bench import Case, main
from torch import Tensor

from fastnas import ops

LAST = torch.channels_last


def timm_way(weights: list[Tensor], dtype: torch.dtype, last: bool) -> list[Tensor]:
    results = []
    for weight in weights:
        flat = F.batch_norm(weight.reshape(1, weight.size(0), -1), None, None, training=True, momentum=0.0, eps=1e-6)
        result = flat.reshape_as(weight)
        results.append(result.to(dtype, memory_format=LAST if last else torch.preserve_format))
    return results


def paper_way(weights: list[Tensor], dtype: torch.dtype, last: bool) -> list[Tensor]:
    results = []
    for weight in weights:
        centred = weight - weight.mean(dim=1, keepdim=True).mean(dim=2, keepdim=True).mean(dim=3, keepdim=True)
        deviation = centred.view(centred.size(0), -1).std(dim=1).view(-1, 1, 1, 1) + 1e-5
        result = centred / deviation.expand_as(centred)
        results.append(result.to(dtype, memory_format=LAST if last else torch.preserve_format))
    return results


def error(results: list[Tensor], weights: list[Tensor]) -> float:
    exact = timm_way([weight.detach().double().cpu() for weight in weights], torch.float64, False)
    return max((a.double().cpu() - b).abs().max().item() for a, b in zip(results, exact, strict=True))


def gradient_error(results: list[Tensor], weights: list[Tensor], grads: list[Tensor]) -> float:
    """Relative to the largest gradient of each layer."""
    exact = [weight.detach().double().cpu().requires_grad_() for weight in weights]
    wanted = torch.autograd.grad(timm_way(exact, torch.float64, False), exact, [grad.double().cpu() for grad in grads])
    return max(((a.double().cpu() - b).abs().max() / b.abs().max()).item() for a, b in zip(results, wanted, strict=True))


def cases(device: torch.device) -> Iterator[Case]:
    model = torchvision.models.resnet50().to(device)
    weights = [layer.weight for layer in model.modules() if isinstance(layer, torch.nn.Conv2d)]
    count = sum(weight.numel() for weight in weights)
    goal = {"eager": 3.0 if device.type == "cpu" else 10.0}
    shape = f"ResNet-50, {len(weights)} layers"
    for dtype, name, last in ((torch.float32, "fp32", False), (torch.bfloat16, "bf16", True)):
        compiled = torch.compile(timm_way, fullgraph=True)
        ways = {
            "fastnas": lambda dtype=dtype, last=last: ops.standardize_weights(weights, dtype=dtype, channels_last=last),
            "fastnas per layer": lambda dtype=dtype, last=last: [
                ops.standardize_weight(weight, dtype=dtype, channels_last=last) for weight in weights
            ],
            "eager": lambda dtype=dtype, last=last: timm_way(weights, dtype, last),
            "eager paper": lambda dtype=dtype, last=last: paper_way(weights, dtype, last),
            "compiled": lambda compiled=compiled, dtype=dtype, last=last: compiled(weights, dtype, last),
        }
        size, layout = dtype.itemsize, "nhwc" if last else "nchw"

        def without_grad(run):
            def forward():
                with torch.no_grad():
                    return run()

            return forward

        forwards = {who: without_grad(run) for who, run in ways.items()}
        yield Case(
            "standardize_weights", shape, name, layout, "forward", forwards, goal=goal, floor_bytes=count * (4 + size),
            max_error=error(forwards["fastnas"](), weights),
        )  # fmt: skip
        grads = [torch.randn_like(result) for result in forwards["fastnas"]()]

        def backward(run, grads=grads):
            made: list[list[Tensor]] = []

            def step():
                if not made:  # in the warm-up
                    made.append(run())
                return torch.autograd.grad(made[0], weights, grads, retain_graph=True)

            return step

        backwards = {who: backward(run) for who, run in ways.items()}
        yield Case(
            "standardize_weights", shape, name, layout, "backward", backwards, goal=goal, floor_bytes=count * (8 + size),
            max_error=gradient_error(backwards["fastnas"](), weights, grads),
        )  # fmt: skip


if __name__ == "__main__":
    main("standardize_weight", cases)
