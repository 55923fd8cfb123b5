"""The library's own common tests pass for TABLeT."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from common_transformers.fetch import CommonTestsUnavailable, fetch_common_tests

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def common_tests() -> Path:
    try:
        return fetch_common_tests(REPOSITORY / ".cache")
    except CommonTestsUnavailable as unavailable:
        if os.environ.get("TABLET_REQUIRE_COMMON_TESTS") == "1":
            pytest.fail(f"TABLET_REQUIRE_COMMON_TESTS is set, but {unavailable}")
        pytest.skip(str(unavailable))


@pytest.mark.slow
def test_common_tests_of_transformers(common_tests):
    """In a process of their own, and not with the project's strict settings."""
    suite = Path(__file__).parent / "common_transformers" / "tablet_suite.py"
    command = [sys.executable, "-m", "pytest", suite, "-q", "-rs", "--tb=short", "--color=no", "-W", "ignore"]
    command += ["-o", "addopts=", "-p", "no:cacheprovider", "-p", "no:xdist"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(common_tests), environment.get("PYTHONPATH"))))
    result = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert int(re.findall(r"(\d+) passed", result.stdout)[-1]) >= 99, result.stdout
