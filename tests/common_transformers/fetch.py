"""
The library's own common tests. They are in the source distribution of transformers but not in its wheels, so they are
fetched at the installed version, once, into the repository's cache folder.
"""

import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import transformers
from filelock import FileLock

PACKAGE = "transformers_common_tests"
COMMON_TESTS = ("test_modeling_common.py", "test_configuration_common.py", "test_feature_extraction_common.py")

# Modules that the common tests import and the source distribution leaves out.
STUBS = {
    "__init__.py": "",
    "exporters/__init__.py": "",
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/__init__.py": "",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "utils/__init__.py": "",
    "utils/test_configuration_utils.py": (
        "config_common_kwargs = {\n"
        '    "return_dict": False,\n'
        '    "output_hidden_states": True,\n'
        '    "output_attentions": True,\n'
        '    "dtype": "float16",\n'
        '    "chunk_size_feed_forward": 5,\n'
        '    "architectures": ["TabletModel"],\n'
        '    "id2label": {0: "age"},\n'
        '    "label2id": {"age": "0"},\n'
        '    "problem_type": "regression",\n'
        "}\n"
    ),
}


class CommonTestsUnavailable(Exception):
    """The registry could not be reached, or does not hold this version."""


def fetch_common_tests(cache: Path) -> Path:
    """
    Return a folder to put on the Python path, which holds the common tests as the package `transformers_common_tests`.

    Raises:
        CommonTestsUnavailable: where they are neither in the cache nor to be had from the registry.
    """
    home = cache / f"transformers-{transformers.__version__}-common-tests"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / "common-tests.lock"):
        if not home.exists():
            with tempfile.TemporaryDirectory(dir=cache) as scratch:
                unpacked = Path(scratch) / "unpacked"
                unpack(download(Path(scratch)), unpacked / PACKAGE)
                unpacked.rename(home)
    return home


def download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    command += [f"transformers=={transformers.__version__}", "--dest", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True)
    archives = list(folder.glob("transformers-*.tar.gz"))
    if result.returncode or not archives:
        reason = (result.stderr.strip().splitlines() or ["no message of pip"])[-1]
        raise CommonTestsUnavailable(f"transformers {transformers.__version__} could not be fetched: {reason}")
    return archives[0]


def unpack(archive: Path, package: Path) -> None:
    package.mkdir(parents=True)
    with tarfile.open(archive) as sources:
        for name in COMMON_TESTS:
            member = f"transformers-{transformers.__version__}/tests/{name}"
            with sources.extractfile(member) as source, open(package / name, "wb") as target:
                shutil.copyfileobj(source, target)
    for name, text in STUBS.items():
        (package / name).parent.mkdir(exist_ok=True)
        (package / name).write_text(text)
