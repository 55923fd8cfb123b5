"""
Training and inference of the full-size model through `Trainer`, from a token store on disk: rates and memory.

    python benchmarks/trainer_speed.py                                       # one GPU, about seven minutes
    python benchmarks/trainer_speed.py --only main                           # fine-tuning at 256 frames alone
    torchrun --nproc_per_node 2 benchmarks/trainer_speed.py --only scaling   # two GPUs
    python benchmarks/trainer_speed.py --tiny                                # a smoke test, on any machine
    python benchmarks/trainer_speed.py --figures one.json two.json --picture speed.png   # of figures already taken

Tokens are random numbers in a store of float16, read by the same datasets, collator and loaders as in `tablet-hf
finetune`. Each figure is taken over steps after warm-up, loading and optimiser included; "busy" is the share of the
time in which a kernel runs on the GPU, by torch's profiler over a few steps. The plain way beside it is the same
network, eager, under autocast, through the same `Trainer`.
"""

import argparse
import json
import os
import platform
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback

from tablet_hf import TabletConfig, TabletForMaskedTokenModeling, TabletForSequenceClassification
from tablet_hf.datasets import EvaluationWindows, TokenDataset, TokenStoreWriter, TrainingWindows
from tablet_hf.sources import ScanRecord
from tablet_hf.training.arguments import TabletTrainingArguments
from tablet_hf.training.trainer import make_trainer

PREPROCESSING = {"autoencoder": "random numbers", "signal": "intensity", "scaling": "max", "volume_size": 96}
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    what: str
    frames: int
    batch: int
    compiled: bool = True
    checkpointing: bool = False
    precision: str = "bf16"


CASES = {
    "main": [
        Case("fine-tuning", 256, 4, compiled=False),
        Case("fine-tuning", 256, 4),
        Case("fine-tuning", 256, 4, precision="fp16"),
        Case("fine-tuning", 256, 4, checkpointing=True),
    ],
    "lengths": [
        Case("fine-tuning", 64, 16),
        Case("fine-tuning", 64, 16, checkpointing=True),
        Case("fine-tuning", 490, 2),
        Case("fine-tuning", 490, 2, checkpointing=True),
        Case("fine-tuning", 1200, 1),
        Case("fine-tuning", 1200, 1, checkpointing=True),
    ],
    "others": [Case("pre-training", 256, 4), Case("inference", 256, 4)],
    "scaling": [Case("fine-tuning", 256, 4)],
}


class Watch(TrainerCallback):
    """Times steps after a warm-up, and profiles a few of the last ones."""

    def __init__(self, warm_up: int, profiled: int):
        self.warm_up, self.profiled, self.busy = warm_up, profiled, float("nan")

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.warm_up:
            synchronize()
            self.started = time.perf_counter()
        if state.global_step == args.max_steps - self.profiled:
            synchronize()
            self.seconds = time.perf_counter() - self.started
            self.steps = state.global_step - self.warm_up
            if torch.cuda.is_available() and self.profiled:
                self.profiler = profile(activities=[ProfilerActivity.CUDA])
                self.profiler.__enter__()
                self.profiled_from = time.perf_counter()
        if state.global_step == args.max_steps and torch.cuda.is_available() and self.profiled:
            synchronize()
            wall = time.perf_counter() - self.profiled_from
            self.profiler.__exit__(None, None, None)
            self.busy = min(1.0, covered_seconds(self.profiler) / wall)


def covered_seconds(profiler) -> float:
    """The time in which at least one kernel ran."""
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in profiler.events()
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.key.startswith("Memcpy")
    )
    total, reached = 0.0, float("-inf")
    for start, end in spans:
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total / 1e6


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def write_store(folder: Path, runs: int, frames: int, shape: tuple[int, int]) -> TokenDataset:
    preprocessing = PREPROCESSING | {"token_size": shape[1], "grid_size": round(shape[0] ** (1 / 3))}
    writer = TokenStoreWriter(folder, preprocessing)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(frames, *shape, generator=generator).half()
    for number in range(runs):
        record = ScanRecord(f"{number:03}", Path(f"{number}.nii.gz"), phenotypes={"sex": "FM"[number % 2]})
        writer.write(record, tokens.roll(number, 0), 0.735, {"name": f"{number}", "bytes": 1, "modified_ns": 1})
    return writer.finish()


def measure(case: Case, store: TokenDataset, folder: Path, tiny: bool, steps: int) -> dict:
    torch._dynamo.reset()
    torch.manual_seed(0)
    geometry = {"token_size": store.geometry.token_size, "grid_size": store.geometry.grid_size}
    task = {"num_labels": 1, "problem_type": "multi_label_classification"}
    config = TabletConfig(**geometry, **(TINY if tiny else {}), **({} if case.what == "pre-training" else task))
    is_masked = case.what == "pre-training"
    model = (TabletForMaskedTokenModeling if is_masked else TabletForSequenceClassification)(config)
    world = int(os.environ.get("WORLD_SIZE", 1))
    arguments = TabletTrainingArguments(
        str(folder),
        window_frames=case.frames,
        per_device_train_batch_size=case.batch,
        per_device_eval_batch_size=case.batch,
        max_steps=steps,
        precision=case.precision if torch.cuda.is_available() else "fp32",
        gradient_checkpointing=case.checkpointing,
        torch_compile=case.compiled and torch.cuda.is_available(),
        logging_steps=10**6,
        learning_rate=1e-5,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    label, classes = (None, None) if is_masked else ("sex", ["F", "M"])
    synchronize()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    if case.what == "inference":
        windows = EvaluationWindows(store, case.frames, label=label, classes=classes)
        windows.windows = (windows.windows * (1 + steps * case.batch // len(windows)))[: steps * case.batch]
        trainer = make_trainer(model, arguments)
        trainer.predict(windows)
        started = time.perf_counter()
        trainer.predict(windows)
        rate, busy = len(windows) / (time.perf_counter() - started), float("nan")
    else:
        watch = Watch(warm_up=min(6, steps - 2), profiled=0 if tiny else 4)
        training = TrainingWindows(store, case.frames, label=label, classes=classes)
        make_trainer(model, arguments, training, callbacks=[watch]).train()
        rate, busy = world * case.batch * watch.steps / watch.seconds, watch.busy
    memory = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else float("nan")
    return {"windows_per_second": rate, "gpu_busy": busy, "memory_gib": memory}


def draw(figures: list[dict], path: Path) -> None:
    """Frames a second and memory against the length of a window, with and without gradient checkpointing."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    rate_axes, memory_axes = figure.subplots(1, 2)
    tuned = [one for one in figures if one["what"] == "fine-tuning" and one["compiled"] and one["precision"] == "bf16"]
    for checkpointing, name, colour in ((False, "plain", "tab:blue"), (True, "gradient checkpointing", "tab:orange")):
        rows = sorted((one for one in tuned if one["checkpointing"] == checkpointing), key=lambda one: one["frames"])
        frames = [one["frames"] for one in rows]
        rates = [one["windows_per_second"] * one["frames"] for one in rows]
        rate_axes.plot(frames, rates, "o-", color=colour, label=name)
        memory_axes.plot(frames, [one["memory_gib"] for one in rows], "o-", color=colour, label=name)
        for one in rows:
            windows = "1 window" if one["batch"] == 1 else f"{one['batch']} windows"
            memory_axes.annotate(windows, (one["frames"], one["memory_gib"]), (0, 6),
                                 textcoords="offset points", ha="center", fontsize=8)  # fmt: skip
    for axes, what in ((rate_axes, "frames a second"), (memory_axes, "peak memory (GiB)")):
        axes.set_xscale("log")
        axes.set_xticks(sorted({one["frames"] for one in tuned}), sorted({one["frames"] for one in tuned}))
        axes.minorticks_off()
        axes.set(xlabel="frames of a window", ylabel=what)
        axes.margins(x=0.12, y=0.15)
        axes.set_ylim(bottom=0)
    rate_axes.legend(frameon=False)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CASES, help="parts of the table; all but scaling by default")
    parser.add_argument("--tiny", action="store_true", help="a small model and short runs, to test the script")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--runs", type=int, default=32, help="in the store")
    parser.add_argument("--folder", type=Path, help="for the store; several processes need one, which is kept")
    parser.add_argument("--out", type=Path, help="JSON file of the figures")
    parser.add_argument("--figures", nargs="+", type=Path, help="JSON files of figures taken before: nothing is run")
    parser.add_argument("--picture", type=Path, help="PNG of rates and memory by length")
    arguments = parser.parse_args()
    if arguments.figures:
        if arguments.picture is None:
            parser.error("--figures needs --picture")
        draw([one for path in arguments.figures for one in json.loads(path.read_text())], arguments.picture)
        return
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if not torch.cuda.is_available() and not arguments.tiny:
        parser.error("the full size needs a GPU; use --tiny to test the script")
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    folder = arguments.folder or Path(tempfile.mkdtemp())
    if rank == 0:
        print(f"{world} x {name}, {os.cpu_count()} cores, {platform.platform()}")
        print(f"torch {torch.__version__}, transformers {transformers.__version__}", flush=True)
    longest, shape = (24, (27, 48)) if arguments.tiny else (1200, (27, 3072))
    if (folder / "store" / "runs.parquet").is_file():
        store = TokenDataset.load(folder / "store")
    else:
        store = write_store(folder / "store", 8 if arguments.tiny else arguments.runs, longest, shape)
    figures = []
    for part in arguments.only or ("main", "lengths", "others"):
        for case in CASES[part]:
            if arguments.tiny:
                case = Case(case.what, max(4, case.frames // 64), min(case.batch, 4), False, case.checkpointing)
            steps = 6 if arguments.tiny else arguments.steps
            try:
                figure = measure(case, store, folder / "work", arguments.tiny, steps)
            except torch.OutOfMemoryError:
                figure = {"windows_per_second": float("nan"), "gpu_busy": float("nan"), "memory_gib": float("inf")}
            figures.append(vars(case) | figure | {"gpus": world})
            if rank == 0:
                if arguments.out is not None:
                    arguments.out.write_text(json.dumps(figures, indent=1) + "\n")
                way = "compiled" if case.compiled else "eager"
                print(
                    f"{case.what:12} T {case.frames:5} batch {case.batch:2} {case.precision} {way:8} "
                    f"{'checkpointing' if case.checkpointing else '':13} {figure['windows_per_second']:7.2f} windows/s "
                    f"{figure['memory_gib']:6.2f} GiB  busy {figure['gpu_busy']:.1%}",
                    flush=True,
                )
    plain = [figure for figure in figures if figure["what"] == "fine-tuning" and not figure["compiled"]]
    fast = [figure for figure in figures if figure["frames"] == 256 and figure["compiled"]]
    if rank == 0:
        if plain and fast and not arguments.tiny:
            ratio = fast[0]["windows_per_second"] / plain[0]["windows_per_second"]
            print(f"compiled against eager, 256 frames, batch 4, bf16: {ratio:.2f}x")
        if arguments.picture is not None:
            draw(figures, arguments.picture)
        if arguments.folder is None:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
