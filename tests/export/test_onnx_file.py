"""Export: every form detects what PyTorch detects, on photographs; a file that does not is never written."""

import numpy as np
import onnx
import pytest
import torch

from fastnas.blueprint import parse
from fastnas.errors import FastnasError, InputError
from fastnas.export import onnx_file
from fastnas.export.onnx_file import Form, export_onnx, output_shapes, write_onnx
from fastnas.export.predictor import OnnxPredictor, TorchPredictor, open_predictor, predict
from fastnas.export.session import OnnxSession
from tests.export.conftest import CLASSES, TEXTS

FORMS = [Form(), Form(raw=True, batch=2)]
MORE = [Form(batch=3), Form(target="tensorrt"), Form(target="tensorrt", batch=2), Form(precision="fp16")]
CASES = [(name, form) for name in TEXTS for form in FORMS] + [(name, form) for name in ("two-stage", "one-stage") for form in MORE]


@pytest.mark.parametrize(("name", "form"), CASES, ids=str)
def test_photographs_give_the_same_detections(weights, photographs, tmp_path, name, form):
    exported = export_onnx(weights(name), form, images=photographs)
    assert exported.check.images == 3 and exported.check.detections >= 30
    write_onnx(tmp_path / "d.onnx", exported)
    ours, torchs = OnnxPredictor(tmp_path / "d.onnx"), TorchPredictor(weights(name))
    assert ours.classes == torchs.classes == CLASSES and ours.blueprint == torchs.blueprint == parse(TEXTS[name])
    near = 1e-3 if form.precision == "fp32" else 5e-2
    for image in photographs:
        found, expected = predict(ours, image), predict(torchs, image)
        assert len(expected) == 20
        scores = [[d.score for d in ds] for ds in (found, expected)]
        np.testing.assert_allclose(*scores, atol=near)
        if form.precision == "fp32":
            assert [d.name for d in found] == [d.name for d in expected]
            np.testing.assert_allclose([d.box for d in found], [d.box for d in expected], atol=0.5)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("name", TEXTS)
def test_any_number_of_images(weights, pictures, name, raw, precision):
    exported = export_onnx(weights(name), Form(raw=raw, batch=None, precision=precision), images=pictures)
    assert all(shape[0] == "batch" for shape in output_shapes(exported.model).values())
    predictor = OnnxPredictor(exported.model.SerializeToString())
    images = torch.randint(0, 256, (5, 3, *predictor.blueprint.input), dtype=torch.uint8)
    whole, alone = predictor.find(images), [predictor.find(images[index : index + 1])[0] for index in range(5)]
    for one, other in zip(whole, alone, strict=True):
        torch.testing.assert_close(one["scores"], other["scores"], atol=1e-3, rtol=0)
    assert predictor.find(images[:0]) == []


def test_half_precision_computes_the_same_for_any_number_of_images(weights):
    """What a Loop holds is in the types that it has when it is written out."""
    images = torch.randint(0, 256, (2, 3, *parse(TEXTS["two-stage"]).input), generator=torch.Generator().manual_seed(0)).float()
    models = [export_onnx(weights("two-stage"), Form(raw=True, batch=batch, precision="fp16")).model for batch in (2, None)]
    types = [{output.name: output.type.tensor_type.elem_type for output in model.graph.output} for model in models]
    assert types[0] == types[1]
    fixed, dynamic = (OnnxSession(model.SerializeToString()).run(images.numpy()) for model in models)
    for name, value in fixed.items():
        np.testing.assert_allclose(dynamic[name], value, atol=5e-3, err_msg=name)
    body = next(node for node in models[1].graph.node if node.op_type == "Loop").attribute[0].g
    assert any(node.op_type == "Gemm" for node in body.node)
    halves = {tensor.name for tensor in models[1].graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT16}
    assert all(node.input[1] in halves for node in body.node if node.op_type == "Gemm")


def test_fewer_images_than_the_file_takes(weights):
    predictor = OnnxPredictor(export_onnx(weights("two-stage"), Form(batch=4)).model.SerializeToString())
    assert len(predictor.find(torch.zeros(5, 3, *predictor.blueprint.input, dtype=torch.uint8))) == 5


def test_what_the_engines_need_is_in_the_file(weights):
    model = export_onnx(weights("two-stage"), Form(target="tensorrt")).model
    assert model.opset_import[0].version == 17 and model.producer_name == "fastnas"
    onnx.checker.check_model(model, full_check=True)
    assert not {"NonZero"} & {node.op_type for node in model.graph.node}, "sizes that depend on the data"
    assert {"blueprint", "classes", "image", "boxes"} <= {p.key for p in model.metadata_props}


def test_a_file_that_computes_something_else_is_refused(weights, monkeypatch):
    right = onnx_file._model

    def wrong(detector, outputs, form):
        detector.blocks["backbone.stem"].norm1.weight.data *= 1.05
        model = right(detector, outputs, form)
        detector.blocks["backbone.stem"].norm1.weight.data /= 1.05
        return model

    monkeypatch.setattr(onnx_file, "_model", wrong)
    with pytest.raises(FastnasError, match="computes something else: rpn.*differs"):
        export_onnx(weights("two-stage"))


def test_another_input_size(weights):
    other = parse(TEXTS["one-stage"]).replace(input=(64, 80))
    exported = export_onnx(weights("one-stage"), Form(), other)
    assert exported.description.blueprint == other and exported.check.detections
    with pytest.raises(InputError, match="does not fit the blueprint.*head.classes"):
        export_onnx(weights("one-stage"), Form(), other.replace(classes=5))
    with pytest.raises(InputError, match="another blueprint"):
        export_onnx(weights("one-stage"), Form(), parse(TEXTS["two-stage"]))


def test_files_of_others_are_refused(tmp_path, weights):
    with pytest.raises(InputError, match="no file"):
        open_predictor(tmp_path / "x.onnx")
    (tmp_path / "x.onnx").write_bytes(b"no model")
    with pytest.raises(InputError, match="cannot read the ONNX file"):
        open_predictor(tmp_path / "x.onnx")
    model = export_onnx(weights("one-stage")).model
    for key, value, says in (("classes", "[1]", "damaged"), ("blueprint", "x", "damaged"), ("format", "other", "not written by")):
        changed = onnx.ModelProto.FromString(model.SerializeToString())
        onnx.helper.set_model_props(changed, {**{p.key: p.value for p in model.metadata_props}, key: value})
        (tmp_path / "x.onnx").write_bytes(changed.SerializeToString())
        with pytest.raises(InputError, match=says):
            open_predictor(tmp_path / "x.onnx")
