"""How much of an image, and of a signal over time, an autoencoder preserves. Tensors in, numbers out."""

import torch
from torch import Tensor


def psnr(reference: Tensor, estimate: Tensor, peak: float, where: Tensor | None = None) -> float:
    """Peak signal-to-noise ratio in dB, `10 log10(peak^2 / mean squared error)`.

    Args:
        reference, estimate: tensors of one shape.
        peak: the width of the value range, 2 for values in [-1, 1].
        where: boolean tensor that broadcasts to that shape, where errors count.
    """
    squared_error = (reference.double() - estimate.double()).square()
    if where is not None:
        squared_error = squared_error[where.expand_as(squared_error)]
    return float(10 * torch.log10(peak**2 / squared_error.mean()))


class RunningFidelity:
    """PSNR and temporal correlation in a mask, of frames that come block by block: only sums are kept.

    Args:
        mask: (X, Y, Z) boolean.
    """

    def __init__(self, mask: Tensor):
        self._mask = mask
        self._num_frames = 0
        self._squared_error = 0.0
        self._first_frames: tuple[Tensor, Tensor] | None = None
        # Of the reference, the estimate, their squares and their product: (5, voxels).
        self._sums = torch.zeros(5, int(mask.sum()), dtype=torch.float64)

    def add(self, reference: Tensor, estimate: Tensor) -> None:
        """Take in the next frames, (n, X, Y, Z) each."""
        original, decoded = (frames[:, self._mask].double() for frames in (reference, estimate))
        if not len(original):
            return
        self._num_frames += len(original)
        self._squared_error += float((original - decoded).square().sum())
        # Differences from the first frame are summed: they are small against the intensities, so that the variance is
        # no difference of two large sums, and exactly 0 where nothing changes.
        if self._first_frames is None:
            self._first_frames = original[0].clone(), decoded[0].clone()
        original -= self._first_frames[0]
        decoded -= self._first_frames[1]
        products = (original, decoded, original.square(), decoded.square(), original * decoded)
        self._sums += torch.stack([product.sum(0) for product in products])

    def psnr(self, peak: float) -> float:
        """`psnr` of all voxels in the mask and all frames."""
        mean = torch.tensor(self._squared_error / (self._num_frames * self._sums.shape[1]), dtype=torch.float64)
        return float(10 * torch.log10(peak**2 / mean))

    def temporal_correlation(self) -> Tensor:
        """Pearson correlation over time of each voxel in the mask with its reconstruction; at least two frames.

        Returns:
            (voxels,) float64 in [-1, 1], for the voxels that vary over time in the reference; 0 where the
            reconstruction is constant.
        """
        original, decoded, original_squared, decoded_squared, product = self._sums
        original_variation = (original_squared - original.square() / self._num_frames).clamp_min(0)
        decoded_variation = (decoded_squared - decoded.square() / self._num_frames).clamp_min(0)
        norms = original_variation.sqrt() * decoded_variation.sqrt()
        covariances = product - original * decoded / self._num_frames
        correlations = torch.where(norms > 0, covariances / norms.clamp_min(torch.finfo(torch.float64).tiny), 0.0)
        return correlations[original_variation > 0]
