"""Models sharded by FSDP2 (as accelerate prepares them, in a group of one process) against whole ones."""

import copy
from types import SimpleNamespace

import pytest
import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch import distributed
from torch.distributed.fsdp import FSDPModule

from tablet_hf import TabletConfig, TabletForMaskedTokenModeling, TabletForSequenceClassification, TabletModel

SMALL = {"token_size": 12, "grid_size": 2, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 32}
SMALL |= {"num_attention_heads": 2, "num_key_value_heads": 1}
SETTINGS = [{}, {"pooling_type": "variability", "use_output_norm": True, "standardize_tokens": True}]


@pytest.fixture
def process_group():
    distributed.init_process_group("gloo", rank=0, world_size=1, store=distributed.HashStore())
    yield
    distributed.destroy_process_group()


def sharded(model):
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="TRANSFORMER_BASED_WRAP", reshard_after_forward=True
    )
    # What is read of an Accelerator, which itself shards models on GPUs alone.
    accelerator = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin),
        mixed_precision="no",
        is_main_process=True,
        device=torch.device("cpu"),
        torch_device_mesh=None,
    )
    return fsdp2_prepare_model(accelerator, model)


@pytest.mark.filterwarnings("ignore:.*returned a view tensor")
@pytest.mark.parametrize("settings", SETTINGS, ids=["released", "small"])
@pytest.mark.parametrize("model_class", [TabletModel, TabletForMaskedTokenModeling, TabletForSequenceClassification])
def test_a_sharded_model_trains_like_a_whole_one(model_class, settings, process_group):
    torch.manual_seed(0)
    whole = model_class(TabletConfig(**SMALL, **settings)).eval()
    shared = sharded(copy.deepcopy(whole))
    units = [name for name, module in shared.named_modules() if isinstance(module, FSDPModule)]
    assert sum("layers." in name for name in units) == SMALL["num_hidden_layers"]

    inputs = {"input_values": torch.randn(2, 4, 8, 12), "repetition_time": torch.tensor([0.7, 2.0])}
    if model_class is TabletForMaskedTokenModeling:
        inputs["bool_masked_pos"] = torch.rand(2, 4, 8) < 0.5
    for model in (whole, shared):
        outputs = model(**inputs)
        (outputs.loss if "loss" in outputs else outputs[0].square().sum()).backward()
    gradients = {name: weight.grad for name, weight in whole.named_parameters()}
    for name, weight in shared.named_parameters():
        if gradients[name] is None:
            assert weight.grad is None
        else:
            torch.testing.assert_close(weight.grad.full_tensor(), gradients[name])
