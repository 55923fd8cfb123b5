"""Custom code: a model's folder with the code that it needs, for whoever has transformers but not this package.

What `AutoModel.from_pretrained(..., trust_remote_code=True)` runs are the package's own files, copied as they are:
they import each other by `from .x import ...`, which means the same in the package and in a repository without
folders.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from tablet_hf.auto_classes import PIPELINES
from tablet_hf.errors import InputError
from tablet_hf.files import atomic_write
from tablet_hf.slice_autoencoder import BUNDLED_FILES, BUNDLED_FOLDER, SHIPPED_WEIGHTS, shipped_autoencoders

PACKAGE = Path(__file__).parents[1]
CONFIG, EXTRACTOR = "config.json", "preprocessor_config.json"

# By the file that names them, the classes that the Auto classes find. The library itself enters only the class that
# is saved; whoever loads a head may want the backbone, and the other way round.
AUTO_MAPS = {
    CONFIG: {
        "AutoConfig": "configuration_tablet.TabletConfig",
        "AutoModel": "modeling_tablet.TabletModel",
        "AutoModelForPreTraining": "modeling_tablet.TabletForMaskedTokenModeling",
        "AutoModelForSequenceClassification": "modeling_tablet.TabletForSequenceClassification",
    },
    EXTRACTOR: {"AutoFeatureExtractor": "feature_extraction_tablet.TabletFeatureExtractor"},
}


def write_custom_code(folder: Path) -> None:
    """Make a saved model's or extractor's folder load without this package, and run on scans.

    Written are the Python files that its classes need, their names in `config.json` and `preprocessor_config.json`,
    and the extractor's autoencoder where that is one that comes with this package (`autoencoders/NAME`, 14 MB), since
    no one else has it. A model whose configuration records how its tokens are made, but next to which no extractor
    is, gets one. Written again, nothing changes.

    Raises:
        InputError: the folder holds neither a model nor an extractor of TABLeT.
    """
    folder = Path(folder)
    saved = {name: read_settings(folder / name) for name in AUTO_MAPS if (folder / name).is_file()}
    if not saved:
        raise InputError(
            f"{folder}: there is no {CONFIG} and no {EXTRACTOR} in it; give the folder of a saved model or extractor."
        )
    check_is_tablet(folder, saved)
    if EXTRACTOR not in saved and saved[CONFIG].get("autoencoder") is not None:
        saved[EXTRACTOR] = extractor_settings(folder)
    modules = {name.split(".")[0] for file in saved for name in AUTO_MAPS[file].values()}
    if CONFIG in saved and EXTRACTOR in saved:
        pipelines = pipelines_of(saved[CONFIG])
        modules |= {pipeline["impl"].split(".")[0] for pipeline in pipelines.values()}
        saved[CONFIG]["custom_pipelines"] = pipelines

    for source in needed_files(modules):
        copy_whole(source, folder / source.name)
    autoencoder = saved.get(EXTRACTOR, {}).get("autoencoder")
    if autoencoder in shipped_autoencoders():
        beside = folder / BUNDLED_FOLDER / autoencoder
        beside.mkdir(parents=True, exist_ok=True)
        for name in BUNDLED_FILES:
            copy_whole(SHIPPED_WEIGHTS / autoencoder / name, beside / name)
    for name, settings in saved.items():  # last: what is named is there
        settings["auto_map"] = settings.get("auto_map", {}) | AUTO_MAPS[name]
        with atomic_write(folder / name) as unfinished:
            unfinished.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: it is no readable JSON ({error}); save the model again.") from error
    if not isinstance(settings, dict):
        raise InputError(f"{path}: it holds no settings; save the model again.")
    return settings


def check_is_tablet(folder: Path, saved: dict[str, dict[str, Any]]) -> None:
    model_type = saved.get(CONFIG, {"model_type": "tablet"}).get("model_type")
    if model_type != "tablet":
        raise InputError(f"{folder / CONFIG}: its model_type is {model_type!r}; only a model of TABLeT has this code.")
    extractor_type = saved.get(EXTRACTOR, {}).get("feature_extractor_type", "TabletFeatureExtractor")
    if extractor_type != "TabletFeatureExtractor":
        raise InputError(f"{folder / EXTRACTOR}: it is for a {extractor_type}, not for a TabletFeatureExtractor.")


def extractor_settings(folder: Path) -> dict[str, Any]:
    """What an extractor saves that makes tokens as the model in this folder knows them."""
    from tablet_hf.configuration_tablet import TabletConfig
    from tablet_hf.feature_extraction_tablet import TabletFeatureExtractor

    return TabletFeatureExtractor.from_config(TabletConfig.from_pretrained(folder)).to_dict()


def pipelines_of(config: dict[str, Any]) -> dict[str, Any]:
    """The pipelines of a model, as `config.json` names them; a bare encoder classifies nothing."""
    has_head = "TabletForSequenceClassification" in (config.get("architectures") or [])
    return {
        task: {"impl": f"pipeline_tablet.{pipeline.__name__}", "pt": [auto_class.__name__], "type": "multimodal"}
        for task, (pipeline, auto_class) in PIPELINES.items()
        if has_head or auto_class.__name__ == "AutoModel"
    }


def needed_files(modules: set[str]) -> list[Path]:
    """The files of these modules and of all that they import from this package, sorted."""
    from transformers.dynamic_module_utils import get_relative_import_files

    roots = [PACKAGE / f"{module}.py" for module in modules]
    return sorted({*roots, *(Path(file) for root in roots for file in get_relative_import_files(root))})


def copy_whole(source: Path, target: Path) -> None:
    with atomic_write(target) as unfinished:
        shutil.copyfile(source, unfinished)


__all__ = ["write_custom_code"]
