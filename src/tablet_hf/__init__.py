"""TABLeT for Hugging Face: whole fMRI runs as tokens of a natural-image autoencoder, and a transformer over them."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

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
__getattr__, __dir__ = imported_on_demand(__name__, _MODULE_OF)

# Registering imports torch and transformers, 5 s that `--help` should not wait for; no command uses the Auto classes.
_IS_MODULE_RUN = sys.argv[:1] == ["-m"] and __name__ in sys.orig_argv  # python -m tablet_hf
if Path(*sys.argv[:1]).stem != "tablet-hf" and not _IS_MODULE_RUN:
    from .auto_classes import register_auto_classes

    register_auto_classes()

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
