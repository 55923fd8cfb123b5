"""Names of a package that are imported at first use: torch and transformers take seconds."""

from collections.abc import Callable, Mapping
from importlib import import_module
from sys import modules
from typing import Any

__all__ = ["imported_on_demand"]


def imported_on_demand(
    package: str, module_of: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make the functions `__getattr__` and `__dir__` of a package (PEP 562).

    Args:
        package: its `__name__`.
        module_of: the submodule that each name comes from.
    """

    def __getattr__(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f".{module_of[name]}", package), name)
        setattr(modules[package], name, value)
        return value

    def __dir__() -> list[str]:
        return sorted({*vars(modules[package]), *module_of})

    return __getattr__, __dir__
