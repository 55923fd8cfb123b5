"""Opening a scan: from a path, an image or an array to checked frames on the grid they were stored on.

Everything that can be wrong with a file is found here and told in one sentence (`InputError`): what the header claims
is compared with what the file can hold before anything is allocated, frames are read one after another so that a
compressed run is decompressed once a pass, and what stands next to the file (BIDS sidecars, brain masks) is looked up.

The brain, the grid of the model and the intensities are the business of `volumes.py`.
"""

import gzip
import json
import math
import os
import struct
import time
import warnings
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
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
    "find_companion_files",
    "find_repetition_time",
    "is_native_space",
    "load_volume",
    "open_source",
]

Scan = Any
"""A path (`str` or `Path`), a nibabel spatial image, or a pair (array `(X, Y, Z, T)`, affine `(4, 4)` in mm)."""

NIFTI_BEGINNINGS = tuple(struct.pack(order + "i", size) for order in "<>" for size in (348, 540))
"""The size of its own header is what a NIfTI-1 or NIfTI-2 file begins with, in either byte order."""

REPETITION_TIME_RANGE = (0.1, 30.0)
"""Seconds. The fastest multiband sequences take 0.1 s for a brain, sparse-sampling designs up to 20 s."""

MAX_GZIP_RATIO = 1032
"""The most that deflate can shrink anything (zlib's technical notes): what a `.gz` may claim to hold, per byte."""

SECONDS_PER_UNIT = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6, "unknown": 1.0}

NIFTI_2_HEADER_BYTES = 540

SCANNER_XFORM = 1
"""The NIfTI code of scanner coordinates (NIFTI_XFORM_SCANNER_ANAT)."""

NATIVE_SPACES = {"t1w", "t2w", "native", "individual", "scanner", "orig", "bold", "boldref", "func", "anat", "fsnative"}
"""Values of the BIDS entity `space-`, lower case, that say a scan was not moved to a template."""

_ASK_FOR_REPETITION_TIME = "pass repetition_time= in seconds (command line: --repetition-time)"


@dataclass(frozen=True, eq=False)
class BoldSource:
    """A 4D scan, opened and checked but not yet read.

    `shape` is `(X, Y, Z)` in voxels, `affine` `(4, 4)` float64 maps voxel indices to millimetres, `xform_code` is the
    NIfTI code of that space (0 where the header does not say, None where there is no such header). `name` is how
    messages call the scan and `path` the file it came from, None for what was built in memory.
    """

    name: str
    path: Path | None
    shape: tuple[int, int, int]
    num_frames: int
    affine: np.ndarray
    xform_code: int | None
    header_repetition_time: tuple[float, str] | None
    _reader: "_StoredFrames | _HeldFrames" = field(repr=False)

    @property
    def has_scanner_axes(self) -> bool:
        """Whether the header says scanner coordinates or the axes are oblique, as before a registration."""
        turn = np.abs(self.affine[:3, :3]) / np.linalg.norm(self.affine[:3, :3], axis=0)
        return self.xform_code == SCANNER_XFORM or bool((turn.max(axis=0) < math.cos(math.radians(0.5))).any())

    def frames(self, indices: Iterable[int]) -> Iterator[np.ndarray]:
        """Yield frames `(X, Y, Z)` float32 in the order asked for, with slope and intercept of the header applied.

        The file is opened once for the whole pass. Ascending indices read a compressed file once from its start;
        each step back starts again there. NaN and infinite voxels are handed on as they are.

        Raises:
            InputError: the file ends early or its compressed data are damaged, wherever in the run that shows.
        """
        return self._reader.read(indices)


def open_source(scan: Scan, check_space: bool = True) -> BoldSource:
    """Open a 4D scan and check everything that its header and its size can tell.

    Args:
        scan: a path, a nibabel spatial image, or a pair (array `(X, Y, Z, T)`, affine `(4, 4)` in mm). A unit axis
            before or after time is dropped.
        check_space: refuse a header that does not say where the voxels are (neither sform nor qform).

    Raises:
        InputError: the scan is missing, unreadable, not NIfTI, not 4D, shorter than its header claims, of a data
            type that is no intensity, or without a usable affine.
        TypeError: `scan` is none of the kinds above.
    """
    if isinstance(scan, str | Path):
        return _source_of_image(_load_nifti(Path(scan)), str(scan), Path(scan), check_space)
    if isinstance(scan, tuple) and len(scan) == 2:
        return _source_of_array(*scan)
    if hasattr(scan, "dataobj") and hasattr(scan, "affine"):
        filename = scan.get_filename() if hasattr(scan, "get_filename") else None
        shape = "x".join(map(str, scan.shape))
        name = str(filename) if filename else f"the image of {shape} voxels given"
        return _source_of_image(scan, name, Path(filename) if filename else None, check_space)
    raise TypeError(
        f"a scan is a path, a nibabel image or a pair (array of shape (X, Y, Z, T), affine), not {type(scan).__name__}"
    )


def load_volume(image: Any, role: str, source: BoldSource) -> np.ndarray:
    """Load a 3D companion of a scan (a mask, a mean image) that must lie on the scan's own grid.

    Args:
        image: a path, a nibabel image, a pair (array, affine) or a bare array of the scan's shape `(X, Y, Z)`.
        role: what messages call it, "mask" for one.
        source: the scan it belongs to.

    Returns:
        `(X, Y, Z)` float32, scaled as its header says; NaN and infinite voxels are set to 0.

    Raises:
        InputError: it cannot be read, has another shape, or is more than half a voxel away from the scan.
    """
    affine = None
    if isinstance(image, str | Path):
        name, image = str(image), _load_nifti(Path(image))
    else:
        name = f"the {role} given"
    if hasattr(image, "dataobj"):
        values, affine = image.dataobj, image.affine
    elif isinstance(image, tuple) and len(image) == 2:
        values, affine = np.asarray(image[0]), _checked_affine(image[1], name)
    else:
        values = np.asarray(image)
    shape = tuple(values.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if shape != source.shape:
        raise InputError(
            f"{name}: the {role} has shape {shape} but the frames of {source.name} have {source.shape}; "
            f"give a {role} on the scan's own grid."
        )
    if affine is not None:
        corners = _corners(source.shape)
        distance = np.linalg.inv(source.affine)[:3] @ (affine - source.affine) @ corners
        if not np.abs(distance).max() <= 0.5:
            raise InputError(
                f"{name}: the {role} has the shape of {source.name} but another affine (up to "
                f"{np.abs(distance).max():.1f} voxels away); resample it to the scan's own grid."
            )
    try:
        loaded = np.asarray(values)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(f"{name}: the {role} could not be read ({error}); copy or make it again.") from error
    if loaded.dtype.kind not in "iufb":
        raise InputError(f"{name}: the {role} holds {loaded.dtype} values; give one of real numbers.")
    loaded = loaded.reshape(shape).astype(np.float32)
    return np.where(np.isfinite(loaded), loaded, np.float32(0))


# --- opening


def _load_nifti(path: Path) -> Any:
    """Load the header of a NIfTI file; the voxels stay on disk."""
    import nibabel
    from nibabel.filebasedimages import ImageFileError

    if not path.exists():
        if path.is_symlink():
            raise InputError(
                f"{path}: a link whose target is missing; fetch the content first (in a DataLad dataset: datalad get)."
            )
        raise InputError(f"{path}: there is no such file; check the path.")
    if path.is_dir():
        raise InputError(f"{path}: a folder, not a scan; name the .nii or .nii.gz file in it.")
    try:
        if path.stat().st_size == 0:
            raise InputError(f"{path}: the file is empty (0 bytes); copy or download it again.")
        with path.open("rb") as stream:
            beginning = stream.read(4)
    except OSError as error:
        raise InputError(f"{path}: the file cannot be opened ({error.strerror}); check its permissions.") from error
    is_gzip = beginning.startswith(b"\x1f\x8b")
    if path.suffix == ".nii" and is_gzip:
        raise InputError(f"{path}: named .nii but compressed with gzip; rename it to {path.name}.gz.")
    if path.suffix == ".gz" and not is_gzip:
        if beginning in NIFTI_BEGINNINGS:
            raise InputError(f"{path}: named .gz but not compressed with gzip; rename it to {path.stem}.")
        raise InputError(
            f"{path}: it is not a NIfTI file, nor compressed with gzip as its name says; give a 4D NIfTI file."
        )
    try:
        image = nibabel.load(path)
    except (ImageFileError, EOFError, zlib.error) as error:
        if is_gzip and not _begins_readably(path):
            raise InputError(
                f"{path}: the compressed data are cut off or damaged at once; copy or download it again."
            ) from error
        raise InputError(f"{path}: not a NIfTI image; give a .nii or .nii.gz file.") from error
    except Exception as error:  # whatever a parser stumbles over in a damaged header is the file's fault
        detail = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{path}: the header is damaged ({detail}); copy or convert the file again.") from error
    if isinstance(image, nibabel.Cifti2Image):
        raise InputError(f"{path}: CIFTI grayordinates have no volume; give the volumetric NIfTI file of the same run.")
    if not isinstance(image, nibabel.nifti1.Nifti1Pair):
        raise InputError(f"{path}: a {type(image).__name__}, not NIfTI; convert it to .nii.gz first.")
    return image


def _begins_readably(path: Path) -> bool:
    """Whether as much as a header can be decompressed: nibabel calls a damaged beginning another format."""
    try:
        with gzip.open(path) as stream:
            stream.read(NIFTI_2_HEADER_BYTES)
    except (OSError, EOFError, zlib.error):
        return False
    return True


def _source_of_image(image: Any, name: str, path: Path | None, check_space: bool) -> BoldSource:
    shape, num_frames, time_axis = _split_shape(tuple(map(int, image.shape)), name)
    affine = _checked_affine(image.affine, name)
    header = image.header
    xform_code = None
    if "sform_code" in header and "qform_code" in header:
        xform_code = int(header["sform_code"]) or int(header["qform_code"])
        if check_space and xform_code == 0:
            raise InputError(
                f"{name}: the header has neither sform nor qform, so nothing says where the brain lies; set one "
                "(FSL: fslcpgeom from the template) or pass check_space=False (command line: --no-space-check)."
            )
    proxy = image.dataobj
    # What is read here byte by byte is exactly what nibabel's proxy describes in public; anything else (an array
    # held in memory, another format, an already open handle) is asked frame by frame.
    is_stored = isinstance(getattr(proxy, "file_like", None), str) and getattr(proxy, "order", None) == "F"
    if is_stored:
        reader = _StoredFrames(
            name, proxy.file_like, shape, num_frames, proxy.dtype, proxy.offset, proxy.slope, proxy.inter
        )
    else:
        reader = _HeldFrames(name, proxy, shape, num_frames, time_axis)
    return BoldSource(
        name, path, shape, num_frames, affine, xform_code, _header_repetition_time(header, time_axis), reader
    )


def _source_of_array(array: Any, affine: Any) -> BoldSource:
    array = np.asanyarray(array)
    name = f"the array of shape {tuple(map(int, array.shape))} given"
    shape, num_frames, time_axis = _split_shape(tuple(map(int, array.shape)), name)
    reader = _HeldFrames(name, array, shape, num_frames, time_axis)
    return BoldSource(name, None, shape, num_frames, _checked_affine(affine, name), None, None, reader)


def _split_shape(shape: tuple[int, ...], name: str) -> tuple[tuple[int, int, int], int, int]:
    """Tell space from time: (X, Y, Z), the number of frames, and the axis that counts them."""
    if len(shape) < 4:
        raise InputError(
            f"{name}: a {len(shape)}D image of shape {shape}; give a 4D run, with time on the fourth axis."
        )
    longer = [axis for axis in range(3, len(shape)) if shape[axis] != 1]
    if len(longer) > 1:
        raise InputError(f"{name}: shape {shape} has {len(longer)} axes besides space; give a 4D run (X, Y, Z, time).")
    time_axis = longer[0] if longer else 3
    if min(shape) < 1:
        raise InputError(f"{name}: shape {shape} holds no voxel or no frame at all; check how the file was made.")
    return shape[:3], shape[time_axis], time_axis


def _checked_affine(affine: Any, name: str) -> np.ndarray:
    if affine is None:
        raise InputError(f"{name}: there is no affine to say where the voxels are; set one.")
    affine = np.array(affine, dtype=np.float64)
    if affine.shape != (4, 4):
        raise InputError(f"{name}: the affine has shape {affine.shape}; give a 4 x 4 matrix from voxels to mm.")
    if not np.isfinite(affine).all():
        raise InputError(f"{name}: the affine holds NaN or infinite values; repair the header's sform or qform.")
    if not np.allclose(affine[3], (0, 0, 0, 1)):
        raise InputError(f"{name}: the last row of the affine is {affine[3].tolist()}, not 0 0 0 1; repair it.")
    voxel_sizes = np.linalg.norm(affine[:3, :3], axis=0)
    if not abs(np.linalg.det(affine[:3, :3])) > 1e-6 * max(float(np.prod(voxel_sizes)), 1e-12):
        raise InputError(
            f"{name}: the affine is singular, so voxels have no place; repair the header's sform or qform."
        )
    return affine


def _corners(shape: tuple[int, int, int]) -> np.ndarray:
    """The eight corner voxels of a volume as homogeneous columns `(4, 8)`."""
    corners = np.ones((4, 8))
    corners[:3] = np.array(np.meshgrid(*[(0, n - 1) for n in shape], indexing="ij")).reshape(3, 8)
    return corners


# --- reading


class _StoredFrames:
    """Frames that lie one behind another in a file, compressed or not."""

    def __init__(
        self,
        name: str,
        filename: str,
        shape: tuple[int, int, int],
        num_frames: int,
        dtype: np.dtype,
        offset: int,
        slope: float,
        intercept: float,
    ):
        self._name, self._filename, self._shape, self._num_frames = name, filename, shape, num_frames
        self._dtype, self._offset, self._slope, self._intercept = np.dtype(dtype), int(offset), slope, intercept
        self._frame_bytes = math.prod(shape) * self._dtype.itemsize
        _check_dtype(self._dtype, name)
        self._check_size()

    def _check_size(self) -> None:
        path = Path(self._filename)
        if not path.exists():
            raise InputError(f"{self._name}: the voxels should lie in {path}, which is missing; put it beside.")
        claimed, stored = self._offset + self._num_frames * self._frame_bytes, path.stat().st_size
        can_hold = {".gz": stored * MAX_GZIP_RATIO, ".bz2": math.inf, ".zst": math.inf}
        if claimed > can_hold.get(path.suffix.lower(), stored):
            raise InputError(
                f"{self._name}: the header claims {_readable_bytes(claimed)} of voxels but the file of "
                f"{_readable_bytes(stored)} cannot hold them; it was cut off or its header is wrong: copy it again."
            )

    def read(self, indices: Iterable[int]) -> Iterator[np.ndarray]:
        from nibabel.openers import ImageOpener

        index = 0
        try:
            with ImageOpener(self._filename) as stream:
                for index in indices:
                    stream.seek(self._offset + index * self._frame_bytes)
                    stored = stream.read(self._frame_bytes)
                    if len(stored) < self._frame_bytes:
                        raise EOFError
                    if index == self._num_frames - 1:
                        stream.read(1)  # gzip compares its checksum only when it meets the end of the file
                    yield self._scaled(np.frombuffer(stored, self._dtype))
        except EOFError as error:
            raise InputError(
                f"{self._name}: the file ends inside frame {index} of {self._num_frames}; copy or download it again."
            ) from error
        except (zlib.error, OSError) as error:
            raise InputError(
                f"{self._name}: the data are damaged at frame {index} of {self._num_frames} ({error}); "
                "copy or download it again."
            ) from error

    def _scaled(self, stored: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):  # what does not fit float32 becomes infinite, and is counted as such
            if (self._slope, self._intercept) != (1, 0):
                stored = stored * np.float64(self._slope) + np.float64(self._intercept)
            return stored.astype(np.float32).reshape(self._shape, order="F")


class _HeldFrames:
    """Frames of an array in memory, or of any image whose `dataobj` can be sliced."""

    def __init__(self, name: str, data: Any, shape: tuple[int, int, int], num_frames: int, time_axis: int):
        self._name, self._data, self._shape, self._num_frames = name, data, shape, num_frames
        self._time_axis = time_axis
        if isinstance(data, np.ndarray):
            _check_dtype(data.dtype, name)

    def read(self, indices: Iterable[int]) -> Iterator[np.ndarray]:
        place = [slice(None)] * 3 + [0] * (len(self._data.shape) - 3)
        for index in indices:
            place[self._time_axis] = index
            try:
                frame = np.asarray(self._data[tuple(place)])
            except (EOFError, zlib.error, OSError) as error:
                raise InputError(
                    f"{self._name}: frame {index} of {self._num_frames} could not be read ({error}); copy it again."
                ) from error
            _check_dtype(frame.dtype, self._name)
            with np.errstate(over="ignore"):
                yield frame.astype(np.float32)


def _check_dtype(dtype: np.dtype, name: str) -> None:
    if dtype.kind not in "iuf":
        what = {"c": "complex numbers", "V": "colours (RGB)", "b": "yes or no"}.get(dtype.kind, str(dtype))
        raise InputError(f"{name}: the voxels hold {what}, not BOLD intensities; give the magnitude image.")


def _readable_bytes(count: int) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


# --- the repetition time


def find_repetition_time(source: BoldSource, given: float | None = None) -> float:
    """The time between two frames in seconds: given, else the BIDS sidecar's, else the header's.

    A JSON file of the scan's own name is asked first, then, for a BIDS name, the less specific ones up to the root of
    the dataset (the inheritance principle of the BIDS specification). A header without a unit is taken as seconds, but
    1 without a unit is what libraries write that know none. A bare array has no place to look: 1 s, with a warning.

    Raises:
        InputError: the first of these that speaks is missing a value, or gives one outside 0.1 to 30 s.
    """
    if given is not None:
        return check_repetition_time(given, f"{source.name}: repetition_time={given!r}")
    for sidecar in _sidecars(source.path) if source.path is not None else ():
        try:
            fields = json.loads(sidecar.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            warnings.warn(f"{sidecar}: not readable as JSON and passed over ({error}).", stacklevel=2)
            continue
        if isinstance(fields, dict) and fields.get("RepetitionTime") is not None:
            found = fields["RepetitionTime"]
            return check_repetition_time(found, f"{source.name}: RepetitionTime {found!r} in {sidecar.name}")
    if source.header_repetition_time is not None:
        found, unit = source.header_repetition_time
        if unit not in SECONDS_PER_UNIT:
            raise InputError(f"{source.name}: the fourth axis counts {unit}, not time; {_ASK_FOR_REPETITION_TIME}.")
        said = (
            f"{source.name}: the header's repetition time of {found:.6g} {unit if unit != 'unknown' else '(no unit)'}"
        )
        if found == 1 and unit == "unknown":
            raise InputError(
                f"{source.name}: its header says 1 with no unit, as one does that was never told the repetition time; "
                f"{_ASK_FOR_REPETITION_TIME}."
            )
        return check_repetition_time(found, said, SECONDS_PER_UNIT[unit])
    if source.path is not None:
        raise InputError(f"{source.name}: nothing tells the repetition time; {_ASK_FOR_REPETITION_TIME}.")
    warnings.warn(f"{source.name}: no repetition time was given, so 1 s is taken.", stacklevel=2)
    return 1.0


def check_repetition_time(value: Any, said: str, seconds_per_unit: float = 1.0) -> float:
    """A repetition time in seconds, to the microsecond.

    Args:
        value: a number, or what stood where one should.
        said: the file, and what it says of the repetition time; the beginning of the sentence if that cannot be.

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
        raise InputError(f"{said} is not between {lowest:g} and {highest:g} s{hint}; {_ASK_FOR_REPETITION_TIME}.")
    return round(seconds, 6)  # headers keep it in float32: 2.2 comes back as 2.200000048


def _header_repetition_time(header: Any, time_axis: int) -> tuple[float, str] | None:
    zooms = header.get_zooms()
    if len(zooms) < 4:
        return None
    try:
        unit = header.get_xyzt_units()[1]
    except (AttributeError, KeyError):  # another format, or a code outside the standard
        unit = "unknown"
    # NIfTI keeps time on the fourth axis; some writers of a fifth one fill in its step instead.
    steps = [float(zooms[axis]) for axis in (3, time_axis) if axis < len(zooms)]
    return max(steps, key=lambda step: math.isfinite(step) and step > 0), unit


def _bids_name(filename: str) -> tuple[list[str], str]:
    """Entities and suffix of a file name: `sub-1_task-rest_bold.nii.gz` -> (["sub-1", "task-rest"], "bold")."""
    *entities, suffix = filename.split(".", maxsplit=1)[0].split("_")
    return entities, suffix


def _json_files(folder: Path) -> list[Path]:
    """The JSON files of a folder, sorted. A large dataset's root takes long to list, for each scan."""
    try:
        changed = folder.stat().st_mtime_ns
        # What changes again before the clock ticks cannot be told by its time.
        is_settled = time.time_ns() - changed > 2_000_000_000
        names = _json_names(folder, changed) if is_settled else _json_names.__wrapped__(folder, changed)
    except OSError:
        return []  # as `glob` of what may not be listed
    return [folder / name for name in names]


@lru_cache(maxsize=256)
def _json_names(folder: Path, changed: int) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.name.endswith(".json"))


def _sidecars(path: Path) -> Iterator[Path]:
    """JSON files that speak for a scan, the most specific first."""
    stem = path.name.removesuffix(".gz").rsplit(".", maxsplit=1)[0]
    own = path.parent / f"{stem}.json"
    if own.is_file():
        yield own
    entities, suffix = _bids_name(path.name)
    if not path.name.startswith("sub-"):
        return
    for folder in path.absolute().parents:
        speaks = [
            (len(_bids_name(other.name)[0]), other)
            for other in _json_files(folder)
            if other.name != own.name
            and _bids_name(other.name)[1] == suffix
            and set(_bids_name(other.name)[0]) <= set(entities)
        ]
        yield from (other for _, other in sorted(speaks, key=lambda pair: -pair[0]))
        if not any(part.startswith("sub-") for part in folder.parts):
            return  # the root of the dataset, or a lone file outside one


def find_brain_mask_file(path: Path | None) -> Path | None:
    """The brain mask that BIDS derivatives keep next to a BOLD scan: the same entities, `desc-brain`, suffix `mask`."""
    if path is None or not path.name.startswith("sub-"):
        return None
    entities, suffix = _bids_name(path.name)
    if suffix != "bold":
        return None
    stem = "_".join(entity for entity in entities if not entity.startswith("desc-"))
    candidates = (path.parent / f"{stem}_desc-brain_mask{ending}" for ending in (".nii.gz", ".nii"))
    return next((candidate for candidate in candidates if candidate.exists()), None)


def find_companion_files(path: Path, with_mask: bool = True, with_sidecars: bool = True) -> list[Path]:
    """What stands next to a scan and speaks for it unasked: its BIDS brain mask and its JSON sidecars.

    Of a path that cannot be looked at there are none: reading the scan will tell why.
    """
    try:
        mask = find_brain_mask_file(path) if with_mask else None
        sidecars = _sidecars(path) if with_sidecars else ()
        return [*([] if mask is None else [mask]), *sidecars]
    except OSError:
        return []


def declared_space(path: Path | None) -> str | None:
    """The value of the BIDS entity `space-` in a file's name, None where there is none."""
    entities = _bids_name(path.name)[0] if path is not None else []
    return next((entity.removeprefix("space-") for entity in entities if entity.startswith("space-")), None)


def is_native_space(space: str) -> bool:
    """Whether a BIDS `space-` value names the subject's own space or a surface rather than a volume template."""
    return space.lower() in NATIVE_SPACES or space.lower().startswith(("fsaverage", "fslr"))
