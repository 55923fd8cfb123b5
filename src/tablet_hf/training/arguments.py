"""`TrainingArguments` of transformers with the defaults of TABLeT and a few fields more, and the model sizes."""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from transformers import TrainingArguments
from transformers.integrations import is_tensorboard_available

from tablet_hf.errors import InputError

__all__ = ["MODES", "SIZES", "TabletTrainingArguments", "process_state"]

MODES = ("full", "head", "lora")

FOR_SMALL_STUDIES = {
    "hidden_act": "gelu",
    "standardize_tokens": True,
    "use_feature_norm": False,
    "use_output_norm": True,
    "pooling_type": "variability",
    "hidden_dropout_prob": 0.1,
}
"""Told subjects apart in a study of 140, where the published settings did not (docs/semireal.md)."""

SIZE_FIELDS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
SIZES: dict[str, dict[str, Any]] = {
    "published": {},
    "small": FOR_SMALL_STUDIES | dict(zip(SIZE_FIELDS, (256, 6, 4, 2, 1024), strict=True)),
    "tiny": FOR_SMALL_STUDIES | dict(zip(SIZE_FIELDS, (64, 2, 2, 1, 256), strict=True)),
}
"""Fields of `TabletConfig` for 129.5 million weights, 5 million, and a third of a million."""


@dataclass
class TabletTrainingArguments(TrainingArguments):
    """`TrainingArguments` that default to the recipe of the code released with arXiv:2604.03619, where it is known.

    Args:
        window_frames: frames per window; None for whole runs.
        precision: "auto" for bfloat16 on a GPU that has it, else float16 on a GPU, and float32 on a CPU; or "bf16",
            "fp16", "fp32".
        mode: what fine-tuning trains: "full" for all weights, "lora" for low-rank adapters of all linear layers (peft),
            merged at the end, "head" for a linear model on the pooled states of the network.
        lora_rank: rank of the adapters.
        learning_rates: learning rates to choose from when fine-tuning; None for `learning_rate` alone.
        patience: early-stopping patience in epochs; None never stops early.
        metric_for_best_model: validation metric that chooses epoch and learning rate: "loss", or a name in
            `tablet_hf.evaluation.metrics`, computed over subjects. With few subjects AUROC and accuracy take few
            values, and the first of several equal epochs would win, hence the loss.
        fsdp: pre-training only.

    Raises:
        InputError: a value out of range, or FSDP without several GPUs.
    """

    num_train_epochs: float = 20
    per_device_train_batch_size: int = 4
    per_device_eval_batch_size: int = 4
    learning_rate: float = 1e-4
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = 0.05
    weight_decay: float = 0.01
    logging_steps: float = 10
    logging_first_step: bool = True
    # Filtering looks at the loss of every step, and waits for the GPU to have it.
    logging_nan_inf_filter: bool = False
    seed: int = 0
    save_strategy: str = "epoch"
    save_total_limit: int | None = 1
    metric_for_best_model: str | None = "loss"
    remove_unused_columns: bool = False
    ddp_find_unused_parameters: bool | None = False
    # Early stopping counts on where training was interrupted.
    restore_callback_states_from_checkpoint: bool = True
    report_to: list[str] = field(default_factory=lambda: ["tensorboard"] * is_tensorboard_available())

    window_frames: int | None = 256
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    mode: Literal["full", "head", "lora"] = "full"
    lora_rank: int = 8
    learning_rates: tuple[float, ...] | None = None
    patience: int | None = None

    def __post_init__(self):
        for name in ("num_train_epochs", "learning_rate", "per_device_train_batch_size"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} is {getattr(self, name)}, but must be positive.")
        rates = self.learning_rates or ()
        if not all(rate > 0 for rate in rates) or len(set(rates)) < len(rates):
            raise InputError(f"learning_rates {rates}: they must be positive and different (command line: --sweep).")
        if not self.weight_decay >= 0 or not self.warmup_steps >= 0:
            raise InputError("weight_decay and warmup_steps must be at least 0.")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed is {self.seed}, but must be from 0 to {2**32 - 1}.")
        if self.mode not in MODES:
            raise InputError(f"mode {self.mode!r}: choose {', '.join(MODES)}.")
        if self.mode == "head" and (self.learning_rates is not None or self.patience is not None):
            raise InputError("mode 'head' fits a linear model in one step; leave out learning rates and patience.")
        on_gpu = torch.cuda.is_available() and not self.use_cpu
        if self.precision == "auto":
            half = "bf16" if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
            self.precision = half if on_gpu else "fp32"
        if self.precision not in ("bf16", "fp16", "fp32"):
            raise InputError(f"precision {self.precision!r}: choose auto, bf16, fp16 or fp32.")
        self.bf16, self.fp16 = self.precision == "bf16", self.precision == "fp16"
        self.dataloader_pin_memory = on_gpu
        if on_gpu and self.accelerator_config is None:
            self.accelerator_config = {"non_blocking": True}  # the next batch is copied while this one is computed
        if self.fsdp and self.fsdp_config is None:
            self.fsdp_config = {"version": 2, "reshard_after_forward": True}
        super().__post_init__()
        # One process would spread the model over all GPUs that it sees (DataParallel), slowly.
        self._n_gpu = min(1, self.n_gpu)
        if self.fsdp and (not on_gpu or process_state().num_processes == 1):
            raise InputError("fsdp needs several processes with a GPU each; start them with torchrun, or leave it out.")


def process_state() -> Any:
    """Return accelerate's `PartialState`, also before there are any `TrainingArguments`."""
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available())
