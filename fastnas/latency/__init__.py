"""How fast is this blueprint on this device: measured blocks in a table, summed by the oracle. Never imports torch.

    with Oracle.open() as oracle:
        price = oracle(blueprint)        # Price(engine, predicted, low, high) in milliseconds
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastnas.latency.oracle import Oracle
    from fastnas.latency.price import BlockPrice, Lacking, Price, Unpriceable
    from fastnas.latency.timing import Timing

__all__ = ["BlockPrice", "Lacking", "Oracle", "Price", "Timing", "Unpriceable"]
_MODULES = {"Oracle": "oracle", "Timing": "timing"}  # the others: price


def __getattr__(name: str):
    """Loads on first use: the command line looks up this package before it knows whether a price is wanted."""
    import importlib

    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES.get(name, 'price')}"), name)
