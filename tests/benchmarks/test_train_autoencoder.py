"""Training of the shipped autoencoder: its views, its loss, its optimizer, and what the script writes."""

import itertools
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import typer
from diffusers import AutoencoderDC
from PIL import Image
from safetensors.torch import load_file
from scipy.ndimage import gaussian_filter

from benchmarks import train_autoencoder
from benchmarks.train_autoencoder import (
    STAGES,
    Muon,
    Photographs,
    Recipe,
    TrainingViews,
    photograph_psnr,
    train,
    training_loss,
)
from tablet_hf.slice_autoencoder import load_autoencoder

HALF = {"block_types": "ResBlock", "block_out_channels": (8, 16, 16), "layers_per_block": (0, 1, 1)}
HALF |= {"qkv_multiscales": ((),) * 3}
TINY = {"latent_channels": 16, "attention_head_dim": 4, "upsample_block_type": "interpolate"}
TINY |= {f"{half}_{name}": value for half in ("encoder", "decoder") for name, value in HALF.items()}
RECIPE = replace(Recipe(), batch_size=8, warmup_steps=5, average_decay=0.9)
PLAIN = replace(Recipe(), batch_size=64, grey_share=0.0, low_contrast_share=0.0, silhouette_share=0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Ten smooth images of different sizes, three of them held out."""
    folder = tmp_path_factory.mktemp("photographs")
    generator = np.random.default_rng(0)
    for number in range(10):
        pixels = gaussian_filter(generator.standard_normal((100 + 3 * number, 128, 3)), (6, 6, 0))
        pixels = np.clip(128 + 100 * pixels / pixels.std(), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{'held_out' if number < 3 else 'train'}_{number}.png")
    return folder


@pytest.fixture(scope="module")
def photographs(folder):
    return Photographs(sorted(folder.glob("train*")), "cpu")


@pytest.fixture(scope="module")
def held_out(folder):
    return Photographs(sorted(folder.glob("held_out*")), "cpu")


def draw(photographs, recipe=PLAIN, **settings):
    return TrainingViews(photographs, replace(recipe, **settings)).draw()


def decoder(function):
    return lambda shown: SimpleNamespace(sample=function(shown))


class TestPhotographs:
    def test_crops_at_their_own_scale_are_exact_pixels(self, folder):
        files = sorted(folder.iterdir())
        index, corner = torch.tensor([0, 4, 9]), torch.tensor([[0, 0], [3, 17], [31, 32]])
        crops = Photographs(files, "cpu").crop(index, corner, torch.full((3, 2), 96.0))
        for crop, number, (row, column) in zip(crops, index, corner, strict=True):
            pixels = np.asarray(Image.open(files[number]))[row : row + 96, column : column + 96]
            np.testing.assert_allclose(crop.permute(1, 2, 0), pixels / 127.5 - 1, atol=1e-4)

    def test_none_and_too_small(self, tmp_path):
        with pytest.raises(ValueError, match="no photographs"):
            Photographs([], "cpu")
        Image.new("RGB", (95, 200)).save(tmp_path / "small.png")
        with pytest.raises(ValueError, match=r"small\.png"):
            Photographs([tmp_path / "small.png"], "cpu")


class TestViews:
    @pytest.mark.parametrize("recipe", STAGES)
    def test_images_with_and_without_overlay_stay_in_range(self, photographs, recipe):
        images, overlays = draw(photographs, recipe, batch_size=64)
        assert images.shape == overlays.shape == (64, 3, 96, 96)
        assert images.abs().max() <= 1 + 1e-6
        assert (images + overlays).abs().max() <= 1 + 1e-6
        faintest, strongest = recipe.overlay_strengths
        assert overlays.abs().max() <= 2 * strongest
        assert faintest / 10 < overlays.square().mean((1, 2, 3)).sqrt().median() < strongest

    def test_blended_views_are_two_photographs_and_keep_their_contrast(self, photographs):
        alone, _ = draw(photographs, native_scale_share=1.0)
        blended, _ = draw(photographs, native_scale_share=1.0, blended_share=1.0)
        for image, *parts in zip(blended.flatten(1), alone.flatten(1), alone.roll(1, 0).flatten(1), strict=True):
            inside = image.abs() < 1
            weights = torch.linalg.lstsq(torch.stack(parts, 1)[inside], image[inside, None]).solution
            assert weights.square().sum() == pytest.approx(1, abs=1e-3)

    def test_cut_out_images_have_an_empty_background_without_overlay_or_another_photograph(self, photographs):
        images, overlays = draw(photographs, silhouette_share=1.0)
        is_empty = torch.stack([(images[:, :, 0, 0] == value).all(1) for value in (-1, 0)])
        assert is_empty[0].sum() > 2 * is_empty[1].sum() > 0
        assert not overlays[is_empty.any(0)][:, :, 0, 0].any()
        images, _ = draw(photographs, silhouette_share=1.0, filled_share=1.0)
        assert not (images[:, :, 0, 0] == -1).all(1).any()

    def test_recoloured_images_keep_their_shapes_and_grey_ones_have_no_colour(self, photographs):
        (plain, _), (recoloured, _) = draw(photographs), draw(photographs, recoloured_share=1.0)
        for image, other in zip(plain, recoloured, strict=True):
            correlation = torch.corrcoef(torch.cat([image, other]).flatten(1))[:3, 3:]
            assert (correlation.max(0).values > 0.95).all()
        for images, is_grey in ((plain, False), (draw(photographs, grey_share=1.0)[0], True)):
            assert (((images - images.mean(1, keepdim=True)).abs().amax((1, 2, 3)) < 1e-6) == is_grey).all()

    def test_equal_seeds_give_equal_views(self, photographs):
        first, again, other = draw(photographs, RECIPE), draw(photographs, RECIPE), draw(photographs, RECIPE, seed=5)
        assert torch.equal(first[0], again[0])
        assert torch.equal(first[1], again[1])
        assert not torch.equal(first[0], other[0])


class TestLoss:
    def test_a_perfect_autoencoder_has_no_error(self, photographs):
        images, overlays = draw(photographs, RECIPE)
        losses = training_loss(decoder(lambda shown: shown), images, overlays[:3], RECIPE)
        assert losses["squared"] == pytest.approx(0, abs=1e-6)
        assert losses["difference"] == pytest.approx(0, abs=1e-6)
        assert losses["loss"] == pytest.approx(RECIPE.decibel_weight * np.log(0.002), abs=1e-5)

    @pytest.mark.parametrize("factor", [1, 0.3])
    @pytest.mark.parametrize("share", [0, 0.5])
    def test_the_difference_is_relative_to_the_power_of_the_overlay(self, photographs, factor, share):
        images, overlays = draw(photographs, RECIPE)
        overlays = factor * (overlays[:3] + 0.05)  # none is empty
        model = decoder(lambda shown: torch.cat([shown[:8], shown[:3] + share * overlays]))
        difference = training_loss(model, images, overlays, RECIPE)["difference"]
        assert difference.item() == pytest.approx((1 - share) ** 2, rel=1e-4)

    def test_psnr_of_photographs_is_the_mean_over_images(self, held_out):
        images = held_out.centre_crops()
        squared = (images * 0.1).double().square().mean((1, 2, 3))
        expected = (10 * torch.log10(4 / squared)).mean().item()
        assert photograph_psnr(decoder(lambda shown: shown * 0.9), images)["colour"] == pytest.approx(
            expected, abs=1e-4
        )


class TestMuon:
    @pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this release of torch has no Muon")
    @pytest.mark.parametrize("shape", [(12, 5, 3, 3), (40, 4, 3, 3)], ids=["wide", "tall"])
    def test_several_steps_are_those_of_torch(self, shape):
        generator = torch.Generator().manual_seed(0)
        start = torch.randn(2, *shape, generator=generator)
        ours = [torch.nn.Parameter(weight.clone()) for weight in start]
        theirs = [torch.nn.Parameter(weight.reshape(shape[0], -1).clone()) for weight in start]
        optimizer = Muon(ours, weight_decay=0.2)
        oracle = torch.optim.Muon(theirs, lr=0.1, weight_decay=0.2, momentum=0.95, adjust_lr_fn="original")
        for _ in range(5):
            for weight, matrix in zip(ours, theirs, strict=True):
                weight.grad = torch.randn(shape, generator=generator)
                matrix.grad = weight.grad.reshape(shape[0], -1).clone()
            optimizer.step(0.1)
            oracle.step()
        for weight, matrix, old in zip(ours, theirs, start, strict=True):
            expected = matrix.detach().reshape(shape) - old
            # The oracle rounds to bfloat16.
            assert (weight.detach() - old - expected).norm() < 0.02 * expected.norm()


class TestTraining:
    def test_a_few_steps_improve_the_images(self, photographs, held_out):
        torch.manual_seed(RECIPE.seed)
        images = held_out.centre_crops()
        before = photograph_psnr(AutoencoderDC(**TINY), images)
        clock = itertools.count().__next__  # a second per step on any machine
        recipe = replace(RECIPE, minutes=40 / 60)
        trained = train(photographs, held_out, recipe, compiled=False, architecture=TINY, clock=clock)
        after = photograph_psnr(trained, images)
        assert after["colour"] > before["colour"] + 2
        assert after["grey"] > before["grey"] + 2

    def test_it_can_start_from_weights_and_does_not_change_them(self, photographs, held_out):
        start = AutoencoderDC(**TINY).requires_grad_(False)
        weights = {name: weight.clone() for name, weight in start.state_dict().items()}
        for rate in (0.0, 1e-3):
            recipe = replace(RECIPE, learning_rate=rate, other_learning_rate=rate, minutes=0.1 / 60)
            trained = train(photographs, held_out, recipe, compiled=False, start=start).state_dict()
            assert all(torch.allclose(trained[name], weights[name], atol=1e-6) for name in weights) == (rate == 0)
            assert all(torch.equal(weight, weights[name]) for name, weight in start.state_dict().items())

    def test_a_loss_that_is_not_finite_is_an_error(self, photographs, held_out):
        recipe = replace(RECIPE, batch_size=1, decibel_weight=float("inf"))
        with pytest.raises(FloatingPointError, match="step 0"):
            train(photographs, held_out, recipe, compiled=False, architecture=TINY)


def test_the_script_writes_half_precision_weights_and_a_record(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(train_autoencoder, "ARCHITECTURE", TINY)

    def run(out, stages, start_from=None):
        settings = {"minutes": 0.01, "device": "cpu", "batch_size": 4, "compiled": False}
        train_autoencoder.main(folder, tmp_path / out, stages=stages, start_from=start_from, **settings)
        return json.loads((tmp_path / out / "training.json").read_text())

    record = run("first", stages=2)
    weights = load_file(tmp_path / "first" / "diffusion_pytorch_model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float16}
    assert (record["training_photographs"], record["held_out_photographs"]) == (7, 3)
    assert [stage["recipe"]["minutes"] for stage in record["stages"]] == [0.01, 0.01]
    assert load_autoencoder(str(tmp_path / "first")).encode(torch.zeros(1, 96, 96)).shape == (1, 16, 24, 24)
    record = run("next", stages=len(STAGES), start_from=tmp_path / "first")
    assert [stage["recipe"]["seed"] for stage in record["stages"]] == [recipe.seed for recipe in STAGES]
    assert str(tmp_path) not in (tmp_path / "next" / "config.json").read_text()
    with pytest.raises(typer.BadParameter, match="next"):
        run("more", stages=1, start_from=tmp_path / "next")
