"""Imports TinyNAS's published tables of single convolutions, measured with TensorRT, as operator entries.

    {kind,batch,in channels,in height,in width,out channels,kernel,stride,residual add fused} milliseconds

one a line, -1 where nothing was measured (github.com/alibaba/lightweight-neural-architecture-search, Apache-2.0). The file says
neither TensorRT's version nor whether an activation was fused, so its entries stand for convolutions with any.
"""

import hashlib
import math
import re
from pathlib import Path

from fastnas.blueprint.operators import Conv
from fastnas.blueprint.show import show
from fastnas.errors import InputError
from fastnas.latency.engines import split_engine
from fastnas.latency.exchange import Measured, merge
from fastnas.latency.roofline import bytes_of
from fastnas.latency.table import LatencyTable
from fastnas.latency.timing import Timing

EXAMPLE = "{Regular,1,64,56,56,64,3,1,0} 0.0200"
_LINE = re.compile(r"\{(Regular|Depthwise)" + r",(\d{1,6})" * 6 + r",([12]),([01])\} (-1(?:\.0*)?|\d+(?:\.\d+)?(?:e-?\d+)?)")


def import_tinynas(table: LatencyTable, measured: Measured) -> int:
    """Takes over what `read_tinynas` gave; returns how many entries are new. The same file again changes nothing.

    Raises InputError where the table has entries of this engine and device from elsewhere: prices would be ambiguous.
    """
    wanted = measured.description
    for other in table.environments():
        same = all(other.get(key) == wanted[key] for key in ("engine", "device", "precision", "settings"))
        if same and other.get("imported") != wanted["imported"]:
            what = f"{wanted['engine']}:{wanted['precision']} on {wanted['device']}"
            raise InputError(f"{table.path} already holds {what} from elsewhere: name another --table or --device")
    return merge(table, [measured], add_environments=True)


def read_tinynas(path: Path | str, engine: str, device: str) -> Measured:
    """What the file holds, as measured with this engine (NAME:PRECISION) on this device.

    Raises InputError: no such file, its first line that is none of a TinyNAS table, no precision.
    """
    path = Path(path)
    name, precision, settings = split_engine(engine)
    if precision is None:
        raise InputError(f"--engine {engine}: say the precision that the file was measured in, e.g. {name}:fp16")
    bytes_of(precision)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    entries: dict[str, Timing] = {}
    for number, line in enumerate(data.decode(errors="replace").splitlines(), 1):
        found = _LINE.fullmatch(line)
        if not found:
            raise InputError(f"{path} is no TinyNAS table: line {number} is {show(line)}, expected one such as {EXAMPLE}")
        kind, *sizes, text = found.groups()
        batch, cin, height, width, out, kernel, stride, added = map(int, sizes)
        ms, depthwise = float(text), kind == "Depthwise"
        if not all((batch, cin, height, width, out, kernel)) or (depthwise and cin != out) or ms == 0 or math.isinf(ms):
            raise InputError(f"{path}, line {number}: {show(line)} is no layer that can have been measured")
        if ms > 0:
            conv, x = Conv(cin, out, kernel, stride, cin if depthwise else 1), (batch, cin, height, width)
            inputs = (x, *conv.outputs((x,))) if added else (x,)
            entries[conv.key(inputs)] = Timing(ms, ms, 0.0, 1)
    if not entries:
        raise InputError(f"{path} is no TinyNAS table: no line holds a time (expected such as {EXAMPLE})")
    description = {
        "engine": name,
        "version": "unknown",
        "device": device,
        "precision": precision,
        "batch": 1,
        "threads": 1,
        "settings": settings,
        "imported": {"format": "tinynas", "file": path.name, "sha256": hashlib.sha256(data).hexdigest()},
    }
    return Measured(description, {}, entries)
