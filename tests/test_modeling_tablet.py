"""The TABLeT models: shapes, positions, padding, objectives, loading, training."""

import copy
import math
import re

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch.nn import functional
from torch.nn.attention.flex_attention import flex_attention as torch_flex_attention
from transformers import Trainer, TrainingArguments, masking_utils
from transformers.integrations import flex_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tablet_hf.configuration_tablet import TabletConfig
from tablet_hf.modeling_tablet import (
    TabletForMaskedTokenModeling,
    TabletForSequenceClassification,
    TabletModel,
    TabletRotaryEmbedding,
    draw_token_mask,
)

CELLS, TOKEN_SIZE = 8, 12
PADDED = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
POSITION_TYPES = ("none", "rope", "spatiotemporal_rope")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def small_config(**settings) -> TabletConfig:
    sizes = {"token_size": TOKEN_SIZE, "grid_size": 2, "hidden_size": 32, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48, "initializer_range": 0.2}
    return TabletConfig(**(sizes | settings))


def binary_config(**settings) -> TabletConfig:
    return small_config(num_labels=1, problem_type="multi_label_classification", **settings)


def regression_config(**settings) -> TabletConfig:
    defaults = {"num_labels": 1, "problem_type": "regression", "target_mean": [50.0], "target_std": [10.0]}
    return small_config(**(defaults | settings))


def softmax_config(**settings) -> TabletConfig:
    return small_config(problem_type="single_label_classification", **settings)


def tokens(batch_size: int = 2, num_frames: int = 5) -> torch.Tensor:
    return torch.randn(batch_size, num_frames, CELLS, TOKEN_SIZE)


def seconds(*repetition_times: float) -> torch.Tensor:
    return torch.tensor(repetition_times)


# --- size and shape


def test_the_published_network_has_129_million_parameters():
    with torch.device("meta"):
        model = TabletForSequenceClassification(TabletConfig(num_labels=1, problem_type="regression"))

    assert sum(parameter.numel() for parameter in model.parameters()) == 129_515_393
    encoder = sum(parameter.numel() for parameter in model.tablet.parameters())
    assert f"{encoder / 1e6:.1f} million parameters" in TabletConfig.__doc__


@pytest.mark.parametrize("model_class", [TabletModel, TabletForMaskedTokenModeling, TabletForSequenceClassification])
@pytest.mark.parametrize(
    "shape", [(2, 5, 27, TOKEN_SIZE), (2, 5, CELLS, 96), (5, CELLS, TOKEN_SIZE), (2, 0, CELLS, TOKEN_SIZE)]
)
def test_tokens_of_another_geometry_are_refused(model_class, shape):
    with pytest.raises(ValueError, match=r"input_values.*\(batch, frames, 8, 12\)") as caught:
        model_class(small_config())(torch.zeros(shape))
    assert str(shape) in str(caught.value)


@pytest.mark.parametrize(
    ("argument", "shape"),
    [
        ("attention_mask", (2, 4)),
        ("repetition_time", (3,)),
        ("bool_masked_pos", (2, 5 * CELLS)),
        ("bool_masked_pos", (1, 5, CELLS)),  # would be broadcast
    ],
)
def test_arguments_of_another_shape_are_refused(argument, shape):
    model = TabletForMaskedTokenModeling(small_config())
    with pytest.raises(ValueError, match=rf"`{argument}`.*{re.escape(str(shape))}"):
        model(tokens(), **{argument: torch.ones(shape)})
    with pytest.raises(ValueError, match="use_mask_token"):
        TabletModel(small_config())(tokens(), bool_masked_pos=torch.ones(2, 5, CELLS))


@pytest.mark.parametrize("attention_mask", [None, PADDED])
@pytest.mark.parametrize("num_attention_heads", [4, 6])
def test_eager_and_flex_attention_agree(num_attention_heads, attention_mask, monkeypatch):
    """Uncompiled, which takes a second and not a minute; six heads the library groups by itself, four torch does."""
    monkeypatch.setattr(flex_attention.WrappedFlexAttention, "__call__", lambda self: torch_flex_attention)
    create_block_mask = masking_utils.create_block_mask
    monkeypatch.setattr(
        masking_utils, "create_block_mask", lambda **arguments: create_block_mask(**arguments | {"_compile": False})
    )
    sizes = {"hidden_size": 16 * num_attention_heads, "num_attention_heads": num_attention_heads}
    eager = TabletModel(small_config(attn_implementation="eager", **sizes)).eval()
    flex = TabletModel(small_config(attn_implementation="flex_attention", **sizes)).eval()
    flex.load_state_dict(eager.state_dict())
    inputs = {"input_values": tokens(), "attention_mask": attention_mask, "repetition_time": seconds(2, 0.72)}

    with torch.no_grad():
        expected, found = eager(**inputs).last_hidden_state, flex(**inputs).last_hidden_state
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("attention_mask", [None, PADDED])
def test_flash_attention_gets_the_arguments_that_it_takes(attention_mask, monkeypatch):
    """Instead of the kernel, which needs a GPU: attention run by run, over the positions in its mask."""

    def stand_in(module, query, key, value, attention_mask, scaling, dropout, **kwargs):
        assert (query.shape[1], key.shape[1], value.shape[1]) == (4, 2, 2)
        assert not module.is_causal
        assert not kwargs.get("is_causal")
        is_there = torch.ones(2, query.shape[2]) if attention_mask is None else attention_mask
        output = torch.zeros_like(query)
        for run, positions in enumerate(is_there.bool()):
            grouped = [states[run, :, positions] for states in (query, key, value)]
            output[run, :, positions] = functional.scaled_dot_product_attention(
                *grouped, dropout_p=dropout, scale=scaling, enable_gqa=True
            )
        return output.transpose(1, 2), None

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "flash_attention_2", stand_in)
    model = TabletModel(small_config(attn_implementation="eager")).eval()
    inputs = {"input_values": tokens(), "attention_mask": attention_mask, "repetition_time": seconds(2, 0.72)}
    expected = model(**inputs).last_hidden_state
    model.config._attn_implementation = "flash_attention_2"
    found = model(**inputs).last_hidden_state
    for run, frames in enumerate((5, 5 if attention_mask is None else 3)):
        positions = 1 + frames * CELLS
        torch.testing.assert_close(found[run, :positions], expected[run, :positions])


def test_autocast_runs_attention_in_half_precision():
    model, inputs = TabletModel(small_config()).eval(), tokens()
    seen = []
    model.layers[0].attention.o_proj.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(inputs).last_hidden_state

    assert seen == [torch.bfloat16]
    assert functional.cosine_similarity(half.float(), model(inputs).last_hidden_state, dim=-1).min() > 0.99


# --- positions


def angles_by_hand(config: TabletConfig, position: int, repetition_time: float) -> list[float]:
    """Angles of one sequence position, from the words of the specification."""
    half = config.head_dim // 2
    if config.position_embedding_type == "rope":
        return [position * config.rope_theta ** (-2 * n / config.head_dim) for n in range(half)]
    if position == 0:
        return [0.0] * half

    def angular_frequencies(number, shortest, longest):
        steps = [(n + 0.5) / number for n in range(number)]
        periods = [math.exp(math.log(shortest) + step * math.log(longest / shortest)) for step in steps]
        return [2 * math.pi / period for period in periods]

    frame, cell = divmod(position - 1, config.num_cells)
    per_axis = max(1, half // 8)
    angles = [frame * repetition_time * w for w in angular_frequencies(half - 3 * per_axis, 6, 3600)]
    for coordinate in map(int, np.unravel_index(cell, (config.grid_size,) * 3)):
        angles += [coordinate * w for w in angular_frequencies(per_axis, 4, 4 * config.grid_size)]
    return angles


@pytest.mark.parametrize("position_embedding_type", ["rope", "spatiotemporal_rope"])
@pytest.mark.parametrize(("hidden_size", "grid_size"), [(32, 2), (256, 3)])
def test_angles_are_those_of_the_specification(position_embedding_type, hidden_size, grid_size):
    config = small_config(position_embedding_type=position_embedding_type, hidden_size=hidden_size, grid_size=grid_size)
    cos, sin = TabletRotaryEmbedding(config)(7, seconds(0.72, 2.5), torch.device("cpu"))
    cos, sin = cos.expand(2, -1, -1), sin.expand(2, -1, -1)

    assert cos.shape == (2, 1 + 7 * config.num_cells, config.head_dim)
    for run, repetition_time in enumerate((0.72, 2.5)):
        for position in (0, 1, 2, config.num_cells, config.num_cells + 1, 7 * config.num_cells):
            angles = torch.tensor(angles_by_hand(config, position, repetition_time) * 2)
            torch.testing.assert_close(cos[run, position], angles.cos(), atol=2e-5, rtol=0)
            torch.testing.assert_close(sin[run, position], angles.sin(), atol=2e-5, rtol=0)


def test_a_missing_repetition_time_is_one_second():
    model, inputs = TabletModel(small_config()).eval(), tokens()
    torch.testing.assert_close(model(inputs).pooler_output, model(inputs, repetition_time=seconds(1, 1)).pooler_output)


@pytest.mark.parametrize("position_embedding_type", POSITION_TYPES)
def test_only_a_model_without_positions_does_not_see_the_order_of_frames(position_embedding_type):
    model = TabletModel(small_config(position_embedding_type=position_embedding_type)).eval()
    inputs, order = tokens(num_frames=6), torch.tensor([4, 0, 5, 2, 1, 3])

    straight = model(inputs, repetition_time=seconds(2, 2)).pooler_output
    permuted = model(inputs[:, order], repetition_time=seconds(2, 2)).pooler_output
    unchanged = torch.allclose(straight, permuted, atol=1e-5)
    assert unchanged == (position_embedding_type == "none")


@pytest.mark.parametrize("repetition_time", [0.72, torch.tensor(0.72), torch.tensor([0.72, 0.72], dtype=torch.float64)])
def test_one_repetition_time_is_that_of_every_run(repetition_time):
    model, inputs = TabletModel(small_config()).eval(), tokens()

    expected = model(inputs, repetition_time=seconds(0.72, 0.72)).pooler_output
    torch.testing.assert_close(model(inputs, repetition_time=repetition_time).pooler_output, expected)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(inputs, repetition_time=repetition_time).pooler_output, expected)


@pytest.mark.parametrize("model_class", [TabletModel, TabletForMaskedTokenModeling, TabletForSequenceClassification])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 0.0, -2.0])
def test_a_repetition_time_that_is_no_duration_is_refused(wrong, model_class):
    model = model_class(small_config())

    for repetition_time in (wrong, torch.tensor(wrong), seconds(2, wrong)):
        with pytest.raises(ValueError, match=f"`repetition_time`.*{wrong}"):
            model(tokens(), repetition_time=repetition_time)


# --- padding


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("position_embedding_type", POSITION_TYPES)
@pytest.mark.parametrize("garbage", [7.0, float("nan")])
def test_padded_frames_never_influence_valid_outputs(attn_implementation, position_embedding_type, garbage):
    config = small_config(attn_implementation=attn_implementation, position_embedding_type=position_embedding_type)
    model = TabletForMaskedTokenModeling(config).eval()
    short, hidden = tokens(num_frames=3), torch.rand(2, 5, CELLS) > 0.5
    padded = torch.cat((short, torch.full((2, 2, CELLS, TOKEN_SIZE), garbage)), dim=1)
    mask = torch.tensor([[1, 1, 1, 0, 0]] * 2)

    expected = model(short, bool_masked_pos=hidden[:, :3], repetition_time=seconds(2, 1))
    found = model(padded, attention_mask=mask, bool_masked_pos=hidden, repetition_time=seconds(2, 1))
    torch.testing.assert_close(found.reconstruction[:, :3], expected.reconstruction, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.loss, expected.loss, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
def test_no_padding_mask_is_built_when_nothing_is_padded(attn_implementation):
    masks = []
    model, inputs = TabletModel(small_config(attn_implementation=attn_implementation)).eval(), tokens()
    model.layers[0].attention.register_forward_pre_hook(lambda _, arguments: masks.append(arguments[1]))
    for attention_mask in (None, torch.ones(2, 5), torch.ones(2, 5, dtype=torch.bool), PADDED):
        model(inputs, attention_mask=attention_mask)
    assert masks[:3] == [None] * 3
    assert masks[3] is not None


@pytest.mark.parametrize("attention_mask", [None, PADDED])
def test_forward_is_one_graph(attention_mask):
    torch.compiler.reset()
    model, inputs = TabletForSequenceClassification(binary_config()).eval(), tokens()
    arguments = {"attention_mask": attention_mask, "repetition_time": seconds(2, 1), "labels": torch.tensor([0, 1])}
    compiled = torch.compile(model, fullgraph=True, backend="eager")

    torch.testing.assert_close(compiled(inputs, **arguments).loss, model(inputs, **arguments).loss)


# --- dropout and checkpointing


def test_no_dropout_is_left_on_in_evaluation():
    dropouts = {"attention_probs_dropout_prob": 0.5, "hidden_dropout_prob": 0.5, "feature_dropout_prob": 0.5}
    for name, probability in dropouts.items():
        model, inputs = TabletModel(small_config(**{name: probability})), tokens()
        plain = TabletModel(small_config()).eval()
        plain.load_state_dict(model.state_dict())

        assert not torch.allclose(model.train()(inputs)[0], model(inputs)[0]), name
        torch.testing.assert_close(model.eval()(inputs)[0], plain(inputs)[0])


@pytest.mark.filterwarnings("error::FutureWarning")
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_gives_the_same_gradients(use_reentrant):
    model, inputs, labels = TabletForSequenceClassification(binary_config()), tokens(), torch.tensor([0, 1])
    model(inputs, labels=labels).loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    older_name = "gradient_checkpointing_enable"  # of the oldest transformers that we allow; warned of by newer ones
    enable = getattr(model, "activation_checkpointing_enable", None) or getattr(model, older_name)
    enable({"use_reentrant": use_reentrant})
    model.train()(inputs, labels=labels).loss.backward()

    assert all(module.gradient_checkpointing for module in model.modules() if hasattr(module, "gradient_checkpointing"))
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], msg=name)


# --- masked token modeling


@pytest.mark.parametrize("mask_ratio", [0.25, 0.5, 0.9])
@pytest.mark.parametrize("mask_strategy", ["random", "frame", "tube"])
def test_masks_hide_their_share_of_valid_tokens(mask_strategy, mask_ratio):
    config = small_config(mask_strategy=mask_strategy, mask_ratio=mask_ratio)
    frame_mask = torch.tensor([[1] * 12, [1] * 4 + [0] * 8], dtype=torch.bool)
    mask = draw_token_mask(config, frame_mask)

    assert mask.shape == (2, 12, CELLS)
    assert not mask[1, 4:].any()
    for run, num_frames in enumerate((12, 4)):
        hidden = mask[run, :num_frames]
        if mask_strategy == "frame":
            assert torch.equal(hidden, hidden[:, :1].expand_as(hidden))
            assert hidden[:, 0].sum() == max(1, round(num_frames * mask_ratio))
        elif mask_strategy == "tube":
            assert torch.equal(hidden, hidden[:1].expand_as(hidden))
            assert hidden[0].sum() == max(1, round(CELLS * mask_ratio))
        else:
            assert hidden.sum() == round(num_frames * CELLS * mask_ratio)


def test_masks_differ_between_draws_and_follow_the_seed():
    config, frame_mask = small_config(), torch.ones(2, 6, dtype=torch.bool)
    first, second = draw_token_mask(config, frame_mask), draw_token_mask(config, frame_mask)
    torch.manual_seed(0)

    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])
    assert torch.equal(first, draw_token_mask(config, frame_mask))


def test_hidden_tokens_are_not_seen():
    model, inputs = TabletForMaskedTokenModeling(small_config()).eval(), tokens()
    mask = torch.zeros(2, 5, CELLS)
    mask[:, 2, 3] = 1
    other = inputs.clone()
    other[:, 2, 3] = 5.0

    first = model(inputs, bool_masked_pos=mask).reconstruction
    torch.testing.assert_close(first, model(other, bool_masked_pos=mask).reconstruction)


@pytest.mark.parametrize("norm_target", [False, True])
def test_the_masked_loss_is_the_mean_over_hidden_valid_tokens(norm_target):
    model, inputs = TabletForMaskedTokenModeling(small_config(norm_target=norm_target)).eval(), tokens()
    hidden = torch.rand(2, 5, CELLS) > 0.5
    outputs = model(inputs, attention_mask=PADDED, bool_masked_pos=hidden)

    errors = []
    for run, frame, cell in hidden.nonzero().tolist():
        if PADDED[run, frame]:
            target = inputs[run, frame, cell]
            if norm_target:
                target = (target - target.mean()) / target.std(correction=0)
            errors.append((outputs.reconstruction[run, frame, cell] - target).square().mean())
    torch.testing.assert_close(outputs.loss, torch.stack(errors).mean(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(outputs.mask, hidden.float())


def test_the_masked_loss_is_float32_in_half_precision():
    model = TabletForMaskedTokenModeling(small_config()).to(torch.bfloat16)

    assert model(tokens()).loss.dtype == torch.float32
    assert model(tokens(), return_loss=False).loss is None


# --- classification and regression


def test_one_logit_is_a_weighted_binary_cross_entropy():
    model, labels = TabletForSequenceClassification(binary_config(positive_weight=3.0)).eval(), torch.tensor([0, 1])
    outputs = model(tokens(), labels=labels)

    negative, positive = outputs.logits.sigmoid().flatten().tolist()
    by_hand = -(math.log(1 - negative) + 3 * math.log(positive)) / 2
    assert outputs.loss.item() == pytest.approx(by_hand, rel=1e-5)
    assert model(tokens(1), labels=torch.tensor([1])).logits.shape == (1, 1)


def test_several_labels_are_a_softmax():
    outputs = TabletForSequenceClassification(softmax_config(num_labels=3)).eval()(
        tokens(), labels=torch.tensor([2, 0])
    )

    probabilities = outputs.logits.softmax(dim=1)
    by_hand = -(probabilities[0, 2].log() + probabilities[1, 0].log()) / 2
    torch.testing.assert_close(outputs.loss, by_hand)


@pytest.mark.parametrize(("regression_loss", "norm"), [("l1", 1), ("mse", 2)])
def test_regression_learns_standardised_targets_and_predicts_in_their_unit(regression_loss, norm):
    mean, std = [54.0, 100.0], [7.5, 15.0]
    config = regression_config(num_labels=2, target_mean=mean, target_std=std, regression_loss=regression_loss)
    inputs, labels = tokens(), torch.tensor([[60.0, 90.0], [45.0, 120.0]])
    model = TabletForSequenceClassification(config).eval()
    outputs = model(inputs, labels=labels)

    standardised = model.classifier(model.tablet(inputs).pooler_output)
    torch.testing.assert_close(outputs.logits, standardised * torch.tensor(std) + torch.tensor(mean))
    errors = (outputs.logits - labels) / torch.tensor(std)
    torch.testing.assert_close(outputs.loss, errors.abs().pow(norm).mean())


@pytest.mark.parametrize("statistics", [{}, {"target_mean": None, "target_std": None}])
def test_predictions_of_a_regression_are_float32_with_and_without_statistics(statistics):
    model = TabletForSequenceClassification(regression_config(**statistics)).eval()

    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(tokens()).logits.dtype == torch.float32
    assert model.to(torch.bfloat16)(tokens()).logits.dtype == torch.float32


@pytest.mark.parametrize(
    ("problem_type", "num_labels", "shape"),
    [
        ("multi_label_classification", 1, (3,)),
        ("multi_label_classification", 2, (2,)),
        ("single_label_classification", 2, (2, 2)),
        ("regression", 2, (2,)),  # would be broadcast
        ("regression", 1, (1, 2)),
    ],
)
def test_labels_of_another_shape_are_refused(problem_type, num_labels, shape):
    model = TabletForSequenceClassification(small_config(problem_type=problem_type, num_labels=num_labels))

    with pytest.raises(ValueError, match=r"`labels` has the shape|batch_size"):
        model(tokens(), labels=torch.ones(shape))


@pytest.mark.parametrize("num_labels", [1, 2])
def test_the_problem_type_is_never_guessed(num_labels):
    model = TabletForSequenceClassification(small_config(num_labels=num_labels))

    assert model(tokens()).logits.shape == (2, num_labels)
    with pytest.raises(ValueError, match="problem_type"):
        model(tokens(), labels=torch.zeros(2, dtype=torch.long))
    assert model.config.problem_type is None


# --- saving and loading


def test_contradictions_given_to_from_pretrained_are_refused(tmp_path):
    TabletModel(small_config()).save_pretrained(tmp_path)

    with pytest.raises(StrictDataclassError, match="positive_weight"):
        TabletForSequenceClassification.from_pretrained(tmp_path, problem_type="regression", positive_weight=2.0)


# --- training through Trainer


def build_trainer(model, folder, **settings) -> Trainer:
    """Of eight windows: for a masked model with the tokens to hide, for others labelled by their first number."""
    values = torch.randn(8, 3, CELLS, TOKEN_SIZE, generator=torch.Generator().manual_seed(1))
    runs = [{"input_values": each, "repetition_time": torch.tensor(2.0)} for each in values]
    for run in runs:
        if isinstance(model, TabletForMaskedTokenModeling):
            run["bool_masked_pos"] = torch.arange(3 * CELLS).view(3, CELLS) % 2
        else:
            run["labels"] = (run["input_values"][0, 0, 0] > 0).long()
    defaults = {"max_steps": 1, "per_device_train_batch_size": 8, "logging_steps": 1, "save_strategy": "no"}
    defaults |= {"use_cpu": True, "remove_unused_columns": False, "disable_tqdm": True, "report_to": []}
    arguments = TrainingArguments(output_dir=str(folder), **(defaults | settings))
    return Trainer(model=model, args=arguments, train_dataset=runs, eval_dataset=runs)


@pytest.mark.parametrize(
    ("model_class", "make_config"),
    [
        (TabletForMaskedTokenModeling, small_config),
        (TabletForSequenceClassification, binary_config),
        (TabletForSequenceClassification, softmax_config),
        (TabletForSequenceClassification, regression_config),
    ],
)
def test_gradients_do_not_grow_with_gradient_accumulation(model_class, make_config, tmp_path):
    norms, model = [], model_class(make_config())
    for accumulation in (1, 2, 4):
        plan = {"gradient_accumulation_steps": accumulation, "per_device_train_batch_size": 8 // accumulation}
        trainer = build_trainer(copy.deepcopy(model), tmp_path, max_grad_norm=1e9, **plan)
        trainer.train()
        norms.append(trainer.state.log_history[0]["grad_norm"])
    assert norms == pytest.approx([norms[0]] * 3, rel=1e-3)


def test_a_low_rank_adapter_trains(tmp_path):
    peft = pytest.importorskip("peft")
    adapter = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"])
    TabletForSequenceClassification(binary_config()).save_pretrained(tmp_path / "base")
    model = peft.get_peft_model(TabletForSequenceClassification.from_pretrained(tmp_path / "base"), adapter)
    trainer = build_trainer(model, tmp_path, max_steps=10, learning_rate=3e-2, label_names=["labels"])
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before

    model.save_pretrained(tmp_path / "adapter")
    fresh = TabletForSequenceClassification.from_pretrained(tmp_path / "base")
    restored = peft.PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
    inputs = tokens()
    torch.testing.assert_close(restored(input_values=inputs).logits, model.eval()(input_values=inputs).logits)
