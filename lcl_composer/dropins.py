"""Drop-ins: one file in a folder beside the YAMLs is one component, found by its file name.

``callbacks/attention_maps.py`` holds ``class AttentionMaps``. Only the named file is imported, as
``callbacks.attention_maps``: a broken neighbour cannot stop a run that does not name it.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from lcl_composer.errors import ConfigError

_CHECKOUT = Path(__file__).resolve().parents[1]


def class_name(name: str) -> str:
    """The class that the file of a name must define: ``attention_maps`` -> ``AttentionMaps``."""
    return "".join(part.capitalize() for part in name.split("_"))


def place_of(error: BaseException, file: Path) -> str:
    """``file:line`` of an error, the line that ran last in the file."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)]
    line = error.lineno if isinstance(error, SyntaxError) else frames[-1].lineno if frames else 1
    return f"{file}:{line}"


class DropIns:
    """The files of one package (``callbacks``) in the working directory and in the source checkout.

    Args:
        package: The folder's name, and the package its files are imported as.
        kind: What a component is called in messages.
        base: ``"module:Class"`` that each must be a subclass of; None: any class.
    """

    def __init__(self, package: str, kind: str, base: str | None = None) -> None:
        self.package = package
        self.kind = kind
        self.base = base

    def folders(self) -> list[Path]:
        """Return the folders searched: the working directory's first, then that of a source checkout."""
        roots = [Path.cwd()]
        if (_CHECKOUT / "pyproject.toml").is_file() and roots[0].resolve() != _CHECKOUT:
            roots.append(_CHECKOUT)
        return [root / self.package for root in roots if (root / self.package).is_dir()]

    def names(self) -> list[str]:
        """Return the name of every drop-in, sorted; imports nothing."""
        files = [file for folder in self.folders() for file in folder.glob("*.py")]
        return sorted({file.stem for file in files if not file.stem.startswith("_")})

    def find(self, name: str) -> Path | None:
        """Return the file of a name, or None.

        Raises:
            ConfigError: Two folders have a file of that name.
        """
        if not name.isidentifier() or name.startswith("_"):
            return None
        files = [folder / f"{name}.py" for folder in self.folders() if (folder / f"{name}.py").is_file()]
        if len(files) > 1:
            raise ConfigError(f"{self.kind} {name!r} is in two files, {files[0]} and {files[1]}; rename one")
        return files[0] if files else None

    def load(self, name: str) -> Callable[..., Any]:
        """Import the file of a name and return its class (``attention_maps`` -> ``AttentionMaps``).

        Raises:
            ConfigError: The import fails, or the class is missing, of another base, or lacks a method that
                the base leaves open; the message names the file.
        """
        file = self.find(name)
        if file is None:
            raise ConfigError(f"no file {self.package}/{name}.py")
        module = self._import(name, file)
        wanted = class_name(name)
        if inspect.isclass(component := getattr(module, wanted, None)):
            self._check_base(component, file)
            return component
        others = [
            k for k, v in vars(module).items() if inspect.isclass(v) and v.__module__ == module.__name__
        ]
        raise ConfigError(f"{file} must define class {wanted}; it defines {', '.join(others) or 'no class'}")

    def _check_base(self, component: type, file: Path) -> None:
        if self.base is not None:
            module, _, base = self.base.partition(":")
            if not issubclass(component, getattr(importlib.import_module(module), base)):
                raise ConfigError(
                    f"{file}: class {component.__name__} is no {self.kind}; derive it from {base} of {module}"
                )
        if missing := sorted(getattr(component, "__abstractmethods__", ())):
            raise ConfigError(
                f"{file}: class {component.__name__} lacks {', '.join(missing)}; write it there"
            )

    def _import(self, name: str, file: Path) -> ModuleType:
        self._open_package()
        try:
            module = importlib.import_module(f"{self.package}.{name}")
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
            raise ConfigError(
                f"{place_of(error, file)}: {self.kind} {name!r} cannot be imported: {message}"
            ) from error
        if Path(str(module.__file__)).resolve() != file.resolve():
            raise ConfigError(
                f"{self.kind} {name!r} is in two files, {module.__file__} and {file}; rename one"
            )
        return module

    def _open_package(self) -> None:
        """Make ``package`` importable from all folders, without running an ``__init__.py``."""
        module = sys.modules.setdefault(self.package, ModuleType(self.package))
        paths = [*getattr(module, "__path__", []), *map(str, self.folders())]
        module.__path__ = list(dict.fromkeys(paths))
        importlib.invalidate_caches()
