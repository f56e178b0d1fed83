"""Reading a checkpoint file: .safetensors, or what torch.save wrote. Only tensors are taken; code in a file is never run."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from fastnas.errors import InputError

HOLDERS = ("state_dict", "model_state_dict", "model", "net", "weights", "state_dict_ema", "model_ema", "ema")
WRAPPERS = ("module.", "model.", "_orig_mod.")  # DistributedDataParallel, training benches, torch.compile


def read_checkpoint(path: Path | str) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, floats as float32, without the prefixes of wrappers. Raises InputError."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no checkpoint {path}")
    content = _safetensors(path) if path.suffix == ".safetensors" else _pickle(path)
    state = _state(content)
    if not state:
        raise InputError(f"{path} holds no tensors by name: save the state_dict() of the model")
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in unwrap(state).items()}


def unwrap(source: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefixes that wrappers put before every name, and without the anchors that training benches keep."""
    source = {name: tensor for name, tensor in source.items() if not name.endswith("anchors.boxes")}
    while prefix := next((p for p in WRAPPERS if source and all(name.startswith(p) for name in source)), None):
        source = {name.removeprefix(prefix): tensor for name, tensor in source.items()}
    return source


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safetensors.safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("format") == "fastnas":
                raise InputError(f"{path} was written by fastnas: use it as it is")
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"cannot read the checkpoint {path}: {error}") from None


def _pickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(
            f"{path} is damaged, or holds more than tensors, which is never run: save the state_dict() of the model alone"
        ) from None
    except MemoryError:
        raise
    except Exception as error:  # damaged files raise nearly anything
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(f"cannot read the checkpoint {path}: {reason}") from None


def _state(content: Any) -> dict[str, Tensor]:
    """The tensors of a state dict, or of the first one that a training's checkpoint holds."""
    if not isinstance(content, Mapping):
        return {}
    state = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if state:
        return state
    inner = (content[holder] for holder in HOLDERS if isinstance(content.get(holder), Mapping))
    return next((state for state in map(_state, inner) if state), {})
