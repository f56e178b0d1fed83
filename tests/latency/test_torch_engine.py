"""torch as an engine: runs the same workloads as ONNX Runtime, on the same scene, with the numbers of the trained modules."""

import copy

import numpy as np
import pytest
import torch

from fastnas.blueprint import blocks as b
from fastnas.blueprint import expand, parse
from fastnas.errors import FastnasError, InputError
from fastnas.latency import Oracle, timing
from fastnas.latency.engines import open_engine
from fastnas.models import build, timed
from fastnas.models.fold import fold_batch_norms
from fastnas.models.onnx import network_model
from fastnas.models.timed import Timed, timed_network
from fastnas.models.workload import BlockWorkload, NetworkWorkload
from tests.models.test_onnx import LAYERS, noise, randomize, run, state

TEXT = "64x96/basic:1-2,base=16,norm={}/fpn:16/rpn:20,topk=50/rcnn:16,detections=10/classes:3"
ONE_STAGE = "64x96/efficientnet:0.25x0.4/bifpn:8,repeats=1,levels=3-6/effdet:1,detections=10/classes:3"
CASCADE = "64x96/basic:1-2,base=16/fpn:16/rpn:20,topk=50/cascade:2,hidden=16,detections=10,suppression=linear/classes:3"
RETINANET = "64x96/basic:1-2-1,base=16/fpn:16,levels=3-5,extra=conv-p/retinanet:1,norm=bn,background=yes,detections=10/classes:3"
GUIDED = "64x96/basic:1-2,base=16/fpn:16/garpn:20,topk=50/rcnn:16,detections=10,quality=high/classes:3"
NETWORK = expand(parse(TEXT.format("gn")))
NETWORKS = NETWORK, *(expand(parse(text)) for text in (ONE_STAGE, CASCADE, RETINANET, GUIDED))
WORKLOADS = [BlockWorkload(*pair) for network in NETWORKS for pair in network.prices()] + [NetworkWorkload(n) for n in NETWORKS]
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.mark.parametrize(("spec", "shapes"), LAYERS, ids=lambda value: getattr(value, "op", None))
def test_folding_batch_norms_changes_no_number(spec, shapes):
    module = randomize(timed.build_block(spec))
    module = module.at(0) if spec.per_use else module
    inputs = [torch.from_numpy(noise(*shape)) for shape in shapes]
    folded = fold_batch_norms(copy.deepcopy(module))
    assert not any(isinstance(child, torch.nn.BatchNorm2d) for child in folded.modules())
    for ours, truth in zip(_all(folded(*inputs)), _all(module(*inputs)), strict=True):
        torch.testing.assert_close(ours, truth, atol=2e-4, rtol=2e-4)


def _all(outputs):
    return outputs if isinstance(outputs, tuple) else (outputs,)


@pytest.mark.parametrize(
    "text", [TEXT.format("bn"), TEXT.format("gn"), ONE_STAGE, RETINANET, GUIDED, CASCADE.replace("linear", "hard")]
)
def test_the_network_on_the_scene_equals_its_onnx_form(text, monkeypatch):
    """Same weights, same inputs, same outputs, proposal selection and suppression included."""
    network = expand(parse(text))
    detector = randomize(build(network.blueprint))
    own, boxes = timed._module, tuple(timed.BOX_MODULES)
    built = [block for block in network.blocks if block.name in detector.blocks and not isinstance(block.spec, boxes)]
    trained = iter([fold_batch_norms(copy.deepcopy(detector.blocks[block.name])) for block in built])
    monkeypatch.setattr(timed, "_module", lambda s, shapes: own(s, shapes) if isinstance(s, boxes) else next(trained))
    module, feeds = timed_network(network), NetworkWorkload(network).inputs()
    assert list(feeds) == list(module.inputs)
    outputs = module(*map(torch.from_numpy, feeds.values()))
    model = network_model(network, state(detector), synthetic_scores=True)
    assert tuple(info.name for info in model.graph.output) == module.outputs
    for name, ours, truth in zip(module.outputs, outputs, run(model, feeds), strict=True):
        truth = truth[: len(ours)] if name in ("boxes", "scores", "labels") else truth  # ONNX fills up with zero boxes
        np.testing.assert_allclose(ours.numpy(), truth, atol=1e-3, rtol=1e-3, err_msg=name)


def test_parts_split_where_sizes_depend_on_data():
    module = NetworkWorkload(NETWORK).module()
    assert [part.static for part in module.parts] == [True, False, True, False]
    assert module.parts[0].inputs == ("image",) and not module.training
    assert module.boxes == {"synthetic.head.pool.2", "synthetic.head.detections.0"}
    assert isinstance(module, Timed) and not any(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize("engine", ["torch-cpu", "torch-cpu:bf16", "torch-cpu:bf16,weights=autocast"])
@pytest.mark.parametrize("workload", WORKLOADS, ids=str)
def test_all_workloads_run(engine, workload):
    engine = open_engine(engine)
    runner = engine.prepare(workload)
    start = engine.clock()
    runner.run()
    assert engine.clock() > start and not runner.graph
    outputs, expected = runner.outputs(), workload.module()(*map(torch.from_numpy, workload.inputs().values()))
    for ours, truth in zip(outputs, expected, strict=True):
        assert np.isfinite(ours).all()
        if engine.precision == "fp32":
            np.testing.assert_allclose(ours, truth.numpy(), atol=1e-4, rtol=1e-3)
        else:
            assert ours.shape[1:] == tuple(truth.shape[1:])


def test_branches_that_start_at_zero_do_something_when_timed():
    [module] = BlockWorkload(b.Residual("basic", 8, 8, 1, "gn"), ((1, 8, 6, 6),)).module().parts[0].modules_
    assert module.last_norm.weight.unique().tolist() == [timed.LAST_SCALE]


def test_deployed_types_and_layout():
    runner = open_engine("torch-cpu:bf16").prepare(NetworkWorkload(NETWORK))
    image, boxes = runner.values["image"], runner.values["synthetic.head.pool.2"]
    assert image.dtype == torch.bfloat16 and image.is_contiguous(memory_format=torch.channels_last)
    assert boxes.dtype == torch.float32
    runner.run()
    dense, selection, *_ = runner._timed.parts
    convolution = next(child for child in dense.modules() if isinstance(child, torch.nn.Conv2d) and child.kernel_size == (3, 3))
    assert convolution.weight.dtype == torch.bfloat16
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last)
    assert all(anchors.dtype == torch.float32 for anchors in selection.buffers())
    assert runner.values[dense.outputs[0]].dtype == torch.bfloat16


def test_autocast_keeps_weights():
    runner = open_engine("torch-cpu:bf16,weights=autocast").prepare(WORKLOADS[0])
    assert all(parameter.dtype == torch.float32 for parameter in runner._timed.parameters())
    runner.run()
    assert runner.values["out0"].dtype == torch.bfloat16


def test_threads_are_those_of_the_engine_while_it_runs_only(monkeypatch):
    runner = open_engine("torch-cpu,threads=3").prepare(WORKLOADS[0])
    seen, eager = [], type(runner).eager
    monkeypatch.setattr(type(runner), "eager", lambda self, part: (seen.append(torch.get_num_threads()), eager(self, part)))
    before = torch.get_num_threads()
    runner.run()
    assert seen == [3] and torch.get_num_threads() == before
    engine = open_engine("torch-cpu,threads=3")
    assert engine.environment()["threads"] == 3 and engine.environment()["settings"]["clock"] == "wall time"


def test_what_changes_latency_is_in_the_environment():
    texts = ["torch-cpu", "torch-cpu:bf16", "torch-cpu,threads=2", "torch-cpu:bf16,weights=autocast", "torch-cpu,compile=on"]
    environments = [open_engine(text).environment() for text in texts]
    assert all(one != other for index, one in enumerate(environments) for other in environments[:index])
    assert environments[0] == open_engine("torch-cpu:fp32,threads=1").environment()
    assert environments[0]["version"] == torch.__version__


@pytest.mark.parametrize(
    ("text", "message"),
    {
        "torch-cpu:fp16": "engine torch-cpu has no precision 'fp16' .known: fp32, bf16",
        "torch-cpu,threads=0": "no threads '0' .known: 1 to 256",
        "torch-cpu,thread=1": "no setting 'thread' .known: threads, weights, compile",
        "torch-cpu,threads": "expected SETTING=VALUE after a comma, got 'threads'",
        "torch-cpi": "did you mean torch-cpu",
        "onnxruntime,threads=2": "engine onnxruntime has no setting 'threads'",
    }.items(),
)
def test_settings_that_it_does_not_have(text, message):
    with pytest.raises(InputError, match=message):
        open_engine(text)


def test_a_workload_that_fails_is_named():
    class Broken(BlockWorkload):
        def module(self):
            raise RuntimeError("out of\nmemory")

    workload = Broken(*next(iter(NETWORK.prices())))
    with pytest.raises(FastnasError, match=r"engine torch-cpu cannot run Stem\(.*\) at 1x3x64x96: out of memory"):
        open_engine("torch-cpu").prepare(workload)


@pytest.mark.parametrize("engine", ["torch-cpu", "onnxruntime"])
def test_layers_share_out_the_time(engine):
    runner = open_engine(engine).prepare(NetworkWorkload(NETWORK))
    layers = runner.layers(runs=3)
    assert len(layers) > 10 and all(layer.ms >= 0 for layer in layers) and sum(layer.ms for layer in layers) > 0
    assert len({layer.name for layer in layers}) == len(layers)
    assert any("conv" in layer.kind.lower() + layer.name.lower() for layer in layers)


def test_the_oracle_prices_with_it(tmp_path, monkeypatch):
    for name, value in {"QUIET_S": 0.05, "SLICES": 2, "FEWEST": 2, "AGREE": 1e9}.items():
        monkeypatch.setattr(timing, name, value)
    with Oracle.open(tmp_path / "latency.db", "torch-cpu") as oracle:
        price = oracle(NETWORK.blueprint)
        assert price.engine == "torch-cpu" and 0 < price.low < price.predicted < price.high
        assert oracle.measure_whole(NETWORK.blueprint).median_ms > 0


@pytest.mark.slow
def test_compiled_blocks_give_the_same_numbers():
    workload = BlockWorkload(b.Residual("basic", 8, 8, 1, "bn"), ((1, 8, 12, 12),))
    runners = [open_engine(text).prepare(workload) for text in ("torch-cpu", "torch-cpu,compile=on")]
    for runner in runners:
        runner.run()
    np.testing.assert_allclose(runners[0].outputs()[0], runners[1].outputs()[0], atol=1e-4)


def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(FastnasError, match="torch-cuda cannot run here: .*(no usable GPU|without CUDA)"):
        open_engine("torch-cuda")


@cuda
@pytest.mark.cuda
@pytest.mark.parametrize("text", ["torch-cuda", "torch-cuda:fp16", "torch-cuda:bf16,graph=off", "torch-cuda:fp16,weights=autocast"])
def test_all_workloads_run_on_a_gpu(text):
    engine = open_engine(text)
    for workload in WORKLOADS:
        runner = engine.prepare(workload)
        start = engine.clock()
        runner.run()
        assert engine.clock() > start
        assert runner.graph == ("graph=off" not in text)
        expected = workload.module()(*map(torch.from_numpy, workload.inputs().values()))
        for ours, truth in zip(runner.outputs(), expected, strict=True):
            assert np.isfinite(ours).all() and ours.shape[1:] == tuple(truth.shape[1:])
            if engine.precision == "fp32":
                np.testing.assert_allclose(ours, truth.numpy(), atol=2e-2, rtol=2e-2)
    assert sum(layer.ms for layer in runner.layers(runs=2)) > 0
