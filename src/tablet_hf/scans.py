"""Open a scan: a path, an image or an array becomes checked frames on the grid they were stored on.

What the header claims is compared with what the file can hold before anything is allocated. Frames are read one after
another, so a compressed run is decompressed once per pass. BIDS sidecars and brain masks next to the scan are found.
"""

import json
import math
import os
import struct
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

NIFTI_BEGINNINGS = tuple(struct.pack(order + "i", size) for order in "<>" for size in (348, 540))
"""A NIfTI-1 or NIfTI-2 file begins with the size of its header, in either byte order."""

SCANNER_XFORM = 1
"""The NIfTI code of scanner coordinates (NIFTI_XFORM_SCANNER_ANAT)."""

NATIVE_SPACES = {"t1w", "t2w", "native", "individual", "scanner", "orig", "bold", "boldref", "func", "anat", "fsnative"}
"""Values of the BIDS entity `space-`, in lower case, of scans that were not registered to a template."""

_ASK_FOR_REPETITION_TIME = "pass repetition_time= in seconds (command line: --repetition-time)"


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
        header_repetition_time: the header's value and its unit; None without such a header.
    """

    name: str
    path: Path | None
    shape: tuple[int, int, int]
    num_frames: int
    affine: np.ndarray
    xform_code: int | None
    header_repetition_time: tuple[float, str] | None
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
        scan: a path, a nibabel spatial image, or a pair (array `(X, Y, Z, T)`, affine `(4, 4)` in mm). A unit axis
            before or after time is dropped.
        check_space: refuse a header without sform and qform.

    Raises:
        InputError: the scan is missing, unreadable, not NIfTI, not 4D, shorter than its header claims, of a data
            type that is no intensity, or without a usable affine.
        TypeError: `scan` is none of the kinds above.
    """
    path, xform_code, header_repetition_time = None, None, None
    if isinstance(scan, str | Path):
        path = Path(scan)
        scan = _load_nifti(path)
    if isinstance(scan, tuple) and len(scan) == 2:
        data, affine = np.asanyarray(scan[0]), scan[1]
        name = f"the array of shape {data.shape}"
    elif hasattr(scan, "dataobj") and hasattr(scan, "affine"):
        data, affine, header = scan.dataobj, scan.affine, scan.header
        if path is None and (filename := getattr(scan, "get_filename", lambda: None)()):
            path = Path(filename)
        name = f"the image of shape {tuple(scan.shape)}" if path is None else str(path)
        header_repetition_time = _header_repetition_time(header)
        if "sform_code" in header and "qform_code" in header:
            xform_code = int(header["sform_code"]) or int(header["qform_code"])
    else:
        raise TypeError(f"a scan is a path, a nibabel image or a pair (array, affine), not {type(scan).__name__}")

    stored_shape = tuple(map(int, data.shape))
    shape = stored_shape[:3] + tuple(length for length in stored_shape[3:] if length != 1)
    if len(stored_shape) >= 4 and len(shape) == 3:
        shape += (1,)
    if len(shape) != 4 or min(shape) < 1:
        raise InputError(f"{name}: an image of shape {stored_shape} is not a 4D run (X, Y, Z, time); give one.")
    affine = _checked_affine(affine, name)
    if check_space and xform_code == 0:
        raise InputError(
            f"{name}: the header has neither sform nor qform; set one (FSL: fslcpgeom from the template) or pass "
            "check_space=False (command line: --no-space-check)."
        )
    if data.dtype.kind not in "iuf":
        what = {"c": "complex numbers", "V": "colours (RGB)", "b": "booleans"}.get(data.dtype.kind, str(data.dtype))
        raise InputError(f"{name}: the voxels hold {what}, not BOLD intensities; give the magnitude image.")
    _check_size(data, name)
    data = data if shape == stored_shape else data.reshape(shape)
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
        voxels = np.abs(np.linalg.inv(source.affine)[:3] @ (affine - source.affine) @ corners).max()
        if not voxels <= 0.5:
            raise InputError(
                f"{name}: the affine of the {role} is up to {voxels:.1f} voxels off that of {source.name}; resample "
                "it to the grid of the scan."
            )
    try:
        loaded = np.asarray(values).reshape(source.shape)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(f"{name}: the {role} cannot be read ({error}); copy or make it again.") from error
    if loaded.dtype.kind not in "iufb":
        raise InputError(f"{name}: the {role} holds {loaded.dtype} values; give one of real numbers.")
    loaded = loaded.astype(np.float32)
    return np.where(np.isfinite(loaded), loaded, np.float32(0))


def _load_nifti(path: Path) -> Any:
    """Load the header of a NIfTI file; the voxels stay on disk."""
    import nibabel

    if not os.path.isfile(path):
        what = "there is no such file; check the path"
        if path.is_symlink():
            what = "a link without its target; fetch the content first (in a DataLad dataset: datalad get)"
        elif os.path.isdir(path):
            what = "a folder, not a scan; give the .nii or .nii.gz file in it"
        raise InputError(f"{path}: {what}.")
    try:
        with path.open("rb") as stream:
            beginning = stream.read(4)
    except OSError as error:
        raise InputError(f"{path}: the file cannot be opened ({error.strerror}); check its permissions.") from error
    if not beginning:
        raise InputError(f"{path}: the file is empty (0 bytes); copy or download it again.")
    is_gzip = beginning.startswith(b"\x1f\x8b")
    if path.suffix == ".nii" and is_gzip:
        raise InputError(f"{path}: named .nii but compressed with gzip; rename it to {path.name}.gz.")
    if path.suffix == ".gz" and beginning in NIFTI_BEGINNINGS:
        raise InputError(f"{path}: named .gz but not compressed with gzip; rename it to {path.stem}.")
    try:
        image = nibabel.load(path)
    except Exception as error:  # parsers fail in many ways on a damaged header
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{path}: not a readable NIfTI file ({reason}); copy or convert it again.") from error
    if isinstance(image, nibabel.Cifti2Image) or not isinstance(image, nibabel.nifti1.Nifti1Pair):
        raise InputError(f"{path}: a {type(image).__name__}, not a NIfTI volume; give the .nii.gz file of the run.")
    return image


def _stored_in(data: Any) -> str | None:
    """The name of the file that holds the voxels, or None where they are in memory or behind an open handle."""
    filename = getattr(data, "file_like", None)
    return filename if isinstance(filename, str) and getattr(data, "order", None) == "F" else None


def _check_size(data: Any, name: str) -> None:
    """Refuse a header that claims more voxels than its file can hold, before they are allocated."""
    filename = _stored_in(data)
    if filename is None:
        return
    if not os.path.isfile(filename):
        raise InputError(f"{name}: its voxels should be in {filename}, which is missing; put it there.")
    claimed = data.offset + math.prod(map(int, data.shape)) * data.dtype.itemsize
    stored = os.path.getsize(filename)
    can_hold = {".gz": stored * MAX_GZIP_RATIO, ".bz2": math.inf, ".zst": math.inf}
    if claimed > can_hold.get(Path(filename).suffix.lower(), stored):
        raise InputError(
            f"{name}: the header claims {claimed:,} bytes of voxels, which a file of {stored:,} bytes cannot hold; it "
            "was cut off or its header is wrong: copy it again."
        )


def _checked_affine(affine: Any, name: str) -> np.ndarray:
    affine = np.array(np.nan if affine is None else affine, dtype=np.float64)
    if affine.shape != (4, 4) or not np.allclose(affine[3], (0, 0, 0, 1)):
        raise InputError(f"{name}: its affine is not a 4 x 4 matrix with last row 0 0 0 1; set one from voxels to mm.")
    if not np.isfinite(affine).all():
        raise InputError(f"{name}: the affine holds NaN or infinite values; repair the header's sform or qform.")
    voxel_sizes = np.linalg.norm(affine[:3, :3], axis=0)
    if not abs(np.linalg.det(affine[:3, :3])) > 1e-6 * max(float(np.prod(voxel_sizes)), 1e-12):
        raise InputError(f"{name}: the affine is singular; repair the header's sform or qform.")
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
    if source.header_repetition_time is not None:
        found, unit = source.header_repetition_time
        label = f"{source.name}: the header's repetition time of {found:.6g} {'' if unit == 'unknown' else unit}"
        if unit not in SECONDS_PER_UNIT or (found == 1 and unit == "unknown"):
            raise InputError(f"{label.rstrip()} is no time in a known unit; {_ASK_FOR_REPETITION_TIME}.")
        return check_repetition_time(found, label.rstrip(), SECONDS_PER_UNIT[unit])
    if source.path is not None:
        raise InputError(f"{source.name}: it has no repetition time; {_ASK_FOR_REPETITION_TIME}.")
    warnings.warn(f"{source.name}: no repetition time was given, so 1 s is assumed.", stacklevel=2)
    return 1.0


def check_repetition_time(value: Any, label: str, seconds_per_unit: float = 1.0) -> float:
    """Return a repetition time in seconds, rounded to the microsecond.

    Args:
        value: a number, or what was found instead.
        label: the beginning of the error message: the file and what it holds.
        seconds_per_unit: the unit of `value`.

    Raises:
        InputError: no number, or one outside 0.1 to 30 s.
    """
    lowest, highest = REPETITION_TIME_RANGE
    try:
        seconds = math.nan if isinstance(value, bool) else float(value) * seconds_per_unit
    except (TypeError, ValueError):
        seconds = math.nan
    if not lowest <= seconds <= highest:
        hint = f" (milliseconds? then {seconds / 1000:g})" if lowest <= seconds / 1000 <= highest else ""
        raise InputError(f"{label} is not between {lowest:g} and {highest:g} s{hint}; {_ASK_FOR_REPETITION_TIME}.")
    return round(seconds, 6)  # headers store float32: 2.2 comes back as 2.200000048


def _header_repetition_time(header: Any) -> tuple[float, str] | None:
    steps = [float(zoom) for zoom in header.get_zooms()[3:]]
    if not steps:
        return None
    try:
        unit = header.get_xyzt_units()[1]
    except (AttributeError, KeyError):  # another format, or a code outside the standard
        unit = "unknown"
    # NIfTI keeps time on the fourth axis; some writers of a fifth one fill in its step instead.
    return max(steps, key=lambda step: math.isfinite(step) and step > 0), unit


# --- BIDS names


def _bids_name(filename: str) -> tuple[list[str], str]:
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
    entities, suffix = _bids_name(path.name)
    for folder in path.absolute().parents:
        inherited = []
        for other in sorted(folder.glob(f"*{suffix}.json")):
            other_entities, other_suffix = _bids_name(other.name)
            if other.name != own.name and other_suffix == suffix and set(other_entities) <= set(entities):
                inherited.append((-len(other_entities), other))
        sidecars += [other for _, other in sorted(inherited)]
        if not any(part.startswith("sub-") for part in folder.parts):
            break  # the root of the dataset, or a file outside one
    return sidecars


def find_brain_mask_file(path: Path | None) -> Path | None:
    """The brain mask next to a BIDS BOLD scan: the same entities, `desc-brain`, suffix `mask`."""
    if path is None or not path.name.startswith("sub-"):
        return None
    entities, suffix = _bids_name(path.name)
    if suffix != "bold":
        return None
    stem = "_".join(entity for entity in entities if not entity.startswith("desc-"))
    candidates = (path.parent / f"{stem}_desc-brain_mask{ending}" for ending in (".nii.gz", ".nii"))
    return next((candidate for candidate in candidates if os.path.exists(candidate)), None)


def declared_space(path: Path | None) -> str | None:
    """The value of the BIDS entity `space-` in a file name, None where there is none."""
    entities = _bids_name(path.name)[0] if path is not None else []
    return next((entity.removeprefix("space-") for entity in entities if entity.startswith("space-")), None)


def is_native_space(space: str) -> bool:
    """Whether a BIDS `space-` value names the subject's own space or a surface, not a volume template."""
    return space.lower() in NATIVE_SPACES or space.lower().startswith(("fsaverage", "fslr"))
