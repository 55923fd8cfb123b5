"""
TABLeT in the Auto classes and the pipelines of transformers, from the moment `tablet_hf` is imported.

Registering classes means importing them, and with them torch and half of transformers: seconds, which somebody who
asks for `tablet-hf --help` or a function of arrays should not wait for. Transformers names its own models in tables, by
which it imports a class when it is asked for. TABLeT is entered into the same tables, as they are loaded: nothing but
strings is entered then, so it does not matter who loads them or when.
"""

import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

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

# By its task, the class of a pipeline and the Auto class that loads its model.
PIPELINES = {
    "fmri-classification": ("FmriClassificationPipeline", "AutoModelForSequenceClassification"),
    "fmri-feature-extraction": ("FmriFeatureExtractionPipeline", "AutoModel"),
}
PIPELINES_OF_TRANSFORMERS = "transformers.pipelines"
OWN_PIPELINES = f"{__package__}.pipeline_tablet"

# Transformers promises nothing of these tables (5.4 has more of them), so they are used with releases in which all this
# was tried: from 5.17 to the one in constraints.txt. With any other the classes are imported and registered at once.
OLDEST_TRIED, NEWEST_TRIED = (5, 17), (5, 23)


def introduce_tablet() -> None:
    """Make transformers know TABLeT, without importing it where that is safe."""
    # Where transformers looks for the classes of a model type that it has in its tables.
    place = f"transformers.models.{MODEL_TYPE}"
    if place in sys.modules:
        sys.modules[place] = sys.modules[__package__]
    elif has_tried_release() and not TABLES.keys() & sys.modules.keys():
        for module in TABLES:
            FOLLOWER.follow(module, partial(enter_models, TABLES[module]))
        sys.modules[place] = sys.modules[__package__]
    else:
        register()
    FOLLOWER.follow(PIPELINES_OF_TRANSFORMERS, enter_pipelines)
    # Where it was imported first, and imports the pipelines of transformers itself, its classes come after those.
    FOLLOWER.follow(OWN_PIPELINES, lambda _: enter_pipelines(import_module(PIPELINES_OF_TRANSFORMERS)))


def has_tried_release() -> bool:
    try:
        major, minor = version("transformers").split(".")[:2]
        return OLDEST_TRIED <= (int(major), int(minor)) <= NEWEST_TRIED
    except (PackageNotFoundError, ValueError):
        return False


class Follower(MetaPathFinder):
    """Finds nothing by itself: lets others find certain modules, and does something with these after they ran."""

    def __init__(self):
        self.actions: dict[str, Callable[[ModuleType], None]] = {}

    def follow(self, module: str, action: Callable[[ModuleType], None]) -> None:
        """Have `action` done with a module once it is imported; now, where that has happened."""
        if module in sys.modules:
            action(sys.modules[module])
            return
        self.actions[module] = action
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)

    def find_spec(self, fullname, path=None, target=None) -> ModuleSpec | None:
        if fullname not in self.actions:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if spec is not None:
            run = spec.loader.exec_module

            def run_and_act(module):
                run(module)
                self.actions[fullname](module)

            spec.loader.exec_module = run_and_act
        return spec


FOLLOWER = Follower()


def enter_models(tables: dict[str, str], module: ModuleType) -> None:
    for table, class_name in tables.items():
        getattr(module, table)[MODEL_TYPE] = class_name


def enter_pipelines(module: ModuleType) -> None:
    for task, (class_name, auto_class) in PIPELINES.items():
        model_class = getattr(module, auto_class)
        if hasattr(module, "_resolve_impl") and has_tried_release():  # imports what a name stands for, on demand
            name = f"{OWN_PIPELINES}.{class_name}"
            module.SUPPORTED_TASKS[task] = {"impl": name, "pt": (model_class,), "type": "multimodal"}
        elif task not in module.SUPPORTED_TASKS:
            pipeline_class = getattr(import_module(OWN_PIPELINES), class_name, None)
            if pipeline_class is None:  # it is being imported
                return
            module.PIPELINE_REGISTRY.register_pipeline(task, pipeline_class, pt_model=model_class, type="multimodal")


def register() -> None:
    """Import all classes and register them through the public functions."""
    from transformers import AutoFeatureExtractor

    from .configuration_tablet import TabletConfig
    from .feature_extraction_tablet import TabletFeatureExtractor
    from .modeling_tablet import register_auto_classes

    register_auto_classes()
    AutoFeatureExtractor.register(TabletConfig, TabletFeatureExtractor, exist_ok=True)
