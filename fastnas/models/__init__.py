"""Blueprint -> nn.Module, weight inheritance, block and network -> ONNX (`fastnas.models.onnx`, which loads no torch)."""


def __getattr__(name: str):
    if name == "build":
        from fastnas.models.assemble import build

        return build
    if name == "Detector":
        from fastnas.models.detector import Detector

        return Detector
    raise AttributeError(f"module 'fastnas.models' has no attribute {name!r}")
