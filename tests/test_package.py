"""What a user relies on before anything is computed: names, import cost, installation."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import tablet_hf

ROOT = Path(__file__).parent.parent


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_import_leaves_heavy_libraries_alone():
    heavy = ("diffusers", "datasets", "evaluate", "nibabel", "nilearn", "matplotlib", "sklearn", "typer")
    loaded = run_python(f"import sys, tablet_hf; print([name for name in {heavy} if name in sys.modules])")
    assert loaded == "[]"


def test_promised_names():
    assert {
        "TabletConfig",
        "TabletFeatureExtractor",
        "TabletModel",
        "TabletForMaskedTokenModeling",
        "TabletForSequenceClassification",
    } <= set(tablet_hf.__all__)
    for name in tablet_hf.__all__:
        assert getattr(tablet_hf, name) is not None


def test_auto_classes_know_tablet_after_the_import():
    code = """
import tablet_hf, transformers
config = transformers.AutoConfig.for_model("tablet", hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                                           num_key_value_heads=1, intermediate_size=32)
for auto in ("AutoModel", "AutoModelForPreTraining", "AutoModelForSequenceClassification"):
    print(type(getattr(transformers, auto).from_config(config)).__name__)
"""
    assert run_python(code).split() == [
        "TabletModel",
        "TabletForMaskedTokenModeling",
        "TabletForSequenceClassification",
    ]


def test_auto_feature_extractor(tmp_path):
    from transformers import AutoFeatureExtractor

    tablet_hf.TabletFeatureExtractor(signal="percent_change").save_pretrained(tmp_path)
    loaded = AutoFeatureExtractor.from_pretrained(tmp_path)
    assert type(loaded) is tablet_hf.TabletFeatureExtractor
    assert loaded.signal == "percent_change"


def test_every_direct_dependency_is_pinned_in_the_constraints():
    setup = (ROOT / "setup.py").read_text()
    names = {name.lower().replace("_", "-") for name in re.findall(r'"([A-Za-z_-]+)>=', setup)} - {"setuptools"}
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().split()}
    assert names
    assert names - pinned == set()


@pytest.mark.parametrize("path", sorted((ROOT / "src/tablet_hf").rglob("*.py")), ids=lambda path: path.name)
def test_imports_point_one_way(path):
    """Nothing imports the command line; geometry and files know nothing of transformers."""
    source = path.read_text()
    assert not re.search(r"import cli\b|tablet_hf\.cli import|from \.cli ", source)
    if path.name in {"tokens.py", "volumes.py", "scans.py", "grid.py", "brain.py", "intensities.py"}:
        assert not re.search(r"^\s*(?:import|from) transformers", source, re.MULTILINE)


def test_python_files_name_no_path_of_a_machine():
    for path in [*ROOT.glob("src/**/*.py"), *ROOT.glob("tests/**/*.py"), *ROOT.glob("*.md")]:
        assert not re.search(r"/(?:home|root|Users)/\w", path.read_text()), path


def test_the_readme_is_finished():
    assert not re.search(r"\b[A-Z]+_[A-Z]+(?:_[A-Z]+)*\b", (ROOT / "README.md").read_text())
