"""Which module imports which: in no circle, and between rooms (the folders of the package) only downwards.

Imports inside functions and those for type checkers count too; names imported on demand (`exports.py`) are not seen.
"""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src/tablet_hf"

ROOT = "root files"
ROOMS = [ROOT, "evaluation", "sources", "datasets", "report", "hub", "baselines", "training", "cli"]
"""From the bottom to the top. A module may import those of its own room and of the rooms before it."""


def name_of(path):
    parts = [PACKAGE.name, *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(source, package, modules):
    """Those of `modules` that the source of a module in this package imports."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
            start = ".".join([*above, *filter(None, [node.module])])
            names |= {full if (full := f"{start}.{alias.name}") in modules else start for alias in node.names}
    return names & modules


def room_of(module):
    if module == "tablet_hf.__main__":
        return "cli"  # python -m tablet_hf
    parts = module.split(".")
    return parts[1] if len(parts) > 2 or (PACKAGE / parts[-1]).is_dir() else ROOT


@pytest.fixture(scope="module")
def imports():
    """`{module: modules that it imports}`."""
    paths = {name_of(path): path for path in PACKAGE.rglob("*.py")}
    found = {}
    for name, path in paths.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        found[name] = imported(path.read_text(encoding="utf-8"), package, set(paths)) - {name}
    return found


def test_every_way_to_import_is_seen():
    modules = {f"p.{name}" for name in ("a", "b", "c", "r", "r.d", "r.e", "r.f")}
    source = "import p.a, os\nfrom p import b\nfrom ..c import x\ndef f():\n    from . import d\n    from .e import y\n"
    assert imported(source, "p.r", modules) == {"p.a", "p.b", "p.c", "p.r.d", "p.r.e"}
    assert imported("from .r.f import z\nfrom p.r import z", "p", modules) == {"p.r.f", "p.r"}


def test_every_folder_is_a_room(imports):
    assert {room_of(module) for module in imports} == set(ROOMS)


def test_no_modules_import_in_a_circle(imports):
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        pytest.fail(f"These import each other: {' <- '.join(error.args[1])}")


def test_rooms_import_downwards(imports):
    height = {module: ROOMS.index(room_of(module)) for module in imports}
    upwards = [(module, other) for module in imports for other in imports[module] if height[other] > height[module]]
    assert upwards == []
