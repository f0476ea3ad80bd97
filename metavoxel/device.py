"""Where tensors are worked on."""

import torch

from metavoxel.errors import MetavoxelError


def place_of(device: str | torch.device | None) -> torch.device:
    """The device of that name; without one a GPU, if there is any."""
    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:  # PyTorch without CUDA asserts it
        raise MetavoxelError(f"device {device}: there is none here; write cpu, or cuda beside a GPU") from error
    return place
