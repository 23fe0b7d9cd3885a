"""Loads a public name's module when the name is first used (PEP 562), so that importing a package loads no library."""

from collections.abc import Callable, Mapping
from importlib import import_module


def exports(
    package: str, names: Mapping[str, str]
) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` for a package.

    `names` has the public names of each module below the package, separated by spaces.
    """
    modules = {name: module for module, of_module in names.items() for name in of_module.split()}
    public = sorted(modules)

    def get(name: str) -> object:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{modules[name]}"), name)

    return get, public.copy, public
