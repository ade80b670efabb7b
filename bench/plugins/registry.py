"""One lazy registry for every kind of plugin.

A plugin is found in one of three ways: an entry point of an installed distribution (ours are
found in the same way), the decorator `registry.register(name)`, or `path/to/file.py@name`. Listing
reads entry points and source text only; the plugin's module, and with it torch, is imported on
first use.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import os
import re
import sys
from dataclasses import dataclass
from functools import cache
from importlib.metadata import Distribution, EntryPoint, entry_points
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, Generic, TypeVar

from bench.errors import BadInput, Missing, one_line
from bench.plugins.parameters import Parameter, parameters
from bench.spec import nearest

T = TypeVar("T")
_ALIAS = "alias of "


@dataclass(frozen=True)
class Alias:
    """A name for another spec; it is expanded before anything is hashed."""

    spec: str


@dataclass(frozen=True)
class Entry:
    """What a listing shows: the name, one line of description, and who provides it."""

    name: str
    summary: str
    provider: str


class Registry(Generic[T]):
    """Names to plugin classes of one kind.

    Args:
        kind: singular noun for messages, for example `attack`.
        group: the entry-point group, for example `bench.attacks`.
        contract: `module:class` that plugins derive from; imported when the first one is made.
    """

    def __init__(self, kind: str, group: str, contract: str) -> None:
        self.kind = kind
        self.group = group
        self._contract = contract
        self._local: dict[str, type[T] | Alias] = {}
        self._points: dict[str, EntryPoint] | None = None

    def register(self, name: str) -> Any:
        """Class decorator that adds a plugin under `name` for this process."""

        def add(plugin: type[T]) -> type[T]:
            known = self._local.get(name)
            if known is not None and getattr(known, "__module__", None) != plugin.__module__:
                raise BadInput(f"the {self.kind} {name!r} is registered twice: rename one of them")
            self._local[name] = plugin
            return plugin

        return add

    def check(self, plugin: object, name: str) -> None:
        """Raise `BadInput` unless `plugin` is a concrete class of this kind."""
        if not self.holds(plugin):
            raise BadInput(
                f"{name!r} is no {self.kind}: derive its class from "
                f"{self._contract.replace(':', '.')}"
            )
        if inspect.isabstract(plugin):
            missing = ", ".join(sorted(getattr(plugin, "__abstractmethods__", ())))
            raise BadInput(f"{self.kind} {name!r} cannot be used: write its {missing}")

    def holds(self, plugin: object) -> bool:
        """Whether `plugin` is a class of this kind."""
        module, _, attribute = self._contract.partition(":")
        base = getattr(importlib.import_module(module), attribute)
        return inspect.isclass(plugin) and issubclass(plugin, base)

    def known_name(self, name: str) -> str:
        """The registered name that `name` means in any case of letters; unknown ones unchanged."""
        known = self.names()
        if "@" in name or name in known:
            return name
        matches = [one for one in known if one.lower() == name.lower()]
        return matches[0] if len(matches) == 1 else name

    def name_of(self, plugin: type[T]) -> str:
        """The name under which a class is registered; empty where it is not."""
        home = f"{plugin.__module__}:{plugin.__qualname__}"
        installed = (name for name, point in self._entry_points().items() if point.value == home)
        local = (name for name, one in self._local.items() if one is plugin)
        return next(installed, None) or next(local, "")

    def names(self) -> list[str]:
        """All known names, sorted."""
        return sorted({*self._entry_points(), *self._local})

    def entries(self) -> list[Entry]:
        """All known plugins with their one-line descriptions, without importing them."""
        points = self._entry_points()
        entries = [Entry(n, _summary_of_point(p), _name_of(p.dist)) for n, p in points.items()]
        entries += [
            Entry(
                n,
                f"{_ALIAS}{p.spec}" if isinstance(p, Alias) else _summary(p.__doc__),
                "this process",
            )
            for n, p in self._local.items()
        ]
        return sorted(entries, key=lambda entry: entry.name)

    def parameters(self, name: str) -> list[Parameter]:
        """The parameters of an installed plugin, without importing it; none of one that is not."""
        point = self._entry_points().get(name)
        if point is None:
            return []
        found = parameters(point.module, point.attr)
        _, alias, spec = _summary_of_point(point).partition(_ALIAS)
        return self.parameters(spec.partition(":")[0]) if alias and not found else found

    def get(self, name: str) -> type[T] | Alias:
        """The plugin class (or alias) of this name. Raises `BadInput` with near misses for an
        unknown one.
        """
        if "@" in name:
            return self._from_file(name)
        if name in self._local:
            return self._local[name]
        point = self._entry_points().get(name)
        if point is None:
            raise BadInput(f"unknown {self.kind} {name!r}.{nearest(name, self.names())}")
        try:
            loaded: type[T] | Alias = point.load()
        except ImportError as error:
            raise BadInput(
                f"{self.kind} {name!r} cannot be imported ({error}): install what it needs"
            ) from error
        return loaded

    def _entry_points(self) -> dict[str, EntryPoint]:
        if self._points is None:
            points: dict[str, EntryPoint] = {}
            for point in _installed(tuple(sys.path)).select(group=self.group):
                other = points.setdefault(point.name, point)
                if other.value != point.value:
                    raise BadInput(
                        f"the {self.kind} {point.name!r} is provided by {other.value} and by "
                        f"{point.value}: uninstall one of them"
                    )
            self._points = points
        return self._points

    def _from_file(self, name: str) -> type[T]:
        path, _, attribute = name.rpartition("@")
        module = load_file(path, self.kind)
        registered = self._local.get(attribute)
        plugin = getattr(module, attribute, registered)
        if plugin is None or isinstance(plugin, Alias):
            raise BadInput(
                f"{path} defines no {self.kind} "
                f"{attribute!r}.{nearest(attribute, _defined_in(module))}"
            )
        kind: type[T] = plugin
        return kind


@cache
def _installed(_: tuple[str, ...]) -> Any:
    """All entry points on this path, read once: every registry looks among the same ones."""
    return entry_points()


@cache
def _name_of(distribution: Distribution | None) -> str:
    return distribution.name if distribution else ""


def _defined_in(module: ModuleType) -> list[str]:
    """Its own public classes and functions, not what it imports."""
    own = {
        name: value
        for name, value in vars(module).items()
        if getattr(value, "__module__", "") == module.__name__
    }
    return [
        name
        for name, value in own.items()
        if isinstance(value, type | FunctionType) and not name.startswith("_")
    ]


def existing_file(path: str, what: str) -> Path:
    """The file at `path`. Raises `Missing` where there is none, or where the path cannot even be
    one.
    """
    file = Path(path).expanduser()
    try:
        exists = file.is_file()
    except (OSError, ValueError):
        exists = False
    if not exists:
        problem = "a folder where a file is expected" if os.path.isdir(file) else "no such file"
        raise Missing(f"{problem}: {path[:200]} (for {what[:60]}): check the path")
    return file


def load_file(path: str, what: str) -> ModuleType:
    """Import a Python file as a module of its own, once per content; it may import its
    neighbours.
    """
    file = existing_file(path, f"{what} {path}@...")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    name = f"_bench_file_{file.stem}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise BadInput(f"{path} is not a Python file: give a .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    folder = str(file.resolve().parent)
    sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise BadInput(f"{path} fails on import with {one_line(error)}: correct it") from error
    finally:
        sys.path.remove(folder)
    return module


def _summary(docstring: str | None) -> str:
    """The first paragraph, on one line."""
    return " ".join((docstring or "").strip().partition("\n\n")[0].split())


def _summary_of_point(point: EntryPoint) -> str:
    """The first paragraph of the class, or the alias's target, read from the source without
    importing it.
    """
    try:
        module = importlib.util.find_spec(point.module)
        if module is None or module.origin is None:
            return ""
        source = Path(module.origin).read_text(encoding="utf-8")
        documented = _described(point.attr).search(source)
        if documented is not None:
            return _summary(documented[1])
        tree = ast.parse(source)
    except (ImportError, OSError, SyntaxError, ValueError):
        return "(cannot be read)"
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == point.attr:
            return _summary(ast.get_docstring(node))
        if isinstance(node, ast.Assign) and _is_alias(node, point.attr):
            return f"{_ALIAS}{ast.literal_eval(node.value.args[0])}"  # type: ignore[attr-defined]
    return ""


def _described(name: str) -> re.Pattern[str]:
    """Finds a class of this name, written in the usual form, with its docstring; to parse all files
    would take half the time of a listing.
    """
    return re.compile(rf'^class {re.escape(name)}\b[^\n#]*:\n[ ]+"""([^"\\]*)"""', re.MULTILINE)


def _is_alias(node: ast.Assign, name: str) -> bool:
    named = any(isinstance(target, ast.Name) and target.id == name for target in node.targets)
    return named and isinstance(node.value, ast.Call) and bool(node.value.args)
