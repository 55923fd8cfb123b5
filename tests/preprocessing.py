"""What an extractor would say of itself that had made the small random tokens of the tests: 27 cells of 96 numbers."""

PREPROCESSING = {
    "autoencoder": "natural-f32c32",
    "autoencoder_revision": "sha256:0123456789ab",
    "signal": "intensity",
    "scaling": "max",
    "volume_size": 96,
    "token_size": 96,
    "grid_size": 3,
}
