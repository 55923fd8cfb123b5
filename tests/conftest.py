import os
from pathlib import Path

import nibabel
import numpy as np
import pytest

# Nothing may ask a hub, and test processes that run side by side share the cores: one thread each.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest_plugins = ["planted_store"]

FSL_MNI_AFFINE = np.array([[-2, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1.0]])


@pytest.fixture(scope="session")
def real_data():
    """A function that gives a file or folder of the real data that tests may use, or skips where it is not there.

    They lie in the folder that the environment variable TABLET_SHARED_DATA names, else in shared/data beside the
    repository.
    """

    def find(name):
        folder = os.environ.get("TABLET_SHARED_DATA") or Path(__file__).parents[2] / "shared" / "data"
        path = Path(folder) / name
        if not path.exists():
            pytest.skip(f"no {name} in {folder}; TABLET_SHARED_DATA may name another folder of real data")
        return path

    return find


@pytest.fixture(scope="session")
def make_scan():
    """A function that writes a small 4D scan in MNI space: an ellipsoid inside the brain that varies smoothly."""
    x, y, z = np.meshgrid(*(np.arange(size) for size in (91, 109, 91)), indexing="ij")
    inside = ((x - 45) / 24) ** 2 + ((y - 58) / 32) ** 2 + ((z - 40) / 22) ** 2 < 1
    anatomy = (600 + 300 * np.sin(x / 9) * np.cos(y / 11) + 100 * np.cos(z / 7)) * inside

    def make(path, frames=3, repetition_time=2.0, seed=0):
        random = np.random.default_rng(seed)
        waves = random.standard_normal((2, frames)) * 0.02
        values = anatomy[..., None] * (1 + waves[0] * (x > 45)[..., None] + waves[1] * (z > 40)[..., None])
        image = nibabel.Nifti1Image(values.astype(np.int16), FSL_MNI_AFFINE)
        image.header.set_zooms((2, 2, 2, repetition_time))
        image.header.set_xyzt_units("mm", "sec")
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(image, path)
        return path

    return make


@pytest.fixture(scope="session")
def mni_brain():
    """nilearn's MNI152 brain on the FSL 2 mm grid, (91, 109, 91) bool."""
    from nilearn.datasets import load_mni152_brain_mask

    image = load_mni152_brain_mask(resolution=2)
    millimetres = nibabel.affines.apply_affine(image.affine, np.argwhere(image.dataobj))
    voxels = nibabel.affines.apply_affine(np.linalg.inv(FSL_MNI_AFFINE), millimetres).round().astype(int)
    brain = np.zeros((91, 109, 91), dtype=bool)
    brain[tuple(voxels.T)] = True
    assert brain.sum() == len(voxels)
    return brain


@pytest.fixture(scope="session")
def brain_values(mni_brain):
    """Five frames of a brain of about 1,000 on nothing, (91, 109, 91, 5) int16."""
    noise = np.random.default_rng(0).integers(-50, 50, (*mni_brain.shape, 5))
    anatomy = 1000 + 300 * np.sin(np.arange(91) / 7)[:, None, None, None]
    return np.asfortranarray(((anatomy + noise) * mni_brain[..., None]).astype(np.int16))
