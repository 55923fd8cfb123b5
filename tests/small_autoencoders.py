"""Autoencoders of random weights that are small enough for most of the time to go into everything else."""

from collections.abc import Sequence

import torch


def residual_autoencoder(widths: Sequence[int], latent_channels: int = 4, layers: Sequence[int] | None = None):
    """An AutoencoderDC of residual blocks, with a compression of 2 for each width but the first."""
    from diffusers import AutoencoderDC

    sides = {
        "block_types": "ResBlock",
        "block_out_channels": tuple(widths),
        "layers_per_block": tuple(layers or (1,) * len(widths)),
        "qkv_multiscales": ((),) * len(widths),
    }
    both = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in sides.items()}
    return AutoencoderDC(latent_channels=latent_channels, attention_head_dim=4, **both)


def save_f32(folder):
    """Save one of 32-fold compression and four latent channels, the same each time; returns the folder."""
    torch.manual_seed(0)
    residual_autoencoder((4,) * 6, layers=(0, 1, 1, 1, 1, 1)).save_pretrained(folder)
    return folder
