"""Detector: the nn.Module that walks the same blocks that are counted and priced. Its forms: two_stage.py and one_stage.py."""

from torch import Tensor, nn

from fastnas.blueprint import Network
from fastnas.blueprint.wiring import IMAGE
from fastnas.models.blocks import build_block


class Detector(nn.Module):
    """Modules of all blocks that have one. `forward` detects; what training calls is up to the form.

    Values are kept by name in a dict, as in `Network.steps`; `blocks` maps a block's name to its module. Up to the block of the
    kinds `dense_until` everything works on whole maps (`dense`).
    """

    dense_until: tuple[type, ...]

    def __init__(self, network: Network):
        super().__init__()
        self.network = network
        for block in network.blocks:
            module = build_block(block.spec)
            if module is not None:
                _attach(self, block.name, module)
        cut = next(index for index, (block, _) in enumerate(network.steps) if isinstance(block.spec, self.dense_until))
        self._dense_steps, self._later_steps = network.steps[:cut], network.steps[cut:]
        self._anchors: list[Tensor] | None = None

    @property
    def blocks(self) -> dict[str, nn.Module]:
        """Modules by block name (blocks without weights have none)."""
        return {block.name: self.get_submodule(block.name) for block in self.network.blocks if _has(self, block.name)}

    def dense(self, images: Tensor) -> dict[str, Tensor]:
        """All maps of normalized images (N, 3, H, W) of the blueprint's input size, by name."""
        if tuple(images.shape[-2:]) != self.network.blueprint.input:
            size = "x".join(map(str, images.shape[-2:]))
            raise ValueError(f"images of {size} do not fit the blueprint {self.network.blueprint.text}: resize them")
        values = {IMAGE: images}
        self._run(self._dense_steps, values)
        return values

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        """Detections of normalized images (N, 3, H, W): per image boxes (D, 4), scores (D,), labels (D,) from 1."""
        raise TypeError(f"{type(self).__name__} does not say how it detects")

    def anchors(self, maps: list[Tensor]) -> list[Tensor]:
        """Anchors (H * W * A, 4) of every level, on the device of the level's map (N, C, H, W)."""
        if self._anchors is None:
            self._anchors = self._make_anchors([tuple(m.shape[-2:]) for m in maps])
        if self._anchors[0].device != maps[0].device:
            self._anchors = [anchors.to(maps[0].device) for anchors in self._anchors]
        return self._anchors

    def _make_anchors(self, maps: list[tuple[int, int]]) -> list[Tensor]:
        raise TypeError(f"{type(self).__name__} does not say its anchors")

    def _run(self, steps, values: dict[str, Tensor]) -> None:
        for block, use in steps:
            inputs = [values[name] for name in use.inputs]
            module = self.get_submodule(block.name)
            results = module(*inputs, use.index) if block.spec.per_use else module(*inputs)
            values.update(zip(use.outputs, results if isinstance(results, tuple) else (results,), strict=True))


def _attach(root: nn.Module, name: str, module: nn.Module) -> None:
    """Puts `module` at a dotted name, so that state-dict keys start with the block's name."""
    *path, last = name.split(".")
    for part in path:
        if not hasattr(root, part):
            root.add_module(part, nn.Module())
        root = getattr(root, part)
    root.add_module(last, module)


def _has(root: nn.Module, name: str) -> bool:
    for part in name.split("."):
        if part not in root._modules:
            return False
        root = root._modules[part]
    return True
