"""The model's grid: a cube of 2 mm voxels on the lattice of FSL's MNI152 template, and how frames get there and back.

A scan with 2 mm voxels on the lattice, in any order and direction of axes, is moved by whole voxels
(`Placement`: exact, and exactly undone); every other scan is interpolated (`Resampling`).
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

__all__ = ["VOXEL_SIZE_MM", "Placement", "Resampling", "grid_affine", "way_to_grid"]

VOXEL_SIZE_MM = 2.0

FSL_SHAPE = (91, 109, 91)
FSL_ORIGIN_MM = (90.0, -126.0, -72.0)
"""Shape and first voxel of MNI152_T1_2mm as FSL ships it; its x axis runs from right to left."""

MAX_LATTICE_SHIFT = 0.25
"""In voxels and along each axis: the largest offset from the lattice at which a scan is still moved whole.

TemplateFlow's MNI152NLin2009cAsym_res-02, as fMRIPrep writes it, is a quarter of a voxel off the FSL lattice: well
under the error of any registration, while interpolating would smooth every frame.
"""

MAX_LATTICE_STRETCH = 0.01
"""In voxels over the whole scan: tolerance for rounding of voxel sizes and angles in a header."""


def grid_affine(volume_size: int = 96) -> np.ndarray:
    """The affine `(4, 4)` float64, voxel indices to MNI152 mm, of a cube with `volume_size` voxels a side.

    The cube is centred on the FSL grid of 91 x 109 x 91; where the difference is odd, one voxel more is added (or
    taken away) in front than behind. For 96 its first voxel has the FSL index (-3, 7, -3).
    """
    first = [(n - volume_size + 1) // 2 if n > volume_size else -((volume_size - n + 1) // 2) for n in FSL_SHAPE]
    affine = np.diag([-VOXEL_SIZE_MM, VOXEL_SIZE_MM, VOXEL_SIZE_MM, 1.0])
    affine[:3, 3] = FSL_ORIGIN_MM + affine[:3, :3] @ first
    return affine


def way_to_grid(shape: tuple[int, int, int], affine: np.ndarray, volume_size: int = 96) -> "Placement | Resampling":
    """Find how frames of `shape` with `affine` (voxels to mm) get onto the grid: moved whole where possible."""
    to_grid = np.linalg.inv(grid_affine(volume_size)) @ affine
    nearest = np.rint(to_grid)
    turn, first = nearest[:3, :3], nearest[:3, 3]
    off = np.abs(to_grid - nearest)[:3]
    is_turned_only = (np.abs(turn).sum(axis=0) == 1).all() and (np.abs(turn).sum(axis=1) == 1).all()
    is_on_lattice = off[:, 3].max() <= MAX_LATTICE_SHIFT + MAX_LATTICE_STRETCH
    if not (is_turned_only and is_on_lattice and off[:, :3].sum(axis=1).max() * max(shape) <= MAX_LATTICE_STRETCH):
        return Resampling(shape, affine, volume_size)
    axes = tuple(int(axis) for axis in np.abs(turn).argmax(axis=1))
    is_flipped = tuple(bool(turn[row, axis] < 0) for row, axis in enumerate(axes))
    offset = tuple(int(first[row]) - (shape[axis] - 1 if is_flipped[row] else 0) for row, axis in enumerate(axes))
    return Placement(shape, volume_size, axes, is_flipped, offset)


@dataclass(frozen=True)
class Placement:
    """A move by whole voxels from a scan `(X, Y, Z)` to the cube `(V, V, V)`.

    `axes[a]` is the axis of the scan that becomes axis a of the cube, `is_flipped[a]` whether it is reversed, and
    `offset[a]` the index in the cube of the first voxel of the turned scan (negative where the scan starts before).
    """

    source_shape: tuple[int, int, int]
    volume_size: int
    axes: tuple[int, int, int]
    is_flipped: tuple[bool, bool, bool]
    offset: tuple[int, int, int]

    def to_grid(self, frame: np.ndarray) -> np.ndarray:
        """Move `(X, Y, Z)` to `(V, V, V)` of the same dtype; 0 outside the scan."""
        cube = np.zeros((self.volume_size,) * 3, dtype=frame.dtype)
        inside_cube, inside_scan = self._shared_voxels
        cube[inside_cube] = self._turned(frame)[inside_scan]
        return cube

    def to_scan(self, cube: np.ndarray) -> np.ndarray:
        """Move `(V, V, V)` back to `(X, Y, Z)`, the exact inverse inside the cube and 0 outside it."""
        frame = np.zeros(self.source_shape, dtype=cube.dtype, order="F")
        inside_cube, inside_scan = self._shared_voxels
        self._turned(frame)[inside_scan] = cube[inside_cube]
        return frame

    def mask_to_grid(self, mask: np.ndarray) -> np.ndarray:
        """Move a bool mask `(X, Y, Z)` to `(V, V, V)`."""
        return self.to_grid(mask)

    def _turned(self, frame: np.ndarray) -> np.ndarray:
        """A view of the frame with its axes in the order and direction of the cube's."""
        steps = tuple(slice(None, None, -1) if flipped else slice(None) for flipped in self.is_flipped)
        return frame.transpose(self.axes)[steps]

    @cached_property
    def _shared_voxels(self) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """Where scan and cube overlap: slices of the cube, and the same voxels as slices of the turned scan."""
        in_cube, in_scan = [], []
        for axis, offset in zip(self.axes, self.offset, strict=True):
            start = max(0, offset)
            stop = max(start, min(self.volume_size, offset + self.source_shape[axis]))
            in_cube.append(slice(start, stop))
            in_scan.append(slice(start - offset, stop - offset))
        return tuple(in_cube), tuple(in_scan)


@dataclass(frozen=True, eq=False)
class Resampling:
    """Interpolation between a scan `(X, Y, Z)` with `affine` and the cube `(V, V, V)`: cubic splines by nilearn.

    Interpolated values stay within the range of the frame they come from, so splines cannot ring past it.
    """

    source_shape: tuple[int, int, int]
    affine: np.ndarray
    volume_size: int

    def to_grid(self, frame: np.ndarray, interpolation: str = "continuous") -> np.ndarray:
        """Resample `(X, Y, Z)` float32 to `(V, V, V)` float32; 0 outside the scan."""
        cube = (self.volume_size,) * 3
        return _resampled(frame, self.affine, grid_affine(self.volume_size), cube, interpolation)

    def to_scan(self, cube: np.ndarray) -> np.ndarray:
        """Resample `(V, V, V)` float32 to the scan's grid `(X, Y, Z)` float32; 0 outside the cube."""
        return _resampled(cube, grid_affine(self.volume_size), self.affine, self.source_shape)

    def mask_to_grid(self, mask: np.ndarray) -> np.ndarray:
        """Resample a bool mask `(X, Y, Z)` to `(V, V, V)` by its nearest voxels."""
        return self.to_grid(mask.astype(np.uint8), "nearest").astype(bool)


def _resampled(
    volume: np.ndarray,
    affine: np.ndarray,
    new_affine: np.ndarray,
    new_shape: tuple[int, int, int],
    interpolation: str = "continuous",
) -> np.ndarray:
    from nibabel import Nifti1Image
    from nilearn.image import resample_img
    from nilearn.image.resampling import BoundingBoxError

    options = {"interpolation": interpolation, "force_resample": True, "copy_header": True}
    try:
        resampled = resample_img(Nifti1Image(volume, affine), new_affine, new_shape, **options)
    except BoundingBoxError:  # the fields of view do not overlap
        return np.zeros(new_shape, dtype=volume.dtype)
    return np.ascontiguousarray(np.asarray(resampled.dataobj), dtype=volume.dtype)
