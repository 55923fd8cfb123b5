"""A model's folder with the code that it needs, to load it with transformers but without this package.

The code is the package's own files, copied as they are: they import each other by `from .x import ...`, which means the
same in a repository without folders.
"""

import shutil
from pathlib import Path

from tablet_hf.auto_classes import PIPELINES
from tablet_hf.configuration_tablet import TabletConfig
from tablet_hf.errors import InputError
from tablet_hf.feature_extraction_tablet import TabletFeatureExtractor
from tablet_hf.files import atomic_write, write_json
from tablet_hf.hub.files import read_json
from tablet_hf.slice_autoencoder import BUNDLED_FILES, BUNDLED_FOLDER, SHIPPED_WEIGHTS, shipped_autoencoders

__all__ = ["write_custom_code"]

PACKAGE = Path(__file__).parents[1]
CONFIG, EXTRACTOR = "config.json", "preprocessor_config.json"

# By the file that names them. The library itself enters only the saved class, but a model with a head may be loaded
# without it, and the other way round.
AUTO_MAPS = {
    CONFIG: {
        "AutoConfig": "configuration_tablet.TabletConfig",
        "AutoModel": "modeling_tablet.TabletModel",
        "AutoModelForPreTraining": "modeling_tablet.TabletForMaskedTokenModeling",
        "AutoModelForSequenceClassification": "modeling_tablet.TabletForSequenceClassification",
    },
    EXTRACTOR: {"AutoFeatureExtractor": "feature_extraction_tablet.TabletFeatureExtractor"},
}


def write_custom_code(folder: str | Path) -> None:
    """Make a saved model's folder load without this package, and run on scans.

    Written are the Python files of its classes, their names in `config.json` and `preprocessor_config.json`, and the
    extractor's autoencoder if it ships with this package (`autoencoders/NAME`, 14 MB). A model without an extractor
    gets the one that its configuration records. A second call changes nothing.

    Raises:
        InputError: the folder does not hold a TABLeT model.
    """
    folder = Path(folder)
    saved = {name: read_json(folder / name) for name in AUTO_MAPS if name == CONFIG or (folder / name).is_file()}
    if saved[CONFIG].get("model_type") != "tablet":
        raise InputError(f"{folder / CONFIG}: not the configuration of a TABLeT model, which alone has this code.")
    if EXTRACTOR not in saved and saved[CONFIG].get("autoencoder") is not None:
        saved[EXTRACTOR] = TabletFeatureExtractor.from_config(TabletConfig.from_pretrained(folder)).to_dict()
    modules = {name.split(".")[0] for file in saved for name in AUTO_MAPS[file].values()}
    if EXTRACTOR in saved:
        has_head = "TabletForSequenceClassification" in (saved[CONFIG].get("architectures") or [])
        saved[CONFIG]["custom_pipelines"] = {
            task: {"impl": f"pipeline_tablet.{pipeline.__name__}", "pt": [auto_class.__name__], "type": "multimodal"}
            for task, (pipeline, auto_class) in PIPELINES.items()
            if has_head or auto_class.__name__ == "AutoModel"
        }
        modules.add("pipeline_tablet")

    for source in needed_files(modules):
        _copy(source, folder / source.name)
    autoencoder = saved.get(EXTRACTOR, {}).get("autoencoder")
    if autoencoder in shipped_autoencoders():
        bundled = folder / BUNDLED_FOLDER / autoencoder
        bundled.mkdir(parents=True, exist_ok=True)
        for name in BUNDLED_FILES:
            _copy(SHIPPED_WEIGHTS / autoencoder / name, bundled / name)
    for name, settings in saved.items():  # last, when the files that they name are there
        settings["auto_map"] = settings.get("auto_map", {}) | AUTO_MAPS[name]
        write_json(folder / name, settings, indent=2, sort_keys=True)


def needed_files(modules: set[str]) -> list[Path]:
    """The files of these modules and of all that they import from this package, sorted."""
    from transformers.dynamic_module_utils import get_relative_import_files

    roots = [PACKAGE / f"{module}.py" for module in modules]
    return sorted({*roots, *(Path(file) for root in roots for file in get_relative_import_files(root))})


def _copy(source: Path, target: Path) -> None:
    with atomic_write(target) as unfinished:
        shutil.copyfile(source, unfinished)
