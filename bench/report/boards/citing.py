"""How a row is made again, and how it is cited."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Sequence
from dataclasses import replace

from bench.errors import BadInput
from bench.results.record import Record, without_folders
from bench.spec import nested, parse


def command(records: Sequence[Record]) -> str:
    """The command that makes these records of one build again, quoted for a shell."""
    first = records[0]
    threat, seeds = first.title["threat"].partition(" "), first.identity["seeds"]
    attacks = dict.fromkeys(map(_attack, records))
    attack_seeds = dict.fromkeys(one.title["seed"] for one in records)
    options = [
        ("--defense", first.title["defense"]),
        *(("--attack", attack) for attack in attacks),
        ("--dataset", _portable(first.sources["dataset"])),
        ("--classifier", _portable(first.sources["classifier"])),
        ("--norm", threat[0]),
        ("--eps", threat[2]),
        ("--n", first.title["n"]),
        *(("--seed", seed) for seed in attack_seeds),
        ("--build-seed", str(seeds["build"])),
        *((("--compile", "on"),) if any(map(_in_bfloat16, records)) else ()),
    ]
    return shlex.join(["bench", "run", *(word for option in options for word in option)])


def _in_bfloat16(record: Record) -> bool:
    return "bfloat16" in record.environment.get("compile", {})


def _portable(spec: str) -> str:
    """Absolute folders are those of the maker's machine: a reader has other ones."""
    return without_folders(spec) if re.search("[:=]/", spec) else spec


def _attack(record: Record) -> str:
    """The spec with gradient and randomness model, where they are not the plain ones."""
    title = {key: str(value) for key, value in record.title.items()}
    try:
        spec = parse(title["attack"])
        extra = {
            key: nested(title[key]) for key, plain in _PLAIN.items() if title[key] not in plain
        }
    except BadInput:
        return title["attack"]
    return str(replace(spec, options={**spec.options, **extra}))


_PLAIN = {"gradient": ("full",), "randomness": ("none", "fresh")}


def bibtex(record: Record, ids: Sequence[str]) -> str:
    """An entry for the row of these records."""
    title = record.title
    where = f"{without_folders(title['dataset'])}, {title['threat']}, {title['n']} images"
    version = record.environment.get("versions", {}).get("adversarial-bench", "")
    fields = {
        "title": f"Robust accuracy of {title['defense']} on {where}",
        "howpublished": f"adversarial-bench {version}".strip(),
        "year": record.finished[:4],
        "note": f"records {', '.join(ids)}",
    }
    body = "".join(f"  {name} = {{{_latex(value)}}},\n" for name, value in fields.items())
    return f"@misc{{bench-{record.id},\n{body}}}\n"


def short(text: str) -> str:
    """The first six digits of a hash."""
    return hashlib.sha256(text.encode()).hexdigest()[:6]


def _latex(text: str) -> str:
    """As LaTeX shows it; nothing in it is a command or ends the field."""
    kept = re.sub(r"[{}\\\x00-\x1f\x7f]", " ", text)
    return (
        re.sub(r"([&%$#_])", r"\\\1", kept)
        .replace("~", r"\textasciitilde{}")
        .replace("^", r"\textasciicircum{}")
    )
