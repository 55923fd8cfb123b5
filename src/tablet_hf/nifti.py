"""Write volumes of the model's grid to NIfTI, on the grid that their scan was stored on."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError
from .files import atomic_write
from .grid import way_to_grid
from .volumes import BoldRun

__all__ = ["check_nifti_name", "write_nifti"]


def check_nifti_name(path: Path) -> None:
    """Refuse a file that no image can be written to; called before the work that makes the image.

    Raises:
        InputError: the name does not end in .nii or .nii.gz, or its folder is missing.
    """
    if not path.name.endswith((".nii", ".nii.gz")):
        raise InputError(f"{path}: images are written as NIfTI; choose a name that ends in .nii.gz or .nii.")
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist; make it first.")


def write_nifti(
    blocks: Iterable[np.ndarray],
    num_frames: int,
    run: BoldRun,
    path: str | Path,
    repetition_time: float | None = None,
) -> Path:
    """Write volumes of the cube to a file, block by block, so that only one block is in memory.

    Whole-voxel moves are undone exactly, other grids are resampled; voxels outside the cube are 0. The file is NIfTI-1,
    or NIfTI-2 where a dimension exceeds 32,767, with values in float32. It gets its name when it is complete.

    Args:
        blocks: volumes `(n, V, V, V)`, n of any size.
        num_frames: the number of volumes in all blocks, which a NIfTI file begins with.
        run: the run whose grid and space the file gets.
        path: the file, .nii or .nii.gz.
        repetition_time: seconds for the header; by default that of the run.

    Raises:
        InputError: the name has another ending, the folder is missing, or the repetition time is not positive.
        ValueError: the blocks do not have `num_frames` volumes, or have another shape.
    """
    from nibabel.openers import ImageOpener

    path = Path(path)
    check_nifti_name(path)
    header = _header(num_frames, run, run.repetition_time if repetition_time is None else float(repetition_time))
    way = way_to_grid(run.source_shape, run.source_affine, run.volume_size)
    cube, num_written = (run.volume_size,) * 3, 0
    with atomic_write(path) as unfinished, ImageOpener(unfinished, "wb") as stream:
        header.write_to(stream)
        for volumes in blocks:
            if volumes.shape[1:] != cube:
                raise ValueError(f"volumes must have shape {cube}, not {volumes.shape[1:]}")
            for volume in volumes:
                stream.write(way.to_scan(np.asarray(volume, dtype=np.float32)).tobytes("F"))
            num_written += len(volumes)
        if num_written != num_frames:
            raise ValueError(f"{num_frames} volumes were announced for {path}, but {num_written} came")
    return path


def _header(num_frames: int, run: BoldRun, repetition_time: float) -> Any:
    import nibabel

    # A frame of a window may stand for many of the scan: what is plausible for a scan is no limit here.
    if not (math.isfinite(repetition_time) and repetition_time > 0):
        raise InputError(f"{run.name}: a repetition time of {repetition_time:g} s is not positive; give another one.")
    shape = (*run.source_shape, num_frames)
    kind = nibabel.Nifti2Image if max(shape) > np.iinfo(np.int16).max else nibabel.Nifti1Image
    image = kind(np.broadcast_to(np.float32(0), shape), run.source_affine)
    image.set_sform(run.source_affine, run.xform_code)
    image.set_qform(run.source_affine, run.xform_code)
    header = image.header
    header.set_xyzt_units("mm", "sec")
    header.set_zooms((*header.get_zooms()[:3], repetition_time))
    header.set_slope_inter(1, 0)
    return header
