"""Which names of TensorRT the source touches, and whether a version of its bindings has them.

Run as a script: `python tensorrt_names.py MODULE` reads the touched names (JSON) from stdin and prints what is wrong.
"""

import ast
import dataclasses
import importlib
import inspect
import json
import re
import sys
from pathlib import Path

HELD = {  # variables (with any prefix up to an underscore) that hold objects of these classes, in every file that is read
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "config": "IBuilderConfig",
    "cache": "ITimingCache",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "inspector": "EngineInspector",
    "runtime": "Runtime",
    "error": "ParserError",
}
OWN = {"logger": {"errors"}, "profiler": {"times"}}  # attributes that our subclasses of TensorRT's classes add
OTHERS = {  # receivers that have nothing to do with TensorRT
    *("self", "driver", "device", "stream", "clock", "graph", "buffer", "buffers", "shapes", "np", "importlib", "json", "hashlib"),
    *("path", "timings", "described", "times", "layer", "folder", "profiled", "dtype", "information", "workload", "values", "rows"),
    *("super", "settings", "found", "messages", "Buffer", "errors", "environment", "seconds", "failure"),
}


@dataclasses.dataclass(frozen=True)
class Touch:
    """`path`: Class.attribute or a dotted name in the module. `use`: read, write or call (with what it is called with)."""

    path: str
    use: str
    positional: int = 0
    keywords: tuple[str, ...] = ()


def touched(source: str) -> set[Touch]:
    """Raises AssertionError for a receiver that is listed nowhere above, so that nothing is left out unseen."""
    tree = ast.parse(source)
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    annotations = {id(part) for node in ast.walk(tree) for part in _annotated(node)}
    found: set[Touch] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            bases = [path for base in node.bases if (path := _in_module(base))]
            methods = [item.name for item in node.body if isinstance(item, ast.FunctionDef) and item.name != "__init__"]
            found |= {Touch(f"{base}.{method}", "read") for base in bases for method in methods}
        if not isinstance(node, ast.Attribute) or id(node) in annotations or isinstance(parents[node], ast.Attribute):
            continue
        path = _in_module(node) or _of_object(node)
        if path and not path.endswith("__"):
            found.add(_use(path, node, parents[node]))
        elif isinstance(node.value, ast.Attribute):
            inner = _of_object(node.value)
            assert not inner, f"line {node.lineno}: give {inner} a name before using its attributes"
    return found


def _annotated(node: ast.AST):
    for name in ("annotation", "returns"):
        if part := getattr(node, name, None):
            yield from ast.walk(part)


def _use(path: str, node: ast.Attribute, parent: ast.AST) -> Touch:
    if isinstance(parent, ast.Call) and parent.func is node:
        return Touch(path, "call", len(parent.args), tuple(keyword.arg for keyword in parent.keywords))
    return Touch(path, "write" if isinstance(node.ctx, ast.Store) else "read")


def _in_module(node: ast.AST) -> str | None:
    """`trt.A.B` and `self._trt.A.B` -> `A.B`."""
    names = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
        if _held(node) == "trt":
            return ".".join(names)
    return None


def _of_object(node: ast.Attribute) -> str | None:
    """`config.flags` and `self._config.flags` -> `IBuilderConfig.flags`."""
    held = _held(node.value)
    if held is None or held in OTHERS or held == "trt":
        return None
    if node.attr in OWN.get(held, ()):
        return None
    assert held in HELD, f"line {node.lineno}: is {held} one of TensorRT's objects? List it in HELD or in OTHERS"
    return f"{HELD[held]}.{node.attr}"


def _held(node: ast.AST) -> str | None:
    """What a variable or an attribute of self is called, without prefixes; None for other expressions."""
    if isinstance(node, ast.Name):
        name = node.id
    elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
        name = node.attr
    else:
        return None
    name = name.removeprefix("_")
    return name if name in OTHERS else name.rsplit("_", 1)[-1]


def problems(module, touches: list[Touch]) -> list[str]:
    """What of all that is touched this module does not have, or has otherwise."""
    return [problem for touch in touches if (problem := _problem(module, touch))]


def _problem(module, touch: Touch) -> str | None:
    found = module
    for name in touch.path.split("."):
        if not hasattr(found, name):
            return f"{touch.path}: no {name}"
        found = inspect.getattr_static(found, name) if inspect.isclass(found) else getattr(found, name)
    if touch.use == "write" and not (isinstance(found, property) and found.fset):
        return f"{touch.path} cannot be set"
    if touch.use != "call":
        return None
    if inspect.isfunction(found):  # one of the few that are written in Python
        signatures = [{name: own.default is not own.empty for name, own in inspect.signature(found).parameters.items()}]
        return None if _fits(signatures[0], touch) else f"{touch.path} takes {list(signatures[0])}"
    text = (found.__init__ if inspect.isclass(found) else getattr(found, "__func__", found)).__doc__ or ""
    signatures = [_parameters(line) for line in text.splitlines() if re.match(r"(\d+\. )?\w+\((?!\*args)", line)]
    if not signatures:
        return f"{touch.path}: its documentation has no signature"
    if not any(_fits(signature, touch) for signature in signatures):
        return f"{touch.path} cannot be called with {touch.positional} arguments and {list(touch.keywords)}: {signatures}"
    return None


def _parameters(line: str) -> dict[str, bool]:
    """Name -> whether it has a default, of `name(self: T, a: T, b: T = 0) -> T`; commas inside brackets do not count."""
    inside, depth, parts = line[line.index("(") + 1 : line.rindex(")")], 0, [""]
    for character in inside:
        depth += (character in "[(<") - (character in "])>")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    names = [part.strip() for part in parts if part.strip()]
    return {part.split(":")[0].strip(): "=" in part for part in names if not part.startswith("self")}


def _fits(parameters: dict[str, bool], touch: Touch) -> bool:
    names = list(parameters)
    given = {*names[: touch.positional], *touch.keywords}
    required = {name for name, optional in parameters.items() if not optional}
    return touch.positional <= len(names) and required <= given <= set(names)


def touched_by_fastnas() -> set[Touch]:
    folder = Path(importlib.util.find_spec("fastnas").origin).parent / "latency"
    return {touch for file in sorted(folder.glob("tensorrt*.py")) for touch in touched(file.read_text())}


if __name__ == "__main__":
    touches = [Touch(path, use, positional, tuple(keywords)) for path, use, positional, keywords in json.load(sys.stdin)]
    module = importlib.import_module(sys.argv[1])
    print(json.dumps({"version": module.__version__, "problems": problems(module, touches)}))
