"""Checkpoint files: what is read, what is copied, and what is refused in one line."""

import os

import pytest
import safetensors.torch
import torch
from torchvision.models.resnet import BasicBlock, ResNet

from fastnas.blueprint import parse
from fastnas.errors import InputError
from fastnas.models import build
from fastnas.models.convert import convert, convert_file, read_checkpoint
from fastnas.models.weights import load_detector, load_weights
from tests.models.convert.test_formats import faster_rcnn

TEXT = "64x96/basic:1-2-2-2/fpn:16/rpn:20/rcnn:16/classes:3"


@pytest.fixture(scope="module")
def resnet() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return ResNet(BasicBlock, [1, 1, 1, 1]).state_dict()


def test_all_forms_of_a_file_hold_the_same(tmp_path, resnet):
    wrapped = {f"module.{name}": tensor for name, tensor in resnet.items()}
    forms = [resnet, wrapped, {"model": resnet, "epoch": 3, "args": {"lr": 0.1}}, {"state_dict": wrapped, "best": 0.7}]
    for index, form in enumerate(forms):
        torch.save(form, tmp_path / f"{index}.pth")
    torch.save(resnet, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(resnet, tmp_path / "s.safetensors")
    torch.save({name: t.half() if t.is_floating_point() else t for name, t in resnet.items()}, tmp_path / "half.pth")
    for path in sorted(tmp_path.iterdir()):
        read = read_checkpoint(path)
        assert read.keys() == resnet.keys(), path
        for name, tensor in read.items():
            assert tensor.dtype == resnet[name].dtype
            torch.testing.assert_close(tensor, resnet[name], rtol=1e-2 if path.stem == "half" else 0, atol=1e-4)


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_nothing_in_a_file_is_run(tmp_path, resnet):
    torch.save({"state_dict": resnet, "extra": Evil(tmp_path / "ran")}, tmp_path / "evil.pth")
    with pytest.raises(InputError, match="evil.pth is damaged, or holds more than tensors, which is never run"):
        read_checkpoint(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


def damaged(resnet) -> dict[str, bytes]:
    import io

    content = io.BytesIO()
    torch.save(resnet, content)
    whole = content.getvalue()
    half = whole[: len(whole) // 2]
    return {"empty.pth": b"", "text.pth": b"no checkpoint", "cut.pth": half, "cut.safetensors": b"\x10" + 7 * b"\0"}


def test_files_that_cannot_be_read_are_named(tmp_path, resnet):
    for name, content in damaged(resnet).items():
        (tmp_path / name).write_bytes(content)
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save(ResNet(BasicBlock, [1, 1, 1, 1]), tmp_path / "module.pth")
    for name in [*damaged(resnet), "list.pth", "module.pth", "none.pth"]:
        with pytest.raises(InputError, match=name) as caught:
            read_checkpoint(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_backbone_is_a_part_of_a_detector(tmp_path, resnet):
    torch.save(resnet, tmp_path / "r.pth")
    blueprint, classes, done = convert_file(tmp_path / "r.pth", tmp_path / "w.safetensors", parse(TEXT))
    assert done.parts() == {"backbone": (72, 72), "neck": (0, 16), "rpn": (0, 6), "head": (0, 8)}
    assert done.unused == ["fc.weight", "fc.bias"] and not done.complete and classes == []
    own, _, state = load_weights(tmp_path / "w.safetensors")
    assert own == blueprint and state.keys() == done.state.keys() and all(name.startswith("backbone.") for name in state)
    with pytest.raises(InputError, match="only a part of the detector: train from it with --init"):
        load_detector(tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="written by fastnas: use it as it is"):
        convert_file(tmp_path / "w.safetensors", tmp_path / "x.safetensors")


def test_parts_of_a_backbone_are_refused(tmp_path, resnet):
    torch.save({name: tensor for name, tensor in resnet.items() if "layer3" not in name}, tmp_path / "part.pth")
    torch.save(resnet, tmp_path / "r.pth")
    for name, text, says in (
        ("part.pth", TEXT, "only 54 of the 72 tensors of the backbone are in this .*stage3.block1.conv1.weight: not in the"),
        ("r.pth", TEXT.replace("1-2-2-2", "11-2-2-2"), "first misfit backbone.stage1.block2"),
        ("r.pth", TEXT.replace("basic", "bottleneck"), "only .* tensors of the backbone are in this"),
        ("r.pth", TEXT.replace("2-2/", "2-2,norm=gn/"), "norm1.weight: a batch norm in the checkpoint"),
        ("r.pth", "64x96/efficientnet:b0/bifpn:64/effdet:3/classes:3", "nothing that fits the blueprint is in this .*ResNet"),
    ):
        with pytest.raises(InputError, match=says):
            convert_file(tmp_path / name, tmp_path / "w.safetensors", parse(text))
        assert not (tmp_path / "w.safetensors").exists()


def test_layers_are_copied_whole_or_not_at_all():
    """Pyramids with batch norms have convolutions without biases: their weights alone would be worthless."""
    peer = faster_rcnn()
    source = {name: tensor for name, tensor in peer.state_dict().items() if "inner_blocks.0.0.bias" not in name}
    with torch.device("meta"):
        detector = build(parse("64x96/bottleneck:1-2-2-2/fpn:256/rpn:1000/rcnn:1024/classes:6"))
    done = convert(source, detector)
    left = ["neck.p2.lateral.weight", "neck.p2.lateral.bias"]
    assert [name for name in done.left if not name.startswith("head.")] == left
    shapes = {name: why for name, why in done.left.items() if name.startswith("head.")}
    assert len(shapes) == 4 and shapes["head.box.cls_score.weight"].startswith("shape [7, 1024], in the checkpoint [5, 1024]")


def test_names_of_classes(tmp_path):
    torch.save(faster_rcnn().state_dict(), tmp_path / "f.pth")
    _, classes, done = convert_file(tmp_path / "f.pth", tmp_path / "w.safetensors", classes=["a", "b", "c", "d"])
    assert done.complete and classes == load_weights(tmp_path / "w.safetensors")[1] == ["a", "b", "c", "d"]
    with pytest.raises(InputError, match="2 names of classes are given, the detector has 4"):
        convert_file(tmp_path / "f.pth", tmp_path / "w.safetensors", classes=["a", "b"])


def test_cocos_names_are_torchvisions():
    from torchvision.models._meta import _COCO_CATEGORIES

    from fastnas.models.convert.coco import CLASSES

    assert len(CLASSES) == 90
    for label, (ours, theirs) in enumerate(zip(CLASSES, _COCO_CATEGORIES[1:], strict=True), 1):
        assert ours == (f"unused {label}" if theirs == "N/A" else theirs)
