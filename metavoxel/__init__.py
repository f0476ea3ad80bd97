"""metavoxel: one joint diffusion model of medical images and the clinical facts beside them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from metavoxel.version import __version__

if TYPE_CHECKING:
    from metavoxel.build import fit, train
    from metavoxel.config import Config, preset, read_config
    from metavoxel.data.cohort import Cohort, concat, read_cohort
    from metavoxel.draws import Draws
    from metavoxel.errors import MetavoxelError
    from metavoxel.model import MetaVoxel, load
    from metavoxel.schema import Categorical, Continuous, Image, Ordinal, Schema

_HOMES = {
    "build": ("fit", "train"),
    "config": ("Config", "preset", "read_config"),
    "data.cohort": ("Cohort", "concat", "read_cohort"),
    "draws": ("Draws",),
    "errors": ("MetavoxelError",),
    "model": ("MetaVoxel", "load"),
    "schema": ("Categorical", "Continuous", "Image", "Ordinal", "Schema"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}
__all__ = [
    "Categorical", "Cohort", "Config", "Continuous", "Draws", "Image", "MetaVoxel", "MetavoxelError", "Ordinal",
    "Schema", "__version__", "concat", "fit", "load", "preset", "read_cohort", "read_config", "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Imports on first use, so that `metavoxel --help` need not wait for torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'metavoxel' has no attribute {name!r}")
    return getattr(import_module(f"metavoxel.{_HOME[name]}"), name)
