"""The bijection volumes <-> slices <-> latents <-> tokens: pure tensor code, no autoencoder, no files.

A frame is a cube of V x V x V voxels. It is cut into V slices along each of its axes (0 sagittal, 1 coronal, 2 axial),
a 2D encoder with spatial compression f turns a slice into C latent channels on a g x g grid, g = V / f, and a frame
becomes g x g x g cells: each gathers, from each axis, the latents at its position in the f slices that cross it. The
layout is that of the code released with arXiv:2604.03619.
"""

import torch
from torch import Tensor

__all__ = ["cut_windows", "latents_to_tokens", "slices_to_volumes", "tokens_to_latents", "volumes_to_slices"]

_LAYOUTS = ("iscjk", "jscik", "kscij")
"""For each axis, the dimensions of the latents of its slices: cell i, j, k, slice within the cell s, channel c."""


def volumes_to_slices(volumes: Tensor) -> Tensor:
    """Cut volumes (..., V, V, V) over (x, y, z) into slices (..., 3, V, V, V) over (axis, slice, row, column).

    Slice s of axis 0 is volume[s, :, :], of axis 1 volume[:, s, :], of axis 2 volume[:, :, s].
    """
    _check_shape(volumes, volumes.ndim >= 3 and len(set(volumes.shape[-3:])) == 1, "volumes (..., V, V, V)")
    return torch.stack([volumes, volumes.transpose(-3, -2), volumes.movedim(-1, -3)], dim=-4)


def slices_to_volumes(slices: Tensor) -> Tensor:
    """Put slices (..., 3, V, V, V) back together: (..., 3, V, V, V) over (axis, x, y, z), a volume from each axis."""
    is_right = slices.ndim >= 4 and slices.shape[-4] == 3 and len(set(slices.shape[-3:])) == 1
    _check_shape(slices, is_right, "slices (..., 3, V, V, V)")
    sagittal, coronal, axial = slices.unbind(-4)
    return torch.stack([sagittal, coronal.transpose(-3, -2), axial.movedim(-3, -1)], dim=-4)


def latents_to_tokens(latents: Tensor) -> Tensor:
    """Fold the latents of every slice of a frame into the tokens of its cells.

    Args:
        latents: (..., 3, V, C, g, g), any dtype: axis, slice, channel, row, column. g must divide V.

    Returns:
        (..., g^3, 3 * f * C) with f = V / g: cells (i, j, k) with i slowest; in a token axis, then slice within the
        cell, then channel fastest.

    Raises:
        ValueError: another shape.
    """
    axes, size, _, rows, grid = latents.shape[-5:] if latents.ndim >= 5 else (0,) * 5
    is_right = axes == 3 and rows == grid and size % grid == 0
    _check_shape(latents, is_right, "latents (..., 3, V, C, g, g) with g a divisor of V")
    split = latents.unflatten(-4, (grid, size // grid)).unbind(-6)
    cells = [torch.einsum(f"...{layout}->...ijksc", part) for part, layout in zip(split, _LAYOUTS, strict=True)]
    return torch.stack(cells, dim=-3).flatten(-3).flatten(-4, -2)


def tokens_to_latents(tokens: Tensor, volume_size: int) -> Tensor:
    """The exact inverse of `latents_to_tokens`.

    Args:
        tokens: (..., g^3, 3 * f * C), any dtype.
        volume_size: V = f * g, voxels along an edge.

    Returns:
        (..., 3, V, C, g, g).

    Raises:
        ValueError: a shape that no encoder makes of such a volume.
    """
    cells, size = tokens.shape[-2:] if tokens.ndim >= 2 else (0, 0)
    grid = round(cells ** (1 / 3))
    is_right = grid >= 1 and grid**3 == cells and volume_size % grid == 0 and size % (3 * (volume_size // grid)) == 0
    _check_shape(tokens, is_right, f"tokens (..., g^3, 3 * V / g * C) with g a divisor of V = {volume_size}")
    slices_in_cell = volume_size // grid
    split = tokens.unflatten(-1, (3, slices_in_cell, -1)).unflatten(-4, (grid, grid, grid)).unbind(-3)
    axes = [torch.einsum(f"...ijksc->...{layout}", part) for part, layout in zip(split, _LAYOUTS, strict=True)]
    return torch.stack(axes, dim=-6).flatten(-5, -4)


def cut_windows(num_frames: int, window: int | None) -> list[tuple[int, int]]:
    """Cut a run into windows that do not overlap; frames that do not fill the last one are left out.

    Args:
        num_frames: frames of the run.
        window: frames of a window; None for the whole run. A run shorter than one window is one window.

    Returns:
        First frame and number of frames of each window.
    """
    if window is None or num_frames <= window:
        return [(0, num_frames)]
    return [(start, window) for start in range(0, num_frames - window + 1, window)]


def _check_shape(tensor: Tensor, is_right: bool, expected: str) -> None:
    if not is_right:
        raise ValueError(f"Expected {expected}, got {tuple(tensor.shape)}.")
