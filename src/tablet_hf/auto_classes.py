"""
TABLeT in the Auto classes of transformers, from the moment `tablet_hf` is imported.

Registering classes means importing them, and with them torch and half of transformers: seconds, which somebody who
asks for `tablet-hf --help` or a function of arrays should not wait for. Transformers names its own models in tables, by
which it imports a class when it is asked for. TABLeT is entered into the same tables, as they are loaded: nothing but
strings is entered then, so it does not matter who loads them or when.
"""

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, version

AUTO = "transformers.models.auto"
MODEL_TYPE = "tablet"

# By the module that holds them, the tables and what stands in them for a model type.
TABLES = {
    f"{AUTO}.configuration_auto": {"CONFIG_MAPPING_NAMES": "TabletConfig"},
    f"{AUTO}.modeling_auto": {
        "MODEL_MAPPING_NAMES": "TabletModel",
        "MODEL_FOR_PRETRAINING_MAPPING_NAMES": "TabletForMaskedTokenModeling",
        "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES": "TabletForSequenceClassification",
    },
    f"{AUTO}.feature_extraction_auto": {"FEATURE_EXTRACTOR_MAPPING_NAMES": "TabletFeatureExtractor"},
}

# Transformers promises nothing of these tables (5.4 has more of them), so they are used with releases in which all this
# was tried: from 5.17 to the one in constraints.txt. With any other the classes are imported and registered at once.
OLDEST_TRIED, NEWEST_TRIED = (5, 17), (5, 23)


def introduce_tablet() -> None:
    """Make the Auto classes of transformers know TABLeT, without importing it where that is safe."""
    if has_tried_release() and not TABLES.keys() & sys.modules.keys():
        # Where transformers looks for the classes of a model type that it has in its tables.
        place = f"transformers.models.{MODEL_TYPE}"
        if place not in sys.modules:
            sys.meta_path.insert(0, TableFinder())
        sys.modules[place] = sys.modules[__package__]
    else:
        register()


def has_tried_release() -> bool:
    try:
        major, minor = version("transformers").split(".")[:2]
        return OLDEST_TRIED <= (int(major), int(minor)) <= NEWEST_TRIED
    except (PackageNotFoundError, ValueError):
        return False


class TableFinder(MetaPathFinder):
    """Finds nothing by itself: lets others find the modules with the tables, and enters TABLeT after they ran."""

    def find_spec(self, fullname, path=None, target=None) -> ModuleSpec | None:
        if fullname not in TABLES:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if spec is not None:
            run = spec.loader.exec_module

            def run_and_enter(module):
                run(module)
                for table, class_name in TABLES[fullname].items():
                    getattr(module, table)[MODEL_TYPE] = class_name

            spec.loader.exec_module = run_and_enter
        return spec


def register() -> None:
    """Import all classes and register them through the public functions."""
    from transformers import AutoFeatureExtractor

    from .configuration_tablet import TabletConfig
    from .feature_extraction_tablet import TabletFeatureExtractor
    from .modeling_tablet import register_auto_classes

    register_auto_classes()
    AutoFeatureExtractor.register(TabletConfig, TabletFeatureExtractor, exist_ok=True)
