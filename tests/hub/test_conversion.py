"""
Released checkpoints give the same numbers after conversion.

The oracle is a second, slow implementation of the released network, written from its description in plain tensor
algebra; it shares no code with the package.
"""

import math
import pickle
import re

import pytest
import torch
from huggingface_hub import HfApi, RepoCard, constants
from released_layout import RELEASED, TOKEN_SIZE, released_folder, released_weights
from safetensors.torch import load_file
from typer.testing import CliRunner

from tablet_hf.cli.__main__ import app
from tablet_hf.configuration_tablet import TabletConfig
from tablet_hf.convert_tablet_to_hf import convert_checkpoint
from tablet_hf.errors import InputError
from tablet_hf.feature_extraction_tablet import TabletFeatureExtractor
from tablet_hf.hub.cards import template_file
from tablet_hf.modeling_tablet import TabletForMaskedTokenModeling, TabletForSequenceClassification, TabletModel

CELLS, FRAMES = 27, 2


def convert(source, destination, **options):
    """Convert a small network, whose token size does not imply the cells of a frame."""
    return convert_checkpoint(source, destination, **{"grid_size": 3} | options)


def released_network(weights: dict, config: dict, tokens: torch.Tensor, rotary: bool) -> torch.Tensor:
    """Logits `(batch, num_classes)` of the released network, for tokens `(batch, frames, cells, features)`."""

    def linear(name, x):
        y = torch.einsum("...i,oi->...o", x, weights[f"{name}.weight"])
        return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y

    def norm(name, x):
        if f"{name}.weight" not in weights:
            return x
        if f"{name}.bias" in weights:
            centred = x - x.mean(-1, keepdim=True)
            x = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-5)
            return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]
        return x / torch.sqrt((x**2).mean(-1, keepdim=True) + 1e-6) * weights[f"{name}.weight"]

    def silu(x):
        return x / (1 + torch.exp(-x))

    activation = {"relu": lambda x: torch.where(x > 0, x, torch.zeros_like(x)), "silu": silu}[config["hidden_act"]]

    def rotate(x):  # (positions, head_dim)
        half = x.shape[-1] // 2
        turned = torch.empty_like(x)
        for position in range(x.shape[0]):
            for pair in range(half):
                angle = position / 10_000 ** (2 * pair / x.shape[-1])
                a, b = x[position, pair], x[position, pair + half]
                turned[position, pair] = a * math.cos(angle) - b * math.sin(angle)
                turned[position, pair + half] = b * math.cos(angle) + a * math.sin(angle)
        return turned

    heads, kv_heads = config["num_heads"], config["num_kv_heads"]
    head_dim = config["d_model"] // heads
    logits = []
    for run in tokens:
        x = linear("feature_projection", norm("feature_norm", run.reshape(-1, run.shape[-1])))
        x = norm("input_norm", torch.cat((weights["cls_token"].reshape(1, -1), x)))
        for n in range(config["num_layers"]):
            attention = f"layers.{n}.self_attn"
            y = norm(f"layers.{n}.norm1", x)
            queries, keys, values = (linear(f"{attention}.{kind}_proj", y) for kind in "qkv")
            outputs = []
            for head in range(heads):
                shared = head // (heads // kv_heads)
                q = norm(f"{attention}.q_norm", queries[:, head * head_dim : (head + 1) * head_dim])
                k = norm(f"{attention}.k_norm", keys[:, shared * head_dim : (shared + 1) * head_dim])
                v = values[:, shared * head_dim : (shared + 1) * head_dim]
                if rotary:
                    q, k = rotate(q), rotate(k)
                scores = torch.exp(q @ k.T / math.sqrt(head_dim))
                outputs.append(scores @ v / scores.sum(-1, keepdim=True))
            x = x + linear(f"{attention}.out_proj", torch.cat(outputs, dim=-1))
            y, ff = norm(f"layers.{n}.norm2", x), f"layers.{n}.ff"
            if config["mlp_type"] == "swiglu":
                y = linear(f"{ff}.down_proj", silu(linear(f"{ff}.gate_proj", y)) * linear(f"{ff}.up_proj", y))
            else:
                y = linear(f"{ff}.3", activation(linear(f"{ff}.0", y)))
            x = x + y
        logits.append(linear("fc", norm("out_norm", x[0])))
    return torch.stack(logits)


def tokens() -> torch.Tensor:
    return torch.randn(2, FRAMES, CELLS, TOKEN_SIZE, generator=torch.Generator().manual_seed(4))


def assert_same_network(folder, weights, config, rotary=False):
    model = TabletForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        found = model(tokens(), repetition_time=torch.tensor([2.0, 2.0])).logits
    torch.testing.assert_close(found, released_network(weights, config, tokens(), rotary), atol=2e-4, rtol=2e-4)


VARIANTS = {
    "as published": ({}, {}),
    "rms norm": ({"norm_type": "rms"}, {}),
    "silu": ({"hidden_act": "silu"}, {}),
    "swiglu": ({"mlp_type": "swiglu", "norm_type": "rms"}, {}),
    "swiglu without biases": ({"mlp_type": "swiglu"}, {"mlp_bias": False}),
    "output norm, no others": ({"out_norm": True, "input_norm": False, "feature_norm": False, "norm_type": "rms"}, {}),
    "qk norm": ({"qk_norm": True}, {"qk_norm_bias": True}),
    "qk norm, rms": ({"qk_norm": True, "norm_type": "rms"}, {"qk_norm_bias": False}),
    "qk norm, rms among layer norms": ({"qk_norm": True}, {"qk_norm_bias": False}),
    "the slip: rotary": ({"qk_norm": True}, {}),
    "a key head for each query head": ({"num_kv_heads": 6}, {}),
    "dropout": ({"dropout": 0.3, "feature_dropout": True}, {}),
    "three classes": ({"num_classes": 3}, {}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_gives_the_same_numbers(variant, tmp_path, recwarn):
    changes, kinds_of_weights = VARIANTS[variant]
    config = RELEASED | changes
    weights = released_weights(config, **kinds_of_weights)
    rotary = config["qk_norm"] and "qk_norm_bias" not in kinds_of_weights
    model = convert(released_folder(tmp_path / "released", config, weights), tmp_path / "converted")

    assert_same_network(tmp_path / "converted", weights, config, rotary)
    assert type(model) is TabletForSequenceClassification
    assert not recwarn.list
    assert model.config.position_embedding_type == ("rope" if rotary else "none")
    dropout = (config["dropout"], config["dropout"] if config["feature_dropout"] else 0)
    assert (model.config.hidden_dropout_prob, model.config.feature_dropout_prob) == dropout
    assert model.config.problem_type is None


@pytest.mark.parametrize(
    ("prefix", "nested", "variant"),
    [
        ("", "model_state_dict", "as published"),
        ("module.", "state_dict", "swiglu without biases"),
        ("_orig_mod.module.", None, "qk norm, rms among layer norms"),
    ],
)
def test_weights_alone_tell_all_but_the_heads(prefix, nested, variant, tmp_path):
    changes, kinds_of_weights = VARIANTS[variant]
    weights = released_weights(RELEASED | changes, **kinds_of_weights)
    stored = {prefix + name: tensor for name, tensor in weights.items()}
    torch.save({"epoch": 3, nested: stored} if nested else stored, tmp_path / "last.pth")
    (tmp_path / "heads.json").write_text('{"num_heads": 6}')
    convert(tmp_path / "last.pth", tmp_path / "converted", config=tmp_path / "heads.json")

    assert_same_network(tmp_path / "converted", weights, RELEASED | changes)
    if "q_norm" in "".join(weights):  # shows the heads too
        assert convert(tmp_path / "last.pth", tmp_path / "shown").config.num_attention_heads == 6
    else:
        with pytest.raises(InputError, match=r"last\.pth.*num_heads"):
            convert(tmp_path / "last.pth", tmp_path / "other")


def pretraining_weights(**shapes) -> dict:
    shapes = {"mask_token": (1, 1, 48), "decoder.weight": (TOKEN_SIZE, 48), "decoder.bias": (TOKEN_SIZE,)} | shapes
    shapes["TR_embedding"] = (1, 256, 48)
    return {name: torch.randn(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("outside", [True, False])
def test_pretraining_weights_that_fit_are_used(outside, tmp_path):
    weights, extra = released_weights(RELEASED), pretraining_weights(mask_token=(48,))
    stored = {"model_state_dict": weights, **extra} if outside else {"model_state_dict": weights | extra}
    torch.save(stored, tmp_path / "pretrained.pth")
    with pytest.warns(UserWarning, match="left out: TR_embedding"):
        convert(tmp_path / "pretrained.pth", tmp_path / "converted", config=RELEASED)

    model = TabletForMaskedTokenModeling.from_pretrained(tmp_path / "converted")
    torch.testing.assert_close(model.tablet.embeddings.mask_token.flatten(), extra["mask_token"])
    torch.testing.assert_close(model.decoder.weight, extra["decoder.weight"])
    with pytest.warns(UserWarning, match="left out: TR_embedding"):
        convert(tmp_path / "pretrained.pth", tmp_path / "classifier", config=RELEASED, head="classification")
    assert_same_network(tmp_path / "classifier", weights, RELEASED)


def test_pretraining_weights_of_another_shape_are_reported(tmp_path):
    weights = released_weights(RELEASED) | pretraining_weights(**{"decoder.weight": (99, 48), "decoder.bias": (99,)})
    torch.save(weights, tmp_path / "pretrained.pth")
    with pytest.warns(UserWarning, match=r"random now: decoder\.bias, decoder\.weight"):
        model = convert(tmp_path / "pretrained.pth", tmp_path / "converted", config=RELEASED)

    assert type(model) is TabletForMaskedTokenModeling
    saved = TabletForMaskedTokenModeling.from_pretrained(tmp_path / "converted")
    torch.testing.assert_close(saved.tablet.embeddings.mask_token, weights["mask_token"])


def test_an_encoder_without_heads_is_a_bare_model(tmp_path):
    weights = {name: tensor for name, tensor in released_weights(RELEASED).items() if not name.startswith("fc.")}
    torch.save(weights, tmp_path / "encoder.pth")
    assert type(convert(tmp_path / "encoder.pth", tmp_path / "bare", config=RELEASED)) is TabletModel
    options = {"config": RELEASED, "head": "classification", "num_labels": 3}
    with pytest.warns(UserWarning, match="random now"):
        assert convert(tmp_path / "encoder.pth", tmp_path / "head", **options).config.num_labels == 3


def test_settings_give_what_no_checkpoint_records(tmp_path):
    folder = released_folder(tmp_path / "released", RELEASED, released_weights(RELEASED))
    settings = {"problem_type": "regression", "target_mean": [30.0], "target_std": [4.0]}
    model = convert(folder, tmp_path / "converted", position_embedding_type="rope", **settings)

    assert model.config.position_embedding_type == "rope"
    assert TabletForSequenceClassification.from_pretrained(tmp_path / "converted").config.target_mean == [30.0]
    with pytest.raises(InputError, match=r"released.*problem_type.*'regresion'"):
        convert(folder, tmp_path / "wrong", problem_type="regresion")
    assert not (tmp_path / "wrong").exists()


# --- the tokens of a checkpoint


def published_tokens_folder(tmp_path):
    config = RELEASED | {"input_feature_size": 3072, "num_layers": 1}
    return released_folder(tmp_path / "released", config, released_weights(config))


def test_tokens_of_the_published_size_are_assumed_to_be_the_published_ones(tmp_path, recwarn):
    folder = published_tokens_folder(tmp_path)
    assumed = convert_checkpoint(folder, tmp_path / "converted").config
    assert "assumed" in str(recwarn.pop().message)
    assert (assumed.autoencoder, assumed.signal) == ("mit-han-lab/dc-ae-f32c32-in-1.0-diffusers", "intensity")
    assert (assumed.scaling, assumed.volume_size) == ("max", 96)
    extractor = TabletFeatureExtractor.from_pretrained(tmp_path / "converted")
    assert (extractor.autoencoder, extractor.autoencoder_revision) == (assumed.autoencoder, None)
    assert (extractor.token_size, extractor.grid_size) == (3072, 3)

    some = convert_checkpoint(folder, tmp_path / "some", autoencoder="lab/other", signal="percent_change").config
    assert str(recwarn.pop().message).endswith("as published: scaling max, volume_size 96.")
    assert (some.autoencoder, some.signal, some.scaling) == ("lab/other", "percent_change", "max")
    other = convert_checkpoint(folder, tmp_path / "grid", grid_size=6).config
    assert (other.grid_size, other.autoencoder) == (6, None)
    assert not recwarn.list
    with pytest.raises(ValueError, match="--grid-size"):
        TabletConfig.from_pretrained(released_folder(tmp_path / "other", RELEASED, released_weights(RELEASED)))


# --- refusals


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"layers.0.novelty.weight": torch.zeros(2)}, "novelty"),
        ({"layers.1.norm2.weight": torch.zeros(5)}, "norm_after"),
        ({"layers.1.self_attn.v_proj.bias": None}, "v_proj"),
        ({"fc.bias": None}, r"classifier\.bias"),
        ({"fc.bias": torch.zeros(5)}, r"classifier\.bias"),
    ],
)
def test_weights_of_another_network_are_refused_by_name(change, name, tmp_path):
    weights = {name: tensor for name, tensor in (released_weights(RELEASED) | change).items() if tensor is not None}
    folder = released_folder(tmp_path / "released", RELEASED, weights)

    with pytest.raises(InputError, match=rf"released.*{name}"):
        convert(folder, tmp_path / "converted")
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"norm_type": "rms"}, "norm_before.bias"),
        ({"num_layers": 3}, "layers.2"),
        ({"mlp_type": "swiglu"}, "down_proj"),
        ({"hidden_act": "tanhh"}, "tanhh"),
        ({"num_heads": 5}, "multiple"),
        ({"num_heads": "6"}, "num_attention_heads"),
        ({"norm_type": "batch"}, "layer_norm"),
        ({"norm_type": ["ln"]}, "ln"),
    ],
)
def test_a_configuration_that_contradicts_the_weights_is_refused(changes, complaint, tmp_path):
    folder = released_folder(tmp_path / "released", RELEASED | changes, released_weights(RELEASED))

    with pytest.raises(InputError, match=complaint):
        convert(folder, tmp_path / "converted")


class Intruder:
    """What a pickle can do when it is loaded without care."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('code in a checkpoint was run')",))


@pytest.mark.parametrize("legacy", [True, False])
def test_a_checkpoint_with_code_inside_is_not_opened(legacy, tmp_path):
    stored = {"model_state_dict": released_weights(RELEASED), "args": Intruder()}
    torch.save(stored, tmp_path / "evil.pth", _use_new_zipfile_serialization=not legacy)

    with pytest.raises(InputError, match=r"evil\.pth.*code"):
        convert(tmp_path / "evil.pth", tmp_path / "converted", config=RELEASED)


def test_other_files_are_no_checkpoints(tmp_path):
    weights = released_weights(RELEASED)
    torch.save(weights, tmp_path / "whole.pth")
    (tmp_path / "short.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:5000])
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"a": 1}))
    torch.save({"epoch": 1, "lr": 0.1}, tmp_path / "log.pth")
    torch.save({"a.weight": torch.zeros(2)}, tmp_path / "another.pth")
    (tmp_path / "broken.safetensors").write_bytes(b"no header")

    for name in ("short.pth", "empty.pth", "plain.pth", "log.pth", "another.pth", "broken.safetensors"):
        with pytest.raises(InputError, match=name):
            convert(tmp_path / name, tmp_path / "converted", config=RELEASED)
    assert not (tmp_path / "converted").exists()


@pytest.mark.parametrize("shape", [(), (0, 48), (3,)])
@pytest.mark.parametrize("name", ["feature_projection", "layers.0.ff.0", "layers.0.self_attn.q_proj"])
def test_weights_whose_shape_makes_no_network_are_refused(name, shape, tmp_path):
    weights = released_weights(RELEASED) | {f"{name}.weight": torch.zeros(shape), "mask_token": torch.zeros(1, 1, 48)}
    torch.save(weights, tmp_path / "odd.pth")

    with pytest.raises(InputError, match=r"odd\.pth"):
        convert(tmp_path / "odd.pth", tmp_path / "converted", config={"num_heads": 6})


def test_folders_that_cannot_be_read_or_written_are_refused(tmp_path):
    folder = released_folder(tmp_path / "released", RELEASED, released_weights(RELEASED))
    (tmp_path / "converted").mkdir()
    convert(folder, tmp_path / "converted")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text((folder / "config.json").read_text())
    for source, destination, word in (
        (folder, "converted", "converted.*already"),
        (tmp_path / "converted", "again", "nothing to convert"),
        (tmp_path / "empty", "again", "safetensors"),
        ("weights/of/absent.pth", "again", r"absent\.pth"),
    ):
        with pytest.raises(InputError, match=word):
            convert(source, tmp_path / destination)
    assert not (tmp_path / "again").exists()


# --- loading in one line


@pytest.mark.parametrize("variant", ["as published", "swiglu", "output norm, no others", "the slip: rotary"])
def test_a_released_folder_loads_as_it_is_and_is_saved_as_a_model_of_the_library(variant, tmp_path):
    config = RELEASED | VARIANTS[variant][0]
    weights = released_weights(config)
    released = released_folder(tmp_path / "released", config, weights)

    model = TabletForSequenceClassification.from_pretrained(released, grid_size=3)
    assert model.name_or_path == str(released)
    assert not model.training
    model.save_pretrained(tmp_path / "saved")
    assert load_file(tmp_path / "saved" / "model.safetensors").keys() == model.state_dict().keys()
    assert_same_network(tmp_path / "saved", weights, config, rotary=config["qk_norm"])
    encoder = TabletModel.from_pretrained(released, grid_size=3)
    for name, tensor in model.tablet.state_dict().items():
        assert torch.equal(encoder.state_dict()[name], tensor), name


def test_one_line_loads_released_weights_from_a_hub_and_without_it_a_second_time(hub, tmp_path, monkeypatch):
    url = f"{hub.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url)
    api = HfApi(endpoint=hub.endpoint, token=next(iter(hub.users)))
    api.create_repo("lab/TABLeT_pretrained")
    published = {}
    for version in ("v1", "v2"):
        weights = {name: tensor + float(version[1]) / 50 for name, tensor in released_weights(RELEASED).items()}
        folder = released_folder(tmp_path / version, RELEASED, weights)
        api.upload_folder(repo_id="lab/TABLeT_pretrained", folder_path=folder)
        api.create_tag("lab/TABLeT_pretrained", tag=version)
        published[version] = released_network(weights, RELEASED, tokens(), rotary=False)

    def check(version, **options):
        model = TabletForSequenceClassification.from_pretrained(
            "lab/TABLeT_pretrained", grid_size=3, cache_dir=tmp_path / "cache", **options
        )
        torch.testing.assert_close(model(tokens()).logits, published[version], atol=2e-4, rtol=2e-4)

    check("v2")
    check("v1", revision="v1")
    hub.stop()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    check("v2")
    check("v1", revision="v1")


def test_a_converted_copy_of_the_released_weights_is_published_with_its_facts(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", next(iter(hub.users)))
    released = hub.folder / "models" / "beotborry" / "TABLeT_pretrained"
    released.parent.mkdir(parents=True)
    released_folder(released, RELEASED, released_weights(RELEASED))
    folder = str(tmp_path / "converted")
    words = ["convert", "beotborry/TABLeT_pretrained", "--grid-size", "3", "--out", folder, "--push", "lab/converted"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert hub.repositories["models", "lab/converted"].is_private
    files = hub.files("lab/converted")
    card = files["README.md"].decode()
    done = CliRunner().invoke(app, ["push", folder, "lab/again"])  # as after a look at the folder
    assert done.exit_code == 0, done.output
    assert hub.files("lab/again")["README.md"].decode().replace("again", "converted") == card
    assert "converted_from.json" not in files
    example = template_file("model.example.md").read_text(encoding="utf-8")
    for section in ("Training data", "Limits", "Licence"):
        (own,), (known,) = (re.findall(rf"## {section}\n(.*?)\n## ", text, re.DOTALL) for text in (card, example))
        assert own == known
    assert RepoCard(card).data.base_model == "beotborry/TABLeT_pretrained"
    assert re.search(r"\| parameters \| \d", card)


def test_the_command_line_asks_for_what_is_missing(tmp_path):
    torch.save(released_weights(RELEASED), tmp_path / "last.pth")
    (tmp_path / "config.json").write_text('{"num_heads": 6}')
    words = ["convert", str(tmp_path / "last.pth"), "--config", str(tmp_path / "config.json")]
    out = ["--out", str(tmp_path / "out")]
    for more, name in (([], "--push"), ([*out, "--push", "no name"], "no name"), (out, "--grid-size")):
        done = CliRunner().invoke(app, words + more)
        assert done.exit_code == 2
        assert name in done.output
        assert not (tmp_path / "out").exists()
    done = CliRunner().invoke(app, [*words, *out, "--grid-size", "3", "--problem-type", "regression"])
    assert done.exit_code == 0, done.output
    assert TabletConfig.from_pretrained(tmp_path / "out").problem_type == "regression"
    assert_same_network(tmp_path / "out", released_weights(RELEASED), RELEASED)
