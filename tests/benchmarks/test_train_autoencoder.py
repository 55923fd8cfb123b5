"""What the network is shown, that it learns, and what the script leaves behind."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from diffusers import AutoencoderDC
from PIL import Image
from safetensors.torch import load_file
from scipy.ndimage import gaussian_filter

from benchmarks import train_autoencoder as train
from benchmarks.train_autoencoder import (
    STAGES,
    Muon,
    Photographs,
    Recipe,
    TrainingViews,
    nearly_orthogonal,
    photograph_psnr,
    training_loss,
)
from tablet_hf.slice_autoencoder import load_autoencoder

TINY = {
    "latent_channels": 16,
    "attention_head_dim": 4,
    "encoder_block_types": "ResBlock",
    "decoder_block_types": "ResBlock",
    "encoder_block_out_channels": (8, 16, 16),
    "decoder_block_out_channels": (8, 16, 16),
    "encoder_layers_per_block": (0, 1, 1),
    "decoder_layers_per_block": (0, 1, 1),
    "encoder_qkv_multiscales": ((),) * 3,
    "decoder_qkv_multiscales": ((),) * 3,
    "upsample_block_type": "interpolate",
}
RECIPE = replace(Recipe(), batch_size=8, warmup_steps=5, average_decay=0.9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Ten smooth images, three of them held out, of different sizes."""
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


class TestPhotographs:
    def test_crops_at_their_own_scale_are_exact_pixels(self, folder):
        files = sorted(folder.iterdir())
        photographs = Photographs(files, "cpu")
        index = torch.tensor([0, 4, 9])
        corner = torch.tensor([[0, 0], [3, 17], [31, 32]])
        crops = photographs.crop(index, corner, torch.full((3, 2), 96.0))
        for crop, number, (row, column) in zip(crops, index, corner, strict=True):
            pixels = np.asarray(Image.open(files[number]))[row : row + 96, column : column + 96]
            np.testing.assert_allclose(crop.permute(1, 2, 0), pixels / 127.5 - 1, atol=1e-4)

    def test_a_magnified_crop_lies_between_its_pixels(self, folder):
        files = sorted(folder.iterdir())
        crop = Photographs(files, "cpu").crop(
            torch.tensor([5]), torch.tensor([[20, 30]]), torch.tensor([[48.0, 48.0]])
        )[0]
        pixels = np.asarray(Image.open(files[5]))[20:68, 30:78] / 127.5 - 1
        averaged = crop.permute(1, 2, 0).reshape(48, 2, 48, 2, 3).mean((1, 3))
        np.testing.assert_allclose(averaged[1:-1, 1:-1], pixels[1:-1, 1:-1], atol=0.1)

    def test_centre_crops_are_the_middle(self, held_out, folder):
        crops = held_out.centre_crops()
        for crop, file in zip(crops, sorted(folder.glob("held_out*")), strict=True):
            pixels = np.asarray(Image.open(file))
            row, column = (pixels.shape[0] - 96) // 2, (pixels.shape[1] - 96) // 2
            expected = pixels[row : row + 96, column : column + 96] / 127.5 - 1
            np.testing.assert_allclose(crop.permute(1, 2, 0), expected, atol=1e-4)

    def test_none_and_too_small(self, tmp_path):
        with pytest.raises(ValueError, match="no photographs"):
            Photographs([], "cpu")
        Image.new("RGB", (95, 200)).save(tmp_path / "small.png")
        with pytest.raises(ValueError, match=r"small\.png.*at least 96"):
            Photographs([tmp_path / "small.png"], "cpu")


class TestViews:
    @pytest.mark.parametrize("recipe", STAGES)
    def test_images_with_and_without_overlay_stay_in_range(self, photographs, recipe):
        views = TrainingViews(photographs, replace(recipe, batch_size=64))
        images, overlays = views.draw()
        assert images.shape == overlays.shape == (64, 3, 96, 96)
        for shown in (images, images + overlays):
            assert shown.min() >= -1 - 1e-6
            assert shown.max() <= 1 + 1e-6
        faintest, strongest = recipe.overlay_strengths
        assert overlays.abs().max() <= 2 * strongest
        typical = overlays.square().mean((1, 2, 3)).sqrt().median()
        assert faintest / 10 < typical < strongest

    def test_blended_views_are_two_photographs_and_keep_their_contrast(self, photographs):
        plain = dict(native_scale_share=1.0, grey_share=0.0, low_contrast_share=0.0, silhouette_share=0.0)
        alone, _ = TrainingViews(photographs, replace(Recipe(), batch_size=64, **plain)).draw()
        blended, _ = TrainingViews(photographs, replace(Recipe(), batch_size=64, blended_share=1.0, **plain)).draw()
        angle_free = torch.stack([alone, alone.roll(1, 0)], 1).flatten(2)
        for image, (first, second) in zip(blended, angle_free, strict=True):
            inside = image.flatten().abs() < 1
            parts = torch.stack([first[inside], second[inside]], 1)
            weights = torch.linalg.lstsq(parts, image.flatten()[inside, None]).solution
            assert weights.square().sum() == pytest.approx(1, abs=1e-3)

    def test_silhouettes_stand_on_an_empty_background_that_overlays_leave_alone(self, photographs):
        recipe = replace(Recipe(), batch_size=64, silhouette_share=1.0)
        images, overlays = TrainingViews(photographs, recipe).draw()
        on_background = [image for image in images if (image[:, 0, 0] == -1).all()]
        on_zero = [image for image in images if (image[:, 0, 0] == 0).all()]
        assert len(on_background) > 2 * len(on_zero) > 0
        for image, overlay in zip(images, overlays, strict=True):
            corner = image[0, 0, 0]
            if corner in (-1, 0):
                assert not overlay[:, 0, 0].any()

    def test_cut_out_images_may_stand_on_another_photograph(self, photographs):
        recipe = replace(Recipe(), batch_size=64, silhouette_share=1.0, filled_share=1.0)
        images, _ = TrainingViews(photographs, recipe).draw()
        assert not any((image[:, 0, 0] == -1).all() for image in images)

    def test_recoloured_images_keep_their_shapes(self, photographs):
        plain = replace(Recipe(), batch_size=64, grey_share=0, low_contrast_share=0, silhouette_share=0)
        before, _ = TrainingViews(photographs, plain).draw()
        after, _ = TrainingViews(photographs, replace(plain, recoloured_share=1.0)).draw()
        for image, other in zip(before, after, strict=True):
            correlation = torch.corrcoef(torch.cat([image, other]).flatten(1))[:3, 3:]
            assert (correlation.max(0).values > 0.95).all()

    def test_shares_of_grey_images(self, photographs):
        for share, expected in ((0.0, 0), (1.0, 64)):
            images, _ = TrainingViews(photographs, replace(Recipe(), batch_size=64, grey_share=share)).draw()
            grey = (images - images.mean(1, keepdim=True)).abs().amax((1, 2, 3)) < 1e-6
            assert grey.sum() == expected

    def test_a_seed_gives_the_same_views_again(self, photographs):
        first, second = (TrainingViews(photographs, RECIPE).draw() for _ in range(2))
        assert torch.equal(first[0], second[0])
        assert torch.equal(first[1], second[1])
        other = TrainingViews(photographs, replace(RECIPE, seed=5)).draw()
        assert not torch.equal(first[0], other[0])


class TestLoss:
    def test_a_perfect_autoencoder_has_no_error(self, photographs):
        images, overlays = TrainingViews(photographs, RECIPE).draw()
        losses = training_loss(lambda shown: Sample(shown), images, overlays[:3], RECIPE)
        assert losses["squared"] == pytest.approx(0, abs=1e-6)
        assert losses["difference"] == pytest.approx(0, abs=1e-6)
        assert losses["loss"] == pytest.approx(RECIPE.decibel_weight * np.log(0.002), abs=1e-5)

    def test_the_difference_is_that_of_the_images_seen_twice(self, photographs):
        images, overlays = TrainingViews(photographs, RECIPE).draw()
        overlays = overlays[:3] + 0.05
        assert len(images) == 8

        def blind_to_overlays(shown):
            return Sample(torch.cat([shown[:8], shown[:3]]))

        assert training_loss(blind_to_overlays, images, overlays, RECIPE)["difference"].item() == pytest.approx(1)

    def test_the_difference_is_measured_by_its_own_power(self, photographs):
        images, overlays = TrainingViews(photographs, RECIPE).draw()
        overlays = overlays + 0.05  # none is empty
        count = len(images)
        half = lambda shown: Sample(torch.cat([shown[:count], shown[:count] + overlays / 2]))  # noqa: E731
        for factor in (1, 0.3):
            overlays = overlays * factor
            losses = training_loss(half, images, overlays, RECIPE)
            assert losses["difference"].item() == pytest.approx(0.25, rel=1e-4)


class TestMuon:
    def test_updates_keep_the_singular_vectors_and_level_the_singular_values(self):
        generator = torch.Generator().manual_seed(0)
        for shape in ((2, 12, 30), (1, 30, 12)):
            matrices = torch.randn(shape, generator=generator)
            for matrix, result in zip(matrices, nearly_orthogonal(matrices), strict=True):
                left, _, right = torch.linalg.svd(matrix, full_matrices=False)
                inside = left.T @ result @ right.T
                values = inside.diagonal()
                assert ((values > 0.6) & (values < 1.25)).all()
                torch.testing.assert_close(inside, values.diag(), atol=1e-4, rtol=0)

    @pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this release of torch has no Muon")
    @pytest.mark.parametrize("shape", [(12, 5, 3, 3), (40, 4, 3, 3)], ids=["wide", "tall"])
    def test_several_steps_are_those_of_torchs_own(self, shape):
        """Momentum, weight decay and the factor of tall matrices, against an implementation that takes matrices."""
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
            moved = weight.detach() - old
            expected = matrix.detach().reshape(shape) - old
            # The oracle rounds to bfloat16.
            assert (moved - expected).norm() < 0.02 * expected.norm()

    def test_each_weight_moves_by_its_own_gradient_only(self):
        torch.manual_seed(0)
        weights = [torch.nn.Parameter(torch.randn(6, 4, 3, 3)) for _ in range(3)]
        before = [weight.detach().clone() for weight in weights]
        gradients = [torch.randn(6, 4, 3, 3), torch.zeros(6, 4, 3, 3), torch.randn(6, 4, 3, 3)]
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        Muon(weights).step(0.1)
        for weight, old, gradient in zip(weights, before, gradients, strict=True):
            expected = 0.1 * nearly_orthogonal(gradient.reshape(1, 6, 36))[0].reshape(6, 4, 3, 3)
            torch.testing.assert_close(old - weight.detach(), expected, atol=1e-5, rtol=1e-4)


class Sample:
    def __init__(self, sample):
        self.sample = sample


class TestTraining:
    def test_a_few_steps_make_images_come_back_better(self, photographs, held_out):
        torch.manual_seed(RECIPE.seed)
        images = held_out.centre_crops()
        before = photograph_psnr(AutoencoderDC(**TINY), images)
        clock = itertools.count().__next__  # a second a step, on any machine
        trained = train.train(
            photographs, held_out, replace(RECIPE, minutes=40 / 60), compiled=False, architecture=TINY, clock=clock
        )
        after = photograph_psnr(trained, images)
        assert after["colour"] > before["colour"] + 2
        assert after["grey"] > before["grey"] + 2
        assert {parameter.dtype for parameter in trained.parameters()} == {torch.float32}

    def test_it_can_start_from_weights_and_leaves_those_alone(self, photographs, held_out):
        torch.manual_seed(3)
        start = AutoencoderDC(**TINY).requires_grad_(False)
        weights = {name: weight.clone() for name, weight in start.state_dict().items()}
        recipe = replace(RECIPE, learning_rate=0.0, other_learning_rate=0.0)
        trained = train.train(photographs, held_out, replace(recipe, minutes=0.1 / 60), compiled=False, start=start)
        for name, weight in trained.state_dict().items():
            torch.testing.assert_close(weight, weights[name])
        trained = train.train(photographs, held_out, replace(RECIPE, minutes=0.1 / 60), compiled=False, start=start)
        assert any(not torch.equal(weight, weights[name]) for name, weight in trained.state_dict().items())
        assert all(torch.equal(weight, weights[name]) for name, weight in start.state_dict().items())

    def test_a_loss_that_is_not_finite_ends_it(self, photographs, held_out, monkeypatch):
        def broken(autoencoder, images, overlays, recipe):
            losses = training_loss(autoencoder, images, overlays, recipe)
            return losses | {"loss": losses["loss"] * float("inf")}

        monkeypatch.setattr(train, "training_loss", broken)
        with pytest.raises(FloatingPointError, match="not finite"):
            train.train(photographs, held_out, replace(RECIPE, batch_size=1), compiled=False, architecture=TINY)

    def test_psnr_of_photographs_is_the_mean_over_images(self, held_out):
        images = held_out.centre_crops()
        dim = lambda shown: Sample(shown * 0.9)  # noqa: E731
        squared = (images * 0.1).double().square().mean((1, 2, 3))
        expected = (10 * torch.log10(4 / squared)).mean().item()
        assert photograph_psnr(dim, images)["colour"] == pytest.approx(expected, abs=1e-4)


def test_the_script_leaves_half_precision_weights_and_a_record(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "ARCHITECTURE", TINY)
    settings = {"device": "cpu", "batch_size": 4, "compiled": False}
    train.main(folder, tmp_path / "out", minutes=0.01, stages=2, start_from=None, **settings)
    weights = load_file(tmp_path / "out" / "diffusion_pytorch_model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float16}
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    assert (record["training_photographs"], record["held_out_photographs"]) == (7, 3)
    assert [stage["recipe"]["minutes"] for stage in record["stages"]] == [0.01, 0.01]
    assert record["stages"][1]["recipe"]["batch_size"] == 4
    assert record["stages"][1]["recipe"]["native_scale_share"] == STAGES[1].native_scale_share
    assert load_autoencoder(str(tmp_path / "out")).encode(torch.zeros(1, 96, 96)).shape == (1, 16, 24, 24)

    train.main(folder, tmp_path / "next", minutes=0.01, stages=len(STAGES), start_from=tmp_path / "out", **settings)
    record = json.loads((tmp_path / "next" / "training.json").read_text())
    assert [stage["recipe"]["seed"] for stage in record["stages"]] == [recipe.seed for recipe in STAGES]
    with pytest.raises(typer.BadParameter, match="no stage is left"):
        train.main(folder, tmp_path / "more", minutes=0.01, stages=1, start_from=tmp_path / "next", **settings)
    assert str(tmp_path) not in (tmp_path / "next" / "config.json").read_text()
