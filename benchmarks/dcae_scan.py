"""Tokenizes a scan on a GPU with the paper's autoencoder shape, DC-AE f32c32 (random weights), through the extractor.

    python benchmarks/dcae_scan.py SCAN

Prints machine, versions, volumes per second in float32 and float16, peak GPU memory, and the error of float16 against
float32: relative to the latents, and to their standard deviation over time, which is where the BOLD signal is.
"""

import argparse
import platform
import time

import diffusers
import torch
import transformers
from diffusers import AutoencoderDC

from tablet_hf import TabletFeatureExtractor

# arXiv:2604.03619's autoencoder, mit-han-lab/dc-ae-f32c32-in-1.0-diffusers.
DCAE_F32C32 = {
    "latent_channels": 32,
    "encoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
    "decoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
    "encoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
    "decoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
    "encoder_layers_per_block": (0, 4, 8, 2, 2, 2),
    "decoder_layers_per_block": (0, 5, 10, 2, 2, 2),
    "encoder_qkv_multiscales": ((),) * 6,
    "decoder_qkv_multiscales": ((),) * 6,
    "decoder_norm_types": ("batch_norm",) * 3 + ("rms_norm",) * 3,
    "decoder_act_fns": ("relu",) * 3 + ("silu",) * 3,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan")
    arguments = parser.parse_args()
    device = torch.device("cuda")
    print(platform.platform(), torch.cuda.get_device_name(), f"torch {torch.__version__}")
    print(f"transformers {transformers.__version__}, diffusers {diffusers.__version__}")
    torch.manual_seed(0)
    extractor = TabletFeatureExtractor()
    extractor.slice_autoencoder = AutoencoderDC(**DCAE_F32C32)
    tokens = {}
    for dtype in (torch.float32, torch.float16):
        extractor.to(device, dtype)
        extractor(arguments.scan, num_frames=4)
        torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        features = extractor(arguments.scan)
        seconds = time.perf_counter() - started
        tokens[dtype] = features["input_values"][0].double()
        frames = len(tokens[dtype])
        finite = bool(tokens[dtype].isfinite().all())
        memory = torch.cuda.max_memory_allocated() / 2**30
        print(
            f"{dtype}: {frames} frames, tokens {tuple(features['input_values'].shape)}, {seconds:.1f} s from file to "
            f"tokens, {frames / seconds:.1f} volumes/s, {memory:.1f} GiB, finite: {finite}"
        )
    error = tokens[torch.float16] - tokens[torch.float32]
    exact = tokens[torch.float32]
    print(f"float16 against float32: {100 * error.norm() / exact.norm():.3f}% of the latents")
    print(f"and {100 * error.norm() / (exact - exact.mean(0)).norm():.2f}% of their standard deviation over time")


if __name__ == "__main__":
    main()
