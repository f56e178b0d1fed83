"""Strategies, the study on disk and the pipelines of the three methods."""


def __getattr__(name: str):
    if name in ("run", "open_study"):  # loaded on demand: reading a study needs no torch
        import importlib

        return getattr(importlib.import_module("fastnas.search.runner"), name)
    raise AttributeError(f"module 'fastnas.search' has no attribute {name!r}")
