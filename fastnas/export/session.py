"""An exported ONNX model in ONNX Runtime on the CPU."""

import os
from pathlib import Path

import numpy as np
import onnxruntime

from fastnas.blueprint.wiring import IMAGE
from fastnas.errors import FastnasError, InputError
from fastnas.export.description import Description


class OnnxSession:
    """model: a file, or its content. Raises InputError where it cannot be read."""

    def __init__(self, model: Path | str | bytes):
        name = "model" if isinstance(model, bytes) else model
        if not isinstance(model, bytes) and not Path(model).is_file():
            raise InputError(f"no file {model}")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        threads = os.environ.get("OMP_NUM_THREADS", "")
        options.intra_op_num_threads = int(threads) if threads.isdecimal() else 0
        try:
            source = model if isinstance(model, bytes) else str(model)
            self._session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
            self._metadata = self._session.get_modelmeta().custom_metadata_map
            image = {value.name: value for value in self._session.get_inputs()}[IMAGE]
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise InputError(f"cannot read the ONNX file {name}: {' '.join(str(error).split())[:200]}") from None
        self._name = name
        self._batch = image.shape[0] if isinstance(image.shape[0], int) else None
        self._dtype = np.float16 if image.type == "tensor(float16)" else np.float32
        self.outputs = [output.name for output in self._session.get_outputs()]

    def description(self) -> Description:
        """Raises InputError where `fastnas export` did not write the file."""
        return Description.from_metadata(self._metadata, self._name)

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Outputs of images (N, 3, H, W), 0 to 255, by name, image first; as many at a time as the model takes."""
        step = self._batch or max(1, len(images))
        parts = [self._run(images[start : start + step], step) for start in range(0, len(images), step)]
        return {name: np.concatenate([part[name] for part in parts]) for name in self.outputs} if parts else {}

    def _run(self, images: np.ndarray, step: int) -> dict[str, np.ndarray]:
        count = len(images)
        padded = np.zeros((step, *images.shape[1:]), self._dtype)
        padded[:count] = images
        try:
            results = self._session.run(None, {IMAGE: padded})
        except Exception as error:
            raise FastnasError(f"ONNX Runtime cannot run {self._name}: {' '.join(str(error).split())[:300]}") from None
        return {name: value[:count] for name, value in zip(self.outputs, results, strict=True)}
