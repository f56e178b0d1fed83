"""Blueprint -> nn.Module, weight inheritance, block and network -> ONNX (`fastnas.models.onnx`, which loads no torch)."""


def __getattr__(name: str):
    if name in ("build", "Detector"):
        from fastnas.models import detector

        return getattr(detector, name)
    raise AttributeError(f"module 'fastnas.models' has no attribute {name!r}")
