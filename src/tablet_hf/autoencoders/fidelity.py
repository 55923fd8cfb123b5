"""How much of an image, and of a signal over time, survives an autoencoder. Pure functions of tensors."""

from collections.abc import Callable

import torch
from torch import Tensor

Reconstruct = Callable[[Tensor], Tensor]
SLICE_BATCH = 576


def psnr(reference: Tensor, estimate: Tensor, peak: float, where: Tensor | None = None) -> float:
    """Peak signal-to-noise ratio in dB, `10 log10(peak^2 / mean squared error)`.

    Args:
        reference, estimate: tensors of one shape.
        peak: the width of the value range, 2 for values in [-1, 1].
        where: boolean tensor that broadcasts to that shape; the mean is taken over its true places only.
    """
    squared_error = (reference.double() - estimate.double()).square()
    if where is not None:
        squared_error = squared_error[where.expand_as(squared_error)]
    return float(10 * torch.log10(peak**2 / squared_error.mean()))


def temporal_correlation(reference: Tensor, estimate: Tensor, mask: Tensor) -> Tensor:
    """Pearson correlation over time of every voxel in a mask with its own reconstruction.

    Args:
        reference, estimate: (T, X, Y, Z), T >= 2.
        mask: (X, Y, Z) boolean.

    Returns:
        (voxels,) float64 in [-1, 1], for the voxels in the mask that vary over time in the reference. A voxel that the
        reconstruction holds still has no correlation and counts as 0.
    """
    original, decoded = (frames[:, mask].double() for frames in (reference, estimate))
    original = original - original.mean(0)
    decoded = decoded - decoded.mean(0)
    varies = original.square().sum(0) > 0
    original, decoded = original[:, varies], decoded[:, varies]
    norms = original.square().sum(0).sqrt() * decoded.square().sum(0).sqrt()
    covariances = (original * decoded).sum(0)
    return torch.where(norms > 0, covariances / norms.clamp_min(torch.finfo(torch.float64).tiny), 0.0)


def reconstruct_volumes(volumes: Tensor, reconstruct: Reconstruct) -> Tensor:
    """Encodes and decodes every slice of every axis and averages the three volumes.

    Args:
        volumes: (T, V, V, V) in [-1, 1].
        reconstruct: images (N, 3, V, V) -> images (N, 3, V, V).

    Returns:
        (T, V, V, V) float32.
    """
    total = torch.zeros_like(volumes, dtype=torch.float32)
    for axis in (1, 2, 3):
        slices = volumes.movedim(axis, 1).flatten(0, 1)
        decoded = torch.cat(
            [reconstruct(batch[:, None].expand(-1, 3, -1, -1)).float().mean(1) for batch in slices.split(SLICE_BATCH)]
        )
        total += decoded.unflatten(0, (*volumes.shape[:1], volumes.shape[axis])).movedim(1, axis)
    return total / 3
