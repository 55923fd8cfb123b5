"""What a user relies on before anything is computed: names, import cost, installation."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import tablet_hf

ROOT = Path(__file__).parent.parent
HEAVY = ("diffusers", "datasets", "evaluate", "nibabel", "nilearn", "sklearn", "pandas", "matplotlib", "typer")


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def loaded_of(names, code):
    """Code that prints which of these modules are loaded after some other code."""
    return f"import sys; {code}; print(*[name for name in {names} if name in sys.modules])"


@pytest.mark.parametrize(("argv", "orig_argv"), [(["/usr/bin/tablet-hf"], []), (["-m"], ["-m", "tablet_hf"])])
def test_help_waits_for_neither_torch_nor_transformers(argv, orig_argv):
    code = f"sys.argv, sys.orig_argv = {argv}, {orig_argv}; import tablet_hf.cli.__main__"
    assert run_python(loaded_of((*HEAVY[:-1], "torch", "transformers", "scipy", "numpy"), code)) == ""


def test_no_promised_name_loads_heavy_libraries():
    assert run_python(loaded_of(HEAVY, "from tablet_hf import *; from tablet_hf.datasets import *")) == ""


@pytest.mark.parametrize("package", ["tablet_hf", "tablet_hf.datasets"])
def test_promised_names(package):
    """They can be imported, and a type checker sees the same names from the same modules."""
    module = importlib.import_module(package)
    assert set(module.__all__) <= set(dir(module))
    for name in module.__all__:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'TabletForCausalLM'"):
        _ = module.TabletForCausalLM
    tree = ast.parse(Path(module.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    seen = {name.name: node.module for node in block.body for name in node.names}
    assert seen == module._MODULE_OF
    assert set(seen) <= set(module.__all__)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with a small model and its extractor."""
    folder = tmp_path_factory.mktemp("saved")
    sizes = {"token_size": 12, "grid_size": 2, "hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 32}
    config = tablet_hf.TabletConfig(**sizes, num_attention_heads=2, num_key_value_heads=1)
    tablet_hf.TabletForSequenceClassification(config).save_pretrained(folder)
    tablet_hf.TabletFeatureExtractor("lab/absent").save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "imports", ["import tablet_hf, transformers", "from transformers import AutoModel; import tablet_hf"]
)
def test_auto_classes_know_tablet_after_the_import(imports, saved):
    code = f"""
{imports}
import transformers
for auto in ("AutoConfig", "AutoFeatureExtractor", "AutoModel", "AutoModelForPreTraining",
             "AutoModelForSequenceClassification"):
    found = type(getattr(transformers, auto).from_pretrained({str(saved)!r}))
    print(found.__module__, found.__name__)
for task in ("fmri-classification", "fmri-feature-extraction"):
    found = transformers.pipelines.PIPELINE_REGISTRY.check_task(task)[1]["impl"]
    print(found.__module__, found.__name__)
"""
    assert run_python(code).splitlines() == [
        "tablet_hf.configuration_tablet TabletConfig",
        "tablet_hf.feature_extraction_tablet TabletFeatureExtractor",
        "tablet_hf.modeling_tablet TabletModel",
        "tablet_hf.modeling_tablet TabletForMaskedTokenModeling",
        "tablet_hf.modeling_tablet TabletForSequenceClassification",
        "tablet_hf.pipeline_tablet FmriClassificationPipeline",
        "tablet_hf.pipeline_tablet FmriFeatureExtractionPipeline",
    ]


def test_every_direct_dependency_is_pinned_in_the_constraints():
    setup = (ROOT / "setup.py").read_text()
    names = {name.lower().replace("_", "-") for name in re.findall(r'"([A-Za-z_-]+)>=', setup)} - {"setuptools"}
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().split()}
    assert names
    assert names - pinned == set()


def test_the_citation_names_this_package_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["authors"] == [{"name": "The tablet_hf developers"}]
    assert citation["version"] == tablet_hf.__version__
    (paper,) = citation["references"]
    assert paper["title"].startswith("Can Natural Image Autoencoders Compactly Tokenize fMRI Volumes")
    assert paper["url"] == "https://arxiv.org/abs/2604.03619"
    assert {"type", "title", "authors"} <= set(paper)  # what version 1.2.0 of the format asks of a reference


@pytest.mark.parametrize("name", ["tokens", "volumes", "scans", "grid", "brain", "intensities"])
def test_geometry_and_files_know_nothing_of_transformers(name):
    source = (ROOT / f"src/tablet_hf/{name}.py").read_text()
    assert not re.search(r"^\s*(?:import|from) transformers", source, re.MULTILINE)


def test_no_file_names_a_path_of_a_machine():
    for path in [*ROOT.glob("src/**/*.py"), *ROOT.glob("examples/*.py"), *ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        assert not re.search(r"/(?:home|root|Users)/\w", path.read_text()), path


def test_the_readme_is_finished():
    assert not re.search(r"\b[A-Z]+_[A-Z]+(?:_[A-Z]+)*\b", (ROOT / "README.md").read_text())
