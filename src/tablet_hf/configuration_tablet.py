"""TABLeT model configuration."""

import math
import warnings
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME

from .errors import InputError

# By their names in configurations of the code released with arXiv 2604.03619.
RELEASED_FIELDS = {
    "input_feature_size": "token_size",
    "num_classes": "num_labels",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "d_model": "hidden_size",
    "d_ff": "intermediate_size",
    "hidden_act": "hidden_act",
    "mlp_type": "mlp_type",
    "norm_type": "norm_type",
    "input_norm": "use_input_norm",
    "out_norm": "use_output_norm",
    "feature_norm": "use_feature_norm",
}
RELEASED_NORMS = {"ln": "layer_norm", "rms": "rms_norm"}

# How the tokens of 3072 numbers in 27 cells were made, on which the released weights were trained.
RELEASED_TOKENS = {
    "autoencoder": "mit-han-lab/dc-ae-f32c32-in-1.0-diffusers",
    "signal": "intensity",
    "scaling": "max",
    "volume_size": 96,
}


@strict
class TabletConfig(PreTrainedConfig):
    r"""
    Configuration of a TABLeT model. The defaults are the published network (129.5 million parameters, arXiv
    2604.03619) with positions in seconds and cells in place of none.

    An fMRI run enters the model as `(batch, frames, num_cells, token_size)`: each frame is a cube of
    `grid_size ** 3` cells, each cell one token of `token_size` numbers made by the encoder of a 2D autoencoder.

    Args:
        token_size (`int`, defaults to 3072):
            Numbers in one token: 3 axes x 32 slices x 32 latent channels for DC-AE f32c32.
        grid_size (`int`, defaults to 3):
            Cells along one edge of a frame.
        hidden_size, num_hidden_layers, num_attention_heads, num_key_value_heads, intermediate_size:
            As everywhere in the library. Groups of query heads share a key and a value head.
        mlp_type (`"vanilla"` or `"swiglu"`, defaults to `"vanilla"`):
            Two linear layers around `hidden_act`, or the gated kind, whose gate is always SiLU.
        mlp_bias (`bool`, defaults to `True`):
            Whether the linear layers of the MLP have biases.
        hidden_act (`str`, defaults to `"relu"`):
            Activation of the vanilla MLP.
        norm_type (`"layer_norm"` or `"rms_norm"`, defaults to `"layer_norm"`):
            Kind of every norm, with `layer_norm_eps` or `rms_norm_eps`.
        qk_norm (`bool`, defaults to `False`), qk_norm_type (*optional*):
            Whether queries and keys are normalised within each head before they are rotated, and the kind of that norm
            where it differs from `norm_type`.
        use_feature_norm, use_input_norm, use_output_norm (`bool`):
            A norm over the numbers of a token before the projection, over the sequence with its CLS state before the
            first layer, and after the last layer.
        standardize_tokens (`bool`, defaults to `False`):
            Whether the mean over the frames of a window is subtracted from the tokens of each cell, which removes the
            anatomy (98% of the variance of tokens of the signal `"intensity"`), and the rest divided by its standard
            deviation over the window. Use it with `use_feature_norm=False`, a norm that gives all tokens the same size.
        pooling_type (`"cls"`, `"mean"` or `"variability"`, defaults to `"cls"`):
            What a head reads: the CLS state, as in the paper; the mean of all token states; or, for every cell, the
            standard deviation of its states over the frames of the window (compared in docs/semireal.md).
        feature_dropout_prob, hidden_dropout_prob, attention_probs_dropout_prob (`float`, default to 0):
            Dropout on the numbers of a token, in the residual branches, and on attention weights.
        position_embedding_type (`"none"`, `"rope"` or `"spatiotemporal_rope"`, defaults to the last):
            `"none"` sees a run as a set of tokens (what the released weights need), `"rope"` rotates queries and keys
            by one angle per sequence position, `"spatiotemporal_rope"` shares the head dimension among time in seconds
            and the three coordinates of a cell. Use heads of at least 32 numbers: of 8 only two are left for the time.
        rope_theta (`float`, defaults to 10000):
            Base of the angles of `"rope"`.
        rope_shortest_period, rope_longest_period (`float`, default to 6 and 3600, seconds):
            Range of the periods of time in `"spatiotemporal_rope"`. A period under two frames aliases, and frames
            are up to 3 s apart; an hour is a long scan, within which no two moments look alike.
        mask_ratio (`float`, defaults to 0.5):
            Share of valid tokens hidden in masked token modeling.
        mask_strategy (`"random"`, `"frame"` or `"tube"`, defaults to `"random"`):
            Hide single tokens, whole frames, or the same cells in all frames.
        norm_target (`bool`, defaults to `False`):
            Whether each target token is standardised before the masked loss.
        regression_loss (`"l1"` or `"mse"`, defaults to `"l1"`):
            Loss of the regression head, on standardised targets.
        target_mean, target_std (`list[float]`, *optional*):
            Mean and standard deviation of each regression target over the training set, in the target's own unit, in
            which the head predicts.
        positive_weight (`float`), class_weights (`list[float]`, *optional*):
            Weight of the positive class in the loss of a one-logit classifier, and of each class of a softmax.
        negative_label (`str`, *optional*):
            Name of the other class of a one-logit classifier, which `id2label` cannot hold.
        target_name (`str`, *optional*):
            Column of the phenotype the model was trained on.
        num_frames (`int`, *optional*):
            Frames of the windows the model was trained on, into which prediction cuts a run.
        autoencoder, autoencoder_revision, autoencoder_subfolder, signal, scaling, volume_size (*optional*):
            How the tokens the model was trained on were made, by the names of [`TabletFeatureExtractor`].

    The classification head follows `problem_type`, which is never guessed:

    - `"multi_label_classification"`: one logit and one sigmoid per label, binary cross-entropy, threshold 0.5. Two
      classes as in the paper are this with `num_labels=1`: the one label names the positive class.
    - `"single_label_classification"`: softmax over two labels or more.
    - `"regression"`: one number per label, in the target's own unit.

    Raises:
        `huggingface_hub.errors.StrictDataclassError`: a value has the wrong type, or values contradict each other.
    """

    model_type = "tablet"
    # Tokens of another geometry do not fit the model; tokens of another provenance fit, but mean something else.
    token_geometry: ClassVar = ("token_size", "grid_size")
    token_provenance: ClassVar = (
        "autoencoder",
        "autoencoder_revision",
        "autoencoder_subfolder",
        "signal",
        "scaling",
        "volume_size",
    )

    token_size: int = 3072
    grid_size: int = 3
    hidden_size: int = 896
    num_hidden_layers: int = 12
    num_attention_heads: int = 14
    num_key_value_heads: int = 2
    intermediate_size: int = 4864
    mlp_type: Literal["vanilla", "swiglu"] = "vanilla"
    mlp_bias: bool = True
    hidden_act: str = "relu"
    norm_type: Literal["layer_norm", "rms_norm"] = "layer_norm"
    layer_norm_eps: float = 1e-5
    rms_norm_eps: float = 1e-6
    qk_norm: bool = False
    qk_norm_type: Literal["layer_norm", "rms_norm"] | None = None
    use_feature_norm: bool = True
    use_input_norm: bool = True
    use_output_norm: bool = False
    standardize_tokens: bool = False
    pooling_type: Literal["cls", "mean", "variability"] = "cls"
    feature_dropout_prob: float | int = 0.0
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    initializer_range: float = 0.02

    position_embedding_type: Literal["none", "rope", "spatiotemporal_rope"] = "spatiotemporal_rope"
    rope_theta: float | int = 10000.0
    rope_shortest_period: float | int = 6.0
    rope_longest_period: float | int = 3600.0

    mask_ratio: float | int = 0.5
    mask_strategy: Literal["random", "frame", "tube"] = "random"
    norm_target: bool = False

    regression_loss: Literal["l1", "mse"] = "l1"
    target_mean: list[float | int] | None = None
    target_std: list[float | int] | None = None
    positive_weight: float | int | None = None
    class_weights: list[float | int] | None = None
    negative_label: str | None = None
    target_name: str | None = None

    num_frames: int | None = None
    autoencoder: str | None = None
    autoencoder_revision: str | None = None
    autoencoder_subfolder: str | None = None
    signal: Literal["intensity", "percent_change"] | None = None
    scaling: Literal["max", "percentile"] | None = None
    volume_size: int | None = None

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs) -> "TabletConfig":
        """As everywhere in the library; reads configurations of the code released with arXiv 2604.03619 as well."""
        if "model_type" not in config_dict and {"input_feature_size", "d_model"} <= config_dict.keys():
            config_dict = translate_released_config(config_dict, **kwargs)
        elif not cls.__module__.startswith(TRANSFORMERS_DYNAMIC_MODULE_NAME):
            # Both name code next to the file, which the installed package has itself and would not save along.
            names = ("auto_map", "custom_pipelines")
            config_dict = {name: value for name, value in config_dict.items() if name not in names}
        return super().from_dict(config_dict, **kwargs)

    @property
    def pooled_size(self) -> int:
        """Numbers that a head reads, by `pooling_type`."""
        return self.hidden_size * (self.num_cells if self.pooling_type == "variability" else 1)

    @property
    def num_cells(self) -> int:
        """Tokens in one frame."""
        return self.grid_size**3

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    def validate_architecture(self):
        sizes = ("token_size", "grid_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
        for name in (*sizes, "num_key_value_heads", "intermediate_size", "num_frames", "volume_size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        super().validate_architecture()
        for whole, part in (("hidden_size", "num_attention_heads"), ("num_attention_heads", "num_key_value_heads")):
            if getattr(self, whole) % getattr(self, part):
                raise ValueError(
                    f"`{whole}` ({getattr(self, whole)}) must be a multiple of `{part}` ({getattr(self, part)})."
                )
        smallest = {"none": 1, "rope": 2, "spatiotemporal_rope": 8}[self.position_embedding_type]
        if self.head_dim < smallest or (smallest > 1 and self.head_dim % 2):
            raise ValueError(
                f"`{self.position_embedding_type}` needs an even `hidden_size / num_attention_heads` of at least "
                f"{smallest}, got {self.head_dim}."
            )

    def validate_objectives(self):
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"`mask_ratio` must be between 0 and 1, got {self.mask_ratio}.")
        # The library declares these as the type of its field, but does not check it.
        names = ("regression", "single_label_classification", "multi_label_classification", None)
        if self.problem_type not in names:
            raise ValueError(f"`problem_type` must be one of {names}, got {self.problem_type!r}.")
        is_one_logit = self.problem_type == "multi_label_classification" and self.num_labels == 1
        if self.positive_weight is not None and not (is_one_logit and self.positive_weight > 0):
            raise ValueError(
                '`positive_weight` must be over 0, with `problem_type="multi_label_classification"` and one label.'
            )
        is_softmax = self.problem_type == "single_label_classification"
        if (weights := self.class_weights) is not None and not (
            is_softmax and len(weights) == self.num_labels and all(weight > 0 for weight in weights)
        ):
            raise ValueError(
                '`class_weights` must be over 0, one per label, with `problem_type="single_label_classification"`.'
            )
        mean, std = self.target_mean or [], self.target_std or []
        if (mean or std) and (self.problem_type != "regression" or not len(mean) == len(std) == self.num_labels):
            raise ValueError(
                '`target_mean` and `target_std` need `problem_type="regression"` and one number for each of '
                f"{self.num_labels} labels, got {self.problem_type!r}, {mean} and {std}."
            )
        if not all(map(math.isfinite, [*mean, *std])) or min(std, default=1) <= 0:
            raise ValueError(f"`target_mean` must be finite and `target_std` over 0, got {mean} and {std}.")

    def check_tokens_compatible(self, tokens_from: Any, name: str = "Input") -> None:
        """
        Compare the tokens a model is about to read with those it was trained on, and warn of other provenance.

        Args:
            tokens_from (`Mapping`, or an object with `to_dict()`):
                What made the tokens: a feature extractor, its saved `preprocessor_config.json`, or the preprocessing
                record of a token dataset. A field that is absent or `None` on either side is not compared.
            name (`str`): what messages begin with, such as a file.

        Raises:
            `InputError`: the geometry differs, so that the tokens do not fit into the model.
        """
        record = tokens_from if isinstance(tokens_from, Mapping) else tokens_from.to_dict()
        differences = {
            key: f"{key} {record[key]!r} instead of {getattr(self, key)!r}"
            for key in (*self.token_geometry, *self.token_provenance)
            if None not in (record.get(key), getattr(self, key)) and record[key] != getattr(self, key)
        }
        if misfits := [differences[key] for key in self.token_geometry if key in differences]:
            raise InputError(
                f"{name}: tokens do not fit the model ({', '.join(misfits)}); tokenize the scans with its autoencoder "
                f"({self.autoencoder or 'not recorded'}), or use a model made for them."
            )
        if differences:
            warnings.warn(
                f"{name}: tokens are not made like those the model was trained on ({', '.join(differences.values())}); "
                "its predictions mean little until it is fine-tuned on such tokens.",
                stacklevel=2,
            )


def translate_released_config(released: Mapping[str, Any], **settings) -> dict[str, Any]:
    """
    Translate a configuration of the code released with arXiv 2604.03619.

    Args:
        released (`Mapping`): its `config.json`.
        settings: fields of [`TabletConfig`] that are given, such as `grid_size`.

    Returns:
        Fields of [`TabletConfig`], with the settings that are among them.

    Raises:
        `ValueError`: the tokens are not of the released size, and `grid_size` is not given.
    """
    fields = {ours: released[theirs] for theirs, ours in RELEASED_FIELDS.items() if theirs in released}
    if fields.get("norm_type") in list(RELEASED_NORMS):
        fields["norm_type"] = RELEASED_NORMS[fields["norm_type"]]
    dropout = released.get("dropout", 0.0)
    fields |= {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    fields["feature_dropout_prob"] = dropout if released.get("feature_dropout") else 0.0
    # The released layer takes `qk_norm` in the place of `use_rope`, so it rotates and does not normalise.
    fields["position_embedding_type"] = "rope" if released.get("qk_norm") else "none"
    fields |= {name: value for name, value in settings.items() if name in TabletConfig.__dataclass_fields__}

    if fields["token_size"] == 3072:
        fields.setdefault("grid_size", 3)
    if "grid_size" not in fields:
        raise ValueError(
            f"Tokens of {fields['token_size']} numbers are not those of the released weights; give `grid_size`, "
            "the cells along one edge of a frame (command line: --grid-size)."
        )
    assumed = {name: value for name, value in RELEASED_TOKENS.items() if name not in fields}
    if assumed and (fields["token_size"], fields["grid_size"]) == (3072, 3):
        fields |= assumed
        warnings.warn(
            "Released checkpoints do not record how their tokens were made; assumed, as published: "
            f"{', '.join(f'{name} {value}' for name, value in assumed.items())}.",
            stacklevel=2,
        )
    return fields


__all__ = ["TabletConfig"]
