"""Checkpoints of other programs -> our weights. A format is one file: how its tensors are called, and what it tells of a blueprint.

    source = read_checkpoint("fasterrcnn.pth")       tensors by their names there; nothing in the file is ever run
    format = find_format(source)
    done = convert(source, detector, format)         tensors by our names, and what was left out and why
    done.check_backbone()                            refuses what fits nowhere, or only a part of the backbone

`convert_file` does all that and writes a weights file.

To add a format: a file with a `Format`, and its line in FORMATS.
"""

from fastnas.models.convert.checkpoint import read_checkpoint
from fastnas.models.convert.copy import Converted, convert
from fastnas.models.convert.file import convert_file
from fastnas.models.convert.formats import FORMATS, find_format

__all__ = ["FORMATS", "Converted", "convert", "convert_file", "find_format", "read_checkpoint"]
