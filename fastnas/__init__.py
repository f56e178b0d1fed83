"""fastnas: finds object-detector architectures for your data on your device.

Importing the package is cheap: torch is loaded by the parts that need it (`fastnas.ops`, `fastnas.models`, `fastnas.train`),
never by `fastnas.blueprint` and `fastnas.spaces`.
"""

__version__ = "0.1.0"


def __getattr__(name: str):
    """`import fastnas; fastnas.blueprint.parse(...)`: sub-packages are loaded when they are first named."""
    if name in ("blueprint", "cli", "data", "latency", "models", "ops", "report", "search", "spaces", "train"):
        import importlib

        return importlib.import_module(f"fastnas.{name}")
    raise AttributeError(f"module 'fastnas' has no attribute {name!r}")
