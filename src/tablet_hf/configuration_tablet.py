"""TABLeT model configuration."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME, logging

logger = logging.get_logger(__name__)

# Keys of a configuration of the code released with arXiv 2604.03619 that no configuration of the library has.
RELEASED_KEYS = frozenset({"input_feature_size", "num_kv_heads", "d_model"})


class ReleasedLayoutError(ValueError):
    """A configuration in the vocabulary of the released code, which the model classes know how to load."""


@strict
class TabletConfig(PreTrainedConfig):
    r"""
    Everything that makes one TABLeT model: the geometry of its tokens, the network, its training objectives, and the
    tokens it was trained on. The defaults are the published network (129.5 million parameters, arXiv 2604.03619)
    with positions in seconds and cells in place of none.

    An fMRI run enters the model as `(batch, frames, num_cells, token_size)`: each frame is a cube of
    `grid_size ** 3` cells, each cell one token of `token_size` numbers made by the encoder of a 2D autoencoder.

    Args:
        token_size (`int`, defaults to 3072):
            Numbers in one token: 3 axes x 32 slices x 32 latent channels for DC-AE f32c32.
        grid_size (`int`, defaults to 3):
            Cells along one edge of a frame. Where `volume_size` is known, a cell has `volume_size / grid_size` slices
            on each axis, and `token_size` must be a multiple of three times as many.
        hidden_size, num_hidden_layers, num_attention_heads, num_key_value_heads, intermediate_size:
            As everywhere in the library. Queries share key and value heads in groups of equal size.
        mlp_type (`"vanilla"` or `"swiglu"`, defaults to `"vanilla"`):
            Two linear layers around `hidden_act`, or the gated kind, whose gate is always SiLU.
        mlp_bias (`bool`, defaults to `True`):
            Whether the linear layers of the MLP have biases.
        hidden_act (`str`, defaults to `"relu"`):
            The activation of the vanilla MLP.
        norm_type (`"layer_norm"` or `"rms_norm"`, defaults to `"layer_norm"`):
            The kind of every norm, with `layer_norm_eps` or `rms_norm_eps`.
        qk_norm (`bool`, defaults to `False`):
            Whether queries and keys are normed within each head before they are rotated.
        qk_norm_type (`"layer_norm"` or `"rms_norm"`, *optional*):
            The kind of the norm of queries and keys, where it differs from `norm_type`.
        use_feature_norm, use_input_norm, use_output_norm (`bool`):
            A norm over the numbers of a token before they are projected, over the sequence with its CLS state before
            the first layer, and after the last layer.
        standardize_tokens (`bool`, defaults to `False`):
            Whether a window is standardised over time first: from the tokens of each cell their mean over the frames is
            taken, and the rest is divided by its standard deviation over the window. Of tokens of the signal
            `"intensity"` 98% of the variance is the still anatomy, which is gone then. Goes with
            `use_feature_norm=False`, since that norm makes all tokens equally large, whether they swing or not.
        pooling_type (`"cls"`, `"mean"` or `"variability"`, defaults to `"cls"`):
            What a head reads: the CLS state, as in the paper; the mean of all token states; or how much each number of
            a cell's states varies over the frames of the window (its standard deviation), for every cell by itself. At
            rest subjects differ in what varies together, which is where functional connectivity looks, and means over
            frames and cells keep little of it: of 140 semi-real subjects 69 to 96% were recognised in their other half
            by variability, 2 to 6% by the CLS state or the mean (docs/semireal.md).
        feature_dropout_prob, hidden_dropout_prob, attention_probs_dropout_prob (`float`, default to 0):
            Dropout on the numbers of a token, in the residual branches, and on attention weights; all off in
            evaluation.
        position_embedding_type (`"none"`, `"rope"` or `"spatiotemporal_rope"`, defaults to the last):
            `"none"` sees a run as a set of tokens (what the released weights need), `"rope"` turns queries and keys
            by one angle a sequence position, `"spatiotemporal_rope"` shares the head dimension among time in seconds
            and the three coordinates of a cell. Heads of 32 numbers or more can tell moments apart: of 8 only two are
            left for the time, and a small model with such heads learned nothing of its neighbours in masked modeling.
        rope_theta (`float`, defaults to 10000):
            Base of the angles of `"rope"`.
        rope_shortest_period, rope_longest_period (`float`, default to 6 and 3600, seconds):
            Range of the periods of time in `"spatiotemporal_rope"`. A period under two frames aliases, and frames
            are up to 3 s apart; an hour is a long scan, within which no two moments look alike.
        mask_ratio (`float`, defaults to 0.5):
            Share of valid tokens hidden in masked token modeling.
        mask_strategy (`"random"`, `"frame"` or `"tube"`, defaults to `"random"`):
            Hides single tokens, whole frames, or the same cells in all frames.
        norm_target (`bool`, defaults to `False`):
            Whether each target token is standardised before the masked loss.
        regression_loss (`"l1"` or `"mse"`, defaults to `"l1"`):
            Loss of the regression head, on standardised targets.
        target_mean, target_std (`list[float]`, *optional*):
            Mean and standard deviation of each regression target over the training split, in the target's own unit.
            The head learns standardised targets and predicts in the target's own unit.
        positive_weight (`float`, *optional*):
            Weight of the positive class in the loss of a one-logit classifier; the paper's is the size of the larger
            class over that of the smaller.
        class_weights (`list[float]`, *optional*):
            Weight of each class in the loss of a softmax classifier.
        negative_label (`str`, *optional*):
            What a one-logit classifier calls the other class, for which `id2label` has no place.
        target_name (`str`, *optional*):
            What is predicted: the column of the phenotype the model was trained on.
        num_frames (`int`, *optional*):
            Frames of the windows the model was trained on. Nothing in the model limits a run to them; prediction cuts
            a longer run into such windows.
        autoencoder, autoencoder_revision, autoencoder_subfolder, signal, scaling, volume_size (*optional*):
            How the tokens the model was trained on were made, by the names of [`TabletFeatureExtractor`]; `None` where
            that is not known.

    The classification head follows `problem_type`, which is never guessed:

    - `"multi_label_classification"`: one logit and one sigmoid a label, binary cross-entropy, threshold 0.5. Two
      classes as the paper learns them are this with `num_labels=1`: the one label names the positive class. (The
      library refuses `"single_label_classification"` with one label, and without a `problem_type` it would take one
      label for a regression.)
    - `"single_label_classification"`: softmax over two labels or more.
    - `"regression"`: one number a label, in the target's own unit.

    Raises:
        `huggingface_hub.errors.StrictDataclassError`: where a value has the wrong type or values contradict.

    Example:

    ```python
    >>> from tablet_hf import TabletConfig, TabletModel

    >>> config = TabletConfig()
    >>> model = TabletModel(config)
    ```"""

    model_type = "tablet"
    # What decides whether tokens fit, and what else tells one kind of them from another.
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
        if "model_type" not in config_dict and config_dict.keys() >= RELEASED_KEYS:
            raise ReleasedLayoutError(
                "This config.json is that of the code released with arXiv:2604.03619, and tells less than the weights "
                "beside it; load it by a model class, as `TabletModel.from_pretrained`, or convert it (command line: "
                "tablet-hf convert)."
            )
        if not cls.__module__.startswith(TRANSFORMERS_DYNAMIC_MODULE_NAME):
            # Both name code that is next to the file. The installed package has that code, needs no one's trust for
            # its own pipelines, and would save names of nothing elsewhere.
            names = ("auto_map", "custom_pipelines")
            config_dict = {name: value for name, value in config_dict.items() if name not in names}
        return super().from_dict(config_dict, **kwargs)

    @property
    def pooled_size(self) -> int:
        """How many numbers a head reads, by `pooling_type`."""
        return self.hidden_size * (self.num_cells if self.pooling_type == "variability" else 1)

    @property
    def num_cells(self) -> int:
        """Tokens in one frame."""
        return self.grid_size**3

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    def validate_sizes(self):
        sizes = (
            "token_size",
            "grid_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "intermediate_size",
            "num_frames",
            "volume_size",
        )
        for name in sizes:
            size = getattr(self, name)
            if size is not None and size < 1:
                raise ValueError(f"`{name}` must be at least 1, got {size}.")

    def validate_architecture(self):
        # Asked before all that divide by a size: the library goes by the alphabet.
        self.validate_sizes()
        super().validate_architecture()

    def validate_token_geometry(self):
        if self.volume_size is None:  # tokens of no recorded making may have any size
            return
        if self.volume_size % self.grid_size:
            raise ValueError(
                f"`volume_size` ({self.volume_size}) must be a multiple of `grid_size` ({self.grid_size}): cells are "
                "cubes of whole voxels."
            )
        slices_per_cell = self.volume_size // self.grid_size
        if self.token_size % (3 * slices_per_cell):
            raise ValueError(
                f"`token_size` ({self.token_size}) must be a multiple of {3 * slices_per_cell}: with `volume_size` "
                f"{self.volume_size} and `grid_size` {self.grid_size} each of three axes has {slices_per_cell} slices "
                "in a cell, each with as many numbers as the autoencoder has latent channels."
            )

    def validate_heads(self):
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"`hidden_size` ({self.hidden_size}) must be a multiple of `num_attention_heads` "
                f"({self.num_attention_heads})."
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"`num_attention_heads` ({self.num_attention_heads}) must be a multiple of `num_key_value_heads` "
                f"({self.num_key_value_heads})."
            )

    def validate_activation(self):
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"`hidden_act` is {self.hidden_act!r}, which is none of the library's activations.")

    def validate_probabilities(self):
        for name in ("feature_dropout_prob", "hidden_dropout_prob", "attention_probs_dropout_prob"):
            probability = getattr(self, name)
            if not 0 <= probability < 1:
                raise ValueError(f"`{name}` must be at least 0 and under 1, got {probability}.")
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"`mask_ratio` must lie between 0 and 1, got {self.mask_ratio}.")

    def validate_positions(self):
        if self.position_embedding_type == "rope" and self.head_dim % 2:
            raise ValueError(f"`rope` turns pairs of numbers: it needs an even head width, got {self.head_dim}.")
        if self.position_embedding_type == "spatiotemporal_rope" and (self.head_dim % 2 or self.head_dim < 8):
            raise ValueError(
                "`spatiotemporal_rope` needs an even head width (hidden_size / num_attention_heads) of at least 8, "
                f"one pair for time and one for each coordinate of a cell, got {self.head_dim}."
            )
        if self.rope_theta <= 1:
            raise ValueError(f"`rope_theta` must be over 1, got {self.rope_theta}.")
        if not 0 < self.rope_shortest_period < self.rope_longest_period:
            raise ValueError(
                "`rope_shortest_period` must be over 0 s and under `rope_longest_period`, got "
                f"{self.rope_shortest_period} s and {self.rope_longest_period} s."
            )

    def validate_problem_type(self):
        # The library names the three as the type of this field, but leaves its own fields unchecked.
        names = ("regression", "single_label_classification", "multi_label_classification")
        if self.problem_type is not None and self.problem_type not in names:
            raise ValueError(
                f"`problem_type` must be one of {', '.join(map(repr, names))}, or None where the task is not decided, "
                f"got {self.problem_type!r}."
            )

    def validate_targets(self):
        if (self.target_mean is None) != (self.target_std is None):
            raise ValueError("`target_mean` and `target_std` belong together: give both or neither.")
        if self.target_mean is not None:
            if self.problem_type != "regression":
                raise ValueError(
                    '`target_mean` and `target_std` need `problem_type="regression"`, '
                    f"but `problem_type` is {self.problem_type!r}."
                )
            if not len(self.target_mean) == len(self.target_std) == self.num_labels:
                raise ValueError(
                    f"`target_mean` and `target_std` need one number for each of {self.num_labels} labels, got "
                    f"{len(self.target_mean)} and {len(self.target_std)}."
                )
            if not all(math.isfinite(mean) for mean in self.target_mean):
                raise ValueError(f"`target_mean` must be finite, got {self.target_mean}.")
            if not all(math.isfinite(std) and std > 0 for std in self.target_std):
                raise ValueError(f"`target_std` must be finite and over 0, got {self.target_std}.")

    def validate_positive_weight(self):
        if self.positive_weight is None:
            return
        if self.problem_type != "multi_label_classification" or self.num_labels != 1:
            raise ValueError(
                '`positive_weight` is for one logit: it needs `problem_type="multi_label_classification"` and '
                f"`num_labels=1`, got {self.problem_type!r} and {self.num_labels}."
            )
        if not (math.isfinite(self.positive_weight) and self.positive_weight > 0):
            raise ValueError(f"`positive_weight` must be finite and over 0, got {self.positive_weight}.")

    def validate_class_weights(self):
        if self.class_weights is None:
            return
        if self.problem_type != "single_label_classification" or len(self.class_weights) != self.num_labels:
            raise ValueError(
                '`class_weights` need `problem_type="single_label_classification"` and one number for each of '
                f"{self.num_labels} labels, got {self.problem_type!r} and {len(self.class_weights)} numbers."
            )
        if not all(math.isfinite(weight) and weight > 0 for weight in self.class_weights):
            raise ValueError(f"`class_weights` must be finite and over 0, got {self.class_weights}.")

    def token_differences(self, record: Mapping[str, Any], names: Iterable[str]) -> list[str]:
        """Which of these fields say something else of tokens than this config, in words; see below for the record."""
        pairs = [(name, record.get(name), getattr(self, name)) for name in names]
        return [
            f"{name} {given!r} instead of {expected!r}"
            for name, given, expected in pairs
            if given is not None and expected is not None and given != expected
        ]

    def check_tokens_compatible(self, tokens_from: Any) -> None:
        """
        Compare the tokens a model is about to be given with those it was made for.

        Args:
            tokens_from (`Mapping`, or an object with `to_dict()`):
                What made the tokens: a feature extractor, its saved `preprocessor_config.json`, or the preprocessing
                record of a token dataset. Read are `token_size`, `grid_size`, and the provenance fields of this
                config by their names here; a field that is absent or `None` on either side is not compared.

        Raises:
            `ValueError`: where the geometry differs, so that the tokens do not fit into the model.

        Where the geometry fits but the tokens were made in another way, one warning tells every difference: the
        model runs, on numbers that it was not trained on.
        """
        record = tokens_from if isinstance(tokens_from, Mapping) else tokens_from.to_dict()
        misfits = self.token_differences(record, self.token_geometry)
        if misfits:
            raise ValueError(
                f"These tokens do not fit this model: {', '.join(misfits)}; tokenize the scans with the autoencoder "
                f"the model was trained with ({self.autoencoder or 'not recorded'}), or use a model made for them."
            )
        surprises = self.token_differences(record, self.token_provenance)
        if surprises:
            logger.warning_once(
                f"These tokens were not made as those the model was trained on: {', '.join(surprises)}. "
                "Its predictions on them mean little until it is fine-tuned on such tokens."
            )


__all__ = ["ReleasedLayoutError", "TabletConfig"]
