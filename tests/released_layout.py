"""Checkpoints as the code released with the paper lays them out, of random weights."""

import json

import torch
from safetensors.torch import save_file

TOKEN_SIZE = 21

RELEASED = {
    "input_feature_size": TOKEN_SIZE,
    "num_tokens": 6912,
    "num_classes": 1,
    "num_layers": 2,
    "num_heads": 6,
    "num_kv_heads": 2,
    "d_model": 48,
    "d_ff": 36,
    "dropout": 0.0,
    "feature_dropout": False,
    "hidden_act": "relu",
    "norm_type": "ln",
    "mlp_type": "vanilla",
    "qk_norm": False,
    "input_norm": True,
    "out_norm": False,
    "feature_norm": True,
}


def released_weights(config: dict, *, qk_norm_bias: bool | None = None, mlp_bias: bool = True) -> dict:
    """Random weights under the released names; norms and biases are random too, so that none can be mistaken."""
    generator = torch.Generator().manual_seed(3)
    weights = {}

    def add(name, *shape, scale=0.3, around=0.0):
        weights[name] = around + scale * torch.randn(shape, generator=generator)

    def linear(name, inputs, outputs, bias=True):
        add(f"{name}.weight", outputs, inputs)
        if bias:
            add(f"{name}.bias", outputs)

    def norm(name, size, bias=config["norm_type"] == "ln"):
        add(f"{name}.weight", size, around=1.0)
        if bias:
            add(f"{name}.bias", size)

    width, head_dim = config["d_model"], config["d_model"] // config["num_heads"]
    add("cls_token", 1, 1, width, scale=1.0)
    linear("feature_projection", config["input_feature_size"], width)
    if config["feature_norm"]:
        norm("feature_norm", config["input_feature_size"])
    if config["input_norm"]:
        norm("input_norm", width)
    if config["out_norm"]:
        norm("out_norm", width)
    for n in range(config["num_layers"]):
        layer = f"layers.{n}"
        linear(f"{layer}.self_attn.q_proj", width, width)
        linear(f"{layer}.self_attn.k_proj", width, config["num_kv_heads"] * head_dim)
        linear(f"{layer}.self_attn.v_proj", width, config["num_kv_heads"] * head_dim)
        linear(f"{layer}.self_attn.out_proj", width, width)
        if qk_norm_bias is not None:
            norm(f"{layer}.self_attn.q_norm", head_dim, bias=qk_norm_bias)
            norm(f"{layer}.self_attn.k_norm", head_dim, bias=qk_norm_bias)
        norm(f"{layer}.norm1", width)
        norm(f"{layer}.norm2", width)
        if config["mlp_type"] == "swiglu":
            linear(f"{layer}.ff.gate_proj", width, config["d_ff"], mlp_bias)
            linear(f"{layer}.ff.up_proj", width, config["d_ff"], mlp_bias)
            linear(f"{layer}.ff.down_proj", config["d_ff"], width, mlp_bias)
        else:
            linear(f"{layer}.ff.0", width, config["d_ff"], mlp_bias)
            linear(f"{layer}.ff.3", config["d_ff"], width, mlp_bias)
    linear("fc", width, config["num_classes"])
    return weights


def released_folder(folder, config: dict, weights: dict):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors")
    return folder
