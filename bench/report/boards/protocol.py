"""What a row must have faced to be ranked."""

from __future__ import annotations

import tomllib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench.errors import BadInput
from bench.plugins.create import ATTACKS, MODIFIERS
from bench.plugins.registry import Alias
from bench.report.boards.model import Kind
from bench.results.record import Record
from bench.spec import Spec, parse, unnest

FILE = "board.toml"
"""Lies in a folder of records and says what board they make."""

ANY = "any"
"""In a protocol: any attack that is no control."""


class Protocol(BaseModel):
    """The attacks that every row of a kind must have faced.

    An attack is written as in a suite, `pgd+replay:steps=40`; what is not written may be anything.
    Of several joined by `|` one is enough. A control is none of them, nor is a transfer attack, but
    where its gradient is written.

    Attributes:
        deterministic, stochastic: for each kind of defense.
        also: by a defense's name, the attacks that fit it and that it must have faced beside these.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    deterministic: tuple[str, ...] = ("autoattack|ensemble|adaptive",)
    stochastic: tuple[str, ...] = (f"{ANY}:randomness=fresh", f"{ANY}+eot", f"{ANY}+replay")
    also: dict[str, tuple[str, ...]] = Field(default_factory=dict)

    def required(self, kind: Kind, defense: str) -> tuple[str, ...]:
        """What a row must have faced; `defense` is its plugin's name."""
        return (*getattr(self, kind), *self.also.get(defense, ()))

    def missing(self, kind: Kind, records: Sequence[Record]) -> tuple[str, ...]:
        """What the attacks of these records leave out."""
        required = self.required(kind, str(records[0].identity["defense"]["name"]))
        return tuple(one for one in required if not any(faces(one, record) for record in records))

    def lines(self, kinds: Iterable[Kind], defenses: Iterable[str]) -> tuple[str, ...]:
        """In words: a line a kind, and one for the defenses that have the same attacks of their
        own.
        """
        lines = [f"{kind} defenses: {listed(getattr(self, kind))}" for kind in kinds]
        own: dict[tuple[str, ...], list[str]] = defaultdict(list)
        for name in defenses:
            if self.also.get(name):
                own[self.also[name]].append(name)
        shared = (f"{' and '.join(names)} also: {listed(asked)}" for asked, names in own.items())
        return (*lines, *shared)


class BoardFile(BaseModel):
    """What `board.toml` says.

    Attributes:
        title: of the page.
        page: where its Markdown is committed, from the file's folder; empty where it is not.
        reference: published numbers to show beside rows of their defense and data set: a CSV file
            or a folder of them, from the file's folder; empty for none.
        protocol: what a row must have faced.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str = Field(default="", max_length=200)
    page: str = Field(default="", max_length=1000)
    reference: str = Field(default="", max_length=1000)
    protocol: Protocol = Protocol()


def read_board_file(folder: Path) -> BoardFile:
    """The `board.toml` of a folder; the default where there is none.

    Raises:
        BadInput: naming the file, where it is none of that form.
    """
    path = folder / FILE
    if not path.is_file():
        return BoardFile()
    try:
        made = BoardFile.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        for text in _specs(made.protocol):
            for one in text.split("|"):
                _required(one)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(map(str, problem["loc"]))
        raise BadInput(f"{path}: {where}: {problem['msg'].lower()}: see publish-a-row.md") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, BadInput) as error:
        raise BadInput(f"{path} says no board ({error}): see publish-a-row.md") from None
    return made


def _specs(protocol: Protocol) -> Iterable[str]:
    yield from (*protocol.deterministic, *protocol.stochastic)
    for own in protocol.also.values():
        yield from own


def faces(required: str, record: Record) -> bool:
    """Whether a record's attack is what a protocol asks for."""
    return any(_is(_required(one), record) for one in required.split("|"))


def _required(text: str) -> Spec:
    """The spec with its modifiers as options."""
    spec = parse(text)
    name, *modifiers = spec.name.split("+")
    options = {key: unnest(value) for key, value in spec.options.items()}
    for modifier in modifiers:
        if modifier not in MODIFIERS:
            raise BadInput(
                f"unknown modifier '+{modifier}' in {text!r}: use {', '.join(MODIFIERS)}"
            )
        key, value = MODIFIERS[modifier]
        options.setdefault(key, value)
    return Spec(name, spec.positional, options)


def _is(required: Spec, record: Record) -> bool:
    options = dict(required.options)
    gradient, randomness = options.pop("gradient", ""), options.pop("randomness", "")
    if is_control(record) or not _draws_alike(randomness, record.title["randomness"]):
        return False
    if gradient != record.title["gradient"] if gradient else is_transfer(record):
        return False
    if required.name == ANY:
        return True
    try:
        ran = parse(record.title["attack"])
    except BadInput:
        return False
    same = ran.name == required.name and required.positional in (None, ran.positional)
    return same and options.items() <= ran.options.items()


def _draws_alike(required: str, ran: str) -> bool:
    """Whether the randomness model is the one; `eot` is any number of draws, `replay` any number of
    fixed ones, but not of some stages alone.
    """
    if not required or required == ran:
        return True
    if required == "replay":
        return ran.startswith("replay-set")
    return required == "eot" and ran.startswith("eot:")


def is_control(record: Record) -> bool:
    """Whether its attack is a control. Records do not hold cards: what is not installed here is an
    attack.
    """
    attack = record.identity["attack"]
    # A file's plugin is not registered, and to look would run the file.
    if "source" in attack or "@" in str(attack["name"]):
        return False
    try:
        plugin = ATTACKS.get(str(attack["name"]))
    except Exception:
        return False
    return not isinstance(plugin, Alias) and plugin.card.control


def is_transfer(record: Record) -> bool:
    """Whether it attacked another function than the defense; of several attacks in one, whether all
    of them did.
    """
    parts = tuple(f"{name}: " for name in record.stages.names) if record.stages else ()
    return any(
        finding.name == "transfer" and not finding.message.startswith(parts)
        for finding in record.findings
    )


def listed(required: Sequence[str]) -> str:
    """What a protocol asks for, as boards name attacks: `pgd (replay) and (fgsm or square)`."""
    each = [(" or ".join(map(_worded, one.split("|"))), "|" in one) for one in required]
    several = len(each) > 1
    return " and ".join(f"({one})" if many and several else one for one, many in each) or "anything"


def _worded(text: str) -> str:
    spec = _required(text)
    settings = [spec.options.pop(key) for key in ("gradient", "randomness") if key in spec.options]
    name = "any attack" if spec.name == ANY else str(spec)
    fresh = " on fresh noise" * ("fresh" in settings)
    other = [one for one in settings if one != "fresh"]
    return name + (f" ({', '.join(other)})" if other else "") + fresh
