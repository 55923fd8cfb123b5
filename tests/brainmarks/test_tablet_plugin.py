"""The plugin for Brainmarks: a sample of the suite is the scan it came from, and its embeddings are those of our own
pipeline.

Where the suite is not installed, the two names that the plugin takes from it are stood in for; what asks the suite
itself is skipped then.
"""

import importlib
import sys
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from small_autoencoders import residual_autoencoder
from torch.utils.data import default_collate
from transformers import pipeline

from tablet_hf import InputError, TabletConfig, TabletFeatureExtractor, TabletForSequenceClassification, TabletModel
from tablet_hf.slice_autoencoder import SliceAutoencoder

# The suite's grid is of 91 x 109 x 91 voxels; what has no brain in it at the far ends is left out to save time.
SHAPE = (56, 76, 58)
RIGHT_TO_LEFT = np.array([[-2.0, 0, 0, 2 * (SHAPE[0] - 1) - 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])
VOLUME_SIZE, FACTOR, CHANNELS = 32, 8, 8
GRID_SIZE, TOKEN_SIZE = VOLUME_SIZE // FACTOR, 3 * FACTOR * CHANNELS
NETWORK = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
NETWORK |= {"intermediate_size": 16, "initializer_range": 0.2, "token_size": TOKEN_SIZE, "grid_size": GRID_SIZE}


@pytest.fixture(scope="module")
def plugin():
    with pytest.MonkeyPatch.context() as patch:
        try:
            importlib.import_module("brainmarks.models.registry")
        except ModuleNotFoundError:
            base, registry = ModuleType("brainmarks.models.base"), ModuleType("brainmarks.models.registry")
            base.Embeddings = NamedTuple("Embeddings", [(f"{kind}_embeds", Any) for kind in ("cls", "reg", "patch")])
            registry.register_model = lambda function: function
            for module in (base, registry):
                patch.setitem(sys.modules, module.__name__, module)
        yield importlib.import_module("brainmarks.models.tablet")
    if "brainmarks.models.registry" not in sys.modules:
        del sys.modules["brainmarks.models.tablet"]


@pytest.fixture(scope="module")
def brain():
    """A small one, (X, Y, Z) bool, that is another when it is mirrored."""
    x, y, z = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    return (((x - 40) / 13) ** 2 + ((y - 58) / 15) ** 2 + ((z - 44) / 12) ** 2 < 1) & ~((x > 44) & (y > 60))


def make_extractor(**settings):
    torch.manual_seed(0)
    autoencoder = residual_autoencoder((4, 4, 8, 8), CHANNELS)
    extractor = TabletFeatureExtractor(volume_size=VOLUME_SIZE, **settings)
    extractor.slice_autoencoder = SliceAutoencoder(autoencoder, name="tiny")
    return extractor


def make_model(model_class=TabletModel, **settings):
    torch.manual_seed(0)
    return model_class(TabletConfig(**NETWORK | settings)).eval()


def make_intensities(brain, frames, seed=0):
    """(frames, voxels of the brain): anatomy with a little change over time."""
    random = np.random.default_rng(seed)
    voxels = np.count_nonzero(brain)
    anatomy = random.uniform(500, 2000, voxels)
    return (anatomy * (1 + 0.02 * random.standard_normal((frames, voxels)))).astype(np.float32)


def make_sample(intensities, seconds=0.8):
    """What the suite makes of intensities (frames, voxels)."""
    mean, std = intensities.mean(0, keepdims=True), intensities.std(0, keepdims=True)
    arrays = {"bold": (intensities - mean) / np.where(std > 0, std, 1), "mean": mean, "std": std}
    return {name: torch.from_numpy(values) for name, values in arrays.items()} | {"tr": seconds, "target": 1}


def as_scan(intensities, brain):
    """Intensities of the suite's voxels as FSL would store the run: x from right to left."""
    run = np.zeros((*SHAPE, len(intensities)), dtype=np.float32)
    place = 0
    for z in range(SHAPE[2]):
        for y in range(SHAPE[1]):
            inside = np.flatnonzero(brain[:, y, z])
            run[SHAPE[0] - 1 - inside, y, z] = intensities[:, place : place + len(inside)].T
            place += len(inside)
    return run, RIGHT_TO_LEFT


# --- samples


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 1e-3)])
def test_a_sample_gets_its_intensities_back(plugin, brain, dtype, tolerance):
    intensities = make_intensities(brain, 6) * 20  # beyond what a sum in float16 can hold
    intensities /= intensities.max() / 60_000
    sample = make_sample(intensities)
    sample |= {name: sample[name].to(dtype) for name in ("bold", "mean", "std")}
    before = {name: torch.as_tensor(value).clone() for name, value in sample.items()}

    given = plugin.restore_intensities(sample)
    assert given.keys() == {"bold", "tr", "target"}
    assert (given["tr"], given["target"]) == (0.8, 1)
    assert given["bold"].dtype == torch.float32
    np.testing.assert_allclose(given["bold"], intensities, rtol=tolerance)
    assert all(torch.equal(torch.as_tensor(sample[name]), value) for name, value in before.items())


def test_a_demeaned_sample_is_warned_of_and_loses_what_is_negative(plugin, brain, recwarn):
    sample = make_sample(make_intensities(brain, 6))
    plugin.restore_intensities(sample)
    assert not recwarn
    with pytest.warns(UserWarning, match="demeaned"):
        given = plugin.restore_intensities(sample | {"mean": torch.zeros_like(sample["mean"])})
    torch.testing.assert_close(given["bold"], (sample["bold"] * sample["std"]).clamp(min=0))


@pytest.mark.parametrize("signal", ["intensity", "percent_change"])
def test_tokens_of_a_sample_are_those_of_its_scan(plugin, brain, signal):
    intensities = make_intensities(brain, 5)
    extractor = make_extractor(signal=signal)
    wrapper = plugin.TabletWrapper(make_model(), extractor, brain)
    sample = plugin.restore_intensities(make_sample(intensities, seconds=0.72))
    of_sample = extractor.tokenize(wrapper.open_sample(sample["bold"], sample["tr"]))

    scan = as_scan(intensities, brain)
    of_scan = extractor.tokenize(scan, mask=brain[::-1], repetition_time=0.72, check_space=False)
    assert of_scan.tokens.std() > 0.01
    torch.testing.assert_close(of_sample.tokens, of_scan.tokens, atol=1e-4, rtol=1e-3)
    assert of_sample.repetition_time == 0.72
    assert of_sample.intensity_scale == pytest.approx(intensities.max(), rel=1e-5)


def test_a_sample_of_another_space_is_refused(plugin, brain):
    wrapper = plugin.TabletWrapper(make_model(), make_extractor(), brain)
    with pytest.raises(InputError, match=rf"\(5, 400\).*\(frames, {brain.sum()}\)"):
        wrapper({"bold": torch.ones(2, 5, 400), "tr": torch.ones(2)})


# --- embeddings


@pytest.mark.parametrize("pooling_type", ["cls", "variability"])
def test_embeddings_are_those_of_the_pipeline(plugin, brain, pooling_type):
    model, extractor = make_model(pooling_type=pooling_type, num_frames=3), make_extractor()
    transform, wrapper = plugin.restore_intensities, plugin.TabletWrapper(model, extractor, brain)
    runs, seconds = [make_intensities(brain, 4, seed) for seed in (1, 2)], [0.8, 2.5]
    batch = default_collate([transform(make_sample(*run)) for run in zip(runs, seconds, strict=True)])
    with torch.inference_mode():
        cls_embeds, reg_embeds, patch_embeds = wrapper(batch)

    embed = pipeline("fmri-feature-extraction", model=model, feature_extractor=extractor, device="cpu")
    assert (cls_embeds.shape, reg_embeds) == ((2, 1, model.config.pooled_size), None)
    assert patch_embeds.shape == (2, 4 * GRID_SIZE**3, 16)
    for run, repetition_time, pooled, states in zip(runs, seconds, cls_embeds, patch_embeds, strict=True):
        reading = {"mask": brain[::-1], "repetition_time": repetition_time, "check_space": False}
        expected = embed({"scan": as_scan(run, brain), **reading})
        torch.testing.assert_close(pooled[0], expected.run, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(states, expected.tokens.flatten(0, 1), atol=1e-3, rtol=1e-3)
    assert not torch.allclose(cls_embeds[0], cls_embeds[1], atol=1e-2)


def test_windows_are_those_the_model_was_trained_on_unless_given(plugin, brain):
    sample = torch.from_numpy(make_intensities(brain, 7))
    for settings, num_frames, windows in (({"num_frames": 3}, None, 3), ({"num_frames": 3}, 2, 4), ({}, None, 1)):
        wrapper = plugin.TabletWrapper(make_model(**settings), make_extractor(), brain, num_frames)
        assert wrapper.embed(sample, 0.8).num_windows == windows
    with pytest.raises(ValueError, match="num_frames=0"):
        plugin.TabletWrapper(make_model(), make_extractor(), brain, num_frames=0)


# --- checkpoints


@pytest.fixture
def checkpoints(plugin, brain, tmp_path, monkeypatch):
    """Folders of an encoder and of a classifier, with a fixed brain in place of the one from TemplateFlow."""
    extractor = TabletFeatureExtractor(volume_size=VOLUME_SIZE)
    tokens = {"token_size": extractor.slice_autoencoder and extractor.token_size, "grid_size": extractor.grid_size}
    for name, model_class in [("encoder", TabletModel), ("classifier", TabletForSequenceClassification)]:
        make_model(model_class, **tokens, num_frames=len(name)).save_pretrained(tmp_path / name)
        extractor.save_pretrained(tmp_path / name)
    monkeypatch.setattr(plugin, "brain_of_space", lambda: brain)
    monkeypatch.delenv("TABLET_CHECKPOINT", raising=False)
    return tmp_path


def test_the_checkpoint_is_an_option_or_a_variable(plugin, checkpoints, monkeypatch):
    with pytest.raises(InputError, match=r"beotborry/TABLeT_pretrained: .*network"):
        plugin.tablet()
    monkeypatch.setenv("TABLET_CHECKPOINT", str(checkpoints / "encoder"))
    _, of_variable = plugin.tablet()
    _, of_option = plugin.tablet(ckpt_path=str(checkpoints / "classifier"), num_frames=9)
    assert of_variable.model.config.num_frames == len("encoder")
    assert of_option.model.name_or_path == str(checkpoints / "classifier")
    assert not of_option.model.training
    assert not any(weights.requires_grad for weights in of_option.parameters())
    assert of_option.__space__ == "mni"


# --- with the suite itself


@pytest.fixture(scope="module")
def suite(plugin):
    pytest.importorskip("brainmarks.models.test_models", reason="the suite is not installed", exc_type=ImportError)
    return importlib.import_module("brainmarks.readers")


@pytest.fixture(scope="module")
def suite_brain(plugin, suite):
    try:
        return plugin.brain_of_space()
    except InputError as error:
        pytest.skip(str(error))


def test_what_the_suite_reads_is_the_scan(plugin, suite, suite_brain, make_scan, tmp_path):
    path = make_scan(tmp_path / "bold.nii.gz", frames=3)
    sample = make_sample(suite.READER_DICT["mni"]()(str(path)).astype(np.float32))
    extractor = make_extractor()
    given = plugin.restore_intensities(sample)
    wrapper = plugin.TabletWrapper(make_model(), extractor, suite_brain)
    tokens = extractor.tokenize(wrapper.open_sample(given["bold"], 2.0)).tokens
    mask = suite_brain[::-1]
    torch.testing.assert_close(tokens, extractor.tokenize(path, mask=mask).tokens, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("num_frames", [3, 16])
def test_the_check_of_the_suite_passes(plugin, suite, suite_brain, checkpoints, monkeypatch, num_frames):
    monkeypatch.setattr(plugin, "brain_of_space", lambda: suite_brain)
    monkeypatch.setenv("TABLET_CHECKPOINT", str(checkpoints / "encoder"))
    check = importlib.import_module("brainmarks.models.test_models").test_model
    with pytest.warns(UserWarning, match="demeaned"):  # its samples are noise about zero
        check("tablet", num_frames)
