"""From scans to tokens and back, against a slow reading of the specification and against the scan itself."""

import json
import math
import threading
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLTemporalDecoder,
    AutoencoderTiny,
)
from small_autoencoders import residual_autoencoder
from torch import nn
from transformers import AutoFeatureExtractor, BatchFeature

from tablet_hf import InputError, TabletFeatureExtractor
from tablet_hf.evaluation.fidelity import RunningFidelity
from tablet_hf.feature_extraction_tablet import FRAMES_PER_BLOCK
from tablet_hf.hub.custom_code import needed_files
from tablet_hf.slice_autoencoder import SLICES_AT_ONCE, SliceAutoencoder, load_autoencoder
from tablet_hf.volumes import open_run

REPETITION_TIME = 2.5


def tiny_dc(compression=32, channels=32):
    """An AutoencoderDC with random weights: f32c32 is the shape of the paper's."""
    torch.manual_seed(0)
    levels = int(math.log2(compression)) + 1
    widths = (4, 4, 8, 8, 16, 32)[:levels]
    return residual_autoencoder(widths, channels)


def tiny_kl():
    """An f8c4 AutoencoderKL, whose latents are a distribution."""
    torch.manual_seed(0)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 4, 4),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=2,
    )


def tiny_tiny():
    """An f8c4 AutoencoderTiny."""
    torch.manual_seed(0)
    widths = {"encoder_block_out_channels": (4,) * 4, "decoder_block_out_channels": (4,) * 4}
    return AutoencoderTiny(**widths, num_encoder_blocks=(1,) * 4, num_decoder_blocks=(1,) * 4, latent_channels=4)


class Lossless(nn.Module):
    """An f4c16 autoencoder that only moves pixels, so that decoding undoes encoding."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.config = {"in_channels": 1, "_name_or_path": "lossless"}

    def encode(self, images):
        return SimpleNamespace(latent=F.pixel_unshuffle(images, 4) * self.scale)

    def decode(self, latents):
        return SimpleNamespace(sample=F.pixel_shuffle(latents, 4) * self.scale)


def make_scan(num_frames=5, shape=(9, 12, 10), seed=0, change=0.02):
    """A block of brain in an empty volume, on the lattice, in the middle of the MNI brain: (array, affine).

    Intensities vary over space by a factor of four, and over time by `change` of their mean.
    """
    generator = np.random.default_rng(seed)
    anatomy = generator.uniform(500, 2000, (*shape, 1))
    frames = anatomy * (1 + change * generator.uniform(-1, 1, (*shape, num_frames)))
    frames[0] = frames[:, -1] = frames[:, :, 0] = 0
    affine = np.diag([-2.0, 2, 2, 1])
    affine[:3, 3] = (10, -30, 12)
    return frames.astype(np.float32), affine


def as_image(scan):
    image = nib.Nifti1Image(*scan)
    image.set_sform(scan[1], code=4)
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_zooms((2, 2, 2, REPETITION_TIME))
    return image


def extractor_with(model=None, **settings):
    extractor = TabletFeatureExtractor(**settings)
    extractor.slice_autoencoder = tiny_dc(4, 4) if model is None else model
    return extractor


def small(**settings):
    """An extractor on a small cube that `make_scan` fits into, with an f4c4 autoencoder of random weights."""
    return extractor_with(volume_size=32, **settings)


@pytest.fixture
def scan():
    return make_scan()


@pytest.fixture
def options():
    return {"repetition_time": REPETITION_TIME}


# --- the specification, step by step


def reference_cube(frame, affine):
    """Voxel by voxel from millimetres onto the cube of 96."""
    cube = np.zeros((96, 96, 96), dtype=np.float32)
    for voxel in np.argwhere(frame):
        x, y, z = affine[:3, :3] @ voxel + affine[:3, 3]
        cube[round((96 - x) / 2), round((y + 112) / 2), round((z + 78) / 2)] = frame[tuple(voxel)]
    return cube


def reference_tokens(cube, encode):
    """Slice by slice and cell by cell. `encode` maps (1, 3, 96, 96) to (1, C, g, g)."""
    axes = []
    for axis in range(3):
        latents = []
        for index in range(96):
            slice_ = np.ascontiguousarray(np.take(cube, index, axis=axis))
            image = torch.from_numpy(slice_).expand(1, 3, 96, 96)
            with torch.no_grad():
                latents.append(encode(image)[0].numpy())
        axes.append(latents)
    channels, grid, _ = axes[0][0].shape
    in_cell = 96 // grid
    tokens = np.zeros((grid**3, 3 * in_cell * channels), dtype=np.float32)
    for i, j, k in np.ndindex(grid, grid, grid):
        cell = (i * grid + j) * grid + k
        for axis, (along, row, column) in enumerate([(i, j, k), (j, i, k), (k, i, j)]):
            for number in range(in_cell):
                first = (axis * in_cell + number) * channels
                latent = axes[axis][along * in_cell + number]
                tokens[cell, first : first + channels] = latent[:, row, column]
    return tokens


def encode_of(model):
    def encode(images):
        encoded = model.encode(images)
        if isinstance(model, AutoencoderKL):
            return encoded.latent_dist.mean
        return encoded.latents if isinstance(model, AutoencoderTiny) else encoded.latent

    return encode


AUTOENCODERS = {
    "shipped": lambda: load_autoencoder("natural-f32c32").model,
    "dc": tiny_dc,
    "kl": tiny_kl,
    "tiny": tiny_tiny,
}


@pytest.mark.parametrize("kind", AUTOENCODERS)
def test_tokens_of_intensities_are_those_of_the_specification(kind, scan, options):
    model = AUTOENCODERS[kind]()
    extractor = TabletFeatureExtractor() if kind == "shipped" else extractor_with(model)
    tokens = extractor(scan, start=3, **options)["input_values"]

    frames, affine = scan
    assert tokens.shape == ((1, 2, 27, 3072) if kind in ("shipped", "dc") else (1, 2, 1728, 96))
    assert tokens.dtype == torch.float32
    cube = reference_cube(frames[..., 3], affine) / frames.max() * 2 - 1
    np.testing.assert_allclose(tokens[0, 0], reference_tokens(cube, encode_of(model.eval())), atol=2e-4, rtol=1e-3)


def test_tokens_of_percent_change_are_those_of_the_specification(options):
    frames, affine = make_scan(change=0.08)
    frames[4, 5, 5] *= 0.01  # in the brain, but too dark to divide by
    model = tiny_dc()
    run = extractor_with(model, signal="percent_change").tokenize((frames, affine), **options)

    brain = frames.any(-1)
    mean = frames.mean(-1)
    is_defined = brain & (mean >= 0.05 * np.percentile(frames[brain], 99.9))
    assert brain.sum() - is_defined.sum() == 1
    with np.errstate(invalid="ignore"):
        change = np.where(is_defined[..., None], (frames - mean[..., None]) / mean[..., None] / 0.0625, 0)
    assert (np.abs(change) > 1).mean() > 0.01
    cube = reference_cube(np.clip(change[..., 2], -1, 1).astype(np.float32), affine)
    np.testing.assert_allclose(run.tokens[2], reference_tokens(cube, encode_of(model)), atol=2e-4, rtol=1e-3)
    np.testing.assert_allclose(run.clipped_share, (np.abs(change[is_defined]) > 1).mean(), atol=1e-6)

    mean_cube = reference_cube(mean, affine) / frames.max() * 2 - 1
    np.testing.assert_allclose(run.mean_tokens[0], reference_tokens(mean_cube, encode_of(model)), atol=2e-4, rtol=1e-3)


def test_percentile_scaling_sets_another_scale_and_clips(scan, options):
    frames, affine = scan
    bright = frames.copy()
    bright[4, 4, 4, 0] = 1e5
    of_maximum = small().tokenize((bright, affine), **options)
    of_percentile = small(scaling="percentile").tokenize((bright, affine), **options)
    assert of_maximum.intensity_scale == 1e5
    assert of_maximum.clipped_share == 0
    brain = frames.any(-1)
    assert of_percentile.intensity_scale == pytest.approx(np.percentile(bright[brain], 99.9), rel=1e-3)
    assert 0 < of_percentile.clipped_share < 0.002


# --- inputs


class TestScans:
    def test_a_pair_an_image_and_a_file_are_the_same_scan(self, scan, options, tmp_path):
        nib.save(as_image(scan), tmp_path / "bold.nii.gz")
        extractor = small()
        expected = extractor(scan, **options)
        for other in (as_image(scan), str(tmp_path / "bold.nii.gz"), tmp_path / "bold.nii.gz", [as_image(scan)]):
            found = extractor(other)
            assert torch.equal(found["input_values"], expected["input_values"])
            assert found["repetition_time"].tolist() == [REPETITION_TIME]

    def test_a_batch_feature_of_the_promised_names_shapes_and_types(self, scan, options):
        features = small()(scan, **options)
        assert isinstance(features, BatchFeature)
        assert list(features) == TabletFeatureExtractor.model_input_names
        assert features["input_values"].shape == (1, 5, 8**3, 3 * 4 * 4)
        assert features["attention_mask"].shape == (1, 5)
        assert features["attention_mask"].dtype == torch.int64
        assert features["repetition_time"].dtype == torch.float32
        features["input_values"].requires_grad_().sum().backward()  # not a tensor of inference mode

    def test_scans_of_different_length_are_padded_with_zeros_and_masked(self):
        extractor = small()
        long, short = make_scan(6), make_scan(4, seed=1)
        features = extractor([as_image(long), short], repetition_time=[None, 0.72])
        assert features["attention_mask"].tolist() == [[1] * 6, [1] * 4 + [0] * 2]
        assert torch.equal(features["input_values"][1, :4], extractor(short, repetition_time=1)["input_values"][0])
        assert not features["input_values"][1, 4:].any()
        torch.testing.assert_close(features["repetition_time"], torch.tensor([REPETITION_TIME, 0.72]))

    def test_seconds_are_not_rounded_when_a_batch_is_cast(self, scan):
        features = small()(scan, repetition_time=0.72)
        for arguments in ((torch.float16,), ("cpu", torch.bfloat16), ("meta",)):
            moved = features.to(*arguments)
            assert moved is features
            assert features["repetition_time"].dtype == torch.float32
            if arguments != ("meta",):
                assert features["input_values"].dtype == arguments[-1]
                assert torch.equal(features["repetition_time"], torch.tensor([0.72]))
        assert {value.device.type for value in features.values()} == {"meta"}

    def test_numpy_arrays_on_request(self, scan, options):
        extractor = small()
        features = extractor(scan, return_tensors="np", **options)
        assert all(isinstance(value, np.ndarray) for value in features.values())
        np.testing.assert_array_equal(features["input_values"], extractor(scan, **options)["input_values"].numpy())
        with pytest.raises(ValueError, match="tf"):
            extractor(scan, return_tensors="tf")

    def test_a_mask_leaves_the_rest_out(self, scan, options):
        frames, affine = scan
        mask = np.zeros(frames.shape[:3], dtype=bool)
        mask[3:6, 3:7, 3:6] = True
        extractor = small()
        masked = extractor(scan, masks=mask, **options)["input_values"]
        assert torch.equal(masked, extractor((frames * mask[..., None], affine), **options)["input_values"])
        assert not torch.equal(masked, extractor(scan, **options)["input_values"])
        both = extractor([scan, scan], masks=[None, nib.Nifti1Image(mask.astype(np.uint8), affine)], **options)
        assert torch.equal(both["input_values"][1], masked[0])

    def test_a_mean_brings_a_demeaned_run_back(self, scan, options):
        frames, affine = scan
        mean = frames.mean(-1)
        extractor = small()
        with pytest.raises(InputError, match="demeaned"):
            extractor((frames - mean[..., None], affine), **options)
        restored = extractor((frames - mean[..., None], affine), add_mean=mean, **options)
        expected = extractor(scan, **options)["input_values"]
        torch.testing.assert_close(restored["input_values"], expected, atol=1e-4, rtol=1e-4)

    def test_lists_must_match(self, scan):
        extractor = small()
        for name, values in {
            "masks": [None],
            "repetition_time": [1.0, 2.0, 3.0],
            "add_mean": np.ones((9, 12, 10)),
        }.items():
            with pytest.raises(ValueError, match=name):
                extractor([scan, scan], **{name: values})
        with pytest.raises(ValueError, match="No scans"):
            extractor([])

    def test_a_scan_outside_mni_space_is_refused_by_default(self, scan, options):
        frames, affine = scan
        moved = affine.copy()
        moved[2, 3] -= 80
        with pytest.raises(InputError, match="MNI152"):
            small()((frames, moved), **options)
        far = extractor_with(volume_size=96)((frames, moved), check_space=False, num_frames=1, **options)
        assert far["input_values"].shape[1] == 1

    def test_an_open_run_is_tokenized_with_progress_in_the_dtype_asked_for(self, options):
        progress, extractor = [], small()
        run = open_run(make_scan(11), repetition_time=2, volume_size=32)
        tokens = extractor.tokenize(run, on_progress=lambda *now: progress.append(now)).tokens
        assert progress == [(8, 11), (11, 11)]
        assert torch.equal(tokens, extractor(make_scan(11), **options)["input_values"][0])
        assert torch.equal(extractor.tokenize(run, dtype=torch.float16).tokens, tokens.half())

    def test_outputs_are_accepted_as_inputs(self, scan):
        extractor = small()
        features = extractor([scan, scan], repetition_time=np.array([0.7, 1.4]), return_tensors="np")
        np.testing.assert_allclose(features["repetition_time"], [0.7, 1.4], rtol=1e-6)
        again = extractor([scan, scan], repetition_time=torch.tensor([0.7, 1.4]))
        np.testing.assert_array_equal(again["input_values"], features["input_values"])
        assert extractor.decode(features["input_values"]).shape == (2, 5, 32, 32, 32)


class TestWindows:
    @pytest.mark.parametrize(
        ("window", "frames"),
        [
            ({}, [0, 1, 2, 3, 4, 5, 6]),
            ({"start": 2}, [2, 3, 4, 5, 6]),
            ({"num_frames": 3}, [0, 1, 2]),
            ({"num_frames": 2, "start": 4}, [4, 5]),
            ({"stride": 3}, [0, 3, 6]),
            ({"num_frames": 2, "start": 1, "stride": 4}, [1, 5]),
        ],
    )
    def test_frames_of_a_window(self, window, frames, options):
        extractor = small()
        scan = make_scan(7)
        features = extractor(scan, **window, **options)
        assert torch.equal(features["input_values"], extractor(scan, **options)["input_values"][:, frames])
        assert features["repetition_time"].item() == REPETITION_TIME * window.get("stride", 1)
        assert extractor.tokenize(scan, **window, **options).frames.tolist() == frames

    @pytest.mark.parametrize("window", [{"num_frames": 6}, {"num_frames": 3, "stride": 2, "start": 1}, {"start": 5}])
    def test_more_frames_than_there_are(self, window, scan, options):
        with pytest.raises(InputError, match="of its 5 are left"):
            small()(scan, **window, **options)

    def test_padding_fills_the_window(self, scan, options):
        extractor = small()
        features = extractor(scan, num_frames=7, padding=True, **options)
        assert features["attention_mask"].tolist() == [[1] * 5 + [0] * 2]
        assert torch.equal(features["input_values"][:, :5], extractor(scan, **options)["input_values"])
        assert not features["input_values"][:, 5:].any()

    @pytest.mark.parametrize("window", [{"start": -1}, {"stride": 0}, {"num_frames": 0}])
    def test_impossible_windows(self, window, scan, options):
        with pytest.raises(ValueError, match="A window needs"):
            small()(scan, **window, **options)


# --- encoding


class CountedAutoencoder(SliceAutoencoder):
    """An autoencoder that records its batches, and has memory for `limit` slices."""

    limit = 10**9

    def encode(self, slices):
        if not hasattr(self, "batches"):
            self.batches, self.threads = [], set()
        self.batches.append(len(slices))
        self.threads.add(threading.get_ident())
        if len(slices) > self.limit:
            raise torch.OutOfMemoryError("too many slices")
        return super().encode(slices)


def counted(**settings):
    autoencoder = CountedAutoencoder(tiny_dc(4, 4), name="counted")
    extractor = extractor_with(autoencoder, volume_size=32, **settings)
    extractor.empty_latents(-1.0)
    autoencoder.batches.clear()
    return extractor, autoencoder


class TestEncoding:
    def test_empty_slices_are_not_encoded_again(self, options):
        frames, affine = make_scan(FRAMES_PER_BLOCK + 3)
        extractor, autoencoder = counted()
        extractor((frames, affine), **options)
        occupied = sum(
            np.take(frames[..., t], index, axis=axis).any()
            for t in range(frames.shape[-1])
            for axis in range(3)
            for index in range(frames.shape[axis])
        )
        assert sum(autoencoder.batches) == occupied
        assert max(autoencoder.batches) <= SLICES_AT_ONCE["cpu"]

    def test_a_frame_without_change_is_all_background(self, options):
        extractor = small(signal="percent_change")
        frames, affine = make_scan(3, change=0)
        with pytest.warns(UserWarning, match="equal"):
            run = extractor.tokenize((frames, affine), **options)
        empty = extractor.slice_autoencoder.encode(torch.zeros(1, 32, 32))[0, :, 0, 0]
        assert torch.equal(run.tokens[0, 0].view(3, 4, 4)[1, 2], empty)

    def test_out_of_memory_halves_the_batches_from_then_on(self, scan, options):
        extractor, autoencoder = counted()
        autoencoder.limit = 5
        found = extractor(scan, **options)["input_values"]
        torch.testing.assert_close(found, small()(scan, **options)["input_values"], atol=1e-5, rtol=1e-4)
        autoencoder.batches.clear()
        extractor(scan, **options)
        assert max(autoencoder.batches) <= 5

    def test_out_of_memory_with_a_single_slice_is_raised(self, scan, options):
        extractor, autoencoder = counted()
        autoencoder.limit = 0
        with pytest.raises(torch.OutOfMemoryError):
            extractor(scan, **options)

    def test_several_threads_share_the_batches_and_give_the_same(self, options):
        scan, threads = make_scan(8), torch.get_num_threads()
        expected = small()(scan, **options)["input_values"]
        torch.set_num_threads(3)
        try:
            extractor, autoencoder = counted()
            found = extractor(scan, **options)["input_values"]
            assert torch.get_num_threads() == 3
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
            assert max(autoencoder.batches) <= SLICES_AT_ONCE["cpu"] // 3
            assert autoencoder.threads - {threading.get_ident()}
        finally:
            torch.set_num_threads(threads)

    def test_to_sets_the_precision_before_and_after_loading(self, scan, options):
        expected = small()(scan, **options)["input_values"]
        before, after = TabletFeatureExtractor(volume_size=32).to(torch.float16), small()
        before.slice_autoencoder = tiny_dc(4, 4)
        assert after.to("cpu", torch.float16) is after
        for extractor in (before, after):
            assert (extractor.device, extractor.dtype) == (torch.device("cpu"), torch.float16)
            tokens = extractor(scan, **options)["input_values"]
            assert tokens.dtype == torch.float16
            error = (tokens.float() - expected).norm() / expected.norm()
            assert 0 < error < 0.005

    def test_to_takes_device_and_precision_in_any_order(self):
        for arguments, keywords in [
            (("meta", torch.float16), {}),
            ((torch.float16, "meta"), {}),
            ((torch.device("meta"),), {"dtype": torch.float16}),
            ((), {"device": "meta", "dtype": torch.float16}),
        ]:
            extractor = TabletFeatureExtractor().to(*arguments, **keywords)
            assert (extractor.device, extractor.dtype) == (torch.device("meta"), torch.float16)
        assert TabletFeatureExtractor().to(torch.float16).to("meta").dtype == torch.float16
        assert TabletFeatureExtractor().to("meta").to(torch.float16).device == torch.device("meta")

    @pytest.mark.parametrize("arguments", [("cuda:99",), (torch.float16, "cuda:99"), ("cpu", torch.int8), ("float16",)])
    @pytest.mark.parametrize("is_loaded", [False, True])
    def test_impossible_devices_leave_the_extractor_as_it_was(self, is_loaded, arguments, scan, options):
        extractor = small() if is_loaded else TabletFeatureExtractor(volume_size=32)
        with pytest.raises((AssertionError, RuntimeError, TypeError)):
            extractor.to(*arguments)
        assert (extractor.device, extractor.dtype) == (torch.device("cpu"), torch.float32)
        if not is_loaded:
            extractor.slice_autoencoder = tiny_dc(4, 4)
        torch.testing.assert_close(extractor(scan, **options), small()(scan, **options))


# --- decoding


class TestDecoding:
    def test_volumes_come_back_from_a_lossless_autoencoder(self, scan, options):
        extractor = extractor_with(Lossless(), volume_size=32)
        tokens = extractor(scan, **options)["input_values"]
        run = open_run(scan, repetition_time=2, volume_size=32)
        scaled = torch.from_numpy(np.concatenate([volumes for _, volumes in run.scaled_blocks()]))
        torch.testing.assert_close(extractor.decode(tokens), scaled[None], atol=1e-6, rtol=0)
        torch.testing.assert_close(extractor.decode(tokens[0]), scaled, atol=1e-6, rtol=0)
        torch.testing.assert_close(extractor.decode(tokens[0, 2]), scaled[2], atol=1e-6, rtol=0)

    @pytest.mark.parametrize("signal", ["intensity", "percent_change"])
    def test_intensities_come_back_in_the_scans_own_unit(self, signal, scan, options):
        extractor = extractor_with(Lossless(), volume_size=32, signal=signal)
        run = extractor.tokenize(scan, **options)
        intensities = extractor.decode(run.tokens, run.intensity_scale, run.mean_tokens)
        original = open_run(scan, repetition_time=2, volume_size=32)
        expected = torch.from_numpy(np.concatenate([volumes for _, volumes in original.blocks()]))
        assert expected.max() == scan[0].max()
        assert intensities.dtype == torch.float32
        torch.testing.assert_close(intensities, expected, atol=0.01, rtol=1e-5)

    def test_the_three_axes_are_averaged(self):
        model = tiny_dc(4, 4)
        extractor = extractor_with(model, volume_size=8)
        volume = torch.rand(1, 8, 8, 8) * 2 - 1
        decoded = extractor.decode(extractor.volumes_to_tokens(volume))
        total = torch.zeros(8, 8, 8)
        with torch.no_grad():
            for index in range(8):
                for axis in range(3):
                    image = volume[0].select(axis, index).expand(1, 3, 8, 8)
                    total.select(axis, index).add_(model.decode(model.encode(image).latent).sample[0].mean(0))
        torch.testing.assert_close(decoded[0], (total / 3).clamp(-1, 1), atol=1e-5, rtol=1e-4)

    @pytest.mark.parametrize("shape", [(2, 27, 3072), (512, 47), (1, 2, 511, 48)])
    def test_tokens_of_another_geometry_are_refused_by_their_shapes(self, shape):
        with pytest.raises(ValueError, match=r"512, 48") as caught:
            small().decode(torch.zeros(shape))
        assert str(shape) in str(caught.value)

    @pytest.mark.parametrize("signal", ["intensity", "percent_change"])
    @pytest.mark.parametrize("leading", [(0,), (2, 0), (0, 3)])
    def test_no_frames_are_no_volumes(self, signal, leading, scan, options):
        extractor = extractor_with(tiny_kl(), volume_size=32, signal=signal)  # with attention, which wants a batch
        run = extractor.tokenize(scan, **options)
        nothing = run.tokens.new_empty(*leading, *run.tokens.shape[1:])
        for decoded in (extractor.decode(nothing), extractor.decode(nothing, run.intensity_scale, run.mean_tokens)):
            assert decoded.shape == (*leading, 32, 32, 32)
            assert decoded.dtype == torch.float32

    def test_percent_change_without_its_mean_has_no_intensities(self, scan, options):
        extractor = small(signal="percent_change")
        run = extractor.tokenize(scan, **options)
        assert extractor.decode(run.tokens).abs().max() <= 1
        with pytest.raises(ValueError, match="mean_tokens"):
            extractor.decode(run.tokens, run.intensity_scale)


# --- saving


@pytest.fixture
def saved_autoencoder(tmp_path):
    folder = tmp_path / "autoencoder"
    tiny_dc(4, 4).save_pretrained(folder)
    return folder


class TestSaving:
    def test_an_unused_extractor_is_saved_with_revision_and_geometry(self, saved_autoencoder, tmp_path):
        extractor = TabletFeatureExtractor(str(saved_autoencoder), signal="percent_change", volume_size=32)
        (file,) = extractor.save_pretrained(tmp_path / "saved")
        recorded = json.loads(Path(file).read_text())
        assert Path(file).name == "preprocessor_config.json"
        assert recorded == {
            "autoencoder": str(saved_autoencoder),
            "autoencoder_revision": load_autoencoder(str(saved_autoencoder)).revision,
            "autoencoder_subfolder": None,
            "feature_extractor_type": "TabletFeatureExtractor",
            "grid_size": 8,
            "scaling": "max",
            "signal": "percent_change",
            "token_size": 48,
            "volume_size": 32,
        }
        assert [entry.name for entry in (tmp_path / "saved").iterdir()] == ["preprocessor_config.json"]

    @pytest.mark.parametrize("auto", [TabletFeatureExtractor, AutoFeatureExtractor])
    def test_a_saved_extractor_comes_back_and_gives_the_same(self, auto, saved_autoencoder, scan, options, tmp_path):
        extractor = TabletFeatureExtractor(str(saved_autoencoder), scaling="percentile", volume_size=32)
        expected = extractor(scan, **options)["input_values"]
        extractor.save_pretrained(tmp_path / "saved")
        again = auto.from_pretrained(tmp_path / "saved")
        assert type(again) is TabletFeatureExtractor
        assert again.to_dict() == extractor.to_dict()
        assert torch.equal(again(scan, **options)["input_values"], expected)

    def test_other_weights_under_the_same_name_are_refused(self, saved_autoencoder, scan, options, tmp_path):
        extractor = TabletFeatureExtractor(str(saved_autoencoder), volume_size=32)
        extractor(scan, **options)
        extractor.save_pretrained(tmp_path / "saved")
        torch.manual_seed(1)
        model = tiny_dc(4, 4)
        nn.init.normal_(model.encoder.conv_out.weight)
        model.save_pretrained(saved_autoencoder)
        with pytest.raises(InputError, match=extractor.autoencoder_revision):
            TabletFeatureExtractor.from_pretrained(tmp_path / "saved")(scan, **options)

    def test_a_recorded_geometry_that_is_not_the_autoencoders_is_refused(self, saved_autoencoder, scan, options):
        for record in ({"token_size": 96}, {"grid_size": 3}):
            extractor = TabletFeatureExtractor(str(saved_autoencoder), volume_size=32, **record)
            with pytest.raises(InputError, match=next(iter(record))):
                extractor(scan, **options)

    def test_a_volume_that_the_compression_does_not_divide_is_refused(self):
        for model in (tiny_dc(4, 4), tiny_kl()):
            with pytest.raises(InputError, match="volume_size"):
                extractor_with(model, volume_size=30)

    def test_autoencoders_of_videos_are_refused(self):
        model = AutoencoderKLTemporalDecoder(block_out_channels=(32,))
        with pytest.raises(InputError, match="AutoencoderKLTemporalDecoder"):
            extractor_with(model, volume_size=32)

    @pytest.mark.parametrize("size", ["x", 0, -96, 96.5, None])
    def test_volumes_have_a_whole_number_of_voxels(self, size):
        with pytest.raises(ValueError, match="volume_size"):
            TabletFeatureExtractor(volume_size=size)

    def test_paths_can_be_saved(self, saved_autoencoder):
        saved = json.loads(TabletFeatureExtractor(saved_autoencoder, volume_size=32).to_json_string())
        assert (saved["autoencoder"], saved["volume_size"]) == (str(saved_autoencoder), 32)

    def test_an_injected_model_is_named_after_where_it_came_from(self, saved_autoencoder):
        model = AutoencoderDC.from_pretrained(saved_autoencoder)
        assert extractor_with(model, volume_size=32).autoencoder == str(saved_autoencoder)
        assert extractor_with(tiny_tiny(), volume_size=32).autoencoder == "AutoencoderTiny"

    @pytest.mark.parametrize("setting", [{"signal": "bold"}, {"scaling": "z-score"}])
    def test_settings_that_do_not_exist(self, setting):
        with pytest.raises(ValueError, match=next(iter(setting))):
            TabletFeatureExtractor(**setting)


# --- the shipped autoencoder on a real scan


@pytest.mark.slow
def test_a_real_scan_survives_the_shipped_autoencoder_and_no_random_one(real_data):
    run = open_run(next(real_data("bold/sub-01/func").glob("*_bold.nii.gz")))
    scaled = torch.from_numpy(next(run.scaled_blocks(block_frames=4))[1])
    brain = torch.from_numpy(run.mask)

    def measure(extractor, num_frames):
        fidelity = RunningFidelity(brain)
        fidelity.add(scaled[:num_frames], extractor.decode(extractor.tokenize(run, num_frames=num_frames).tokens))
        return fidelity.psnr(2), float(fidelity.temporal_correlation().median())

    decibels, correlation = measure(TabletFeatureExtractor(), 3)
    assert decibels >= 28.5
    assert correlation >= 0.85  # of three frames; of more it is lower

    torch.manual_seed(0)
    random = AutoencoderDC.from_config(load_autoencoder("natural-f32c32").model.config)
    floor, _ = measure(extractor_with(random), 2)
    assert floor < decibels - 8


def test_a_registered_class_is_saved_with_the_files_that_it_needs(tmp_path, monkeypatch):
    """As transformers does it; tests/hub runs them without this package."""
    monkeypatch.setattr(TabletFeatureExtractor, "_auto_class", None)
    TabletFeatureExtractor.register_for_auto_class("AutoFeatureExtractor")
    TabletFeatureExtractor().save_pretrained(tmp_path)
    saved = {path.name: path.read_bytes() for path in tmp_path.glob("*.py")}
    assert saved == {path.name: path.read_bytes() for path in needed_files({"feature_extraction_tablet"})}
    names = json.loads((tmp_path / "preprocessor_config.json").read_text())["auto_map"]
    assert names == {"AutoFeatureExtractor": "feature_extraction_tablet.TabletFeatureExtractor"}
