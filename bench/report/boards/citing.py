"""How a row is made again, and how it is cited."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Sequence

from bench.results.record import Record, without_folders


def command(record: Record) -> str:
    """The command that makes a record again, quoted for a shell."""
    title, threat = record.title, record.identity["threat"]
    seeds = record.identity["seeds"]
    options = {
        "--defense": title["defense"],
        "--attack": title["attack"],
        "--gradient": title["gradient"] if title["gradient"] != "full" else "",
        "--randomness": title["randomness"] if title["randomness"] not in _PLAIN else "",
        "--dataset": record.sources["dataset"],
        "--classifier": record.sources["classifier"],
        "--norm": str(threat["norm"]),
        "--eps": title["threat"].partition(" ")[2],
        "--n": title["n"],
        "--seed": title["seed"],
        "--build-seed": str(seeds["build"]),
    }
    words = ["bench", "run"]
    for option, value in options.items():
        words += [option, value] if value else []
    return shlex.join(words)


_PLAIN = ("none", "fresh")


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
