"""The command `bench`: parse, call, print. torch is imported inside the commands that need it."""

from __future__ import annotations

import gc
import json
import os
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TextIO

import typer
from typer.core import TyperGroup

from bench.allocator import keep_freed_memory
from bench.commands import shell
from bench.commands.arguments import (
    AsJson,
    BatchSize,
    Compile,
    DataRoot,
    Device,
    Executor,
    Memory,
    Records,
    Weights,
    Workers,
    completion,
    only_records,
    takes_request,
)
from bench.engine.request import Request, read_suite
from bench.errors import BadInput
from bench.plugins.create import (
    ATTACKS,
    CLASSIFIERS,
    DATASETS,
    DEFENSES,
    DIFFUSION_MODELS,
    MODIFIERS,
    STUDIES,
)
from bench.report import colours, escape
from bench.storage.files import cannot_write

if TYPE_CHECKING:
    from bench.commands.verify import Verified
    from bench.engine.evaluation import Evaluation
    from bench.engine.run import Result

# Two torch threads that spin while another process runs slow each other tenfold; must be set before
# torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# No device but CPU and CUDA is supported: torch need not look for plugins of others.
os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")

_INTERRUPTED = 130


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"bench {version('adversarial-bench')}")
        raise typer.Exit


class _Commands(TyperGroup):
    """The commands; an option that takes one value and is given twice is refused, where the parser
    would take the last one and say nothing.
    """

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As the parser finds it. Raises `BadInput` for a repeated option."""
        name, command, rest = super().resolve_command(ctx, args)
        if command is not None and not ctx.resilient_parsing:
            parser = command.make_parser(ctx)
            parser.allow_interspersed_args = command.allow_interspersed_args
            _, _, given = parser.parse_args(list(rest))
            for option in given:
                repeatable = getattr(option, "multiple", True) or getattr(option, "is_flag", False)
                if not repeatable and given.count(option) > 1:
                    raise BadInput(
                        f"{option.opts[0]} takes one value and was given {given.count(option)} "
                        "times: run the command once for each"
                    )
        return name, command, rest


app = typer.Typer(
    name="bench",
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def bench(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="print the version and exit"
        ),
    ] = False,
) -> None:
    """Measure adversarial robustness of defenses, and say how far the number can be believed."""


@app.command()
@takes_request()
def run(
    request: Request,
    device: Device = "auto",
    batch_size: BatchSize = None,
    workers: Workers = None,
    executor: Executor = "local",
    compile: Compile = "auto",
    weights: Weights = None,
    out: Annotated[Path, typer.Option(help="folder for records")] = Path("results"),
    memory: Memory = None,
    data_root: DataRoot = None,
    suite: Annotated[
        Path | None, typer.Option(help="TOML file with the same options as a matrix")
    ] = None,
    as_json: AsJson = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="show what would run, what is stored and what it would cost"
        ),
    ] = False,
) -> None:
    """Run defenses against attacks and record the results. A stored evaluation is not computed
    again.
    """
    _load_torch()
    from bench.engine.plan import plan_all

    requests = [request.over(one) for one in (read_suite(suite) if suite else [Request()])]
    how = _How(device, batch_size, workers, executor, compile, weights)
    if dry_run:
        _print_plan(requests, out, how, as_json)
        return
    evaluations = plan_all(requests, note=_say)
    results = _run(evaluations, requests, out, how)
    _print_results(results, as_json)
    _exit_by(results)


def _load_torch() -> None:
    """Import torch without looking for garbage among its 276,000 objects, neither now nor
    when this process ends: a quarter of the time that it takes.
    """
    if "torch" in sys.modules:
        return
    gc.disable()
    try:
        import torch  # noqa: F401
    finally:
        gc.freeze()
        gc.enable()


def _say(text: str) -> None:
    _complain(f"note: {text}")


class _How(NamedTuple):
    """Options that decide where and how evaluations are computed."""

    device: str
    batch_size: int | None
    workers: int | None
    executor: str = "local"
    compile: str = "auto"
    weights: Path | None = None


def _run(
    evaluations: list[Evaluation],
    requests: Sequence[Request],
    out: Path,
    how: _How,
) -> list[Result]:
    from bench.engine.progress import Reporter
    from bench.execution.executor import Work, items_of, read_executor
    from bench.results.agenda import announced
    from bench.results.store import Store

    _tell_weights(evaluations, how.weights)
    executor, store = read_executor(how.executor, how.workers), Store(out)
    missing = not out.exists()
    items, results = items_of(evaluations, store), []
    with Reporter(items) as reporter:
        execution = executor.execution(how.device, how.batch_size, reporter, how.compile)
        execution = replace(execution, weights=how.weights)
        store.check_writable()
        with announced(out, items, (one.id for one in evaluations)):
            for result in executor.run(Work(evaluations, requests, store, execution), _say):
                reporter.ended(result.evaluation.id, failed=result.record is None)
                results.append(result)
    if missing:
        store.drop_empty()
    return results


def _tell_weights(evaluations: Sequence[Evaluation], folder: Path | None) -> None:
    """Which defenses are not trained. Raises `BadInput` where the folder is of no use."""
    if folder is not None:
        from bench.engine.trained import published

        _say(f"read from {folder}, not trained: {', '.join(published(evaluations, folder))}")


def _print_plan(requests: Sequence[Request], out: Path, how: _How, as_json: bool) -> None:
    from bench.commands.dry_run import render, rows
    from bench.engine.execution import read_execution
    from bench.engine.plan import plan_all
    from bench.results.store import Store
    from bench.storage.missing import planning

    execution = read_execution(how.device, how.batch_size)
    with planning() as without:
        evaluations = plan_all(requests, note=_say)
        _tell_weights(evaluations, how.weights)
        table = rows(evaluations, Store(out), execution)
    for line in without.missing:
        _say(f"missing: {line}")
    if as_json:
        _print_json(table)
        return
    for line in render(evaluations, table, execution):
        _print(line)


def _print_results(results: Sequence[Result], as_json: bool) -> None:
    from bench.report.rows import rows_table

    records = [result.record for result in results if result.record]
    failures = [result.failure for result in results if result.failure]
    if as_json:
        _print_json([one.model_dump(mode="json") for one in (*records, *failures)])
    elif records or failures:
        _print(rows_table(records, failures))
    _complain_of(results)
    for result in results:
        if not (result.failure or result.rejected or as_json):
            _tell(f"{'stored' if result.computed else 'already stored'}: {result.path}")


def _complain_of(results: Sequence[Result]) -> None:
    for result in results:
        if result.failure:
            _complain(
                f"{result.evaluation} failed: {result.failure.error} (traceback in {result.path})"
            )
        elif result.rejected:
            _complain(f"{result.evaluation}: {result.rejected}")


def _exit_by(results: Sequence[Result]) -> None:
    if any(result.rejected for result in results):
        raise typer.Exit(2)
    if any(result.failure for result in results):
        raise typer.Exit(1)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1))


def _print(text: str, end: str = "\n", *, whole: bool = False) -> None:
    """Print lines for people, without control characters that a file brought along; on a terminal
    tables fit its width, but where the text is wanted whole.
    """
    if not whole and "\n|" in text and sys.stdout.isatty():
        from bench.report.tables import fit

        text = fit(text, shutil.get_terminal_size().columns)
    print(_styled(escape.terminal(text, lines=True), sys.stdout), end=end)


def _styled(text: str, stream: TextIO) -> str:
    """The text as it is to look there: in colour on a terminal."""
    return colours.coloured(text) if colours.wanted(stream) else text


def _complain(text: str) -> None:
    """Print one line on stderr."""
    line = f"bench: {escape.terminal(_shortened(text))}"
    print(_styled(line, sys.stderr), file=sys.stderr)


@app.command()
@takes_request(
    only=("defense", "dataset", "classifier", "norm", "eps", "n"),
    defense="a known answer; may be repeated [default: all]",
    dataset="data set spec [default: mnist5k under eps 0.2]",
    n="how many images, in evaluation order [default: 100]",
)
def gallery(
    request: Request,
    naive: Annotated[str, typer.Option(help="the attack that a user would begin with")] = "pgd",
    device: Device = "auto",
    batch_size: BatchSize = None,
    workers: Workers = None,
    executor: Executor = "local",
    out: Annotated[Path, typer.Option(help="folder for records")] = Path("results"),
    data_root: DataRoot = None,
    as_json: AsJson = False,
) -> None:
    """Attack defenses with a known answer: what is known to be broken must break. Exit code 1 where
    one survives.
    """
    _load_torch()
    from bench.commands.gallery import evaluations_of, exhibits, render, rows

    shown = exhibits(request, naive)
    requests = [exhibit.request for exhibit in shown if not exhibit.problem]
    results = _run(
        evaluations_of(shown), requests, out, _How(device, batch_size, workers, executor)
    )
    table = rows(shown, results)
    if as_json:
        _print_json([vars(row) for row in table])
    else:
        _print(render(table, results))
    if not all(row.held for row in table):
        raise typer.Exit(1)


@app.command()
@takes_request(
    only=("seed", "dataset", "classifier", "norm", "eps", "n"),
    seed="root seed of all that the study draws [default: 0]",
)
def study(
    request: Request,
    spec: Annotated[
        str,
        typer.Argument(
            metavar="STUDY",
            help="study spec, such as theorem:trials=1000",
            autocompletion=completion(STUDIES),
        ),
    ],
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N")] = None,
    batch_size: BatchSize = None,
    workers: Workers = None,
    out: Annotated[Path, typer.Option(help="folder for results")] = Path("results/studies"),
    memory: Memory = None,
    data_root: DataRoot = None,
    as_json: AsJson = False,
) -> None:
    """Answer a question by tables, figures and a sentence. A stored result is not computed
    again.
    """
    _load_torch()
    from bench.studies.store import run_study

    how: dict[str, Any] = {"device": device, "batch_size": batch_size, "workers": workers}
    done = run_study(spec, request, out, **how, progress=_tell)
    if as_json:
        _print_json({**done.record.model_dump(mode="json"), "folder": str(done.folder)})
    else:
        _print(done.render())
        _tell(f"{'stored' if done.computed else 'already stored'}: {done.folder}")
    if done.record.held is False:
        raise typer.Exit(1)


def _tell(text: str) -> None:
    print(escape.terminal(text), file=sys.stderr, flush=True)


@app.command("list")
def list_plugins(
    kind: Annotated[
        str,
        typer.Argument(
            help="defenses, attacks, datasets, classifiers, diffusion-models, studies or all"
        ),
    ] = "all",
    as_json: AsJson = False,
) -> None:
    """List what is registered."""
    kinds = _registries()
    if kind != "all" and kind not in kinds:
        raise BadInput(f"unknown kind {kind!r}: use {', '.join(kinds)} or all")
    chosen = {name: registry.entries() for name, registry in kinds.items() if kind in ("all", name)}
    if as_json:
        _print_json({name: [vars(entry) for entry in entries] for name, entries in chosen.items()})
        return
    for name, entries in chosen.items():
        print(name)
        for entry in entries:
            print(f"  {entry.name:<18} {entry.summary}")
        if name == "attacks":
            print(
                f"  any attack also as NAME{', NAME'.join('+' + m for m in MODIFIERS)}, and "
                "combined"
            )


def _registries() -> dict[str, Any]:
    named = {
        "defenses": DEFENSES,
        "attacks": ATTACKS,
        "datasets": DATASETS,
        "classifiers": CLASSIFIERS,
    }
    return {**named, "diffusion-models": DIFFUSION_MODELS, "studies": STUDIES}


@app.command()
def info(
    name: Annotated[
        str,
        typer.Argument(
            help="a registered name, KIND/NAME where several kinds have it, or FILE.py@NAME",
            autocompletion=completion(
                DEFENSES, ATTACKS, DATASETS, CLASSIFIERS, DIFFUSION_MODELS, STUDIES
            ),
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Show a plugin: what it is, its parameters, what data it may use, which attacks fit it."""
    from bench.commands.info import describe, render

    described = describe(name, _registries())
    if as_json:
        _print_json(described)
    else:
        _print(render(described))


@app.command()
def check(
    plugin: Annotated[
        str,
        typer.Argument(
            help="spec of a defense or an attack, such as my_defense.py@MyDefense:sigma=0.1",
            autocompletion=completion(DEFENSES, ATTACKS),
        ),
    ],
    dataset: Annotated[
        str, typer.Option(help="data set to check a defense on [default: twelve built-in images]")
    ] = "",
    classifier: Annotated[str | None, typer.Option(help="classifier to check a defense on")] = None,
    data_root: DataRoot = None,
    as_json: AsJson = False,
) -> None:
    """Check that a defense or an attack keeps its contract, and say what to fix. Exit code 1 where
    it does not.
    """
    _load_torch()
    from bench.commands.check import check_plugin

    checked = check_plugin(plugin, _registries(), dataset, classifier)
    if as_json:
        _print_json(
            {"verdicts": [vars(verdict) for verdict in checked.verdicts], "next": checked.advice}
        )
    else:
        _print(str(checked))
    if checked.broken:
        raise typer.Exit(1)


@app.command()
def new(
    kind: Annotated[str, typer.Argument(help="defense, attack or board")],
    name: Annotated[str, typer.Argument(help="its name, such as my-guard")],
    package: Annotated[
        bool, typer.Option("--package", help="write a folder that pip installs")
    ] = False,
) -> None:
    """Write a defense or an attack that runs as it is, with its test, for your own method in its
    place; or the repository of a board.
    """
    from bench.commands.scaffold import write

    print(write(kind, name, Path.cwd(), package=package))


@app.command()
def train(
    dataset: Annotated[
        str,
        typer.Argument(help="data set spec, such as mnist5k", autocompletion=completion(DATASETS)),
    ],
    out: Annotated[Path, typer.Option(help="weights file to write (.safetensors)")],
    arch: Annotated[str, typer.Option(help="architecture")] = "cnn",
    seed: Annotated[int, typer.Option(help="seed of initialisation, order and augmentation")] = 0,
    epochs: Annotated[
        int | None, typer.Option(help="passes over the training images [default: the recipe's]")
    ] = None,
    choose: Annotated[
        str | None,
        typer.Option(help="last epoch, or best on the validation split [default: the recipe's]"),
    ] = None,
    device: Device = "auto",
    data_root: DataRoot = None,
) -> None:
    """Train a classifier by the committed recipe of its data set; no test image is touched."""
    _load_torch()
    from bench.commands.train import train_and_save

    print(
        train_and_save(dataset, arch, out, seed=seed, epochs=epochs, device=device, choose=choose)
    )


@app.command("train-diffusion")
def train_diffusion(
    dataset: Annotated[
        str,
        typer.Argument(help="data set spec, such as mnist5k", autocompletion=completion(DATASETS)),
    ],
    out: Annotated[Path, typer.Option(help="folder to write, in the layout of diffusers")],
    seed: Annotated[int, typer.Option(help="seed of initialisation, order, times and noise")] = 0,
    steps: Annotated[
        int | None, typer.Option(help="optimiser steps [default: the recipe's]")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="a recipe in TOML [default: the data set's own]")
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(help="folder of an earlier run to go on from [default: fresh weights]"),
    ] = None,
    half: Annotated[
        bool, typer.Option("--half", help="write the averaged weights alone, in half precision")
    ] = False,
    device: Device = "auto",
    data_root: DataRoot = None,
) -> None:
    """Train a diffusion model by the recipe of its data set; test images are only measured on."""
    _load_torch()
    from bench.commands.train_diffusion import train_and_save

    print(
        train_and_save(
            dataset,
            out,
            seed=seed,
            steps=steps,
            device=device,
            recipe_file=recipe,
            start=start,
            half=half,
        )
    )


@app.command()
def verify(
    records: Records,
    device: Device = "auto",
    batch_size: BatchSize = None,
    trust: Annotated[
        bool,
        typer.Option("--trust", help="run FILE.py@NAME of a record wherever that file is"),
    ] = False,
    sample: Annotated[
        int | None, typer.Option(help="verify so many records, drawn at random [default: all]")
    ] = None,
    seed: Annotated[int, typer.Option(help="seed of --sample")] = 0,
    memory: Memory = None,
    data_root: DataRoot = None,
    as_json: AsJson = False,
) -> None:
    """Recompute what follows from a record: re-score its points under the rebuilt defense, or
    re-run the attack where they are missing. Exit code 1 where something differs.
    """
    _load_torch()
    from bench.commands.verify import drawn, files_of, verify_all
    from bench.engine.execution import read_execution

    paths, execution = drawn(files_of(records), sample, seed), read_execution(device, batch_size)
    alone = len(paths) == 1
    done = []
    for one in verify_all(paths, execution, trust=trust):
        if alone and one.refused:
            raise one.refused
        done.append(one)
        if not as_json:
            _print_verified(one, with_name=not alone)
    if as_json:
        shown = [
            {
                "record": str(one.path),
                "checks": [vars(check) for check in one.checks],
                "refused": str(one.refused) if one.refused else None,
            }
            for one in done
        ]
        _print_json(shown[0]["checks"] if alone else shown)
    if not all(one.held for one in done):
        raise typer.Exit(2 if any(one.refused for one in done) else 1)


def _print_verified(verified: Verified, *, with_name: bool) -> None:
    if with_name:
        _print(str(verified.path))
    if verified.refused:
        _complain(f"{verified.refused}")
    for check in verified.checks:
        _print(
            escape.terminal(f"{'ok  ' if check.held else 'FAIL'}  {check.name}: {check.message}")
        )


@app.command()
@takes_request()
def audit(
    request: Request,
    places: Annotated[
        list[Path] | None,
        typer.Argument(
            callback=only_records,
            help="JSON files of records, or folders of them; CSV files of published numbers",
        ),
    ] = None,
    profile: Annotated[
        str,
        typer.Option(help="quick reads records alone; standard takes minutes; full has no hurry"),
    ] = "standard",
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="table, json or sarif; of published numbers md, json or csv [default: the first]",
        ),
    ] = None,
    device: Device = "auto",
    batch_size: BatchSize = None,
    workers: Workers = None,
    executor: Executor = "local",
    out: Annotated[
        Path, typer.Option(help="folder for the records of --defense and --attack")
    ] = Path("results"),
    again: Annotated[
        bool, typer.Option("--again", help="audit anew what has a stored audit that is as deep")
    ] = False,
    trust: Annotated[
        bool, typer.Option("--trust", help="run FILE.py@NAME of a record wherever that file is")
    ] = False,
    memory: Memory = None,
    data_root: DataRoot = None,
) -> None:
    """Look for masking in records, or in rows that are run first, and store what was found beside
    them; look for what cannot be in published numbers. Exit code 1 where there is masking
    evidence, or a check of published numbers fails; 2 where something cannot be audited.
    """
    from bench.commands.audit import audit as audit_tables
    from bench.commands.audit import holds_records
    from bench.results.audit import read_profile

    asked = bool(request.defenses or request.attacks)
    if asked == bool(places):
        raise BadInput(
            "give records, a folder or CSV files, or --defense NAME and --attack NAME to run first"
        )
    how = {"profile": read_profile(profile), "trust": trust, "again": again}
    if places and not all(map(holds_records, places)):
        done = audit_tables(places, "md" if form is None else form)
        _print(done.text.rstrip("\n"))
        if done.failed:
            raise typer.Exit(1)
        return
    form = "table" if form is None else form
    _audit_records(
        request, places or [], form, how, (_How(device, batch_size, workers, executor), out)
    )


def _audit_records(
    request: Request,
    places: Sequence[Path],
    form: str,
    how: dict[str, Any],
    where: tuple[_How, Path],
) -> None:
    from bench.commands.audit_records import (
        AuditRequest,
        audit_files,
        audit_results,
        check_format,
        printed,
    )
    from bench.commands.verify import files_of
    from bench.engine.execution import read_execution

    machines, out = where
    execution = read_execution(machines.device, machines.batch_size)
    settings = AuditRequest(execution=execution, progress=_tell, **how)
    check_format(form)
    failed = False
    if places:
        audited = list(audit_files(files_of(places), settings))
    else:
        from bench.engine.plan import plan_all

        evaluations = plan_all([request], note=_say)
        results = _run(evaluations, [request], out, machines)
        _complain_of(results)
        failed = any(result.failure or result.rejected for result in results)
        audited = list(audit_results(results, settings))
    for one in audited:
        if one.refused:
            _complain(f"{one.path}: {one.refused}")
    if form != "table":
        print(printed(audited, form))
    elif any(one.report for one in audited):
        _print(printed(audited, form))
    if failed or any(one.refused for one in audited):
        raise typer.Exit(2)
    if any(one.report and one.report.failed for one in audited):
        raise typer.Exit(1)


@app.command()
def status(
    out: Annotated[Path, typer.Argument(help="folder of records")] = Path("results"),
    as_json: AsJson = False,
) -> None:
    """Show what runs where, what is done, what failed, and how long the rest will take."""
    from bench.commands.status import status as look

    seen = look(out)
    if as_json:
        _print_json(seen.as_json())
    else:
        _print(str(seen))


@app.command()
def merge(
    folders: Annotated[list[Path], typer.Argument(help="folders of records")],
    out: Annotated[Path, typer.Option(help="folder that is to hold them all")],
    as_json: AsJson = False,
) -> None:
    """Join folders of records, with their points, audits and failures; two different records of
    one evaluation are refused.
    """
    from bench.commands.merge import merge as join

    done = join(folders, out)
    if as_json:
        _print_json(vars(done))
    else:
        _print(str(done))


@app.command()
def submit(
    records: Records,
    out: Annotated[Path, typer.Option(help="new folder that is to hold them")],
    weights: Annotated[
        bool,
        typer.Option("--weights", help="pack the weights of trained defenses in the cache as well"),
    ] = False,
    data_root: DataRoot = None,
    as_json: AsJson = False,
) -> None:
    """Pack records with points, audits and environment for somebody else to verify and merge;
    records of uncommitted code are refused.
    """
    from bench.commands.submit import submit as pack
    from bench.commands.verify import files_of

    done = pack(files_of(records), out, weights=weights)
    if as_json:
        _print_json(vars(done))
        return
    for note in done.notes:
        _say(note)
    _print(str(done))


@app.command()
def certify(
    records: Records,
    steps: Annotated[
        int, typer.Option(min=0, max=10_000, help="steps of alpha-CROWN; 0 for plain CROWN")
    ] = 20,
    alpha: Annotated[
        float, typer.Option(help="of a vote over noise: probability of error of each image")
    ] = 0.001,
    n0: Annotated[int, typer.Option(help="of a vote: draws that choose the class")] = 100,
    draws: Annotated[int, typer.Option(help="of a vote: draws that bound its probability")] = 1000,
    trust: Annotated[
        bool, typer.Option("--trust", help="run FILE.py@NAME of a record wherever that file is")
    ] = False,
    data_root: DataRoot = None,
    as_json: AsJson = False,
) -> None:
    """Prove of which images that an attack left no attack can break; of a vote over Gaussian noise,
    bound where it stays right. Stored beside the record.
    """
    _load_torch()
    from bench.certify.vote import Confidence
    from bench.commands.certify import certify_all
    from bench.commands.verify import files_of

    confidence = Confidence(alpha, n0, draws)
    paths = files_of(records)
    done = []
    for one in certify_all(paths, steps, confidence, trust=trust):
        if len(paths) == 1 and one.refused:
            raise one.refused
        done.append(one)
        if not as_json:
            _print(escape.terminal(str(one)))
    if as_json:
        _print_json([one.as_json() for one in done])
    if all(one.refused for one in done):
        raise typer.Exit(2)


@app.command()
def show(
    records: Annotated[
        list[Path],
        typer.Argument(
            callback=only_records,
            help="JSON files of records, or folders; those of one defense are compared",
        ),
    ],
    images: Annotated[
        Path | None,
        typer.Option(help="of one record: PNG file for its clean and attacked images"),
    ] = None,
    trust: Annotated[
        bool,
        typer.Option("--trust", help="with --images: run the record's own data set FILE.py@NAME"),
    ] = False,
    data_root: DataRoot = None,
    as_json: AsJson = False,
) -> None:
    """Show a record under every aggregation rule; of several attacks on one defense, what replay
    gains over fresh draws.
    """
    from bench.report import show as report

    if images is not None and (len(records) > 1 or records[0].is_dir()):
        raise BadInput("--images draws one record: give its JSON file")
    groups = report.read(records)
    if images is not None:
        from bench.commands.view import write_sheet

        write_sheet(records[0], images, trust=trust)
        _tell(f"written: {images}")
    if as_json:
        shown = [report.as_json(group) for group in groups]
        _print_json(shown[0] if len(shown) == 1 else shown)
    else:
        _print("\n\n\n".join(map(report.render, groups)))


@app.command()
def view(
    folder: Annotated[Path, typer.Argument(help="folder of records")] = Path("results"),
    out: Annotated[
        Path | None, typer.Option(help="write the pages into this new folder instead of serving")
    ] = None,
    compute: Annotated[
        int,
        typer.Option(
            min=0,
            help="with --out: of how many images of each record logits and what the defense "
            "makes of them are computed and written [default: none]",
        ),
    ] = 0,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="port to serve on; 0 for a free one [default: 8780]"),
    ] = None,
    device: Device = "auto",
    batch_size: BatchSize = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="run FILE.py@NAME of a record wherever that file is")
    ] = False,
    data_root: DataRoot = None,
) -> None:
    """Look at results in a browser: boards, and a page a record with its images, what the attack
    changed and what became of it. Served to this machine alone, or written as files.
    """
    from bench.commands import view as pages
    from bench.engine.execution import read_execution

    if out is None and compute:
        raise BadInput("served pages compute on demand: drop --compute, or add --out FOLDER")
    if out is not None and port is not None:
        raise BadInput("--out writes files and serves nothing: drop --port or --out")
    execution = read_execution(device, batch_size)
    options: dict[str, Any] = {"trust": trust, "compute": compute, "progress": _tell}
    shown = pages.prepare(folder, execution, served=out is None, **options)
    if out is not None:
        _print(str(pages.write(shown, out)))
        return
    with pages.serving(shown, pages.PORT if port is None else port) as server:
        _print(f"{folder} at {server.url} (for this machine alone; Ctrl+C ends it)")
        sys.stdout.flush()
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            _tell("ended")


@app.command()
def export(
    record: Annotated[Path, typer.Argument(help="a record's JSON file")],
    out: Annotated[Path, typer.Option(help="file to write (npz), or folder (png, pt)")],
    form: Annotated[str, typer.Option("--format", help="npz, png or pt")] = "npz",
    device: Device = "auto",
    batch_size: BatchSize = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="run FILE.py@NAME of the record wherever that file is")
    ] = False,
    data_root: DataRoot = None,
    as_json: AsJson = False,
) -> None:
    """Write the adversarial images of a record, and say how many verdicts rounding changes."""
    from bench.commands.export import export as write
    from bench.engine.execution import read_execution

    done = write(record, form, out, read_execution(device, batch_size), trust=trust)
    if as_json:
        _print_json({**vars(done), "path": str(done.path)})
    else:
        _print(str(done))


@app.command()
def compare(
    records: Records,
    to: Annotated[
        str | None,
        typer.Option(help="the defense that others are compared with [default: undefended]"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare defenses on the same images: paired differences over builds, McNemar's test of each
    build.
    """
    from bench.report import compare as report
    from bench.results.store import read_all

    loaded, _ = read_all(records)
    if not loaded:
        raise BadInput(f"no records in {', '.join(map(str, records))}: run something first")
    compared = report.compare(loaded, to)
    if as_json:
        _print_json(report.as_json(compared))
    else:
        _print(report.render(compared))


@app.command()
def leaderboard(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(callback=only_records, help="folders of records [default: results]"),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="text, md, html, csv, csv-wide, json, json-tidy, json-wide, parquet, latex, "
            "bibtex, robustbench, model-index or eval-results [default: what --out ends in, else "
            "text]",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="file to write instead of stdout")] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="tell whether the pages that board.toml names, in these folders or below, "
            "follow from their records",
        ),
    ] = False,
) -> None:
    """Make the leaderboard: ranks, worst case per image over attacks, intervals, data access,
    audits, notes, records.
    """
    from bench.commands import leaderboard as boards
    from bench.report.boards.forms import form_of

    places = folders or [Path("results")]
    chosen = form_of(form, out)
    if check:
        if out is not None or form is not None:
            raise BadInput("--check compares the pages that board.toml names: drop --out, --format")
        checked = list(boards.check(places))
        for one in checked:
            _print(str(one))
        raise typer.Exit(int(any(one.differs for one in checked)))
    made = boards.made_of(places, out)
    if out is not None:
        boards.write(chosen, made, out)
        return
    content = chosen.write(made)
    if isinstance(content, bytes):
        raise BadInput("this format is not for a terminal: add --out FILE")
    _print(content, end="", whole=True)


@app.command()
def reference(
    path: Annotated[Path, typer.Argument(help="a CSV file, or a folder of them")] = Path(
        "leaderboards/reference"
    ),
    dataset: Annotated[str, typer.Option(help="only data sets whose name contains this")] = "",
    defense: Annotated[str, typer.Option(help="only defenses whose name contains this")] = "",
    as_json: AsJson = False,
) -> None:
    """Show published numbers, to read beside a leaderboard: who printed them, under which ball and
    protocol, how doubtful.
    """
    from bench.report.reference import read_references, render, select

    references = select(read_references(path), dataset, defense)
    if as_json:
        _print_json([row.model_dump(mode="json") for row in references])
    else:
        _print(render(references))


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Show versions, devices and plugins that cannot be loaded."""
    from bench.commands.doctor import examine, render

    report = examine(_registries())
    if as_json:
        _print_json(report)
    else:
        _print(render(report))
    if report["broken"]:
        raise typer.Exit(1)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the command. Exit codes: 0 done, 1 an evaluation failed, 2 bad input, 130
    interrupted.
    """
    if shell.in_bash():
        shell.complete(lambda: app(prog_name="bench"))
    keep_freed_memory()
    sys.exit(execute(sys.argv[1:] if arguments is None else arguments))


def execute(arguments: list[str]) -> int:
    """Run a command line in this process and return its exit code; `BadInput` is printed,
    not raised.
    """
    try:
        code = app(args=arguments, prog_name="bench", standalone_mode=False)
        if code == _INTERRUPTED:
            print("bench: interrupted; the same command resumes", file=sys.stderr)
        return code if isinstance(code, int) else 0
    except BadInput as error:
        _complain(str(error))
        return 2
    except Exception as error:
        full = cannot_write(error)
        if full is not None:
            _complain(str(full))
            return 2
        # Usage errors of the argument parser, which has no public base class; without a command its
        # message is the help.
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        if not arguments:
            print(message(), file=sys.stderr)
            return 2
        _complain((message() or "nothing to do; see bench --help").replace("\n", " "))
        return int(getattr(error, "exit_code", 2))


def _shortened(text: str) -> str:
    """A message in which no word fills the screen, such as a value of thousands of characters."""
    return re.sub(r"\S{400,}", lambda word: f"{word[0][:80]}... ({len(word[0])} characters)", text)
