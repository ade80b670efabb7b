"""Before a record is verified: which code it names, and whether that may be run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bench.errors import BadInput
from bench.results.record import Record
from bench.spec import parse, split_list, unnest


def check_trusted(record: Record) -> None:
    """Raise `BadInput` where a record names code outside the current folder; nothing is imported
    to find out.

    A record is data of a stranger, and `FILE.py@NAME` in it would be run as the user. What lies in
    the current folder, links followed, is taken for the user's own.
    """
    for path in code_of(record):
        if not _is_inside(path):
            raise BadInput(
                f"the record would run {path[:300]}, which is not in the current folder: look "
                "at that file, then say --trust, or go to its folder"
            )


def of_python(record: Record) -> bool:
    """Whether a record was made from an object of Python, which no file holds."""
    # A class or a module from Python has a hash of its code, and no file before its name.
    unnamed = any(
        "source" in record.identity[kind] and "@" not in record.title[kind].partition(":")[0]
        for kind in ("defense", "attack")
    )
    sources = (record.sources["classifier"], record.sources["dataset"])
    return unnamed or any(source.startswith("python:") for source in sources)


def code_of(record: Record) -> list[str]:
    """The files of code that a record names as `FILE.py@NAME`."""
    title, sources = record.title, record.sources
    texts = (title["defense"], title["attack"], sources["classifier"], sources["dataset"])
    return [path for text in texts for path in _files(text)]


def _files(text: str) -> Iterator[str]:
    """The paths of all `FILE.py@NAME` in a spec, at any depth; the whole text where an @ stands
    where no plugin can be read.
    """
    if text.count("@") > sum(name.count("@") for name in _names(text)):
        yield text
    for name in _names(text):
        if "@" in name:
            yield name.rpartition("@")[0]


def _names(text: str) -> list[str]:
    """The plugin names in a spec and in the specs inside its values."""
    try:
        spec = parse(text)
        values = [*([spec.positional] if spec.positional else []), *spec.options.values()]
        inside = [item for value in values if "@" in value for item in split_list(value)]
    except BadInput:
        return []
    return [spec.name, *(name for item in inside for name in _names(unnest(item)))]


def _is_inside(path: str) -> bool:
    try:
        return Path(path).expanduser().resolve().is_relative_to(Path.cwd().resolve())
    except (OSError, RuntimeError, ValueError):
        return False
