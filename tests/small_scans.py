"""Small scans in MNI152 space, and a slow way onto the grid to compare with."""

import itertools

import nibabel as nib
import numpy as np

from tablet_hf.volumes import open_run

FSL_SHAPE = (91, 109, 91)
FSL_AFFINE = np.array([[-2.0, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])


def moved_voxel_by_voxel(volume, affine, target_shape, target_affine):
    """The slow way: each voxel goes to the voxel of the target that has its position in millimetres."""
    target = np.zeros(target_shape, dtype=volume.dtype)
    to_target = np.linalg.inv(target_affine) @ affine
    for index in itertools.product(*map(range, volume.shape)):
        voxel = np.rint(to_target @ (*index, 1))[:3].astype(int)
        if (voxel >= 0).all() and (voxel < target_shape).all():
            target[tuple(voxel)] = volume[index]
    return target


def write_scan(path, values, affine=FSL_AFFINE, repetition_time=2.0, code=4):
    image = nib.Nifti1Image(values, affine, dtype=values.dtype)
    image.set_sform(affine, code)
    image.set_qform(affine, code)
    image.header.set_xyzt_units("mm", "sec")
    image.header["pixdim"][4] = repetition_time
    nib.save(image, path)
    return path


def small_scan(num_frames=6, seed=0, shape=(7, 8, 9)):
    """An array of positive numbers on the lattice, well inside the grid, with zeros around: (array, affine)."""
    values = np.random.default_rng(seed).uniform(100, 1000, (*shape, num_frames)).astype(np.float32)
    values[0] = values[:, 0] = values[:, :, 0] = 0
    affine = FSL_AFFINE.copy()
    affine[:3, 3] = (20, -30, 10)
    return values, affine


def small_run(**settings):
    scan = settings.pop("scan", None) or small_scan()
    settings = {"repetition_time": 2.0, "check_space": False, "volume_size": 48, "mask": scan[0].any(-1), **settings}
    return open_run(scan, **settings)


def all_volumes(run, **arguments):
    return np.concatenate([volumes for _, volumes in run.blocks(**arguments)])
