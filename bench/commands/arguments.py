"""Arguments that several commands share; torch is not imported here."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer

from bench.engine.request import Request, option_name, read_request
from bench.errors import BadInput
from bench.plugins.create import ATTACKS, CLASSIFIERS, DATASETS, DEFENSES, MODIFIERS
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


def only_records(paths: list[Path] | None) -> list[Path] | None:
    """Without audits and certificates, which a shell's pattern matches as well and which are read
    with the records they lie beside. Raises `BadInput` where nothing else is named.
    """
    from bench.results.store import lies_beside

    kept = [path for path in paths or () if not lies_beside(path)]
    if paths and not kept:
        raise BadInput(f"{paths[0]} lies beside a record, and is read with it: name the record")
    return kept or paths


Records = Annotated[
    list[Path],
    typer.Argument(callback=only_records, help="JSON files of records, or folders of them"),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")]
BatchSize = Annotated[
    int | None,
    typer.Option(help="most rows in one forward pass; default 128, on a GPU 1024"),
]
Compile = Annotated[
    str,
    typer.Option(
        help="auto: searches read networks with their batch normalisations folded, where that is "
        "the same up to rounding; on: in bfloat16 too, fast where the processor or GPU has units "
        "for it; off: networks as they are"
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        help="folder of records with weights/ beside them, such as a published board: trained "
        "defenses that it holds are read, not trained"
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
    """Shell completion of specs: registered names that begin with what is typed, then `+` and a
    modifier of an attack, or `:` and a parameter, with their descriptions. Only entry points and
    sources are read.
    """

    def complete(incomplete: str) -> list[tuple[str, str]]:
        name, colon, typed = incomplete.partition(":")
        if colon:
            return [one for registry in registries for one in _parameters(registry, name, typed)]
        before, plus, modifier = name.rpartition("+")
        if plus and ATTACKS in registries:
            fitting = [one for one in MODIFIERS if one.startswith(modifier)]
            return [(f"{before}+{one}", "as {}={}".format(*MODIFIERS[one])) for one in fitting]
        entries = [entry for registry in registries for entry in registry.entries()]
        small = incomplete.lower()
        return [(one.name, one.summary) for one in entries if one.name.lower().startswith(small)]

    return complete


def _parameters(registry: Registry[Any], name: str, typed: str) -> Iterator[tuple[str, str]]:
    """Of a spec's parameters those that may come next; a single one also with its default, so that
    no shell takes it for finished.
    """
    done, comma, last = typed.rpartition(",")
    used = {part.partition("=")[0] for part in done.split(",")}
    known = registry.parameters(name.partition("+")[0])
    fitting = [one for one in known if one.name not in used and one.name.startswith(last)]
    before = f"{name}:{done}{comma}"
    for one in fitting:
        yield f"{before}{one.name}=", one.description
        if len(fitting) == 1:
            yield f"{before}{one.name}={one.default or '...'}", "the default"


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
