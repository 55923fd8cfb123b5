"""A reconstruction made block by block against the one made at once, in its pixels and in its figures."""

import weakref
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tablet_hf import InputError, TabletFeatureExtractor
from tablet_hf.evaluation.fidelity import psnr, temporal_correlation
from tablet_hf.feature_extraction_tablet import FRAMES_PER_BLOCK
from tablet_hf.report.reconstruction import write_reconstruction
from tablet_hf.volumes import BoldRun, open_run, save_nifti, volumes_to_nifti

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


def make_run(num_frames=NUM_FRAMES, **settings):
    random = np.random.default_rng(0)
    shape = (9, 12, 10)
    frames = random.uniform(500, 2000, (*shape, 1)) * (1 + 0.02 * random.uniform(-1, 1, (*shape, num_frames)))
    frames[0] = frames[:, -1] = frames[:, :, 0] = 0
    affine = np.diag([-2.0, 2, 2, 1])
    affine[:3, 3] = (10, -30, 12)
    scan = (frames.astype(np.float32), affine)
    return open_run(scan, repetition_time=2.5, volume_size=32, check_space=False, mask=frames.any(-1), **settings)


@pytest.mark.parametrize("cache_bytes", [0, 2**29])
@pytest.mark.parametrize("window", [{}, {"start": 3, "stride": 2, "num_frames": 10}])
def test_the_file_and_the_figures_are_those_of_the_whole_run(extractor, window, cache_bytes, tmp_path):
    run = make_run(cache_bytes=cache_bytes)
    tokenized = extractor.tokenize(run, **window)
    told = []
    path = tmp_path / "streamed.nii"
    fidelity = write_reconstruction(tokenized, run, extractor, path, lambda *done: told.append(done))

    inside = torch.from_numpy(run.mask)
    decoded = extractor.decode(tokenized.tokens, tokenized.intensity_scale, tokenized.mean_tokens) * inside
    original = torch.cat([torch.from_numpy(block) for _, block in run.blocks(tokenized.frames)])
    save_nifti(volumes_to_nifti(decoded.numpy(), run, tokenized.repetition_time), tmp_path / "whole.nii")
    assert path.read_bytes() == (tmp_path / "whole.nii").read_bytes()
    assert fidelity.psnr(run.maximum) == pytest.approx(psnr(original, decoded, run.maximum, inside), abs=1e-9)
    expected = temporal_correlation(original, decoded, inside)
    torch.testing.assert_close(fidelity.temporal_correlation(), expected, atol=1e-9, rtol=0)
    assert told[-1] == (len(decoded), len(decoded))
    assert len(told) == -(-len(decoded) // FRAMES_PER_BLOCK)


def test_a_stride_longer_than_a_scan_may_be_slow(extractor, tmp_path):
    run = make_run()
    tokenized = extractor.tokenize(run, stride=20)
    write_reconstruction(tokenized, run, extractor, tmp_path / "a.nii")
    assert nibabel.load(tmp_path / "a.nii").header.get_zooms()[3] == tokenized.repetition_time == 50


def test_no_more_than_two_blocks_are_ever_in_memory(extractor, tmp_path, monkeypatch):
    run = make_run(cache_bytes=0)
    tokenized = extractor.tokenize(run)
    blocks, decode = BoldRun.blocks, TabletFeatureExtractor.decode
    decoded, originals = [], []

    def watch(volumes, seen):
        seen.append(weakref.ref(volumes))
        assert sum(block() is not None for block in seen) <= 2
        return volumes

    def watched_decode(*arguments):
        return torch.from_numpy(watch(decode(*arguments).numpy().copy(), decoded))  # shares the array's memory

    def watched_blocks(*arguments):
        return ((frames, watch(volumes, originals)) for frames, volumes in blocks(*arguments))

    monkeypatch.setattr(TabletFeatureExtractor, "decode", watched_decode)
    monkeypatch.setattr(BoldRun, "blocks", watched_blocks)
    write_reconstruction(tokenized, run, extractor, tmp_path / "a.nii.gz")
    assert len(decoded) == len(originals) == 4


def test_a_scan_that_cannot_be_read_again_leaves_no_file(extractor, make_scan, tmp_path):
    scan = make_scan(tmp_path / "scan.nii", frames=3)
    run = open_run(scan, volume_size=32, check_space=False, cache_bytes=0)
    tokenized = extractor.tokenize(run)
    with scan.open("r+b") as stream:
        stream.truncate(3_000_000)
    with pytest.raises(InputError, match="ends inside frame"):
        write_reconstruction(tokenized, run, extractor, tmp_path / "a.nii.gz")
    assert [path.name for path in tmp_path.iterdir()] == ["scan.nii"]
