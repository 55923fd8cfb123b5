"""How a model is trained, in the words of this package, and as the `TrainingArguments` of transformers."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from tablet_hf.errors import InputError

__all__ = ["SIZES", "Settings", "check_gpus_to_share_out", "process_state", "training_arguments"]

Precision = Literal["auto", "bf16", "fp16", "fp32"]

FOR_SMALL_STUDIES = {
    "hidden_act": "gelu",
    "standardize_tokens": True,
    "use_feature_norm": False,
    "use_output_norm": True,
    "pooling_type": "variability",
    "hidden_dropout_prob": 0.1,
}
"""What told subjects apart in a study of 140, where the published settings did not (docs/semireal.md)."""

SIZES: dict[str, dict[str, Any]] = {
    "published": {},
    "small": FOR_SMALL_STUDIES
    | {
        "hidden_size": 256,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 1024,
    },
    "tiny": FOR_SMALL_STUDIES
    | {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 256,
    },
}
"""129.5 million weights, 5 million, and a third of a million."""


@dataclass(frozen=True)
class Settings:
    """How to train: the recipe of the code released with arXiv:2604.03619, where it is known.

    Attributes:
        window_frames: frames of a window; None for whole runs.
        epochs: passes, in each of which a run gives one random window.
        max_steps: optimiser steps, instead of epochs; needed for streamed data.
        batch_size: windows a step on each device.
        accumulate: steps whose gradients are added up.
        learning_rate: at its highest; it falls to 0 by a cosine.
        warmup: share of all steps in which it rises from 0.
        weight_decay: of AdamW.
        precision: "auto" is bfloat16 on a GPU that has it, else float16 on a GPU, and float32 on a CPU.
        gradient_checkpointing: layers are computed again in the backward pass, for runs that do not fit otherwise.
        compile: whether the model is compiled, which makes steps on a GPU about 15% faster and takes half a minute.
        workers: processes that read windows. A store needs none: threads read from it into memory that a GPU copies
            from, and processes were slower. Streamed data may need a few.
        seed: of weights, windows and masks.
        save_steps: steps between checkpoints; None for one an epoch.
        log_steps: steps between lines of the log.
        fsdp: share out weights and optimiser over GPUs (FSDP2), for models that do not fit on one; of pre-training.
        device: "auto", "cpu", "cuda", or one GPU of several, such as "cuda:1".
    """

    window_frames: int | None = 256
    epochs: float = 20
    max_steps: int | None = None
    batch_size: int = 4
    accumulate: int = 1
    learning_rate: float = 1e-4
    warmup: float = 0.05
    weight_decay: float = 0.01
    precision: Precision = "auto"
    gradient_checkpointing: bool = False
    compile: bool = False
    workers: int = 0
    seed: int = 0
    save_steps: int | None = None
    log_steps: int = 10
    fsdp: bool = False
    device: str = "auto"

    def __post_init__(self):
        if self.precision not in ("auto", "bf16", "fp16", "fp32"):
            raise InputError(f"precision {self.precision!r}: choose auto, bf16, fp16 or fp32.")
        for name in ("epochs", "batch_size", "accumulate", "learning_rate", "log_steps"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} is {getattr(self, name)}, but must be over 0.")
        for name in ("max_steps", "save_steps"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise InputError(f"{name} is {getattr(self, name)}, but must be over 0.")
        if not self.weight_decay >= 0:
            raise InputError(f"weight_decay is {self.weight_decay}, but must be 0 or more.")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed is {self.seed}, but must be from 0 to {2**32 - 1}.")
        if not 0 <= self.warmup < 1:
            raise InputError(f"warmup is {self.warmup}, but must be a share of the steps, from 0 to under 1.")

    @property
    def deciding(self) -> dict[str, Any]:
        """Those on which depends what comes out, but for rounding."""
        others = ("workers", "device", "compile", "precision")
        return {name: value for name, value in asdict(self).items() if name not in others}

    @property
    def carried_out(self) -> dict[str, Any]:
        """What these settings become on this machine: how many processes share each step, and in which precision."""
        return {"processes": process_state().num_processes, "precision": _precision(self)}

    @property
    def on_gpu(self) -> bool:
        return self.device != "cpu" and torch.cuda.is_available()


def process_state() -> Any:
    """accelerate's word on which of how many processes this is, also before there are any `TrainingArguments`."""
    from accelerate import PartialState

    # Processes without a GPU take each other for absent unless it is said that they have none.
    return PartialState(cpu=not torch.cuda.is_available())


def check_gpus_to_share_out(settings: Settings) -> None:
    """Refuse FSDP where it would be passed over.

    Raises:
        InputError: weights are to be shared out, and there are no several processes with GPUs.
    """
    if settings.fsdp and (not settings.on_gpu or process_state().num_processes == 1):
        raise InputError(
            "fsdp shares out the weights over the GPUs of several processes; start them with torchrun or accelerate "
            "launch where there are GPUs, or leave it out (command line: --fsdp)."
        )


def training_arguments(settings: Settings, folder: str | Path, **more: Any) -> Any:
    """The `TrainingArguments` of these settings.

    Args:
        settings: how to train.
        folder: where checkpoints and logs go.
        more: what else `TrainingArguments` take, over what follows from the settings.
    """
    from transformers import TrainingArguments

    if settings.device.startswith("cuda:"):
        torch.cuda.set_device(settings.device)  # Trainer takes the current GPU
    precision = _precision(settings)
    saving = {"save_strategy": "epoch"}
    if settings.save_steps is not None:
        saving = {"save_strategy": "steps", "save_steps": settings.save_steps}
    options = {
        "num_train_epochs": settings.epochs,
        "max_steps": settings.max_steps or -1,
        "per_device_train_batch_size": settings.batch_size,
        "per_device_eval_batch_size": settings.batch_size,
        "gradient_accumulation_steps": settings.accumulate,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": settings.warmup,
        "weight_decay": settings.weight_decay,
        "bf16": precision == "bf16",
        "fp16": precision == "fp16",
        _checkpointing_field(TrainingArguments): settings.gradient_checkpointing,
        "torch_compile": settings.compile,
        "optim": "adamw_torch_fused" if settings.on_gpu else "adamw_torch",
        "dataloader_num_workers": settings.workers,
        "dataloader_persistent_workers": settings.workers > 0,
        "dataloader_pin_memory": settings.on_gpu,
        "seed": settings.seed,
        "logging_strategy": "steps",
        "logging_steps": settings.log_steps,
        "logging_first_step": True,
        # It looks at the loss of every step, and waits for the GPU to have it.
        "logging_nan_inf_filter": False,
        "save_total_limit": 1,
        "report_to": _report_to(),
        "remove_unused_columns": False,
        "use_cpu": not settings.on_gpu,
        # Every weight is used in every step, and a bag of unused ones is looked for in each.
        "ddp_find_unused_parameters": False,
        **saving,
        **more,
    }
    if settings.on_gpu:
        # The next batch travels to the GPU while this one is computed.
        options.setdefault("accelerator_config", {"non_blocking": True})
    if settings.fsdp:
        options |= {"fsdp": True, "fsdp_config": {"version": 2, "reshard_after_forward": True}}
    arguments = TrainingArguments(str(folder), **options)
    # One process would spread the model over all GPUs that it sees (DataParallel), slowly, and nothing switches it off.
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def _checkpointing_field(arguments_class: Any) -> str:
    """Newer versions of transformers call it otherwise, and warn of the older name."""
    newer = "activation_checkpointing"
    return newer if newer in arguments_class.__dataclass_fields__ else "gradient_checkpointing"


def _precision(settings: Settings) -> str:
    if settings.precision != "auto":
        return settings.precision
    if not settings.on_gpu:
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def _report_to() -> list[str]:
    from importlib.util import find_spec

    return ["tensorboard"] if find_spec("tensorboard") or find_spec("tensorboardX") else []
