"""What people ask from Python, checked before anything is computed: a slip gets one line, as on the command line."""

import math
import operator
from collections.abc import Iterable
from numbers import Real

from metavoxel.errors import MetavoxelError


def names_of(names: str | Iterable[str]) -> list[str]:
    """The names; one alone may be given as it is."""
    return [names] if isinstance(names, str) else list(names)


def whole(option: str, value: object, least: int) -> int:
    """A whole number, Python's or NumPy's, of at least `least`."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = least - 1
    if number < least:
        raise MetavoxelError(f"{option} must be a whole number of at least {least}, got {value!r}")
    return number


def between(option: str, value: float, low: float, high: float) -> float:
    """A number from `low` to `high`; a bound that is infinite is none, and does not belong."""
    if not isinstance(value, Real) or not low <= value <= high or not math.isfinite(value):
        bounds = f"at least {low:g}" if math.isinf(high) else f"from {low:g} to {high:g}"
        raise MetavoxelError(f"{option} must be a number {bounds}, got {value!r}")
    return value
