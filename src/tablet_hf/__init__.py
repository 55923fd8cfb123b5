"""TABLeT for Hugging Face: whole fMRI runs as tokens of a natural-image autoencoder, and a transformer over them."""

from transformers import AutoFeatureExtractor

from .configuration_tablet import TabletConfig
from .errors import InputError
from .feature_extraction_tablet import TabletFeatureExtractor, TokenizedRun
from .modeling_tablet import (
    TabletForMaskedTokenModeling,
    TabletForSequenceClassification,
    TabletModel,
    TabletPreTrainedModel,
    register_auto_classes,
)
from .version import __version__

register_auto_classes()
AutoFeatureExtractor.register(TabletConfig, TabletFeatureExtractor, exist_ok=True)

__all__ = [
    "InputError",
    "TabletConfig",
    "TabletFeatureExtractor",
    "TabletForMaskedTokenModeling",
    "TabletForSequenceClassification",
    "TabletModel",
    "TabletPreTrainedModel",
    "TokenizedRun",
    "__version__",
]
