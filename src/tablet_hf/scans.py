"""Open a scan: a path, an image or an array becomes checked frames on the grid they were stored on.

What the header claims is compared with what the file can hold before anything is allocated.
"""

import json
import math
import os
import warnings
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError

__all__ = [
    "BoldSource",
    "Scan",
    "check_repetition_time",
    "declared_space",
    "find_brain_mask_file",
    "find_repetition_time",
    "find_sidecars",
    "is_native_space",
    "load_volume",
    "open_source",
]

Scan = Any
"""A path (`str` or `Path`), a nibabel spatial image, or a pair (array `(X, Y, Z, T)`, affine `(4, 4)` in mm)."""

REPETITION_TIME_RANGE = (0.1, 30.0)
"""Seconds. The fastest multiband sequences take 0.1 s for a brain, sparse-sampling designs up to 20 s."""

SECONDS_PER_UNIT = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6, "unknown": 1.0}

MAX_GZIP_RATIO = 1032
"""The most that deflate can shrink anything (zlib's technical notes): what a `.gz` may claim to hold, per byte."""

SCANNER_XFORM = 1
"""The NIfTI code of scanner coordinates (NIFTI_XFORM_SCANNER_ANAT)."""

NATIVE_SPACES = {"t1w", "t2w", "native", "individual", "scanner", "orig", "bold", "boldref", "func", "anat", "fsnative"}
"""Values of the BIDS entity `space-`, in lower case, of scans that were not registered to a template."""


@dataclass(frozen=True, eq=False)
class BoldSource:
    """A 4D scan, opened and checked but not yet read.

    Attributes:
        name: the scan in messages.
        path: the file it came from; None for arrays and images in memory.
        shape: `(X, Y, Z)` in voxels.
        num_frames: T.
        affine: `(4, 4)` float64, voxel indices to mm.
        xform_code: the NIfTI code of that space; 0 where the header does not declare one, None without such a header.
        header_repetition_time: in seconds, NaN where the header declares none; None without such a header.
    """

    name: str
    path: Path | None
    shape: tuple[int, int, int]
    num_frames: int
    affine: np.ndarray
    xform_code: int | None
    header_repetition_time: float | None
    _data: Any = field(repr=False)  # an array or a nibabel proxy of shape (X, Y, Z, T)

    @property
    def has_scanner_axes(self) -> bool:
        """Whether the header declares scanner coordinates or the axes are oblique, as before a registration."""
        directions = np.abs(self.affine[:3, :3]) / np.linalg.norm(self.affine[:3, :3], axis=0)
        is_oblique = directions.max(axis=0) < math.cos(math.radians(0.5))
        return self.xform_code == SCANNER_XFORM or bool(is_oblique.any())

    def frames(self, indices: Iterable[int]) -> Iterator[np.ndarray]:
        """Yield frames `(X, Y, Z)` float32 in the order of `indices`, scaled by the header's slope and intercept.

        Each pass opens the file for itself, so threads do not share a handle. Ascending indices read a compressed file
        once; each step back starts again at its beginning. NaN and infinite voxels are not replaced.

        Raises:
            InputError: the file is cut off or damaged.
        """
        from nibabel.arrayproxy import ArrayProxy
        from nibabel.openers import ImageOpener

        data, stream, index = self._data, None, 0
        with ExitStack() as stack:
            try:
                if (filename := _stored_in(data)) is not None:
                    stream = stack.enter_context(ImageOpener(filename))
                    data = ArrayProxy(stream, (data.shape, data.dtype, data.offset, data.slope, data.inter))
                for index in indices:
                    with np.errstate(over="ignore"):  # numbers too large for float32 become infinite, and are counted
                        frame = np.asarray(data[..., index]).astype(np.float32)
                    if stream is not None and index == self.num_frames - 1:
                        stream.read(1)  # gzip compares its checksum only at the end of the file
                    yield frame
            except (EOFError, OSError, ValueError, zlib.error) as error:
                raise InputError(
                    f"{self.name}: frame {index} of {self.num_frames} cannot be read, the file is cut off or damaged "
                    f"({error}); copy or download it again."
                ) from error


def open_source(scan: Scan, check_space: bool = True) -> BoldSource:
    """Open a 4D scan and check everything that its header and its size reveal.

    Args:
        scan: a path, a nibabel NIfTI image, or a pair (array `(X, Y, Z, T)`, affine `(4, 4)` in mm).
        check_space: refuse a header without sform and qform.

    Raises:
        InputError: the scan is missing, unreadable, not NIfTI, not 4D, shorter than its header claims, of a data
            type that is no intensity, or without a usable affine.
        TypeError: `scan` is none of the kinds above.
    """
    from nibabel import Nifti1Pair

    xform_code, header_repetition_time = None, None
    path = Path(scan) if isinstance(scan, str | Path) else None
    if path is not None:
        scan = _load_nifti(path)
    if isinstance(scan, tuple) and len(scan) == 2:
        data, affine = np.asanyarray(scan[0]), scan[1]
        name = f"the array of shape {data.shape}"
    elif isinstance(scan, Nifti1Pair):
        data, affine, header = scan.dataobj, scan.affine, scan.header
        if path is None and (filename := scan.get_filename()):
            path = Path(filename)
        name = f"the image of shape {scan.shape}" if path is None else str(path)
        header_repetition_time = _header_repetition_time(header)
        xform_code = int(header["sform_code"]) or int(header["qform_code"])
    else:
        raise TypeError(f"a scan is a path, a NIfTI image or a pair (array, affine), not {type(scan).__name__}")

    shape = tuple(map(int, data.shape))
    if len(shape) != 4 or min(shape) < 1:
        raise InputError(f"{name}: an image of shape {shape} is not a 4D run (X, Y, Z, time); give one.")
    affine = _checked_affine(affine, name)
    if check_space and xform_code == 0:
        raise InputError(
            f"{name}: the header has neither sform nor qform; set one (FSL: fslcpgeom from the template) or pass "
            "check_space=False (command line: --no-space-check)."
        )
    if data.dtype.kind not in "iuf":
        raise InputError(f"{name}: the voxels hold {data.dtype}, not BOLD intensities; give the magnitude image.")
    _check_size(data, name)
    return BoldSource(name, path, shape[:3], shape[3], affine, xform_code, header_repetition_time, data)


def load_volume(image: Any, role: str, source: BoldSource) -> np.ndarray:
    """Load a 3D companion of a scan (a mask, a mean image), which must be on the scan's own grid.

    Args:
        image: a path, a nibabel image, a pair (array, affine) or a bare array of the scan's shape `(X, Y, Z)`.
        role: its name in messages, e.g. "mask".
        source: the scan it belongs to.

    Returns:
        `(X, Y, Z)` float32, scaled by its header; NaN and infinite voxels are set to 0.

    Raises:
        InputError: it cannot be read, has another shape, or is more than half a voxel away from the scan.
    """
    name, affine = f"the {role} given", None
    if isinstance(image, str | Path):
        name, image = str(image), _load_nifti(Path(image))
    if isinstance(image, tuple) and len(image) == 2:
        values, affine = np.asarray(image[0]), _checked_affine(image[1], name)
    elif hasattr(image, "dataobj"):
        values, affine = image.dataobj, image.affine
    else:
        values = np.asarray(image)
    shape = tuple(values.shape)
    if shape[:3] != source.shape or any(length != 1 for length in shape[3:]):
        raise InputError(
            f"{name}: the {role} has shape {shape} but the frames of {source.name} have {source.shape}; give a {role} "
            "on the grid of the scan."
        )
    if affine is not None:
        corners = np.ones((4, 8))
        corners[:3] = np.indices((2, 2, 2)).reshape(3, 8) * (np.array(source.shape) - 1)[:, None]
        if np.abs(np.linalg.inv(source.affine)[:3] @ (affine - source.affine) @ corners).max() > 0.5:
            raise InputError(
                f"{name}: the affine of the {role} is not that of {source.name}; resample it to the grid of the scan."
            )
    try:
        loaded = np.asarray(values).reshape(source.shape).astype(np.float32)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(f"{name}: the {role} cannot be read ({error}); copy or make it again.") from error
    return np.where(np.isfinite(loaded), loaded, np.float32(0))


def _load_nifti(path: Path) -> Any:
    """Load the header of a NIfTI file; the voxels stay on disk."""
    import nibabel

    if not os.path.isfile(path):
        raise InputError(f"{path}: there is no such file; check the path, or fetch it (DataLad: datalad get).")
    try:
        image = nibabel.load(path)
    except Exception as error:  # parsers fail in many ways on a damaged header
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{path}: not a readable NIfTI file ({reason}); check its ending, or copy it again."
        ) from error
    if not isinstance(image, nibabel.Nifti1Pair):
        raise InputError(f"{path}: a {type(image).__name__}, not a NIfTI volume; give the .nii.gz file of the run.")
    return image


def _stored_in(data: Any) -> str | None:
    """The name of the file that holds the voxels, or None where they are in memory or behind an open handle."""
    filename = getattr(data, "file_like", None)
    return filename if isinstance(filename, str) else None


def _check_size(data: Any, name: str) -> None:
    """Refuse a header that claims more voxels than its file can hold, before they are allocated."""
    filename = _stored_in(data)
    if filename is None:
        return
    if not os.path.isfile(filename):
        raise InputError(f"{name}: its voxels should be in {filename}, which is missing; put it there.")
    claimed = data.offset + math.prod(map(int, data.shape)) * data.dtype.itemsize
    stored = os.path.getsize(filename)
    if claimed > stored * (MAX_GZIP_RATIO if filename.endswith(".gz") else 1):
        raise InputError(
            f"{name}: the header claims {claimed:,} bytes of voxels, which a file of {stored:,} bytes cannot hold; "
            "copy it again, as .nii or .nii.gz."
        )


def _checked_affine(affine: Any, name: str) -> np.ndarray:
    affine = np.array(np.nan if affine is None else affine, dtype=np.float64)
    is_affine = affine.shape == (4, 4) and np.isfinite(affine).all() and np.allclose(affine[3], (0, 0, 0, 1))
    if not is_affine or abs(np.linalg.det(affine)) <= 1e-6 * np.prod(np.linalg.norm(affine[:3, :3], axis=0)):
        raise InputError(
            f"{name}: its affine is not an invertible 4 x 4 matrix with last row 0 0 0 1; repair the header's sform or "
            "qform."
        )
    return affine


# --- the repetition time


def find_repetition_time(source: BoldSource, given: float | None = None) -> float:
    """The time between two frames in seconds: given, else that of the BIDS sidecars, else that of the header.

    A header without a unit is read as seconds, except 1 without a unit, which libraries write by default. A bare array
    gets 1 s and a warning.

    Raises:
        InputError: there is no repetition time, or the first one found is outside 0.1 to 30 s.
    """
    if given is not None:
        return check_repetition_time(given, f"{source.name}: repetition_time={given!r}")
    for sidecar in find_sidecars(source.path):
        try:
            fields = json.loads(sidecar.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            warnings.warn(f"{sidecar}: ignored, since it is not readable as JSON ({error}).", stacklevel=2)
            continue
        if isinstance(fields, dict) and (found := fields.get("RepetitionTime")) is not None:
            return check_repetition_time(found, f"{source.name}: RepetitionTime {found!r} in {sidecar.name}")
    if (found := source.header_repetition_time) is not None:
        return check_repetition_time(found, f"{source.name}: the header's repetition time of {found:.6g} s")
    warnings.warn(f"{source.name}: no repetition time was given, so 1 s is assumed.", stacklevel=2)
    return 1.0


def check_repetition_time(value: Any, label: str) -> float:
    """Return a repetition time in seconds, rounded to the microsecond.

    Args:
        value: a number, or what was found instead.
        label: the beginning of the error message: the file and what it holds.

    Raises:
        InputError: no number, or one outside 0.1 to 30 s.
    """
    lowest, highest = REPETITION_TIME_RANGE
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not lowest <= seconds <= highest:
        hint = f" (milliseconds? then {seconds / 1000:g})" if lowest <= seconds / 1000 <= highest else ""
        raise InputError(
            f"{label} is not between {lowest:g} and {highest:g} s{hint}; pass repetition_time= in seconds "
            "(command line: --repetition-time)."
        )
    return round(seconds, 6)  # headers store float32: 2.2 comes back as 2.200000048


def _header_repetition_time(header: Any) -> float:
    try:
        unit = header.get_xyzt_units()[1]
    except KeyError:  # a code outside the standard
        unit = "unknown"
    value = float(header["pixdim"][4])
    return math.nan if value == 1 and unit == "unknown" else value * SECONDS_PER_UNIT.get(unit, math.nan)


# --- BIDS names


def bids_name(filename: str) -> tuple[list[str], str]:
    """Entities and suffix of a file name: `sub-1_task-rest_bold.nii.gz` -> (["sub-1", "task-rest"], "bold")."""
    *entities, suffix = filename.split(".", maxsplit=1)[0].split("_")
    return entities, suffix


def find_sidecars(path: Path | None) -> list[Path]:
    """JSON sidecars of a scan, the most specific first.

    A sidecar of the scan's own name comes first. For BIDS names, less specific ones follow, from the scan's folder up
    to the root of the dataset (the inheritance principle of BIDS).
    """
    if path is None:
        return []
    own = path.parent / f"{path.name.removesuffix('.gz').rsplit('.', maxsplit=1)[0]}.json"
    sidecars = [own] if os.path.isfile(own) else []
    if not path.name.startswith("sub-"):
        return sidecars
    entities, suffix = bids_name(path.name)
    for folder in path.absolute().parents:
        names = {other: bids_name(other.name) for other in sorted(folder.glob(f"*{suffix}.json"))}
        inherited = [
            other
            for other, (other_entities, other_suffix) in names.items()
            if other.name != own.name and other_suffix == suffix and set(other_entities) <= set(entities)
        ]
        sidecars += sorted(inherited, key=lambda other: -len(names[other][0]))
        if not any(part.startswith("sub-") for part in folder.parts):
            break  # the root of the dataset, or a file outside one
    return sidecars


def find_brain_mask_file(path: Path | None) -> Path | None:
    """The brain mask next to a BIDS BOLD scan: the same entities, `desc-brain`, suffix `mask`."""
    if path is None or not path.name.startswith("sub-"):
        return None
    entities, suffix = bids_name(path.name)
    stem = "_".join(entity for entity in entities if not entity.startswith("desc-"))
    candidates = (path.parent / f"{stem}_desc-brain_mask{ending}" for ending in (".nii.gz", ".nii"))
    return next((mask for mask in candidates if suffix == "bold" and os.path.exists(mask)), None)


def declared_space(path: Path | None) -> str | None:
    """The value of the BIDS entity `space-` in a file name, None where there is none."""
    entities = bids_name(path.name)[0] if path is not None else []
    return next((entity.removeprefix("space-") for entity in entities if entity.startswith("space-")), None)


def is_native_space(space: str) -> bool:
    """Whether a BIDS `space-` value names the subject's own space or a surface, not a volume template."""
    return space.lower() in NATIVE_SPACES or space.lower().startswith(("fsaverage", "fslr"))
