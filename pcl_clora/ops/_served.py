"""Modules under the names of packages that are not installed, for code that imports these."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, spec_from_loader
from types import ModuleType, TracebackType

logger = logging.getLogger(__name__)
Contents = Mapping[str, Mapping[str, object]]  # full name of a module -> what it holds


class Served(AbstractContextManager["Served"]):
    """What stands in for packages until `remove`, or the end of the `with` block.

    Attributes:
        names: the packages that are served.
        left: the packages that are installed, and are left alone.
    """

    def __init__(self, contents: Contents, *, shadow: bool) -> None:
        packages = sorted({_package_of(name) for name in contents})
        self.left = tuple(name for name in packages if not shadow and _is_installed(name))
        self.names = tuple(name for name in packages if name not in self.left)
        self._finder = _Finder({n: held for n, held in contents.items() if _package_of(n) in self.names})
        self._before = self._take_out()
        sys.meta_path.insert(0, self._finder)
        if self.left:
            logger.warning("%s: installed, so not served; pass shadow=True to serve it", ", ".join(self.left))

    def remove(self) -> None:
        """Make the names mean what they meant before. What was imported meanwhile stays usable."""
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
            self._take_out()
            sys.modules.update({n: module for n, module in self._before.items() if not _is_over(module)})

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def _take_out(self) -> dict[str, ModuleType]:
        taken = [name for name in sys.modules if _package_of(name) in self.names]
        return {name: sys.modules.pop(name) for name in taken}


def is_served(module: ModuleType) -> bool:
    """Tell whether a module stands in for one that is not installed."""
    return isinstance(_loader_of(module), _Finder)


class _Finder(MetaPathFinder, Loader):
    def __init__(self, contents: Contents) -> None:
        self._contents = contents

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self._contents:
            return None
        return spec_from_loader(fullname, self, origin=__name__, is_package=bool(self._parts(fullname)))

    def exec_module(self, module: ModuleType) -> None:
        vars(module).update(self._contents[module.__name__])
        for part in self._parts(module.__name__):  # `import package` brings its modules
            import_module(part)

    def _parts(self, fullname: str) -> list[str]:
        return [name for name in self._contents if name.startswith(f"{fullname}.")]


def _loader_of(module: ModuleType) -> object:
    """Return the loader, None for what others put into sys.modules by hand, None itself among it."""
    return getattr(getattr(module, "__spec__", None), "loader", None)


def _is_over(module: ModuleType) -> bool:
    """Tell whether a module was served by one who has been removed since."""
    return is_served(module) and _loader_of(module) not in sys.meta_path


def _package_of(name: str) -> str:
    return name.partition(".")[0]


def _is_installed(name: str) -> bool:
    """Tell whether an import would find more than a folder of that name, or what is served already."""
    module = sys.modules.get(name)
    if module is not None:
        return not is_served(module) and getattr(module, "__file__", "") is not None
    spec = find_spec(name)
    return spec is not None and spec.origin is not None and not isinstance(spec.loader, _Finder)
