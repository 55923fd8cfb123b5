"""The library's own common tests pass for TABLeT."""

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from common_transformers.fetch import CommonTestsUnavailable, fetch_common_tests

REPOSITORY = Path(__file__).parents[1]
CACHE = REPOSITORY / ".cache"
SUITES = Path(__file__).parent / "common_transformers"


@pytest.fixture(scope="module")
def common_tests() -> Path:
    try:
        return fetch_common_tests(CACHE)
    except CommonTestsUnavailable as unavailable:
        if os.environ.get("TABLET_REQUIRE_COMMON_TESTS") == "1":
            pytest.fail(f"TABLET_REQUIRE_COMMON_TESTS is set, but {unavailable}")
        pytest.skip(str(unavailable))


def run_suite(suite: Path, common_tests: Path) -> tuple[Counter, Counter, str]:
    """Run a file of common tests in its own process; return the outcomes, the reasons for skips, and the output."""
    path = os.pathsep.join(filter(None, (str(common_tests), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "pytest", str(suite), "-q", "-rs", "--tb=short", "--color=no", "-W", "ignore"]
    # The project's strict settings are not made for the library's tests.
    command += ["-o", "addopts=", "-p", "no:cacheprovider", "-p", "no:xdist"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    result = subprocess.run(
        command, cwd=REPOSITORY, env={**environment, "PYTHONPATH": path}, capture_output=True, text=True
    )

    lines = result.stdout.strip().splitlines() or [""]
    outcomes = Counter({outcome: int(number) for number, outcome in re.findall(r"(\d+) ([a-z]+)", lines[-1])})
    if result.returncode and not outcomes["failed"]:
        outcomes["failed"] += 1  # the run itself broke
    reasons = Counter()
    for line in lines:
        if skip := re.match(r"SKIPPED \[(\d+)\] (?:\S+\.py(?::\d+)?: )?(.*)", line):
            reasons[skip[2]] += int(skip[1])
    return outcomes, reasons, result.stdout + result.stderr


# A suite of another common test is one more pair here and one more file in the folder.
@pytest.mark.slow
@pytest.mark.parametrize(("suite", "at_least"), [("tablet_suite.py", 95), ("feature_extraction_suite.py", 4)])
def test_common_tests_of_transformers(suite, at_least, common_tests, capsys):
    outcomes, reasons, output = run_suite(SUITES / suite, common_tests)

    account = [f"{suite}: {outcomes['passed']} passed, {outcomes['failed']} failed, {outcomes['skipped']} skipped"]
    account += [f"  {number:3d} skipped: {reason}" for reason, number in reasons.most_common()]
    # Workers of pytest-xdist print nowhere; the file is for them.
    (CACHE / suite).with_suffix(".txt").write_text("\n".join(account) + "\n")
    with capsys.disabled():
        print("", *account, sep="\n")
    assert outcomes["failed"] == 0, output
    assert outcomes["passed"] >= at_least, output
