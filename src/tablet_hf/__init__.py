"""TABLeT for Hugging Face: whole fMRI runs as tokens of a natural-image autoencoder, and a transformer over them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .auto_classes import introduce_tablet
from .errors import InputError
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

# Imported when they are asked for: torch and transformers take seconds.
_MODULE_OF = {
    "TabletConfig": "configuration_tablet",
    "TabletFeatureExtractor": "feature_extraction_tablet",
    "TabletForMaskedTokenModeling": "modeling_tablet",
    "TabletForSequenceClassification": "modeling_tablet",
    "TabletModel": "modeling_tablet",
    "TabletPreTrainedModel": "modeling_tablet",
    "TokenizedRun": "feature_extraction_tablet",
}
_SUBMODULES = {*_MODULE_OF.values(), "tokens", "volumes"}


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return import_module(f".{name}", __name__)
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBMODULES})


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
