"""Specs: the one grammar that names defenses, attacks, data sets, classifiers and randomness
models.

    NAME[:POSITIONAL][,key=value...]

    pgd:steps=40,step=eps/16          npz:/data/cifar10.npz,split=test
    public-at:images=(fashion-mnist:n=1000),objective=trades

The first item without `=` is positional. A value may be a fraction (`8/255`), a list of numbers
joined by `+` (`0.49+0.48+0.45`), or a nested spec in parentheses. Double quotes protect commas and
equals signs in paths. `parse` and `str` are inverse to each other up to the order of keys, which
`str` sorts.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError

from bench.errors import BadInput

_NEEDS_QUOTES = re.compile(r'[,="()]')
_NESTED = re.compile(r'[,="()+]')


@dataclass(frozen=True)
class Spec:
    """A parsed spec: a name, at most one positional argument, and keyword arguments, all still
    text.
    """

    name: str
    positional: str | None = None
    options: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        items = [] if self.positional is None else [_quote(self.positional)]
        items += [f"{key}={_quote(value)}" for key, value in sorted(self.options.items())]
        return f"{self.name}:{','.join(items)}" if items else self.name


def _quote(text: str) -> str:
    nested = text.startswith("(") and text.endswith(")")
    return f'"{text}"' if not nested and _NEEDS_QUOTES.search(text) else text


def parse(text: str) -> Spec:
    """Read a spec. Raises `BadInput` with the offending part where the text does not follow the
    grammar.
    """
    name, colon, rest = text.strip().partition(":")
    if not name or _NEEDS_QUOTES.search(name):
        raise BadInput(
            f"cannot read the spec {text!r}: it must look like NAME or NAME:key=value,key=value"
        )
    if colon and not rest.strip():
        raise BadInput(
            f"cannot read the spec {text!r}: nothing follows the colon; drop it or add key=value"
        )
    positional: str | None = None
    options: dict[str, str] = {}
    for item in _split(rest, text) if colon else ():
        key, equals, value = _split_item(item)
        if not equals:
            if positional is not None or options:
                raise BadInput(
                    f"cannot read {item!r} in {text!r}: only the first item may stand without key="
                )
            positional = value
        elif not key or not value:
            raise BadInput(f"cannot read {item!r} in {text!r}: write key=value")
        elif key in options:
            raise BadInput(f"{key!r} is given twice in {text!r}: keep one")
        else:
            options[key] = value
    return Spec(name, positional, options)


def _split(rest: str, whole: str, at: str = ",") -> Iterator[str]:
    """Cut at the commas, or other characters, that stand outside quotes and parentheses."""
    depth, quoted, start = 0, False, 0
    for i, char in enumerate(rest):
        quoted ^= char == '"'
        depth += (not quoted) * ((char == "(") - (char == ")"))
        if depth < 0:
            break
        if char == at and not quoted and depth == 0:
            yield rest[start:i].strip()
            start = i + 1
    if depth or quoted:
        raise BadInput(f"cannot read the spec {whole!r}: a quote or parenthesis is not closed")
    yield rest[start:].strip()


def _split_item(item: str) -> tuple[str, bool, str]:
    if item.startswith('"'):
        return "", False, item.strip('"')
    key, equals, value = item.partition("=")
    if not equals:
        return "", False, item
    return key.strip(), True, value.strip().strip('"')


def split_list(text: str) -> list[str]:
    """The items of a list joined by `+`, such as `diffpure+(revpure:t=100,steps=5)`."""
    return list(_split(text, text, "+"))


def unnest(text: str) -> str:
    """The spec inside a value that may be wrapped in parentheses."""
    return text[1:-1] if text.startswith("(") and text.endswith(")") else text


def nested(text: str) -> str:
    """A spec in parentheses where it has parameters, so that it survives inside another one."""
    inside = str(parse(unnest(text)))
    return inside if inside == parse(inside).name else f"({inside})"


def nearest(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` where a known name is close, else the list of known names."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return f" Did you mean {' or '.join(repr(c) for c in close)}?"
    return f" Known: {', '.join(names) or 'none'}."


_DECIMAL = re.compile(r"[+-]?([0-9]{1,30}(\.[0-9]{0,30})?|\.[0-9]{1,30})")


def _decimal(text: str) -> Fraction:
    # Fraction itself takes 1e999999999 as well, and computes it.
    if not _DECIMAL.fullmatch(text.strip()):
        raise ValueError(f"{text!r} is no decimal number")
    return Fraction(text.strip())


# Parameters ---------------------------------------------------------------------------------------


def read_number(value: object) -> object:
    """`8/255` to a float; anything else unchanged, for pydantic to judge."""
    if isinstance(value, str) and "/" in value:
        try:
            above, below = map(_decimal, value.split("/"))
            return float(above / below)
        except (ValueError, ZeroDivisionError) as error:
            raise ValueError(f"{value!r} is not a fraction such as 8/255") from error
    return value


def show_number(value: float) -> str:
    """The shortest text that reads back to the same float: an integer, a decimal, or a fraction of
    255.
    """
    plain = (
        repr(int(value)) if float(value).is_integer() and abs(value) < 1e15 else repr(float(value))
    )
    fraction = f"{round(value * 255)}/255"
    return fraction if len(fraction) < len(plain) and round(value * 255) / 255 == value else plain


def _read_numbers(value: object) -> object:
    return tuple(value.split("+")) if isinstance(value, str) else value


def _read_specs(value: object) -> object:
    return (
        tuple(unnest(item) for item in _split(value, value, "+"))
        if isinstance(value, str)
        else value
    )


Number = Annotated[float, BeforeValidator(read_number)]
"""A float parameter that also accepts fractions such as `8/255`."""

Numbers = Annotated[
    tuple[Number, ...],
    BeforeValidator(_read_numbers),
    PlainSerializer(lambda numbers: list(numbers)),
]
"""A tuple of floats, written `0.49+0.48+0.45`."""

Integers = Annotated[
    tuple[Annotated[int, Field(ge=1)], ...],
    BeforeValidator(_read_numbers),
    PlainSerializer(lambda numbers: list(numbers)),
]
"""A tuple of integers from 1 on, written `1+5+20`."""

Specs = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...],
    BeforeValidator(_read_specs),
    PlainSerializer(lambda specs: list(specs)),
]
"""A tuple of specs, written `diffpure+(revpure:t=100,steps=5)`."""


class IfGiven:
    """Marks a parameter that a plugin got later: at its default it does not enter the identity, so
    that ids of earlier results stay as they are.

        targeted: Annotated[str | None, IfGiven()] = None
    """


def identity_params(params: BaseModel) -> dict[str, Any]:
    """The parameters that enter an identity: all, except `IfGiven` ones at their default."""
    unset = {
        key
        for key, info in type(params).model_fields.items()
        if any(isinstance(mark, IfGiven) for mark in info.metadata)
        and getattr(params, key) == info.get_default(call_default_factory=True)
    }
    return params.model_dump(mode="json", exclude=unset)


class Params(BaseModel):
    """Base of every plugin's parameters: frozen, no unknown keys, no infinities or NaN.

    A field named in `positional` receives the item without a key.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True
    )


P = TypeVar("P", bound=Params)


def read_params(kind: type[P], spec: Spec, what: str, positional: str | None = None) -> P:
    """Turn a spec's text into typed parameters.

    Args:
        kind: the plugin's parameter model.
        spec: the parsed spec.
        what: how to name the plugin in an error, for example `attack 'pgd'`.
        positional: the field that the item without a key fills, if the plugin takes one.
    """
    options: dict[str, Any] = dict(spec.options)
    if spec.positional is not None:
        if positional is None:
            raise BadInput(
                f"{what} takes no positional argument, but got {spec.positional!r}: write key=value"
            )
        if positional in options:
            raise BadInput(
                f"{what} got {positional!r} twice, once without and once with its key: keep one"
            )
        options[positional] = spec.positional
    return check_params(kind, options, what, spec.name, positional)


def check_params(
    kind: type[P],
    options: Mapping[str, Any],
    what: str,
    name: str = "",
    positional: str | None = None,
) -> P:
    """Typed parameters from text or from Python's values. Raises `BadInput` where they do not fit.

    Args:
        kind: the plugin's parameter model.
        options: parameters by name.
        what: how to name the plugin in an error.
        name, positional: its name in a spec, and the field that an item without key fills; for
            the message on a missing one.
    """
    for key in options:
        if key not in kind.model_fields:
            raise BadInput(f"{what} has no parameter {key!r}.{nearest(key, kind.model_fields)}")
    try:
        return kind.model_validate(dict(options))
    except ValidationError as error:
        raise BadInput(f"{what}: {_first_problem(error, name, positional)}") from None


def own_params(plugin: object, params: P | None, options: Mapping[str, Any]) -> P:
    """Parameters of a plugin that Python makes: the model as an object, or its fields by keyword.

    Raises `BadInput` where both are given, or do not fit.
    """
    kind: type[P] = type(plugin).Params  # type: ignore[attr-defined]
    name = type(plugin).__name__
    if params is None:
        return check_params(kind, options, name)
    if options or not isinstance(params, Params):
        raise BadInput(f"{name} takes its parameters by keyword, such as {_example(kind, name)}")
    return params


def _example(kind: type[Params], name: str) -> str:
    """A call with one keyword parameter."""
    fields = list(kind.model_fields)
    return f"{name}({fields[0]}=...)" if fields else f"{name}()"


def _first_problem(error: ValidationError, name: str, positional: str | None) -> str:
    problem = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in problem["loc"] if isinstance(part, str))
    message = problem["msg"].removeprefix("Value error, ")
    if not where:
        return f"{message[:1].lower()}{message[1:]}"
    got = problem.get("input")
    if problem["type"] == "missing":
        way = f"write {name}:{where.upper()}" if where == positional else f"add {where}=VALUE"
        return f"parameter {where!r} is required: {way}"
    return f"parameter {where!r} got {got!r}: {message[:1].lower()}{message[1:]}"


def canonical(name: str, params: Params, positional: str | None = None) -> str:
    """The one printed form: the name and every parameter that differs from its default, keys
    sorted.
    """
    changed = {
        key: _show(getattr(params, key))
        for key, info in type(params).model_fields.items()
        if info.is_required() or getattr(params, key) != info.get_default(call_default_factory=True)
    }
    first = changed.pop(positional, None) if positional else None
    return str(Spec(name, first, changed))


def spelled_out(name: str, params: Params) -> str:
    """A spec that writes every parameter, defaults included, apart from those that are None or
    empty.
    """
    values = {key: getattr(params, key) for key in type(params).model_fields}
    return str(
        Spec(
            name,
            None,
            {key: _show(value) for key, value in values.items() if value not in (None, "", ())},
        )
    )


def _show(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return show_number(value)
    if isinstance(value, tuple):
        return "+".join(
            f"({item})" if isinstance(item, str) and _NESTED.search(item) else _show(item)
            for item in value
        )
    return str(value)
