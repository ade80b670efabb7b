"""The parameters of a plugin, read from its source: a shell completes them, and torch stays out."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_PARAMS = "Params"


@dataclass(frozen=True)
class Parameter:
    """One parameter.

    Attributes:
        name: as it is written in a spec.
        default: as it is written in a spec; empty where the source does not show it.
        description: what it is; empty where the source does not show it.
    """

    name: str
    default: str
    description: str


def parameters(module: str, name: str) -> list[Parameter]:
    """The parameters of a plugin's class, its bases' first; none where the source does not show
    them. Nothing of the module is imported, but the packages that it lies in.
    """
    try:
        home = _params_of(module, name)
        return list({one.name: one for one in _fields(*home)}.values()) if home else []
    except (ImportError, OSError, SyntaxError, ValueError, RecursionError):
        return []


@cache
def _tree(module: str) -> ast.Module:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ImportError(module)
    return ast.parse(Path(spec.origin).read_text(encoding="utf-8"))


def _class(module: str, name: str) -> tuple[str, ast.ClassDef] | None:
    """The class of this name as seen in a module, and the module that it is written in."""
    for node in _tree(module).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return module, node
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _class(node.module, alias.name)
    return None


def _bases(node: ast.ClassDef) -> Iterator[str]:
    for base in node.bases:
        named = base.value if isinstance(base, ast.Subscript) else base
        if isinstance(named, ast.Name):
            yield named.id


def _params_of(module: str, name: str) -> tuple[str, str] | None:
    """Where the class that a plugin calls `Params` is written, and its name."""
    found = _class(module, name)
    if found is None:
        return None
    home, node = found
    for inside in node.body:
        if isinstance(inside, ast.ClassDef) and inside.name == _PARAMS:
            return None
        targets = inside.targets if isinstance(inside, ast.Assign) else []
        targets = [inside.target] if isinstance(inside, ast.AnnAssign) else targets
        value = getattr(inside, "value", None)
        if any(isinstance(one, ast.Name) and one.id == _PARAMS for one in targets):
            return (home, value.id) if isinstance(value, ast.Name) else None
    return next(filter(None, (_params_of(home, base) for base in _bases(node))), None)


def _fields(module: str, name: str) -> Iterator[Parameter]:
    found = _class(module, name)
    if found is None:
        return
    home, node = found
    for base in _bases(node):
        yield from _fields(home, base)
    for inside in node.body:
        if not isinstance(inside, ast.AnnAssign) or not isinstance(inside.target, ast.Name):
            continue
        if not inside.target.id.startswith("_") and "ClassVar" not in ast.dump(inside.annotation):
            yield _parameter(inside.target.id, inside.value)


def _parameter(name: str, value: ast.expr | None) -> Parameter:
    default, description = value, ""
    if isinstance(value, ast.Call):
        keywords = {one.arg: one.value for one in value.keywords}
        default = value.args[0] if value.args else keywords.get("default")
        description = str(_constant(keywords.get("description")) or "")
    shown = _constant(default)
    text = "" if shown in (None, ..., "") else str(shown)
    return Parameter(name, text.lower() if isinstance(shown, bool) else text, description)


def _constant(node: ast.expr | None) -> object:
    return node.value if isinstance(node, ast.Constant) else None
