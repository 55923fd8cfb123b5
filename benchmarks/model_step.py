"""
What one training step of the full-size model costs on one GPU: samples a second and peak memory.

    PYTHONPATH=src python benchmarks/model_step.py           # one GPU, two minutes
    PYTHONPATH=src python benchmarks/model_step.py --tiny    # a smoke test of this script, on any machine

For context, measured on one H200 by running the code released with the paper as it is (float16, T = 256, batch 4):
19.5 samples/s with its padding mask, 29.6 without, 12.9 GiB; T = 1,200 does not run as shipped.
"""

import argparse
import platform
import time
import warnings

import torch
import transformers
from torch.nn.attention import SDPBackend, sdpa_kernel

from tablet_hf.configuration_tablet import TabletConfig
from tablet_hf.modeling_tablet import TabletForSequenceClassification

FULL_SIZE_PARAMETERS = 129_515_393


def describe_machine(device: torch.device) -> None:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    print(f"machine: {name}; torch {torch.__version__}, transformers {transformers.__version__}")
    if device.type == "cuda":
        print(f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}")


def build_config(tiny: bool, **settings) -> TabletConfig:
    if tiny:
        settings |= {"token_size": 48, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
        settings |= {"intermediate_size": 64}
    return TabletConfig(num_labels=1, problem_type="multi_label_classification", **settings)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_per_call(function, device: torch.device, calls: int) -> float:
    for _ in range(3):
        function()
    synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        function()
    synchronize(device)
    return (time.perf_counter() - start) / calls


def time_training_step(
    config: TabletConfig,
    device: torch.device,
    *,
    dtype: torch.dtype,
    batch_size: int,
    num_frames: int,
    calls: int,
    mask: str = "none",
    checkpointing: bool = False,
    compiled: bool = False,
) -> None:
    """Forward, backward and AdamW under autocast, as `Trainer` does it; tokens come as float16, as from a store."""
    torch.manual_seed(0)
    model = TabletForSequenceClassification(config).to(device).train()
    if checkpointing:
        model.activation_checkpointing_enable()
    run = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.01, fused=device.type == "cuda")
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16 and device.type == "cuda")

    shape = (batch_size, num_frames, config.num_cells, config.token_size)
    inputs = {
        "input_values": torch.randn(shape, device=device, dtype=torch.float16),
        "repetition_time": torch.full((batch_size,), 0.735, device=device),
        "labels": torch.arange(batch_size, device=device) % 2,
    }
    if mask != "none":
        inputs["attention_mask"] = torch.ones(shape[:2], device=device, dtype=torch.long)
    if mask == "padded":
        inputs["attention_mask"][0, num_frames // 2 :] = 0

    def step() -> None:
        with torch.autocast(device.type, dtype=dtype):
            loss = run(**inputs).loss
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    seconds = seconds_per_call(step, device, calls)
    memory = f"{torch.cuda.max_memory_allocated(device) / 2**30:5.1f} GiB" if device.type == "cuda" else "not measured"
    print(
        f"T {num_frames:5d}, batch {batch_size}, {str(dtype).removeprefix('torch.'):8s}, mask {mask:6s}, "
        f"checkpointing {checkpointing!s:5s}, compiled {compiled!s:5s}: "
        f"{1000 * seconds:7.1f} ms a step, {batch_size / seconds:6.1f} samples/s, {memory}",
        flush=True,
    )


def time_attention(config: TabletConfig, device: torch.device, batch_size: int, num_frames: int, calls: int) -> None:
    """Forward and backward of one attention layer, by kernel, with and without a mask of padded keys."""
    positions = 1 + num_frames * config.num_cells
    heads = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
    query, key, value = (
        torch.randn(batch_size, number, positions, config.head_dim, device=device, dtype=torch.bfloat16)
        .transpose(1, 2)
        .contiguous()
        .transpose(1, 2)
        .requires_grad_()
        for number in heads
    )
    keys_there = torch.ones(batch_size, 1, 1, positions, dtype=torch.bool, device=device)
    keys_there[0, :, :, positions // 2 :] = False
    padding = keys_there.expand(-1, -1, positions, -1)
    groups = heads[0] // heads[1]

    def attend(mask: torch.Tensor | None) -> None:
        keys, values = (key, value) if mask is None else (t.repeat_interleave(groups, dim=1) for t in (key, value))
        output = torch.nn.functional.scaled_dot_product_attention(
            query, keys, values, attn_mask=mask, enable_gqa=mask is None
        )
        output.backward(torch.ones_like(output))

    def report(name: str, mask: torch.Tensor | None) -> None:
        try:
            milliseconds = f"{1000 * seconds_per_call(lambda: attend(mask), device, calls):6.2f} ms"
        except RuntimeError as error:
            milliseconds = f"not possible ({str(error).splitlines()[0]})"
        print(f"attention, {positions} positions, batch {batch_size}, {name}: {milliseconds}", flush=True)

    # Torch tells at length why it passes over a kernel; that a kernel is not possible is in the figures.
    warnings.simplefilter("ignore", UserWarning)
    report("no mask, torch's choice", None)
    report("padding mask, torch's choice", padding)
    if device.type == "cuda":
        for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
            for name, mask in (("no mask", None), ("padding mask", padding)):
                with sdpa_kernel(backend):
                    report(f"{name}, {backend.name}", mask)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a small model and short runs, to test the script")
    parser.add_argument("--calls", type=int, default=10, help="timed calls of each figure, after three to warm up")
    arguments = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not arguments.tiny:
        parser.error("the full size needs a GPU; use --tiny to test the script")
    describe_machine(device)

    config = build_config(arguments.tiny)
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in TabletForSequenceClassification(config).parameters())
    print(f"parameters: {parameters:,}")
    if not arguments.tiny:
        assert parameters == FULL_SIZE_PARAMETERS, parameters

    window, run_length = (8, 12) if arguments.tiny else (256, 1200)
    calls = 2 if arguments.tiny else arguments.calls
    time_attention(config, device, batch_size=4, num_frames=window, calls=calls)

    step = {"calls": calls, "batch_size": 4, "num_frames": window}
    without_positions = build_config(arguments.tiny, position_embedding_type="none")
    time_training_step(config, device, dtype=torch.float16, **step)
    time_training_step(config, device, dtype=torch.bfloat16, **step)
    time_training_step(without_positions, device, dtype=torch.float16, **step)
    time_training_step(config, device, dtype=torch.bfloat16, mask="ones", **step)
    time_training_step(config, device, dtype=torch.bfloat16, mask="padded", **step)
    if device.type == "cuda":
        time_training_step(config, device, dtype=torch.float16, compiled=True, **step)
        time_training_step(config, device, dtype=torch.bfloat16, compiled=True, **step)

    whole_run = {"dtype": torch.bfloat16, "batch_size": 1, "num_frames": run_length, "calls": calls}
    time_training_step(config, device, checkpointing=True, **whole_run)
    time_training_step(config, device, checkpointing=False, **whole_run)


if __name__ == "__main__":
    main()
