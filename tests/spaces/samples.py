"""The spaces of all methods at small sizes, for tests that draw from each of them."""

from functools import cache
from pathlib import Path

from fastnas.search.config import check_config, load_config
from fastnas.spaces import Space

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = {
    "spnas": "spnas-demo",
    "spnas-parallel": "spnas-parallel",
    "smnas": "smnas-demo",
    "smnas-modular": "smnas-modular",
    "efficientdet": "efficientdet-demo",
}


@cache
def small_space(name: str) -> Space:
    """The space of a demo config; those that grow are kept short."""
    file = FILES[name]
    return check_config(load_config(file.split("-")[0], str(CONFIGS / f"{file}.yaml"))).make_space(3)
