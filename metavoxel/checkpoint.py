"""Weights as safetensors, everything else as JSON. Nothing here can run code: no pickle, in or out."""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from metavoxel.errors import MetavoxelError
from metavoxel.files import atomic_write


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None) -> None:
    """Named tensors and JSON-ready metadata in one file, whole or not at all."""
    header = {"json": json.dumps(metadata or {})}
    # clone: safetensors refuses tensors that share memory, as tied or expanded parameters do
    ready = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, "wb") as file:
        file.write(save(ready, metadata=header))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The inverse of `write_tensors`; an error names the file and what is wrong with it."""
    if not path.is_file():
        raise MetavoxelError(f"{path}: no such file; a model folder holds model.json and model.safetensors")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get("json", "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise MetavoxelError(f"{path}: truncated or not a weights file ({error}); copy or train it again") from error


def write_json(path: Path, content: object) -> None:
    """Indented JSON, whole or not at all; what is not finite (NaN) becomes null: JSON has no such number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(json.dumps(_finite(content), indent=2, allow_nan=False) + "\n")


def _finite(content: object) -> object:
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def read_json(path: Path) -> Any:
    if not path.is_file():
        raise MetavoxelError(f"{path}: no such file; is {path.parent} a model folder?")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise MetavoxelError(f"{path}: not valid JSON ({error}); copy or train it again") from error


def weights_mark(module: nn.Module) -> str:
    """Digits that change with any weight."""
    digest = hashlib.sha256()
    for tensor in module.state_dict().values():
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Fills a module, in its own precision; wrong names or shapes are refused before anything is changed.

    What a module has come to hold since (the names in its `later`) is lacking in older files, and stays as it is.
    """
    own = module.state_dict()
    later = [f"{name}.{key}".lstrip(".") for name, part in module.named_modules() for key in getattr(part, "later", ())]
    tensors = {**{name: own[name] for name in later}, **tensors}
    wrong = [name for name in own if name not in tensors] + [name for name in tensors if name not in own]
    if wrong:
        raise MetavoxelError(f"{source}: weights do not fit the model that model.json describes ({wrong[0]!r})")
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            shapes = f"{tuple(tensor.shape)}, expected {tuple(own[name].shape)}"
            raise MetavoxelError(
                f"{source}: {name!r} has shape {shapes}; model.json and the weights do not belong together"
            )
    module.load_state_dict({name: tensor.to(own[name].dtype) for name, tensor in tensors.items()})
