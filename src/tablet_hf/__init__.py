"""TABLeT for Hugging Face: whole fMRI runs as tokens of a natural-image autoencoder, and a transformer over them."""

from typing import TYPE_CHECKING

from .auto_classes import introduce_tablet
from .errors import InputError
from .exports import imported_on_demand
from .version import __version__

if TYPE_CHECKING:
    from .configuration_tablet import TabletConfig
    from .feature_extraction_tablet import TabletFeatureExtractor, TokenizedRun
    from .modeling_tablet import (
        TabletForMaskedTokenModeling,
        TabletForSequenceClassification,
        TabletModel,
        TabletPreTrainedModel,
    )

_MODULE_OF = {
    "TabletConfig": "configuration_tablet",
    "TabletFeatureExtractor": "feature_extraction_tablet",
    "TabletForMaskedTokenModeling": "modeling_tablet",
    "TabletForSequenceClassification": "modeling_tablet",
    "TabletModel": "modeling_tablet",
    "TabletPreTrainedModel": "modeling_tablet",
    "TokenizedRun": "feature_extraction_tablet",
}
__getattr__, __dir__ = imported_on_demand(__name__, _MODULE_OF, submodules={"tokens", "volumes"})

introduce_tablet()

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
