"""Arguments that several commands share; torch is not imported here."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer

from bench.engine.request import Request, option_name, read_request
from bench.plugins.create import ATTACKS, CLASSIFIERS, DATASETS, DEFENSES
from bench.plugins.registry import Registry
from bench.storage.data_root import rooted


def _set_data_root(context: typer.Context, folder: Path | None) -> None:
    """Sets the data root while the command runs."""
    context.with_resource(rooted(folder))


def _set_memory_budget(context: typer.Context, size: str | None) -> None:
    """Sets the memory budget while the command runs."""
    if size is not None:
        from bench.engine.memory import limited

        context.with_resource(limited(size))


Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")]
BatchSize = Annotated[
    int | None,
    typer.Option(help="most rows in one forward pass; default 128, on a GPU 1024"),
]
Compile = Annotated[
    str,
    typer.Option(
        help="auto: searches read networks with their batch normalisations folded, where that is "
        "the same up to rounding; off: networks as they are"
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        help="processes that compute together [default: $BENCH_WORKERS, else this one, and after "
        "some seconds one a core or GPU where memory bears them]",
    ),
]
Executor = Annotated[
    str,
    typer.Option(
        help="where to compute: local, inline (one process), ray or slurm, such as "
        "ray:address=auto,gpus=0.5"
    ),
]
DataRoot = Annotated[
    Path | None,
    typer.Option(
        callback=_set_data_root,
        help="folder of published data and weights [default: $BENCH_DATA_ROOT or ~/.cache/bench]",
    ),
]
Memory = Annotated[
    str | None,
    typer.Option(
        callback=_set_memory_budget,
        help="what activations may take, such as 4G [default: $BENCH_MEMORY or half of what is "
        "free]",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]


def completion(*registries: Registry[Any]) -> Callable[[str], list[tuple[str, str]]]:
    """Shell completion: registered names, with their descriptions, that begin with what is
    typed. Only entry points are read.
    """

    def complete(incomplete: str) -> list[tuple[str, str]]:
        typed = incomplete.lower()
        entries = [entry for registry in registries for entry in registry.entries()]
        return [(one.name, one.summary) for one in entries if one.name.lower().startswith(typed)]

    return complete


_names = {
    "defense": completion(DEFENSES),
    "attack": completion(ATTACKS),
    "dataset": completion(DATASETS),
    "classifier": completion(CLASSIFIERS),
}


def takes_request(*, only: tuple[str, ...] = (), **helps: str) -> Callable[[Any], Any]:
    """Give a command the options of a `Request`, which it gets as its argument `request`.

    Args:
        only: the options it takes, by the words of the command line; all by default.
        helps: other help texts, by the same words.
    """
    fields = {option_name(name, field): field for name, field in Request.model_fields.items()}
    chosen = {word: fields[word] for word in (only or fields)}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def wrapped(**given: Any) -> None:
            values = {word: given.pop(word) for word in chosen}
            values = {word: value for word, value in values.items() if value != []}
            command(request=read_request(values, "command line"), **given)

        own = inspect.signature(command, eval_str=True).parameters.values()
        options = [
            inspect.Parameter(
                word,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[
                    _typed(field.annotation),
                    typer.Option(
                        help=helps.get(word, field.description), autocompletion=_names.get(word)
                    ),
                ],
            )
            for word, field in chosen.items()
        ]
        rest = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in own
            if parameter.name != "request"
        ]
        positional = [p for p in rest if p.default is inspect.Parameter.empty]
        others = [p for p in rest if p.default is not inspect.Parameter.empty]
        signature = inspect.Signature([*positional, *options, *others])
        vars(wrapped)["__signature__"] = signature
        wrapped.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
        return wrapped

    return decorate


def _typed(annotation: Any) -> Any:
    """What the argument parser reads: whole numbers as such, everything else as text."""
    kind = int if _bare(annotation) is int else str
    return list[kind] | None if get_origin(annotation) is tuple else kind | None  # type: ignore[valid-type]


def _bare(annotation: Any) -> Any:
    """The first plain type inside `Annotated`, a union or a tuple."""
    while get_origin(annotation) is not None:
        annotation = get_args(annotation)[0]
    return annotation
