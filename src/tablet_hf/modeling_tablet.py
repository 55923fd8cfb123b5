"""PyTorch TABLeT model."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling, ModelOutput, SequenceClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, logging
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.import_utils import is_tracing
from transformers.utils.output_capturing import capture_outputs

from .configuration_tablet import TabletConfig

logger = logging.get_logger(__name__)

# Names of weights in checkpoints of the code released with arXiv 2604.03619, and what they are called here.
RELEASED_WEIGHTS = {
    r"^(?:module\.|_orig_mod\.)+": "",
    r"^cls_token$": "embeddings.cls_token",
    r"^mask_token$": "embeddings.mask_token",
    r"^feature_projection\.": "embeddings.projection.",
    r"^feature_norm\.": "embeddings.feature_norm.",
    r"^input_norm\.": "embeddings.input_norm.",
    r"^out_norm\.": "output_norm.",
    r"^fc\.": "classifier.",
    r"\.norm1\.": ".norm_before.",
    r"\.norm2\.": ".norm_after.",
    r"\.self_attn\.out_proj\.": ".attention.o_proj.",
    r"\.self_attn\.": ".attention.",
    r"\.ff\.0\.": ".mlp.fc1.",
    r"\.ff\.3\.": ".mlp.fc2.",
    r"\.ff\.": ".mlp.",
}


@dataclass
class TabletMaskedTokenModelingOutput(ModelOutput):
    """
    Output of [`TabletForMaskedTokenModeling`].

    Args:
        loss (`torch.FloatTensor` of shape `(1,)`, *optional*):
            Mean squared error over the masked, valid tokens, in float32.
        reconstruction (`torch.FloatTensor` of shape `(batch_size, num_frames, num_cells, token_size)`):
            A prediction of every token: as [`standardize_over_frames`] gives it with `config.standardize_tokens`, and
            standardised by itself with `config.norm_target`.
        mask (`torch.FloatTensor` of shape `(batch_size, num_frames, num_cells)`):
            1 where a token was masked, 0 elsewhere.
        hidden_states, attentions (*optional*):
            As everywhere in the library.
    """

    loss: torch.FloatTensor | None = None
    reconstruction: torch.FloatTensor | None = None
    mask: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


def build_norm(config: TabletConfig, size: int, norm_type: str | None = None) -> nn.LayerNorm | nn.RMSNorm:
    """A norm over the last dimension, of width `size`; by default of the config's `norm_type`."""
    if (norm_type or config.norm_type) == "rms_norm":
        return nn.RMSNorm(size, eps=config.rms_norm_eps)
    return nn.LayerNorm(size, eps=config.layer_norm_eps)


def standardize_over_frames(
    input_values: torch.Tensor, frame_mask: torch.Tensor | None, bool_masked_pos: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Subtract from the tokens of each cell their mean over the frames of the window, and divide by the standard deviation
    of the rest over the whole window, so that cells still differ in how much they vary. Padded frames and hidden tokens
    do not count, or a mean would reveal what is to be predicted, but for a cell that is hidden in all frames.

    Returns:
        Standardised tokens, shaped as `input_values`; the means, `(batch_size, 1, num_cells, token_size)`; the standard
        deviations, `(batch_size, 1, 1, 1)`. All in float32.
    """
    input_values = input_values.float()
    frames = torch.ones(input_values.shape[:3], dtype=torch.bool, device=input_values.device)
    if frame_mask is not None:
        frames = frames & frame_mask.unsqueeze(-1)
    counts = averaged = frames.unsqueeze(-1)
    if bool_masked_pos is not None:
        counts = counts & ~bool_masked_pos.bool().unsqueeze(-1)
        averaged = torch.where(counts.any(dim=1, keepdim=True), counts, averaged)
    total = input_values.masked_fill(~averaged, 0).sum(dim=1, keepdim=True)
    mean = total / averaged.sum(dim=1, keepdim=True).clamp(min=1)
    centered = input_values - mean
    squares = centered.square().mean(dim=-1, keepdim=True).masked_fill(~counts, 0).sum(dim=(1, 2), keepdim=True)
    std = (squares / counts.sum(dim=(1, 2), keepdim=True).clamp(min=1)).sqrt()
    # Where nothing varies rounding is not amplified: half precision holds no smaller changes of such tokens.
    smallest = 1e-4 * mean.square().mean(dim=(1, 2, 3), keepdim=True).sqrt() + 1e-6
    std = torch.maximum(std, smallest)
    return centered / std, mean, std


class TabletEmbeddings(nn.Module):
    """
    Project the tokens of a run, `(batch_size, num_frames, num_cells, token_size)`, to one sequence of hidden states,
    `(batch_size, 1 + num_frames * num_cells, hidden_size)`, with the CLS state in front. Optionally, replace masked
    tokens by a learned mask token.
    """

    # Switched by `gradient_checkpointing_enable`, as in the layers: the tokens of a long run in float32 take as much
    # memory as the states of four layers.
    gradient_checkpointing = False

    def __init__(self, config: TabletConfig, use_mask_token: bool = False):
        super().__init__()
        self.num_cells = config.num_cells
        self.token_size = config.token_size
        self.standardize_tokens = config.standardize_tokens
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size)) if use_mask_token else None
        self.feature_norm = build_norm(config, config.token_size) if config.use_feature_norm else nn.Identity()
        self.feature_dropout = nn.Dropout(config.feature_dropout_prob)
        self.projection = nn.Linear(config.token_size, config.hidden_size)
        self.input_norm = build_norm(config, config.hidden_size) if config.use_input_norm else nn.Identity()

    def check_geometry(self, input_values: torch.Tensor | None) -> None:
        """Raise a `ValueError` unless the tokens have the shape that the weights were made for."""
        shape = None if input_values is None else tuple(input_values.shape)
        if shape is None or len(shape) != 4 or shape[2:] != (self.num_cells, self.token_size) or not shape[1]:
            raise ValueError(
                f"`input_values` has the shape {shape}, but this model reads the tokens of at least one frame, (batch, "
                f"frames, {self.num_cells}, {self.token_size}); tokenize with the feature extractor saved with it."
            )

    def forward(
        self,
        input_values: torch.Tensor,
        frame_mask: torch.Tensor | None = None,
        bool_masked_pos: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if bool_masked_pos is not None and self.mask_token is None:
            raise ValueError("`bool_masked_pos` needs a mask token: `TabletModel(config, use_mask_token=True)`.")
        if bool_masked_pos is not None and bool_masked_pos.shape != input_values.shape[:3]:
            raise ValueError(
                f"`bool_masked_pos` has the shape {tuple(bool_masked_pos.shape)}, but it must have one entry for each "
                f"token: {tuple(input_values.shape[:3])} (batch, frames, cells)."
            )
        embed = self.embed_tokens
        if self.gradient_checkpointing and self.training:
            # Tokens need no gradient, and the reentrant kind gives weights none where no input needs one.
            embed = partial(checkpoint, self.embed_tokens, use_reentrant=False)
        embeddings = embed(input_values, frame_mask, bool_masked_pos)

        if bool_masked_pos is not None:
            mask = bool_masked_pos.flatten(1).unsqueeze(-1).bool()
            embeddings = torch.where(mask, self.mask_token.to(embeddings.dtype), embeddings)

        cls_states = self.cls_token.expand(embeddings.shape[0], -1, -1).to(embeddings.dtype)
        return self.input_norm(torch.cat((cls_states, embeddings), dim=1))

    def embed_tokens(
        self, input_values: torch.Tensor, frame_mask: torch.Tensor | None, bool_masked_pos: torch.Tensor | None
    ) -> torch.Tensor:
        """Hidden states of all tokens, `(batch_size, num_frames * num_cells, hidden_size)`."""
        if self.standardize_tokens:
            input_values, _, _ = standardize_over_frames(input_values, frame_mask, bool_masked_pos)
        # Token stores hold float16, whatever the dtype of the weights.
        input_values = input_values.to(self.projection.weight.dtype)
        if frame_mask is not None:
            # Attention gives padding a weight of zero, but zero times the NaN of an uninitialised frame is NaN.
            input_values = input_values.masked_fill(~frame_mask[:, :, None, None], 0)
        return self.projection(self.feature_dropout(self.feature_norm(input_values))).flatten(1, 2)


class TabletRotaryEmbedding(nn.Module):
    """
    Cosines and sines of the angles by which the queries and keys of each sequence position are rotated, of shape
    `(1 or batch_size, 1 + num_frames * num_cells, head_dim)` and always float32: half precision cannot count to the
    end of a run. The first half of a head is paired with the second half. The CLS state has position zero.
    """

    def __init__(self, config: TabletConfig):
        super().__init__()
        self.config = config

    def forward(
        self, num_frames: int, repetition_time: torch.Tensor | None, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.config.position_embedding_type == "rope":
            angles = self.sequence_angles(num_frames, device)
        else:
            angles = self.spatiotemporal_angles(num_frames, repetition_time, device)
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos(), angles.sin()

    def sequence_angles(self, num_frames: int, device: torch.device) -> torch.Tensor:
        """Angles `(1, positions, head_dim / 2)` of rotary positions as in text (arXiv 2104.09864)."""
        pairs = torch.arange(0, self.config.head_dim, 2, device=device, dtype=torch.float32)
        frequencies = self.config.rope_theta ** -(pairs / self.config.head_dim)
        positions = torch.arange(1 + num_frames * self.config.num_cells, device=device, dtype=torch.float32)
        return (positions[:, None] * frequencies).unsqueeze(0)

    def spatiotemporal_angles(
        self, num_frames: int, repetition_time: torch.Tensor, device: torch.device
    ) -> torch.Tensor:
        """
        Angles `(1 or batch_size, positions, head_dim / 2)` of the time in seconds and the cell coordinates i, j, k.

        A run has hundreds of frames but only `grid_size` cells along an axis, so each coordinate takes an eighth of
        the pairs and time takes the rest: 4, 4, 4 and 20 of 32. The periods of coordinates range from 4 cells, where
        neighbours are at right angles, to 4 grids, which never wrap.
        """
        config = self.config
        num_pairs = config.head_dim // 2
        pairs_per_axis = max(1, num_pairs // 8)
        time_frequencies = self.frequencies(
            config.rope_shortest_period, config.rope_longest_period, num_pairs - 3 * pairs_per_axis, device
        )
        cell_frequencies = self.frequencies(4.0, 4.0 * config.grid_size, pairs_per_axis, device)

        frames = torch.arange(num_frames, device=device, dtype=torch.float32)
        seconds = repetition_time.to(device=device, dtype=torch.float32).view(-1, 1) * frames
        along = torch.arange(config.grid_size, device=device, dtype=torch.float32)
        cells = torch.cartesian_prod(along, along, along).view(-1, 3)

        time_angles = seconds[:, :, None, None] * time_frequencies
        cell_angles = (cells[:, :, None] * cell_frequencies).flatten(1)
        time_angles = time_angles.expand(-1, -1, config.num_cells, -1)
        cell_angles = cell_angles.expand(seconds.shape[0], num_frames, -1, -1)
        angles = torch.cat((time_angles, cell_angles), dim=-1)
        return nn.functional.pad(angles.flatten(1, 2), (0, 0, 1, 0))

    @staticmethod
    def frequencies(shortest_period: float, longest_period: float, number: int, device: torch.device) -> torch.Tensor:
        """Angular frequencies (radians per unit) at the middles of `number` equal parts of a range of log periods."""
        middles = (torch.arange(number, device=device, dtype=torch.float32) + 0.5) / number
        return 2 * math.pi / (shortest_period * (longest_period / shortest_period) ** middles)


def rotate_half(hidden_states: torch.Tensor) -> torch.Tensor:
    """Rotate each pair `(x[d], x[d + head_dim / 2])` by a right angle."""
    first, second = hidden_states.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def apply_rotary_pos_emb(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Rotate queries and keys, `(batch_size, heads, positions, head_dim)`, by the angles of their positions. There may be
    queries of the first positions only.
    """
    cos = cos.unsqueeze(1).to(query.dtype)
    sin = sin.unsqueeze(1).to(query.dtype)
    num_queries = query.shape[2]
    query = query * cos[:, :, :num_queries] + rotate_half(query) * sin[:, :, :num_queries]
    return query, key * cos + rotate_half(key) * sin


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[torch.Tensor, torch.Tensor]:
    key = key.repeat_interleave(module.num_key_value_groups, dim=1)
    value = value.repeat_interleave(module.num_key_value_groups, dim=1)

    attn_weights = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        attn_weights = attn_weights + attention_mask
    attn_weights = nn.functional.softmax(attn_weights, dim=-1, dtype=torch.float32).to(query.dtype)
    attn_weights = nn.functional.dropout(attn_weights, p=dropout, training=module.training)

    attn_output = torch.matmul(attn_weights, value).transpose(1, 2).contiguous()
    return attn_output, attn_weights


class TabletAttention(nn.Module):
    """Attention of every position to all positions, in which groups of query heads share a key and a value head."""

    def __init__(self, config: TabletConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.attention_dropout = config.attention_probs_dropout_prob
        self.scaling = self.head_dim**-0.5
        self.is_causal = False

        self.q_proj = nn.Linear(config.hidden_size, config.num_attention_heads * self.head_dim)
        self.k_proj = nn.Linear(config.hidden_size, config.num_key_value_heads * self.head_dim)
        self.v_proj = nn.Linear(config.hidden_size, config.num_key_value_heads * self.head_dim)
        self.o_proj = nn.Linear(config.num_attention_heads * self.head_dim, config.hidden_size)

        self.q_norm = build_norm(config, self.head_dim, config.qk_norm_type) if config.qk_norm else nn.Identity()
        self.k_norm = build_norm(config, self.head_dim, config.qk_norm_type) if config.qk_norm else nn.Identity()

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        num_queries: int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend to all positions from the first `num_queries`, by default from all."""
        device_type = hidden_states.device.type
        if torch.is_autocast_enabled(device_type):
            # Otherwise autocast makes and keeps a half-precision copy for each of the three projections.
            hidden_states = hidden_states.to(torch.get_autocast_dtype(device_type))

        query_inputs = hidden_states[:, :num_queries]
        heads = (-1, self.head_dim)
        query_states = self.q_norm(self.q_proj(query_inputs).unflatten(-1, heads)).transpose(1, 2)
        key_states = self.k_norm(self.k_proj(hidden_states).unflatten(-1, heads)).transpose(1, 2)
        value_states = self.v_proj(hidden_states).unflatten(-1, heads).transpose(1, 2)

        if position_embeddings is not None:
            query_states, key_states = apply_rotary_pos_emb(query_states, key_states, *position_embeddings)

        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        attn_output, attn_weights = attention_interface(
            self,
            query_states,
            key_states,
            value_states,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )

        return self.o_proj(attn_output.flatten(-2).contiguous()), attn_weights


class TabletMLP(nn.Module):
    def __init__(self, config: TabletConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.activation_fn = ACT2FN[config.hidden_act]
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.dropout(self.activation_fn(self.fc1(hidden_states))))


class TabletGatedMLP(nn.Module):
    """SwiGLU (arXiv 2002.05202)."""

    def __init__(self, config: TabletConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        gate = nn.functional.silu(self.gate_proj(hidden_states))
        return self.down_proj(self.dropout(gate * self.up_proj(hidden_states)))


class TabletLayer(GradientCheckpointingLayer):
    def __init__(self, config: TabletConfig):
        super().__init__()
        self.norm_before = build_norm(config, config.hidden_size)
        self.attention = TabletAttention(config)
        self.norm_after = build_norm(config, config.hidden_size)
        self.mlp = TabletGatedMLP(config) if config.mlp_type == "swiglu" else TabletMLP(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        num_queries: int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """States of the first `num_queries` positions, by default of all; they attend to all positions."""
        residual = hidden_states[:, :num_queries]
        hidden_states = self.norm_before(hidden_states)
        hidden_states, _ = self.attention(hidden_states, attention_mask, position_embeddings, num_queries, **kwargs)
        hidden_states = residual + self.dropout(hidden_states)

        residual = hidden_states
        hidden_states = self.norm_after(hidden_states)
        hidden_states = self.mlp(hidden_states)
        return residual + self.dropout(hidden_states)


class TabletPreTrainedModel(PreTrainedModel):
    """Weight initialisation, loading and saving, and what the library may do with these models."""

    config: TabletConfig
    config_class = TabletConfig
    base_model_prefix = "tablet"
    main_input_name = "input_values"
    input_modalities = ("time",)
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["TabletEmbeddings", "TabletLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs: ClassVar[dict[str, Any]] = {"hidden_states": TabletLayer, "attentions": TabletAttention}
    # The whole module: FSDP2 shards each of `_no_split_modules` and this one, and none may be inside another.
    _input_embed_layer = "embeddings"

    @classmethod
    def from_pretrained(cls, *model_args, **kwargs):
        """
        As everywhere in the library, and also for checkpoints in the layout of the code released with arXiv 2604.03619,
        such as `beotborry/TABLeT_pretrained`. Weights are read from safetensors, pickled ones only with
        `use_safetensors=False`.
        """
        if kwargs.get("use_safetensors") is None:
            kwargs["use_safetensors"] = True
        kwargs.setdefault("key_mapping", RELEASED_WEIGHTS)
        return super().from_pretrained(*model_args, **kwargs)

    def save_pretrained(self, *args, save_original_format: bool = False, **kwargs):
        """As everywhere in the library, but released weights are saved under the names of this model."""
        super().save_pretrained(*args, save_original_format=save_original_format, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, TabletEmbeddings):
            init.trunc_normal_(module.cls_token, mean=0.0, std=self.config.initializer_range)
            if module.mask_token is not None:
                init.trunc_normal_(module.mask_token, mean=0.0, std=self.config.initializer_range)


def padded_frames_mask(attention_mask: torch.Tensor | None, input_values: torch.Tensor) -> torch.Tensor | None:
    """
    Bool mask `(batch_size, num_frames)` of the frames that are not padding, or `None` where no frame is: without a mask
    attention runs on the cuDNN and flash kernels, with one it is several times slower. Reading the values waits for the
    device, which a collator avoids by leaving `attention_mask` out of batches without padding.
    """
    if attention_mask is None:
        return None
    if attention_mask.shape != input_values.shape[:2]:
        raise ValueError(
            f"`attention_mask` has the shape {tuple(attention_mask.shape)}, but it must have one entry for each frame: "
            f"{tuple(input_values.shape[:2])} (batch, frames)."
        )
    frame_mask = attention_mask.to(device=input_values.device, dtype=torch.bool)
    if not is_tracing(frame_mask) and attention_mask.all():
        return None
    return frame_mask


def mean_over_frames(states: torch.Tensor, frame_mask: torch.Tensor | None) -> torch.Tensor:
    """Mean of states `(batch_size, num_frames, num_cells, hidden_size)` over the frames that are not padding."""
    if frame_mask is None:
        return states.mean(dim=1)
    frame_mask = frame_mask[:, :, None, None]
    return states.masked_fill(~frame_mask, 0).sum(dim=1) / frame_mask.sum(dim=1).clamp(min=1)


class TabletModel(TabletPreTrainedModel):
    """
    The bare TABLeT encoder.

    Args:
        config (`TabletConfig`): the network.
        use_mask_token (`bool`, defaults to `False`): whether to learn a mask token for `bool_masked_pos`.
    """

    # Heads in the checkpoint of a pre-trained or fine-tuned model.
    _keys_to_ignore_on_load_unexpected = [r"mask_token", r"^decoder\.", r"^classifier\."]  # noqa: RUF012

    def __init__(self, config: TabletConfig, use_mask_token: bool = False):
        # `from_pretrained` sets its keyword arguments one by one on a finished config, which does not validate them.
        config.validate()
        super().__init__(config)
        self.embeddings = TabletEmbeddings(config, use_mask_token=use_mask_token)
        self.rotary_embedding = TabletRotaryEmbedding(config) if config.position_embedding_type != "none" else None
        self.layers = nn.ModuleList([TabletLayer(config) for _ in range(config.num_hidden_layers)])
        self.output_norm = build_norm(config, config.hidden_size) if config.use_output_norm else nn.Identity()
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        input_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        repetition_time: torch.Tensor | float | None = None,
        bool_masked_pos: torch.Tensor | None = None,
        cls_only: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        r"""
        Args:
            input_values (`torch.Tensor` of shape `(batch_size, num_frames, num_cells, token_size)`, floating):
                Tokens of windows of runs.
            attention_mask (`torch.Tensor` of shape `(batch_size, num_frames)`, *optional*):
                0 for padded frames, 1 for others. Best left out where nothing is padded.
            repetition_time (`torch.Tensor` of shape `(batch_size,)`, or one number for all runs, *optional*):
                Seconds between frames, for `"spatiotemporal_rope"`; 1 s by default.
            bool_masked_pos (`torch.Tensor` of shape `(batch_size, num_frames, num_cells)`, *optional*):
                1 for tokens to replace by the mask token.
            cls_only (`bool`, defaults to `False`):
                Compute of the last layer the CLS state alone, for `pooling_type="cls"`: of 12 layers that saves nearly
                one. `last_hidden_state` then has the shape `(batch_size, 1, hidden_size)`.

        Returns:
            `last_hidden_state` of shape `(batch_size, 1 + num_frames * num_cells, hidden_size)`, the CLS state first,
            then frame by frame, and `pooler_output` of shape `(batch_size, pooled_size)`.

        Raises:
            `ValueError`: the inputs do not have these shapes, or a repetition time on the CPU is not over 0.
        """
        self.embeddings.check_geometry(input_values)
        batch_size, num_frames = input_values.shape[:2]
        frame_mask = padded_frames_mask(attention_mask, input_values)
        if cls_only and self.config.pooling_type != "cls":
            raise ValueError('`cls_only` needs `pooling_type="cls"`: other heads read the states of all tokens.')

        hidden_states = self.embeddings(input_values, frame_mask, bool_masked_pos)
        attention_mask = None
        if frame_mask is not None:  # every cell of a frame and, in front, the CLS state
            mask = nn.functional.pad(frame_mask.repeat_interleave(self.config.num_cells, dim=1), (1, 0), value=True)
            attention_mask = create_bidirectional_mask(self.config, hidden_states, mask)
        position_embeddings = None
        if self.rotary_embedding is not None:
            repetition_time = self.check_repetition_time(repetition_time, batch_size)
            position_embeddings = self.rotary_embedding(num_frames, repetition_time, hidden_states.device)

        for layer in self.layers[:-1]:
            hidden_states = layer(hidden_states, attention_mask, position_embeddings, **kwargs)
        num_queries = 1 if cls_only else None
        if cls_only and isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 4:
            attention_mask = attention_mask[:, :, :1]
        hidden_states = self.layers[-1](hidden_states, attention_mask, position_embeddings, num_queries, **kwargs)

        hidden_states = self.output_norm(hidden_states)
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden_states, pooler_output=self.pool(hidden_states, frame_mask)
        )

    def pool(self, hidden_states: torch.Tensor, frame_mask: torch.Tensor | None) -> torch.Tensor:
        """What a head reads, `(batch_size, pooled_size)`, by `config.pooling_type`."""
        if self.config.pooling_type == "cls":
            return hidden_states[:, 0]
        states = hidden_states[:, 1:].unflatten(1, (-1, self.config.num_cells))
        if self.config.pooling_type == "mean":
            return mean_over_frames(states, frame_mask).mean(dim=1)
        states = states.float()
        deviations = states - mean_over_frames(states, frame_mask).unsqueeze(1)
        variance = mean_over_frames(deviations.square(), frame_mask)
        # The variance of a single frame is zero, where the square root has no gradient.
        return (variance + 1e-6).sqrt().flatten(1).to(hidden_states.dtype)

    def check_repetition_time(self, seconds: torch.Tensor | float | None, batch_size: int) -> torch.Tensor | None:
        """Seconds between frames as a tensor, one number or one per run; `None` where not needed."""
        if self.config.position_embedding_type != "spatiotemporal_rope":
            return None
        if seconds is None:
            if not is_tracing():
                logger.warning_once("No `repetition_time` was given (seconds between frames), so 1 s is assumed.")
            seconds = 1.0
        seconds = torch.as_tensor(seconds, dtype=torch.float32)
        if seconds.ndim and seconds.numel() != batch_size:
            raise ValueError(
                f"`repetition_time` has the shape {tuple(seconds.shape)}, but it must be one number, or one "
                f"for each of {batch_size} runs."
            )
        # On a GPU, reading the values would wait for it.
        is_readable = seconds.device.type == "cpu" and not is_tracing(seconds)
        if is_readable and not (seconds.isfinite() & (seconds > 0)).all():
            raise ValueError(f"`repetition_time` must be finite and over 0 s, but it is {seconds.tolist()}.")
        return seconds


def draw_token_mask(
    config: TabletConfig, frame_mask: torch.Tensor, generator: torch.Generator | None = None
) -> torch.Tensor:
    """
    Draw the tokens to hide, independently for each run.

    Args:
        config (`TabletConfig`): `mask_ratio` of the valid tokens are hidden (rounded, at least one choice) by
            `mask_strategy`: single tokens (`"random"`), whole frames (`"frame"`), or cells in all frames (`"tube"`).
        frame_mask (`torch.BoolTensor` of shape `(batch_size, num_frames)`): the frames that are not padding.
        generator (`torch.Generator`, *optional*): torch's default generator of the device if not given.

    Returns:
        `torch.BoolTensor` of shape `(batch_size, num_frames, num_cells)`, true for tokens to hide; never in padding.
    """
    token_is_valid = frame_mask.unsqueeze(-1).expand(-1, -1, config.num_cells)
    if config.mask_strategy == "frame":
        candidates = frame_mask.unsqueeze(-1)
    elif config.mask_strategy == "tube":
        candidates = frame_mask.any(dim=1)[:, None, None].expand(-1, 1, config.num_cells)
    else:
        candidates = token_is_valid
    valid = candidates.flatten(1)
    number = (valid.sum(dim=1, keepdim=True) * config.mask_ratio).round().clamp(min=1)
    noise = torch.rand(valid.shape, generator=generator, device=valid.device).masked_fill(~valid, 2.0)
    rank = noise.argsort(dim=1).argsort(dim=1)
    return (rank < number).view(candidates.shape) & token_is_valid


class TabletForMaskedTokenModeling(TabletPreTrainedModel):
    """
    TABLeT that predicts hidden tokens from the others: self-supervised pre-training.

    Args:
        config (`TabletConfig`): the network and, in `mask_ratio`, `mask_strategy` and `norm_target`, the objective.
    """

    # The loss is a mean over the batch; because of `**kwargs` in `forward`, `Trainer` would otherwise assume that it is
    # normalised over all accumulated batches.
    accepts_loss_kwargs = False

    def __init__(self, config: TabletConfig):
        super().__init__(config)
        self.tablet = TabletModel(config, use_mask_token=True)
        self.decoder = nn.Linear(config.hidden_size, config.token_size)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        repetition_time: torch.Tensor | float | None = None,
        bool_masked_pos: torch.Tensor | None = None,
        return_loss: bool = True,
        **kwargs: Unpack[TransformersKwargs],
    ) -> TabletMaskedTokenModelingOutput:
        r"""
        Args:
            input_values, attention_mask, repetition_time: as in [`TabletModel.forward`].
            bool_masked_pos (`torch.Tensor` of shape `(batch_size, num_frames, num_cells)`, *optional*):
                1 for tokens to hide; drawn by [`draw_token_mask`] where it is not given.
            return_loss (`bool`, defaults to `True`):
                Whether to compute the loss. (The name by which `Trainer` knows models that need no labels.)

        Raises:
            `ValueError`: the inputs do not have these shapes.
        """
        self.tablet.embeddings.check_geometry(input_values)
        frame_mask = padded_frames_mask(attention_mask, input_values)
        if bool_masked_pos is None:
            all_frames = torch.ones(input_values.shape[:2], dtype=torch.bool, device=input_values.device)
            bool_masked_pos = draw_token_mask(self.config, all_frames if frame_mask is None else frame_mask)

        outputs = self.tablet(input_values, frame_mask, repetition_time, bool_masked_pos, **kwargs)
        reconstruction = self.decoder(outputs.last_hidden_state[:, 1:]).unflatten(1, input_values.shape[1:3])

        mask = bool_masked_pos.to(device=input_values.device, dtype=torch.float32)
        return TabletMaskedTokenModelingOutput(
            loss=self.masked_loss(reconstruction, input_values, mask, frame_mask) if return_loss else None,
            reconstruction=reconstruction,
            mask=mask,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def masked_loss(
        self, reconstruction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor, frame_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Mean squared error in float32 over hidden tokens that are not padding."""
        target = target.float()
        if self.config.standardize_tokens:
            target, _, _ = standardize_over_frames(target, frame_mask, mask)
        if frame_mask is not None:
            target = target.masked_fill(~frame_mask[:, :, None, None], 0)
            mask = mask * frame_mask.unsqueeze(-1)
        if self.config.norm_target:
            target = nn.functional.layer_norm(target, target.shape[-1:], eps=1e-6)
        error = (reconstruction.float() - target).square().mean(dim=-1)
        return (error * mask).sum() / mask.sum().clamp(min=1)


class TabletForSequenceClassification(TabletPreTrainedModel):
    """
    TABLeT with a linear layer on its pooled states, see `config.pooling_type`: classification and regression of runs.

    Args:
        config (`TabletConfig`): the network and, in `problem_type` and `num_labels`, the task.
    """

    # As in `TabletForMaskedTokenModeling`.
    accepts_loss_kwargs = False
    # The head of a pre-trained model.
    _keys_to_ignore_on_load_unexpected = [r"mask_token", r"^decoder\."]  # noqa: RUF012  (the library's way)

    def __init__(self, config: TabletConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.tablet = TabletModel(config)
        self.classifier = nn.Linear(config.pooled_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        repetition_time: torch.Tensor | float | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutput:
        r"""
        Args:
            input_values, attention_mask, repetition_time: as in [`TabletModel.forward`].
            labels (`torch.Tensor`, *optional*):
                By `config.problem_type`: class indices `(batch_size,)`; 0 or 1 for each label `(batch_size,
                num_labels)`; or targets in their own unit `(batch_size, num_labels)`. With one label the last
                dimension may be left out.

        Returns:
            `logits` of shape `(batch_size, num_labels)`; of a regression in the target's own unit and always float32.
            `loss` where labels are given, in float32; of a regression that of standardised targets.

        Raises:
            `ValueError`: inputs or labels do not have these shapes, or the config has no `problem_type` for labels.
        """
        cls_only = self.can_leave_out_states(**kwargs)
        outputs = self.tablet(input_values, attention_mask, repetition_time, cls_only=cls_only, **kwargs)
        logits = self.classifier(outputs.pooler_output)

        loss = None if labels is None else self.classification_loss(logits, labels.to(logits.device))
        if self.config.problem_type == "regression":
            logits = logits.float()
        if self.config.target_mean is not None:
            logits = logits * logits.new_tensor(self.config.target_std) + logits.new_tensor(self.config.target_mean)

        return SequenceClassifierOutput(loss, logits, outputs.hidden_states, outputs.attentions)

    def can_leave_out_states(self, **kwargs: Any) -> bool:
        """Whether only the CLS state of the last layer is needed."""
        if self.config.pooling_type != "cls" or self.config._attn_implementation == "flex_attention":
            return False  # the masks of flex_attention cannot be cut
        names = ("output_hidden_states", "output_attentions")
        return not any(kwargs.get(name, getattr(self.config, name)) for name in names)

    def classification_loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The mean loss of a batch in float32, from logits `(batch_size, num_labels)`; see `forward` for labels."""
        config, logits = self.config, logits.float()
        if config.problem_type is None:
            raise ValueError("A loss needs `config.problem_type`, which is never guessed; see `TabletConfig`.")
        if config.problem_type == "single_label_classification":
            weights = None if config.class_weights is None else logits.new_tensor(config.class_weights)
            return nn.functional.cross_entropy(logits, labels.view(-1).long(), weight=weights)

        labels = labels.float()
        if config.num_labels == 1 and labels.ndim == 1:
            labels = labels.unsqueeze(-1)
        if labels.shape != logits.shape:  # the loss would broadcast them
            raise ValueError(f"`labels` has the shape {tuple(labels.shape)}, but it must be {tuple(logits.shape)}.")
        if config.problem_type == "multi_label_classification":
            positive_weight = None if config.positive_weight is None else logits.new_tensor(config.positive_weight)
            return nn.functional.binary_cross_entropy_with_logits(logits, labels, pos_weight=positive_weight)
        if config.target_mean is not None:
            labels = (labels - logits.new_tensor(config.target_mean)) / logits.new_tensor(config.target_std)
        loss = nn.functional.l1_loss if config.regression_loss == "l1" else nn.functional.mse_loss
        return loss(logits, labels)


__all__ = [
    "TabletForMaskedTokenModeling",
    "TabletForSequenceClassification",
    "TabletModel",
    "TabletPreTrainedModel",
]
