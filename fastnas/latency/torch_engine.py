"""torch as it is deployed without another engine: eager, CUDA graphs or torch.compile; channels-last; fp32, fp16 or bf16.

`weights=cast`: parameters and feature maps are held in the precision; `weights=autocast`: parameters stay float32 and
torch.autocast converts them in every run. Boxes are float32 either way.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from fastnas.errors import FastnasError
from fastnas.latency.engines import Layer, cannot_run, choose, choose_settings, cpu, environment, gpu
from fastnas.models.timed import Part, Timed
from fastnas.models.workload import Workload

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
WARM_UP = 3


class _Torch:
    """What both devices share: how a module is put on a device in a precision."""

    version = torch.__version__
    name: str
    device: str
    precision: str
    settings: dict[str, str]

    def prepare(self, workload: Workload) -> "_Runner":
        try:
            with self.running():
                timed = workload.module()
                inputs = self._placed(timed, workload.inputs())
                return self._runner(timed, inputs)
        except (RuntimeError, FastnasError) as error:
            raise cannot_run(self, workload, error) from error

    def running(self) -> AbstractContextManager:
        """What a run happens in."""
        stack = ExitStack()
        stack.enter_context(torch.inference_mode())
        if self.settings["weights"] == "autocast" and self.precision != "fp32":
            stack.enter_context(torch.autocast(self.device, DTYPES[self.precision]))
        return stack

    def _placed(self, timed: Timed, arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        """Moves the module, in place, and makes its inputs."""
        dtype = DTYPES[self.precision]
        timed.to(self.device)
        for part in timed.parts:
            if part.static:
                part.to(memory_format=torch.channels_last)
                if self.settings["weights"] == "cast":
                    part.to(dtype)
                if self.settings["compile"] == "on":
                    part.compile(dynamic=False)
        tensors = {name: torch.from_numpy(array).to(self.device, copy=True) for name, array in arrays.items()}
        for name in tensors.keys() - timed.boxes:  # with autocast too: the layer before left them in this type
            tensors[name] = tensors[name].to(dtype)
            if tensors[name].dim() == 4:
                tensors[name] = tensors[name].contiguous(memory_format=torch.channels_last)
        return tensors

    def _runner(self, timed: Timed, inputs: dict[str, Tensor]) -> "_Runner":
        raise TypeError(f"{type(self).__name__} makes no runners")


class TorchCpu(_Torch):
    name, device = "torch-cpu", "cpu"

    def __init__(self, precision: str | None = None, settings: Mapping[str, str] | None = None):
        self.precision = choose(self.name, "precision", precision, ("fp32", "bf16"))
        known = {"threads": range(1, 257), "weights": ("cast", "autocast"), "compile": ("off", "on")}
        self.settings = choose_settings(self.name, settings, known)
        self.threads = int(self.settings["threads"])

        self.seconds = 0.0

    def clock(self) -> float:
        """What runs took so far, without what surrounds each: in a network that comes once, not with every block."""
        return self.seconds

    def now(self) -> float:
        """One thread runs in the caller's: its processor time, so that time given to other processes does not count."""
        return time.thread_time() if self.threads == 1 else time.perf_counter()

    def environment(self) -> dict:
        settings = {key: value for key, value in self.settings.items() if key != "threads"}
        settings |= {"clock": "thread time" if self.threads == 1 else "wall time", "layout": "channels-last"}
        return environment(self, cpu(), threads=self.threads, settings=settings)

    def _runner(self, timed, inputs):
        return _CpuRunner(self, timed, inputs)


class TorchCuda(_Torch):
    name, device = "torch-cuda", "cuda"

    def __init__(self, precision: str | None = None, settings: Mapping[str, str] | None = None):
        self.precision = choose(self.name, "precision", precision, ("fp32", "fp16", "bf16"))
        known = {"graph": ("on", "off"), "weights": ("cast", "autocast"), "compile": ("off", "on")}
        self.settings = choose_settings(self.name, settings, known)
        if torch.version.cuda is None:
            raise FastnasError("engine torch-cuda cannot run here: this torch has no CUDA (install a CUDA build of torch)")
        if not torch.cuda.is_available():
            raise FastnasError("engine torch-cuda cannot run here: torch finds no usable GPU (check the driver with: nvidia-smi)")
        self.seconds = 0.0
        self.stream = torch.cuda.Stream()  # capturing needs one that is not the default

    def clock(self) -> float:
        return self.seconds

    def environment(self) -> dict:
        found = torch.cuda.get_device_properties(torch.cuda.current_device())
        settings = {**self.settings, "clock": "CUDA events", "layout": "channels-last"}
        settings |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
        settings |= {"cudnn_tf32": torch.backends.cudnn.allow_tf32, "cudnn_benchmark": torch.backends.cudnn.benchmark}
        settings |= {"matmul_precision": torch.get_float32_matmul_precision()}
        return environment(self, gpu(found.name, (found.major, found.minor), found.total_memory), threads=1, settings=settings)

    def _runner(self, timed, inputs):
        return _CudaRunner(self, timed, inputs)


class _Runner:
    """Inputs are in place; outputs of the last run stay in `values`."""

    graph = False
    activity = ProfilerActivity.CPU

    def __init__(self, engine: _Torch, timed: Timed, inputs: dict[str, Tensor]):
        self._engine, self._timed, self.values = engine, timed, dict(inputs)

    def run(self) -> None:
        raise TypeError(f"{type(self).__name__} does not run")

    def outputs(self) -> list[np.ndarray]:
        """Of the last run, as float32 where they are numbers of any smaller type."""
        tensors = [self.values[name] for name in self._timed.outputs]
        return [(tensor.float() if tensor.is_floating_point() else tensor).cpu().numpy() for tensor in tensors]

    def layers(self, runs: int = 10) -> list[Layer]:
        """Operators (on a GPU kernels) by name, the slowest first."""
        self.run()
        with profile(activities=[self.activity], acc_events=True) as profiled:
            for _ in range(runs):
                self.run()
        kind, time_of = ("operator", "self_cpu_time_total")
        if self.activity is ProfilerActivity.CUDA:
            kind, time_of = ("kernel", "self_device_time_total")
        found = [Layer(row.key, kind, 1e-3 * getattr(row, time_of) / runs) for row in profiled.key_averages()]
        return sorted((layer for layer in found if layer.ms > 0), key=lambda layer: -layer.ms)

    def eager(self, part: Part) -> None:
        self.values.update(zip(part.outputs, part(*(self.values[name] for name in part.inputs)), strict=True))


class _CpuRunner(_Runner):
    def __init__(self, engine: TorchCpu, timed: Timed, inputs: dict[str, Tensor]):
        super().__init__(engine, timed, inputs)
        self.run()  # compiles what is to be compiled, and shows what cannot run

    def run(self) -> None:
        before = torch.get_num_threads()  # the process may be training with more
        if before != self._engine.threads:
            torch.set_num_threads(self._engine.threads)
        try:
            with self._engine.running():
                start = self._engine.now()
                for part in self._timed.parts:
                    self.eager(part)
                self._engine.seconds += self._engine.now() - start
        finally:
            if before != self._engine.threads:
                torch.set_num_threads(before)


class _CudaRunner(_Runner):
    """Between the two events: replays of the parts that could be captured, eager calls of the others. No transfers."""

    activity = ProfilerActivity.CUDA

    def __init__(self, engine: TorchCuda, timed: Timed, inputs: dict[str, Tensor]):
        super().__init__(engine, timed, inputs)
        self._start, self._end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        self._captured = set(inputs)  # values that stay where they are
        engine.stream.wait_stream(torch.cuda.current_stream())  # the inputs were copied there
        with torch.cuda.stream(engine.stream):
            for _ in range(WARM_UP):  # libraries choose their algorithms, what is to be compiled is
                for part in timed.parts:
                    self.eager(part)
        engine.stream.synchronize()
        self._calls = [self._call(part) for part in timed.parts]
        self._replays = all(isinstance(call, torch.cuda.CUDAGraph) for call in self._calls)
        self.graph = engine.settings["graph"] == "on" and all(
            isinstance(call, torch.cuda.CUDAGraph) for call, part in zip(self._calls, timed.parts, strict=True) if part.static
        )

    def run(self) -> None:
        with self._engine.running(), torch.cuda.stream(self._engine.stream):
            if self._replays:  # keeps the GPU busy while the timed run is put behind it, so that no launch is timed
                self._all()
            self._start.record()
            self._all()
            self._end.record()
        while not self._end.query():  # spins: a thread that sleeps wakes late and the GPU has clocked down
            pass
        self._engine.seconds += 1e-3 * self._start.elapsed_time(self._end)

    def _all(self) -> None:
        for call in self._calls:
            call.replay() if isinstance(call, torch.cuda.CUDAGraph) else call()

    def _call(self, part: Part) -> "torch.cuda.CUDAGraph | Callable[[], None]":
        """A captured graph, or the eager call where sizes depend on data or the capture fails.

        A captured part reads its inputs where they lie now: that they stay there is sure of the workload's inputs and of what
        other captured parts write.
        """
        if self._engine.settings["graph"] == "on" and part.static and self._captured.issuperset(part.inputs):
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(graph, stream=self._engine.stream):
                    self.eager(part)
            except RuntimeError:
                torch.cuda.synchronize()
            else:
                self._captured |= set(part.outputs)
                return graph
        return lambda: self.eager(part)
