"""`bench new`: a defense or an attack that runs as it is, with its test, or the repository of a
board, from the templates in this package.
"""

from __future__ import annotations

import importlib.util
import keyword
import re
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from bench.errors import BadInput
from bench.plugins.create import ATTACKS, BASE, DEFENSES
from bench.plugins.registry import Registry
from bench.storage.files import write_whole

_NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")
_LONGEST = 100
_REGISTRIES: dict[str, Registry[Any]] = {"defense": DEFENSES, "attack": ATTACKS}
_BOARD = {
    "README.md": "README.md",
    "check.sh": "check.sh",
    "requirements.txt": "requirements.txt",
    ".gitignore": "gitignore",
    ".github/workflows/verify.yml": "verify.yml",
    "records/board.toml": "board.toml",
    "submissions/README.md": "submissions",
}
"""The files of a board's repository, with their templates."""


def write(kind: str, name: str, folder: Path, *, package: bool) -> str:
    """Write the files and say what to do next.

    Args:
        kind: `defense`, `attack` or `board`.
        name: small letters, digits, and hyphens or underscores between them.
        folder: where the files go; with `package` into a folder of their own there.
        package: whether to write a package that pip installs, rather than a file and its test; a
            board gets a folder of its own anyway.

    Raises `BadInput` for a name that cannot be used, and where a file exists already; nothing is
    overwritten.
    """
    if kind not in (*_REGISTRIES, "board"):
        raise BadInput(f"cannot write a new {kind!r}: give defense, attack or board")
    if not _NAME.fullmatch(name) or len(name) > _LONGEST:
        raise BadInput(
            f"{name!r} cannot name a {kind}: use at most {_LONGEST} small letters, digits and "
            "hyphens, such as my-guard"
        )
    module = name.replace("-", "_")
    if kind == "board":
        _write(folder / name, _board(name))
        return _next_of_board(name, folder / name)
    target = folder / name if package else folder
    texts = _texts(kind, name, module, package)
    _write(target, texts, lambda: _check_free(kind, name, module))
    return _next(kind, name, module, target, package)


def _write(
    target: Path, texts: Mapping[str, str], check: Callable[[], None] = lambda: None
) -> None:
    """Write all files where none of them exists and the check raises nothing."""
    for file in texts:
        if (target / file).exists():
            raise BadInput(
                f"{target / file} exists already, and nothing is overwritten: choose another name "
                "or folder"
            )
    check()
    for file, text in texts.items():
        _save(target / file, text)


def _board(name: str) -> dict[str, str]:
    values = {"name": name, "version": version("adversarial-bench")}
    return {file: _filled(f"board/{source}", values) for file, source in _BOARD.items()}


def _next_of_board(name: str, target: Path) -> str:
    lines = (f"git init {name}", f"bench submit RECORD... --out {name}/submissions/MINE")
    told = (f"    {line}" for line in (*lines, f"bash {name}/check.sh"))
    return "\n".join([f"wrote {target}; next:", *told])


def _filled(source: str, values: Mapping[str, str]) -> str:
    template = files("bench.commands") / "templates" / f"{source}.txt"
    return Template(template.read_text(encoding="utf-8")).substitute(values)


def _check_free(kind: str, name: str, module: str) -> None:
    if name in _REGISTRIES[kind].names():
        raise BadInput(f"the {kind} {name!r} exists already: choose another name")
    if (
        keyword.iskeyword(module)
        or module in sys.stdlib_module_names
        or importlib.util.find_spec(module)
    ):
        raise BadInput(f"{module!r} is the name of a Python module already: choose another name")


def _texts(kind: str, name: str, module: str, package: bool) -> dict[str, str]:
    """File names and what is written into them."""
    article = "an" if kind == "attack" else "a"
    values = {
        "name": name,
        "module": module,
        "cls": class_name(name),
        "kind": kind,
        "article": article,
        "Article": article.title(),
        "run": _run(kind, name),
    }
    templates = {f"{module}.py": f"{kind}.py", f"test_{module}.py": f"test_{kind}.py"}
    if package:
        templates |= {"pyproject.toml": "pyproject.toml", "README.md": "README.md"}
    return {file: _filled(source, values) for file, source in templates.items()}


def class_name(name: str) -> str:
    """my-guard to MyGuard."""
    return "".join(word.capitalize() for word in re.split("[-_]", name))


def _run(kind: str, spec: str) -> str:
    """A command that runs the plugin."""
    if kind == "attack":
        return f"bench run --defense {BASE} --attack {spec}"
    return f"bench run --defense {spec} --attack bpda"


def _next(kind: str, name: str, module: str, target: Path, package: bool) -> str:
    spec = name if package else f"{module}.py@{class_name(name)}"
    first = f"pip install ./{name}" if package else f"bench check {spec}"
    tests = f"python -m pytest {name if package else f'test_{module}.py'}"
    return "\n".join(
        [
            f"wrote {target / module}.py and its test; next:",
            *(f"    {line}" for line in (first, tests, _run(kind, spec))),
        ]
    )


def _save(path: Path, text: str) -> None:
    try:
        write_whole(path, text.encode())
    except OSError as error:
        raise BadInput(f"cannot write {path} ({error.strerror}): choose another folder") from error
