"""2D natural-image autoencoders: loading them by name, the one that ships, and how it was trained."""

from tablet_hf.slice_autoencoder import (
    DEFAULT_AUTOENCODER,
    SliceAutoencoder,
    load_autoencoder,
    shipped_autoencoders,
)

__all__ = ["DEFAULT_AUTOENCODER", "SliceAutoencoder", "load_autoencoder", "shipped_autoencoders"]
