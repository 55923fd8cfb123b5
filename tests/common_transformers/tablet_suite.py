"""
TABLeT in the library's common tests. Not collected by name: `tests/test_common_transformers.py` runs this file in a
process of its own, with the fetched tests on the path, because they change the library's own tables of models.
"""

import unittest

import torch
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_PRETRAINING_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)
from transformers.testing_utils import torch_device
from transformers_common_tests import test_modeling_common
from transformers_common_tests.test_configuration_common import ConfigTester
from transformers_common_tests.test_feature_extraction_common import FeatureExtractionSavingTestMixin
from transformers_common_tests.test_modeling_common import ModelTesterMixin

from tablet_hf import TabletFeatureExtractor
from tablet_hf.configuration_tablet import TabletConfig
from tablet_hf.modeling_tablet import (
    TabletEmbeddings,
    TabletForMaskedTokenModeling,
    TabletForSequenceClassification,
    TabletModel,
)

# The common tests decide by these tables of class names which model takes which labels.
MODEL_MAPPING_NAMES["tablet"] = "TabletModel"
MODEL_FOR_PRETRAINING_MAPPING_NAMES["tablet"] = "TabletForMaskedTokenModeling"
MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES["tablet"] = "TabletForSequenceClassification"

library_config_zero_init = test_modeling_common._config_zero_init


def config_zero_init(config):
    """The library's, which takes every name with `_std` in it for the spread of initial weights."""
    without_targets = TabletConfig(**config.to_dict())
    del without_targets.target_std
    zero_init = library_config_zero_init(without_targets)
    zero_init.target_std = config.target_std
    return zero_init


test_modeling_common._config_zero_init = config_zero_init


class TabletModelTester:
    """A small model and a batch for it, under the names by which the common tests ask."""

    batch_size = 3
    num_frames = 4
    grid_size = 2
    token_size = 24
    hidden_size = 32
    num_hidden_layers = 2
    num_attention_heads = 4
    num_masks = 5
    is_training = True

    def __init__(self, parent):
        self.parent = parent
        self.num_cells = self.grid_size**3
        self.mask_length = self.num_frames * self.num_cells
        self.seq_length = 1 + self.mask_length

    def get_config(self):
        return TabletConfig(
            token_size=self.token_size,
            grid_size=self.grid_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=2,
            intermediate_size=48,
            problem_type="single_label_classification",
        )

    def prepare_config_and_inputs_for_common(self):
        shape = (self.batch_size, self.num_frames, self.num_cells, self.token_size)
        inputs = {
            "input_values": torch.randn(shape, device=torch_device),
            "attention_mask": torch.ones(shape[:2], dtype=torch.long, device=torch_device),
            "repetition_time": torch.linspace(0.72, 2.5, self.batch_size, device=torch_device),
        }
        return self.get_config(), inputs


class TabletModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (TabletModel, TabletForMaskedTokenModeling, TabletForSequenceClassification)
    test_resize_embeddings = False

    def setUp(self):
        self.model_tester = TabletModelTester(self)
        self.config_tester = ConfigTester(self, config_class=TabletConfig, has_text_modality=False, hidden_size=112)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        batch_size, num_frames, num_cells, _ = inputs["input_values"].shape
        mask_shape = (batch_size, num_frames, num_cells)
        if "bool_masked_pos" in inputs:
            inputs["bool_masked_pos"] = inputs["bool_masked_pos"].reshape(mask_shape)
        elif model_class is TabletForMaskedTokenModeling:
            # Two calls are compared with each other, which would draw two masks.
            every_third = torch.arange(batch_size * num_frames * num_cells, device=torch_device) % 3 == 0
            inputs["bool_masked_pos"] = every_third.view(mask_shape)
        return inputs

    def test_model_get_set_embeddings(self):
        # The library expects an embedding of a vocabulary; tokens of this model are vectors, which a module projects.
        for model_class in self.all_model_classes:
            model = model_class(self.model_tester.get_config())
            assert isinstance(model.get_input_embeddings(), TabletEmbeddings)
            others = TabletEmbeddings(self.model_tester.get_config())
            model.set_input_embeddings(others)
            assert model.get_input_embeddings() is others

    @unittest.skip("changes the vocabulary of a text model; other shapes are tested in test_modeling_tablet.py")
    def test_load_with_mismatched_shapes(self):
        pass

    def test_config(self):
        self.config_tester.run_common_tests()


class TabletFeatureExtractionTest(FeatureExtractionSavingTestMixin, unittest.TestCase):
    feature_extraction_class = TabletFeatureExtractor
    feat_extract_dict = {  # noqa: RUF012  (the library's way)
        "autoencoder": "somebody/some-autoencoder",
        "autoencoder_revision": "0123456789abcdef",
        "autoencoder_subfolder": "vae",
        "signal": "percent_change",
        "scaling": "percentile",
        "volume_size": 64,
        "token_size": 96,
        "grid_size": 8,
    }
