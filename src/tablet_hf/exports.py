"""Names of a package that are imported when somebody asks for them: torch and transformers take seconds."""

from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from sys import modules
from typing import Any

__all__ = ["imported_on_demand"]


def imported_on_demand(
    package: str, module_of: Mapping[str, str], submodules: Iterable[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The functions `__getattr__` and `__dir__` that a package defines for names it has not imported yet (PEP 562).

    Args:
        package: its `__name__`.
        module_of: the submodule that each name comes from.
        submodules: further ones of the package; all of them are names themselves.
    """
    submodules = {*module_of.values(), *submodules}

    def __getattr__(name: str) -> Any:
        if name in submodules:
            return import_module(f".{name}", package)
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f".{module_of[name]}", package), name)
        setattr(modules[package], name, value)
        return value

    def __dir__() -> list[str]:
        return sorted({*vars(modules[package]), *module_of, *submodules})

    return __getattr__, __dir__
