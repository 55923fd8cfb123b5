"""Autoencoders by shipped name, folder and Hub id; others are refused in one sentence."""

import hashlib
import json

import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode

from tablet_hf.errors import InputError
from tablet_hf.slice_autoencoder import (
    DEFAULT_AUTOENCODER,
    SHIPPED_WEIGHTS,
    SliceAutoencoder,
    load_autoencoder,
    shipped_autoencoders,
)

WEIGHTS = "diffusion_pytorch_model.safetensors"


def tiny_dc():
    widths = {"encoder_block_out_channels": (4, 8, 8), "decoder_block_out_channels": (4, 8, 8)}
    layers = {"encoder_layers_per_block": (1, 1, 1), "decoder_layers_per_block": (1, 1, 1)}
    scales = {"encoder_qkv_multiscales": ((),) * 3, "decoder_qkv_multiscales": ((),) * 3}
    return AutoencoderDC(latent_channels=4, attention_head_dim=4, **widths, **layers, **scales)


def tiny_kl(in_channels=3):
    return AutoencoderKL(
        in_channels=in_channels,
        out_channels=in_channels,
        block_out_channels=(4, 4),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=2,
    )


def tiny_tiny():
    widths = {"encoder_block_out_channels": (4, 4), "decoder_block_out_channels": (4, 4)}
    return AutoencoderTiny(**widths, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1))


@pytest.fixture
def folder(tmp_path):
    tiny_dc().save_pretrained(tmp_path / "autoencoder")
    return tmp_path / "autoencoder"


def refusal(*arguments, **keywords):
    with pytest.raises(InputError) as caught:
        load_autoencoder(*arguments, **keywords)
    sentence = str(caught.value)
    assert sentence.startswith(f"{arguments[0]}: ")
    assert sentence.endswith(".")
    assert "\n" not in sentence
    return sentence


class TestShipped:
    def test_the_default_ships_and_loads_in_float32(self):
        assert DEFAULT_AUTOENCODER in shipped_autoencoders()
        loaded = load_autoencoder(DEFAULT_AUTOENCODER)
        assert isinstance(loaded.model, AutoencoderDC)
        assert (loaded.name, loaded.dtype, loaded.device.type) == (DEFAULT_AUTOENCODER, torch.float32, "cpu")
        assert not loaded.model.training
        assert not any(parameter.requires_grad for parameter in loaded.model.parameters())

    @pytest.mark.parametrize("name", shipped_autoencoders())
    def test_weights_are_small_float16_and_finite(self, name):
        file = SHIPPED_WEIGHTS / name / WEIGHTS
        weights = load_file(file)
        assert file.stat().st_size <= 14e6
        assert {weight.dtype for weight in weights.values()} == {torch.float16}
        assert all(weight.isfinite().all() for weight in weights.values())

    @pytest.mark.parametrize("name", shipped_autoencoders())
    def test_a_slice_costs_half_a_gigaflop_at_most(self, name):
        loaded = load_autoencoder(name)
        with FlopCounterMode(display=False) as counter:
            latents = loaded.encode(torch.zeros(1, 96, 96))
        assert latents.shape == (1, 32, 3, 3)
        assert counter.get_total_flops() <= 0.5e9  # 2 for each multiply-add, as DC-AE f32c32's 73 are counted

    @pytest.mark.parametrize("name", shipped_autoencoders())
    def test_half_precision_keeps_latents_within_a_few_thousandths(self, name):
        slices = torch.rand(2, 96, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
        slices[1] = -1
        exact, half = load_autoencoder(name).encode(slices), load_autoencoder(name).to(dtype=torch.float16)
        error = (half.encode(slices).float() - exact).norm() / exact.norm()
        assert error < 0.005


class TestFolder:
    def test_revision_is_the_fingerprint_of_the_weights(self, folder):
        expected = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()[:12]
        loaded = load_autoencoder(str(folder))
        assert loaded.revision == f"sha256:{expected}"
        assert load_autoencoder(str(folder), revision=loaded.revision).revision == loaded.revision

    def test_other_weights_than_expected_are_refused(self, folder):
        sentence = refusal(str(folder), revision="sha256:000000000000")
        assert load_autoencoder(str(folder)).revision in sentence
        assert "sha256:000000000000" in sentence

    def test_a_subfolder(self, folder):
        parent = str(folder.parent)
        loaded = load_autoencoder(parent, subfolder="autoencoder")
        assert loaded.revision == load_autoencoder(str(folder)).revision
        refusal(parent)

    @pytest.mark.parametrize("model", [tiny_dc, tiny_kl, tiny_tiny])
    def test_every_kind_of_diffusers_autoencoder(self, model, tmp_path):
        model = model().eval()
        model.save_pretrained(tmp_path)
        loaded = load_autoencoder(str(tmp_path))
        slices = torch.rand(2, 16, 16)
        latents = loaded.encode(slices)
        with torch.no_grad():
            images = slices[:, None].expand(-1, 3, -1, -1)
            encoded = model.encode(images)
            expected = encoded[0].mode() if isinstance(model, AutoencoderKL) else encoded[0]
            decoded = model.decode(expected).sample
        torch.testing.assert_close(latents, expected)
        torch.testing.assert_close(loaded.decode(latents), decoded.mean(1))

    def test_a_one_channel_autoencoder_is_given_one_channel(self):
        loaded = SliceAutoencoder(tiny_kl(in_channels=1))
        latents = loaded.encode(torch.rand(3, 16, 16))
        assert loaded.decode(latents).shape == (3, 16, 16)

    def test_its_scaling_factor_is_not_applied(self, folder):
        plain = load_autoencoder(str(folder)).encode(torch.ones(1, 16, 16))
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"scaling_factor": 0.5}))
        torch.testing.assert_close(load_autoencoder(str(folder)).encode(torch.ones(1, 16, 16)), plain)


def drop_a_weight(folder):
    weights = load_file(folder / WEIGHTS)
    del weights["encoder.conv_out.weight"]
    save_file(weights, folder / WEIGHTS)


def change_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def only_pickled_weights(folder):
    torch.save(load_file(folder / WEIGHTS), folder / "diffusion_pytorch_model.bin")
    (folder / WEIGHTS).unlink()


class TestUnusable:
    @pytest.mark.parametrize(
        ("damage", "reason"),
        [
            (lambda folder: (folder / WEIGHTS).unlink(), WEIGHTS),
            (only_pickled_weights, WEIGHTS),
            (lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100]), "weights"),
            (drop_a_weight, "encoder.conv_out.weight"),
            (lambda folder: (folder / "config.json").unlink(), "config.json"),
            (lambda folder: (folder / "config.json").write_text("{"), "JSON"),
            (lambda folder: (folder / "config.json").write_text("{}"), "None"),
            (lambda folder: change_config(folder, _class_name="Nonsense"), "Nonsense"),
            (lambda folder: change_config(folder, _class_name="UNet2DModel"), "UNet2DModel"),
            (lambda folder: change_config(folder, encoder_block_out_channels=[4, 8, 16]), "shape"),
        ],
    )
    def test_damaged_folders(self, damage, reason, folder):
        damage(folder)
        assert reason in refusal(str(folder))


def test_hub_ids_without_a_network(folder, tmp_path, monkeypatch):
    """What is cached loads, and its revision is the commit."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "hub" / "models--lab--autoencoder"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(commit)
    (cached / "snapshots" / commit).mkdir(parents=True)
    folder.rename(cached / "snapshots" / commit / "vae")
    for revision in (None, "main", commit):
        loaded = load_autoencoder("lab/autoencoder", revision, subfolder="vae")
        assert (loaded.name, loaded.revision) == ("lab/autoencoder", commit)
    assert "cannot be reached" in refusal("lab/another")


def test_batches_of_any_size_are_compiled():
    autoencoder = load_autoencoder("natural-f32c32")
    slices = torch.rand(9, 96, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = autoencoder.encode(slices)
    seen = []

    def backend(graph, inputs):
        def run(*arguments):
            seen.append(graph)
            return graph(*arguments)

        return run

    autoencoder.compile(backend=backend)
    parts = [autoencoder.encode(part) for part in slices.split(4)]
    torch.testing.assert_close(torch.cat(parts), expected, atol=1e-4, rtol=1e-4)
    assert seen
