"""
How fast the paper's encoder shape (DC-AE f32c32, random weights, half precision) is on a GPU, by how it is compiled.

    python benchmarks/encoder_compilation.py [--batch 1152] [--kernels 25]

Prints slices per second of the encoder alone, several rounds of each way in turn, the error against the same weights in
float32 without TF32, and where the time of the last way goes, kernel by kernel.
"""

import argparse
import platform
import time

import diffusers
import torch
from dcae_scan import DCAE_F32C32
from diffusers import AutoencoderDC
from torch.profiler import ProfilerActivity, profile

from tablet_hf.slice_autoencoder import SliceAutoencoder

WAYS = {
    "eager": None,
    "compiled": {},
    # Products of thousands of 9 x 32 matrices, attention on a 3 x 3 grid, for which libraries take tiles of 192 x 192.
    "compiled, tiny products as sums": {"post_grad_fusion_options": {"decompose_mm_pass": {}}},
    "compiled, kernels tuned": {"coordinate_descent_tuning": True},
}


def slices_per_second(encode, slices: torch.Tensor, rounds: int = 6) -> float:
    encode(slices)
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(rounds):
        encode(slices)
    torch.cuda.synchronize()
    return rounds * len(slices) / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1152)
    parser.add_argument("--kernels", type=int, default=25)
    arguments = parser.parse_args()
    print(platform.platform(), torch.cuda.get_device_name(), f"torch {torch.__version__}")
    print(f"diffusers {diffusers.__version__}, batches of {arguments.batch} slices")
    torch.manual_seed(0)
    model = AutoencoderDC(**DCAE_F32C32).cuda().eval()
    # Smooth like a slice of a brain: white noise is nothing that anybody encodes.
    coarse = torch.rand(arguments.batch, 1, 12, 12, device="cuda") * 2 - 1
    slices = torch.nn.functional.interpolate(coarse, size=96, mode="bicubic")[:, 0].clamp(-1, 1)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    with torch.inference_mode():
        exact = model.encode(slices[:64, None].expand(-1, 3, -1, -1)).latent
    encoder = SliceAutoencoder(model).to("cuda", torch.float16)
    slices = slices.half()
    encoders = {}
    for way, options in WAYS.items():
        started = time.perf_counter()
        encode = encoder._encode if options is None else torch.compile(encoder._encode, dynamic=False, options=options)
        encoders[way] = torch.inference_mode()(encode)
        encoders[way](slices)
        torch.cuda.synchronize()
        print(f"{way}: first batch {time.perf_counter() - started:.0f} s", flush=True)
    for _ in range(2):
        for way, encode in encoders.items():
            print(f"{way}: {slices_per_second(encode, slices):.0f} slices/s", flush=True)
    for way, encode in encoders.items():
        error = encode(slices)[:64].float() - exact
        print(f"{way}: error {100 * error.norm() / exact.norm():.3f}%")
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        encode(slices)
        torch.cuda.synchronize()
    print(recorded.key_averages().table(sort_by="cuda_time_total", row_limit=arguments.kernels))


if __name__ == "__main__":
    main()
