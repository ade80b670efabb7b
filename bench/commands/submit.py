"""`bench submit`: records packed for somebody else to verify and to join."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.commands.merge import files_of_record
from bench.commands.trust import code_of, of_python
from bench.errors import BadInput
from bench.plugins.create import ATTACKS, DEFENSES
from bench.report.audit import badge
from bench.report.boards.citing import command
from bench.report.escape import markdown
from bench.report.grouping import by_defense, by_setup
from bench.report.tables import markdown_rows
from bench.report.words import attack_label, defense_label, heading
from bench.results.record import Record, without_folders
from bench.results.store import read_record
from bench.results.weights import FOLDER, file_of_weights, weights_of
from bench.storage.files import check_folder, write_whole

PAGE = "SUBMISSION.md"
"""Says what is in the folder; nothing reads it but people."""

_OWN = "adversarial-bench"


@dataclass(frozen=True)
class Submitted:
    """What was packed.

    Attributes:
        out: the folder.
        records: how many it holds, with the bases that lay beside them.
        points: how many of them with their points.
        bytes: of all files.
        notes: what whoever verifies it must know.
    """

    out: str
    records: int
    points: int
    bytes: int
    notes: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{self.out}: {self.records} records, {self.points} with points, "
            f"{self.bytes / 1e6:.1f} MB; whoever gets it runs\n"
            f"    bench verify {self.out}\n"
            f"    bench merge {self.out} --out FOLDER"
        )


def submit(paths: Sequence[Path], out: Path, *, weights: bool = False) -> Submitted:
    """Pack records with their points, audits and certificates, and a page that says how they are
    made again. Of each record, the base that lies beside it comes along.

    Args:
        paths: files of records.
        out: a folder that does not exist or is empty.
        weights: pack those of trained defenses that are in the cache as well, so that whoever
            verifies need not train; see `bench.engine.trained`.

    Raises:
        BadInput: where a record was made from uncommitted code or from a Python object, its points
            are damaged, or `out` holds something. Then nothing is written.
    """
    packed = {record.id: (path, record) for path, record in _with_bases(paths)}
    for path, record in packed.values():
        _check(path, record)
    files: dict[Path, bytes] = {}
    for one in packed.values():
        files |= files_of_record([one], out)
    if weights:
        files |= _weights(packed.values(), out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInput(f"{out} is no empty folder: give another --out")
    try:
        check_folder(out)
    except OSError as error:
        raise BadInput(f"cannot write to {out} ({error.strerror}): give another --out") from error
    records = [record for _, record in packed.values()]
    with_points = {
        record.id
        for record in records
        if record.points is not None and out / record.points.file in files
    }
    kept = sum(path.parent == out / FOLDER for path in files)
    notes = (*_notes(records, with_points), *_of_weights(kept, weights))
    files[out / PAGE] = _page(records, with_points, notes).encode()
    # Points first: who reads a record meanwhile finds them.
    for path in sorted(files, key=lambda path: path.suffix in (".json", ".md")):
        write_whole(path, files[path])
    size = sum(map(len, files.values()))
    return Submitted(str(out), len(records), len(with_points), size, notes)


def _with_bases(paths: Sequence[Path]) -> Iterator[tuple[Path, Record]]:
    """The records, and the base of each that lies in its folder."""
    for path in paths:
        record = read_record(path)
        yield path, record
        if record.base:
            for beside in path.parent.glob(f"*--{record.base}.json"):
                yield beside, read_record(beside)


def _weights(packed: Iterable[tuple[Path, Record]], out: Path) -> dict[Path, bytes]:
    """The weights of these records' defenses; of those that can be had without training."""
    # Rebuilding a defense imports torch; packing records alone does not.
    from bench.commands.verify import rebuild
    from bench.engine.trained import pack

    files: dict[Path, bytes] = {}
    for _, record in packed:
        path = out / file_of_weights(record)
        if weights_of(record) and path not in files:
            data = pack(rebuild(record), weights_of(record))
            if data is not None:
                files[path] = data
    return files


def _of_weights(kept: int, asked: bool) -> Iterator[str]:
    if kept or asked:
        yield f"the weights of {kept} trained defenses are packed: these are verified untrained"


def _check(path: Path, record: Record) -> None:
    environment = record.environment
    if environment.get("dirty"):
        raise BadInput(
            f"{path} was made from a tree with uncommitted changes, which nobody else has: commit "
            "them, and run it again into another folder"
        )
    if of_python(record):
        raise BadInput(
            f"{path} was made from a Python object, which nobody else has: put the class into a "
            "package (bench new --package), images and weights into files, and run it by name"
        )


def _notes(records: Sequence[Record], with_points: set[str]) -> Iterator[str]:
    """What whoever verifies these records must know."""
    n = len(records)
    without = n - len(with_points)
    if without:
        yield f"{without} of {n} records come without points: verify runs their attacks again"
    unaudited = [record for record in records if record.base and record.audit is None]
    if unaudited:
        yield f"{len(unaudited)} of {n} records are not audited: run bench audit, then pack again"
    failed = [record for record in records if record.audit and record.audit.failed]
    if failed:
        yield f"the audits of {len(failed)} of {n} records found evidence of masking"
    for path in dict.fromkeys(path for record in records for path in code_of(record)):
        yield (
            f"the code in {path} is not packed: publish that file, or better a package (bench new "
            "--package); who has it verifies with --trust"
        )
    for package in sorted({name for record in records for name in _packages(record)}):
        yield f"the package {package} must be installed"
    for source in dict.fromkeys(text for record in records for text in _on_disk(record)):
        yield f"{source} is on your disk alone: publish it; its record shows the path"
    uncommitted = sum(not record.environment.get("commit") for record in records)
    if uncommitted:
        yield f"{uncommitted} of {n} records name a version of {_OWN} and no commit"


def _packages(record: Record) -> Iterator[str]:
    """Packages of others that defense or attack come from, as far as they are installed here."""
    for kind, registry in (("defense", DEFENSES), ("attack", ATTACKS)):
        name = record.identity[kind]["name"]
        for entry in registry.entries():
            if entry.name == name and entry.provider not in (_OWN, ""):
                yield entry.provider


def _on_disk(record: Record) -> Iterator[str]:
    """Specs of data set and classifier that name files; code is told elsewhere."""
    for text in map(str, record.sources.values()):
        if "@" not in text and (without_folders(text) != text or re.search("[:=]~?/", text)):
            yield text


def _page(records: Sequence[Record], with_points: set[str], notes: Sequence[str]) -> str:
    """What the folder holds, for people."""
    parts = ["# Submission", *(f"- {markdown(note)}" for note in notes)]
    paragraphs = ["\n".join([parts[0], "", *parts[1:]]) if notes else parts[0]]
    for group in by_setup(records):
        rows = markdown_rows([_row(record, with_points) for record in group])
        paragraphs.append(f"## {markdown(heading(group[0]))}\n\n{rows}")
    paragraphs.append(f"## Made with\n\n{_made_with(records)}")
    commands = "\n".join(dict.fromkeys(_commands(records)))
    paragraphs.append(f"## Made again by\n\n{_indented(commands)}")
    checked = "bench verify FOLDER\nbench merge FOLDER --out RECORDS"
    paragraphs.append(f"## Checked and joined by\n\n{_indented(checked)}")
    return "\n\n".join(paragraphs) + "\n"


def _row(record: Record, with_points: set[str]) -> dict[str, str]:
    told = record.points.sha256[:16] if record.points else "none kept"
    here = "" if record.id in with_points or not record.points else " (not packed)"
    return {
        "record": record.id,
        "defense": defense_label(record),
        "attack": attack_label(record),
        "seed": record.title["seed"],
        "clean": str(record.metrics.clean.mean),
        "robust": str(record.metrics.adversarial.mean),
        "audit": badge(record.audit) or "none",
        "SHA-256 of points": told + here,
    }


def _made_with(records: Iterable[Record]) -> str:
    """Versions, commits and machines, with how many records each."""
    made = Counter(map(_environment, records))
    return "\n".join(f"- {count} records: {markdown(text)}" for text, count in made.items())


def _environment(record: Record) -> str:
    told, versions = record.environment, record.environment["versions"]
    packages = ", ".join(f"{name} {versions.get(name, '?')}" for name in (_OWN, "torch", "python"))
    commit = str(told.get("commit", ""))[:12] or "none"
    machine = f"{told.get('device', '?')}, {told.get('threads', '?')} threads"
    return f"{packages}; commit {commit}; {machine}"


def _commands(records: Sequence[Record]) -> Iterator[str]:
    """What makes them again; a base is made with the row that needs it."""
    bases = {record.base for record in records}
    for setup in by_setup(record for record in records if record.id not in bases):
        for group in by_defense(setup):
            yield command(group)


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
