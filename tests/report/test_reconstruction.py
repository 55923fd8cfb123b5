"""A reconstruction made block by block against the one made at once, in its voxels and in its fidelity."""

from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_scans import small_run
from torch import nn

from tablet_hf import InputError, TabletFeatureExtractor
from tablet_hf.evaluation.fidelity import RunningFidelity
from tablet_hf.feature_extraction_tablet import FRAMES_PER_BLOCK
from tablet_hf.nifti import write_nifti
from tablet_hf.report.reconstruction import write_reconstruction
from tablet_hf.volumes import open_run

NUM_FRAMES = 3 * FRAMES_PER_BLOCK + 2


class Smoothing(nn.Module):
    """An f4c16 autoencoder that moves pixels and blurs them on the way back."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.config = {"in_channels": 1, "_name_or_path": "smoothing"}

    def encode(self, images):
        return SimpleNamespace(latent=F.pixel_unshuffle(images, 4) * self.scale)

    def decode(self, latents):
        return SimpleNamespace(sample=F.avg_pool2d(F.pixel_shuffle(latents, 4), 3, 1, 1) * self.scale)


@pytest.fixture(params=["intensity", "percent_change"])
def extractor(request):
    extractor = TabletFeatureExtractor(signal=request.param, volume_size=32)
    extractor.slice_autoencoder = Smoothing()
    return extractor


def make_run(**settings):
    random = np.random.default_rng(0)
    shape = (9, 12, 10)
    frames = random.uniform(500, 2000, (*shape, 1)) * (1 + 0.02 * random.uniform(-1, 1, (*shape, NUM_FRAMES)))
    frames[0] = frames[:, -1] = frames[:, :, 0] = 0
    affine = np.diag([-2.0, 2, 2, 1])
    affine[:3, 3] = (10, -30, 12)
    return small_run(scan=(frames.astype(np.float32), affine), volume_size=32, **settings)


@pytest.mark.parametrize("cache_bytes", [0, 2**29])
@pytest.mark.parametrize("window", [{}, {"start": 3, "stride": 2, "num_frames": 10}, {"stride": 20}])
def test_the_file_and_the_fidelity_are_those_of_the_whole_run(extractor, window, cache_bytes, tmp_path):
    run = make_run(cache_bytes=cache_bytes)
    tokenized = extractor.tokenize(run, **window)
    progress = []
    path = tmp_path / "blocks.nii"
    fidelity = write_reconstruction(tokenized, run, extractor, path, lambda *done: progress.append(done))

    inside = torch.from_numpy(run.mask)
    decoded = extractor.decode(tokenized.tokens, tokenized.intensity_scale, tokenized.mean_tokens) * inside
    original = torch.cat([torch.from_numpy(block) for _, block in run.blocks(tokenized.frames)])
    write_nifti([decoded.numpy()], len(decoded), run, tmp_path / "whole.nii", tokenized.repetition_time)
    assert path.read_bytes() == (tmp_path / "whole.nii").read_bytes()
    assert nibabel.load(path).header.get_zooms()[3] == 2 * window.get("stride", 1)
    expected = RunningFidelity(inside)
    expected.add(original, decoded)
    assert fidelity.psnr(run.maximum) == pytest.approx(expected.psnr(run.maximum), abs=1e-9)
    torch.testing.assert_close(fidelity.temporal_correlation(), expected.temporal_correlation(), atol=1e-9, rtol=0)
    assert progress[-1] == (len(decoded), len(decoded))
    assert len(progress) == -(-len(decoded) // FRAMES_PER_BLOCK)


def test_a_scan_that_cannot_be_read_again_leaves_no_file(extractor, make_scan, tmp_path):
    scan = make_scan(tmp_path / "scan.nii", frames=3)
    run = open_run(scan, volume_size=32, check_space=False, cache_bytes=0)
    tokenized = extractor.tokenize(run)
    with scan.open("r+b") as stream:
        stream.truncate(3_000_000)
    with pytest.raises(InputError, match=r"scan\.nii"):
        write_reconstruction(tokenized, run, extractor, tmp_path / "a.nii.gz")
    assert [path.name for path in tmp_path.iterdir()] == ["scan.nii"]
