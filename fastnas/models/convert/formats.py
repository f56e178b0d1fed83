"""All formats, and which one a checkpoint has."""

from fastnas.errors import InputError
from fastnas.models.convert.effdet import EFFDET, TIMM_EFFICIENTNET
from fastnas.models.convert.format import Format, Source
from fastnas.models.convert.torchvision_detection import FASTER_RCNN, RETINANET
from fastnas.models.convert.torchvision_efficientnet import EFFICIENTNET
from fastnas.models.convert.torchvision_mobilenet import MOBILENET
from fastnas.models.convert.torchvision_resnet import RESNET

FORMATS: tuple[Format, ...] = (FASTER_RCNN, RETINANET, EFFDET, RESNET, EFFICIENTNET, MOBILENET, TIMM_EFFICIENTNET)


def find_format(source: Source) -> Format:
    """Raises InputError where no format has these tensors."""
    for known in FORMATS:
        if all(mark in source for mark in known.marks):
            return known
    first = ", ".join(list(source)[:3])
    raise InputError(f"tensors named {first}, ... belong to no format that is known ({', '.join(f.name for f in FORMATS)})")
