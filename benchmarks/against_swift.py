"""
What a frame costs in training: TABLeT on tokens beside SwiFT on volumes, in one run of this script on one machine.

    python benchmarks/against_swift.py --swift PATH

PATH is your own checkout of SwiFT (github.com/Transconnectome/SwiFT, with its requirements monai and einops); it is no
dependency of this package, and nothing of it is copied here. Both networks take the steps that they take in training:
forward, backward and AdamW under autocast. Printed are frames a second, peak memory a frame, and the longest run of
which one training step fits into the memory of the device, found by bisection.

The frames are made of random numbers, since no speed depends on what they hold: for SwiFT volumes
(batch, 1, cube, cube, cube, frames), for TABLeT the tokens (batch, frames, 27, 3072) of as many frames. Tokens are made
once for each run and not again in training, so making them is not in these figures (`benchmarks/dcae_scan.py` and
`benchmarks/store_tokenization.py` measure it). SwiFT reads a run in pieces of 20 frames; TABLeT is measured on the same
pieces, and on windows of 256, for which it was made. On top of SwiFT's network stands a mean over space and time with a
linear layer, as a classifier has one.

This script has not been run against the real checkout yet: there was none where it was written, and it was tried on a
stand-in of the same layout. It knows the layout that was published, `project/module/models/swin4d_transformer_ver7.py`
with the class `SwinTransformer4D`, looks for other versions where this one is missing, passes only options that the
class takes, and can be told better:

    --model-file project/module/models/other.py --model-class OtherClass --option window_size="(2, 2, 2, 2)"

    # a small trial on any machine
    python benchmarks/against_swift.py --swift PATH --device cpu --cube 24 --frames 8 --batch 1 --calls 1 \\
        --window 16 --frames-limit 32 --tablet hidden_size=112 --tablet intermediate_size=64
"""

import argparse
import ast
import gc
import importlib
import inspect
import platform
import re
import subprocess
import sys
import time
import types
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from tablet_hf.configuration_tablet import TabletConfig
from tablet_hf.errors import InputError
from tablet_hf.modeling_tablet import TabletForSequenceClassification

MODELS_FOLDER = Path("project/module/models")
MODEL_FILE = "swin4d_transformer_ver7.py"
MODEL_CLASS = "SwinTransformer4D"
PUBLISHED_OPTIONS = {
    "in_chans": 1,
    "embed_dim": 36,
    "window_size": (4, 4, 4, 4),
    "first_window_size": (2, 2, 2, 2),
    "patch_size": (6, 6, 6, 1),
    "depths": (2, 2, 6, 2),
    "num_heads": (3, 6, 12, 24),
    "c_multiplier": 2,
    "last_layer_full_MSA": True,
}
"""As published for cubes of 96 voxels and 20 frames; `img_size` is (cube, cube, cube, frames)."""

WARM_UP_CALLS = 3


# --- the checkout


def find_model_file(checkout: Path, model_file: str | None = None) -> Path:
    """The file of the network within a checkout: the one asked for, the published one, or another version of it.

    Raises:
        InputError: there is none.
    """
    if not checkout.is_dir():
        raise InputError(
            f"{checkout}: there is no such folder; give the folder of a checkout of Transconnectome/SwiFT."
        )
    if model_file is not None:
        for path in (checkout / model_file, checkout / MODELS_FOLDER / model_file):
            if path.is_file():
                return path
        raise InputError(
            f"{checkout / model_file}: there is no such file; give --model-file as a path within {checkout}."
        )
    published = checkout / MODELS_FOLDER / MODEL_FILE
    if published.is_file():
        return published
    others = sorted(checkout.rglob("swin4d_transformer*.py"), key=lambda path: natural_order(path.name))
    if others:
        return others[-1]
    raise InputError(
        f"{checkout}: it has neither {MODELS_FOLDER / MODEL_FILE} nor another swin4d_transformer*.py, so it is no "
        "checkout of SwiFT that is known here; name the file of its network with --model-file."
    )


def natural_order(name: str) -> list[tuple[int, int | str]]:
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.findall(r"\d+|\D+", name)]


def load_model_class(checkout: Path, path: Path, name: str = MODEL_CLASS) -> type[nn.Module]:
    """The class of a network, imported from where it lies, with its neighbours but without what its packages import.

    Raises:
        InputError: something that the file imports is missing, or the file has no such class.
    """
    # Its file may say `from .x`, `from module.models.x` or `from project.module.models.x`.
    for folder in (checkout / "project", checkout):
        if str(folder.resolve()) not in sys.path:
            sys.path.insert(0, str(folder.resolve()))
    # A package of our own stands for its folder, since the one there may import a whole training framework.
    package = types.ModuleType(f"checkout_{uuid.uuid4().hex}")
    package.__path__ = [str(path.resolve().parent)]
    sys.modules[package.__name__] = package
    try:
        module = importlib.import_module(f"{package.__name__}.{path.stem}")
    except ImportError as error:
        raise InputError(missing_import(error, path, package.__name__)) from error
    except Exception as error:
        raise InputError(
            f"{path}: it cannot be imported ({type(error).__name__}: {error}); check that it is whole and fits the "
            f"installed torch {torch.__version__}."
        ) from error
    found = getattr(module, name, None)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        there = [key for key, value in vars(module).items() if is_module_of(value, module.__name__)]
        raise InputError(
            f"{path}: it has no network called {name}, but has {', '.join(there) or 'none at all'}; choose one with "
            "--model-class, or another file with --model-file."
        )
    return found


def is_module_of(value: Any, module_name: str) -> bool:
    return isinstance(value, type) and issubclass(value, nn.Module) and value.__module__ == module_name


def missing_import(error: ImportError, path: Path, package: str) -> str:
    """The sentence for an import that failed, as told by the name that was not found."""
    missing = error.name or ""
    top = missing.split(".")[0]
    if not isinstance(error, ModuleNotFoundError) or not missing:
        return f"{path}: it cannot be imported ({error}); install the versions of its requirements that it names."
    if top in (package, "module", "project"):
        own = missing.removeprefix(f"{package}.").replace(".", "/")
        return f"{path}: it imports {own} of its own checkout, which is not there; check the checkout out as a whole."
    return f"{path}: it needs {top}, which is not installed; run `pip install {top}` and try again."


def options_for(network: type[nn.Module], given: Mapping[str, Any], img_size: tuple[int, int, int, int]) -> dict:
    """Options to build a network with: the published ones that it takes, and on top the given ones.

    Raises:
        InputError: a given option is not one of the network's, or it needs one that nobody knows here.
    """
    parameters = inspect.signature(network).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    named = {
        name: parameter
        for name, parameter in parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    unknown = [name for name in given if name not in named and not takes_any]
    if unknown:
        raise InputError(f"--option {unknown[0]}: {network.__name__} has no such option; it has {', '.join(named)}.")
    options = {name: value for name, value in PUBLISHED_OPTIONS.items() if name in named or takes_any}
    options |= {"img_size": img_size, **given}
    lacking = [
        name for name, parameter in named.items() if parameter.default is parameter.empty and name not in options
    ]
    if lacking:
        raise InputError(
            f"{network.__name__} needs {', '.join(lacking)}, for which no published value is known here; give "
            f"--option {lacking[0]}=VALUE."
        )
    return options


def read_options(texts: Sequence[str], flag: str) -> dict[str, Any]:
    """`name=value` pairs; values are Python literals, or words."""
    options = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise InputError(f"{flag} {text}: it is not of the form name=value, such as {flag} depth=4.")
        try:
            options[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[name] = value
    return options


def revision(checkout: Path) -> str:
    """The commit of a checkout, or that there is none."""
    try:
        answer = subprocess.run(
            ["git", "-C", str(checkout), "log", "-1", "--format=%h of %cs"], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return "commit unknown"
    # Within another repository git would speak of that one.
    return answer.stdout.strip() if answer.returncode == 0 and (checkout / ".git").exists() else "commit unknown"


# --- two networks that take training steps


class SwiftClassifier(nn.Module):
    """SwiFT's network on volumes, the mean of its features `(batch, channels, ...)` over space and time, one logit."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.head = nn.LazyLinear(1)

    def forward(self, input_values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        features = self.network(input_values).flatten(2).mean(dim=-1)
        return nn.functional.binary_cross_entropy_with_logits(self.head(features)[:, 0].float(), labels)


class TabletClassifier(nn.Module):
    """TABLeT with one logit."""

    def __init__(self, config: TabletConfig):
        super().__init__()
        self.network = TabletForSequenceClassification(config)

    def forward(self, input_values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        repetition_time = torch.full_like(labels, 0.72)
        return self.network(input_values, repetition_time=repetition_time, labels=labels).loss


@dataclass(frozen=True)
class Side:
    """One of the two: how its classifier for runs of so many frames is built, and the shape of a batch of them."""

    name: str
    build: Callable[[int], nn.Module]
    shape: Callable[[int, int], tuple[int, ...]]
    input_dtype: torch.dtype
    """As the frames come to training: tokens as in a store, volumes as a loader gives them."""
    frame_step: int
    """Runs must be multiples of so many frames."""


def swift_side(network: type[nn.Module], given: Mapping[str, Any], cube: int) -> Side:
    def build(frames: int) -> nn.Module:
        options = options_for(network, given, (cube, cube, cube, frames))
        try:
            return SwiftClassifier(network(**options))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            shown = ", ".join(f"{name}={value!r}" for name, value in options.items())
            raise InputError(
                f"{network.__name__}({shown}) cannot be built ({type(error).__name__}: {error}); correct its options "
                "with --option name=value."
            ) from error

    options = options_for(network, given, (cube, cube, cube, 0))
    last = [
        value[-1] for name in ("window_size", "patch_size") if isinstance(value := options.get(name), (tuple, list))
    ]
    step = 1
    for size in last:
        step *= size

    def shape(batch: int, frames: int) -> tuple[int, ...]:
        return batch, options.get("in_chans", 1), cube, cube, cube, frames

    return Side("SwiFT", build, shape, torch.float32, step)


def tablet_side(options: Mapping[str, Any], checkpointing: bool) -> Side:
    try:
        config = TabletConfig(num_labels=1, problem_type="multi_label_classification", **options)
    except Exception as error:
        raise InputError(f"--tablet: these are no options of TabletConfig together ({error}).") from error

    def build(frames: int) -> nn.Module:
        classifier = TabletClassifier(config)
        if checkpointing:
            classifier.network.gradient_checkpointing_enable()
        return classifier

    def shape(batch: int, frames: int) -> tuple[int, ...]:
        return batch, frames, config.num_cells, config.token_size

    return Side("TABLeT", build, shape, torch.float16, 1)


# --- measuring


@dataclass(frozen=True)
class Machine:
    """Where steps are taken, in which precision, and from when on a run counts as too long whatever the memory."""

    device: torch.device
    dtype: torch.dtype
    frames_limit: int


@dataclass(frozen=True)
class Cost:
    """What a training step cost: frames a second, and peak bytes a frame, None where they cannot be read."""

    side: str
    parameters: int
    frames: int
    batch: int
    frames_a_second: float
    bytes_a_frame: float | None


class StepTaker:
    """A classifier with its optimizer and a batch of random frames, on the device."""

    def __init__(self, side: Side, machine: Machine, batch: int, frames: int):
        torch.manual_seed(0)
        self.machine = machine
        self.inputs = torch.randn(side.shape(batch, frames), device=machine.device, dtype=side.input_dtype)
        self.labels = (torch.arange(batch, device=machine.device) % 2).float()
        self.classifier = side.build(frames).to(machine.device).train()
        self.optimizer = None
        self.scaler = torch.amp.GradScaler(
            machine.device.type, enabled=machine.dtype == torch.float16 and machine.device.type == "cuda"
        )

    def __call__(self) -> None:
        half = self.machine.dtype != torch.float32
        with torch.autocast(self.machine.device.type, dtype=self.machine.dtype if half else None, enabled=half):
            loss = self.classifier(self.inputs, self.labels)
        if self.optimizer is None:  # the head of SwiFT knows its width only now
            fused = self.machine.device.type == "cuda"
            self.optimizer = torch.optim.AdamW(self.classifier.parameters(), lr=1e-5, weight_decay=0.01, fused=fused)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def synchronize(self) -> None:
        if self.machine.device.type == "cuda":
            torch.cuda.synchronize(self.machine.device)


def measure(side: Side, machine: Machine, batch: int, frames: int, calls: int) -> Cost:
    """Take steps and read the clock and the peak memory. Raises what torch raises where a step does not fit."""
    on_gpu = machine.device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(machine.device)
        before = torch.cuda.memory_allocated(machine.device)
    step = StepTaker(side, machine, batch, frames)
    for _ in range(WARM_UP_CALLS):
        step()
    step.synchronize()
    started = time.perf_counter()
    for _ in range(calls):
        step()
    step.synchronize()
    seconds = (time.perf_counter() - started) / calls
    peak = torch.cuda.max_memory_allocated(machine.device) - before if on_gpu else None
    return Cost(
        side.name,
        sum(parameter.numel() for parameter in step.classifier.parameters()),
        frames,
        batch,
        batch * frames / seconds,
        None if peak is None else peak / (batch * frames),
    )


def longest_fit(fits: Callable[[int], bool], step: int, limit: int) -> int:
    """The largest multiple of `step` up to `limit` for which `fits` holds, 0 where none does.

    Beyond the first for which it does not hold, it must not hold again. Runs are doubled, then halved, since a training
    step near the end of memory is a long one.
    """
    low, high = 0, 1
    most = limit // step
    while high <= most and fits(high * step):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle * step):
            low = middle
        else:
            high = middle
    return low * step


def takes_a_step(side: Side, machine: Machine, frames: int) -> tuple[bool, str]:
    """Whether one training step of a run of so many frames fits, and else why not."""
    reason = ""
    try:
        step = StepTaker(side, machine, 1, frames)
        step()
        step.synchronize()
    except (torch.OutOfMemoryError, MemoryError):
        reason = "out of memory"
    except (
        RuntimeError
    ) as error:  # a kernel may give up on sizes before memory ends, and the allocator of a CPU says so
        reason = str(error).splitlines()[0]
    step = None
    gc.collect()
    if machine.device.type == "cuda":
        torch.cuda.empty_cache()
    return not reason, reason


def longest_run(side: Side, machine: Machine, frame_step: int) -> str:
    """In words, the longest run that fits and what ends it."""
    reasons = {}

    def fits(frames: int) -> bool:
        ok, reasons[frames] = takes_a_step(side, machine, frames)
        print(f"  {side.name}, one run of {frames} frames: {reasons[frames] or 'fits'}", file=sys.stderr, flush=True)
        return ok

    longest = longest_fit(fits, frame_step, machine.frames_limit)
    failed = [frames for frames, reason in reasons.items() if reason]
    if not failed:
        return f"at least {longest:,} frames (the limit asked for)"
    return f"{longest:,} frames ({min(failed):,}: {reasons[min(failed)]})"


# --- results


def cost_table(costs: Sequence[Cost], longest: Mapping[str, str]) -> str:
    """As Markdown; the last column compares with the first row."""
    lines = [
        "| network | parameters | frames x batch | training frames/s | memory a frame | longest run | frames/s against "
        f"{costs[0].side} |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for cost in costs:
        memory = "not measured" if cost.bytes_a_frame is None else f"{cost.bytes_a_frame / 1e6:.1f} MB"
        lines.append(
            f"| {cost.side} | {cost.parameters / 1e6:.1f} M | {cost.frames} x {cost.batch} "
            f"| {cost.frames_a_second:,.1f} | {memory} | {longest.get(cost.side, 'not asked')} | "
            f"{cost.frames_a_second / costs[0].frames_a_second:.2f}x |"
        )
    return "\n".join(lines)


def compare(arguments: argparse.Namespace) -> None:
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch sees no GPU here; use --device cpu with small settings for a trial.")
    dtype = arguments.dtype or ("float16" if device.type == "cuda" else "bfloat16")
    machine = Machine(device, getattr(torch, dtype), arguments.frames_limit)
    path = find_model_file(arguments.swift, arguments.model_file)
    network = load_model_class(arguments.swift, path, arguments.model_class)
    given = read_options(arguments.option, "--option")
    swift = swift_side(network, given, arguments.cube)
    tablet = tablet_side(read_options(arguments.tablet, "--tablet"), arguments.checkpointing)
    frame_step = arguments.swift_frame_step or swift.frame_step
    if arguments.frames % frame_step:
        raise InputError(
            f"--frames {arguments.frames}: SwiFT takes multiples of {frame_step} frames with these windows and "
            f"patches; give such a number, or --swift-frame-step if its network takes others."
        )

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    print(f"machine: {name}, {platform.platform()}; Python {platform.python_version()}")
    print(f"torch {torch.__version__}, CUDA {torch.version.cuda}, transformers {transformers.__version__}")
    print(f"SwiFT: {path.relative_to(arguments.swift)}, {network.__name__}, {revision(arguments.swift)}")
    options = options_for(network, given, (arguments.cube,) * 3 + (arguments.frames,))
    print(f"  {', '.join(f'{key}={value!r}' for key, value in options.items())}")
    print(f"{dtype} autocast, forward, backward and AdamW; frames of random numbers; tokens not made here\n")

    costs = []
    for side, frames in ((swift, arguments.frames), (tablet, arguments.frames), (tablet, arguments.window)):
        try:
            costs.append(measure(side, machine, arguments.batch, frames, arguments.calls))
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"{side.name}: a training step of {arguments.batch} runs of {frames} frames does not fit into the "
                "memory of this device; give a smaller --batch, --frames or --window."
            ) from error
        except RuntimeError as error:
            raise InputError(
                f"{side.name}: a training step of {arguments.batch} runs of {frames} frames fails "
                f"({str(error).splitlines()[0]}); correct the options of SwiFT with --option name=value, --cube and "
                "--frames, those of TABLeT with --tablet name=value."
            ) from error
    longest = {}
    if not arguments.no_longest:
        longest = {
            "SwiFT": longest_run(swift, machine, frame_step),
            "TABLeT": longest_run(tablet, machine, arguments.tablet_frame_step),
        }
    print(cost_table(costs, longest))
    if longest:
        print(f"\nlongest run: one training step of one run, up to {arguments.frames_limit:,} frames")


def main(command_line: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--swift", type=Path, required=True, metavar="PATH", help="your checkout of SwiFT")
    parser.add_argument("--model-file", metavar="FILE", help="of its network, as a path within the checkout")
    parser.add_argument("--model-class", metavar="NAME", default=MODEL_CLASS)
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="of SwiFT's network")
    parser.add_argument("--tablet", action="append", default=[], metavar="NAME=VALUE", help="of TabletConfig")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing of TABLeT")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), help="float16 on a GPU, else bfloat16")
    parser.add_argument("--cube", type=int, default=96, help="voxels along an edge of SwiFT's volumes")
    parser.add_argument("--frames", type=int, default=20, help="of a piece of a run, for both")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--window", type=int, default=256, help="frames for which TABLeT is measured besides")
    parser.add_argument("--calls", type=int, default=10, help="timed steps, after three to warm up")
    parser.add_argument("--frames-limit", type=int, default=8192, help="no longer run is tried")
    parser.add_argument("--swift-frame-step", type=int, help="frames of a run must be multiples of this")
    parser.add_argument("--tablet-frame-step", type=int, default=16, help="how finely the longest run is sought")
    parser.add_argument("--no-longest", action="store_true", help="leave the longest runs out")
    arguments = parser.parse_args(command_line)
    try:
        compare(arguments)
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
