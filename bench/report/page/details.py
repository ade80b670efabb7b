"""What is to be known of one row, as HTML: builds, attacks, audit, cost, records, commands."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from bench.report import escape
from bench.report.boards.model import Attacked, Audit, Build, Note, Row, Source
from bench.report.page.columns import Cell, interval, text, triple
from bench.report.page.published import Beside
from bench.report.tables import percent
from bench.results.estimate import Estimate

_ARXIV = re.compile(r"arXiv[ :](\d{4}\.\d{4,5})\b")


@dataclass(frozen=True)
class Where:
    """Where a page lies, and what lies beside it.

    Attributes:
        folder: of the page.
        pages: by a record's id, the address of a page about it.
    """

    folder: Path
    pages: Mapping[str, str] = field(default_factory=dict)

    def record(self, source: Source) -> str:
        """The record's id, with a link to its page or its file where there is one."""
        name = f"<code>{escape.html(source.id[:7])}</code>"
        address = self.pages.get(source.id) or self._file(source.path)
        return f'<a href="{escape.html(address)}">{name}</a>' if address else name

    def _file(self, path: str) -> str:
        # The colon is quoted, too: no file's name can be read as `javascript:`.
        relative = os.path.relpath(Path(path).absolute(), self.folder.absolute())
        return quote(Path(relative).as_posix()) if path else ""


def details(cell: Cell, where: Where, published: Sequence[Beside]) -> str:
    """A section of a row; its heading is the row's name."""
    row = cell.row
    several = len(row.builds) > 1
    parts = [
        f"<h3>{text(row.defense)}</h3>",
        f'<p class="quiet">{text(str(cell.board.setup))}</p>',
        *([f"<p><b>Not ranked:</b> {text(row.unranked)}.</p>"] if row.unranked else []),
        _notes(row.notes, len(row.builds)),
        _facts(row),
        *(["<h4>Builds</h4>", _builds(row.builds)] if several else []),
        "<h4>Attacks</h4>",
        _attacks(row.attacks, where),
        "<h4>Audit</h4>",
        *_audits(row),
        *(["<h4>Published numbers</h4>", _published(published)] if published else []),
        "<h4>Make it again</h4>",
        *(_source_text(build.command) for build in row.builds),
        "<h4>Cite it</h4>",
        _source_text(row.citation.strip()),
    ]
    inside = "\n".join(filter(None, parts))
    return f'<section class="row-details" id="d-{cell.id}">\n{inside}\n</section>'


def _table(caption: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of HTML cells; the first of each row names it. Columns without content are left
    out.
    """
    lines = [list(row) for row in rows]
    kept = [at for at in range(len(header)) if any(row[at] for row in lines)]
    head = "".join(f'<th scope="col">{header[at]}</th>' for at in kept)
    body = "".join(
        f'<tr><th scope="row">{row[kept[0]]}</th>'
        + "".join(f"<td>{row[at]}</td>" for at in kept[1:])
        + "</tr>"
        for row in lines
    )
    # What scrolls can be reached by the keyboard, and so has a name.
    return (
        f'<div class="scroll" role="group" tabindex="0" aria-label="{escape.html(caption)}">'
        f'<table class="plain"><caption class="hidden">{escape.html(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _published(published: Sequence[Beside]) -> str:
    """Published numbers beside ours, with what differs."""
    header = ["published", "ours", "what differs", "doubts", "source"]
    rows = [
        [
            f"<b>{one.reference.value:g}</b> {text(_of(one))}",
            f"{_estimate(one.ours)} {text(one.measured)}",
            "<br>".join(map(text, one.differs)),
            text(", ".join(one.reference.badges)) if one.reference.badges else "",
            text(", ".join(filter(None, [one.reference.source, one.reference.table]))),
        ]
        for one in published
    ]
    return _table("Published numbers beside ours, in percent", header, rows)


def _of(one: Beside) -> str:
    attack = one.reference.attack
    return one.reference.metric + (f", {attack}" if attack not in ("", "none") else "")


def _estimate(value: Estimate | None) -> str:
    numbers = triple(value)
    return interval(numbers) if numbers else ""


def _notes(notes: Sequence[Note], builds: int) -> str:
    lines = [
        f'<li><span class="chip">{text(note.flag)}</span> {_of_builds(note.builds, builds)}'
        f"{text(note.reason)}</li>"
        for note in notes
    ]
    return f"<ul>{''.join(lines)}</ul>" if lines else ""


def _of_builds(seeds: Sequence[int], builds: int) -> str:
    return f"(build {', '.join(map(str, seeds))} of {builds}) " if seeds else ""


def _facts(row: Row) -> str:
    """Numbers and words, each with its name."""
    extras = row.extras
    draws = extras.all_draws
    obstacles = extras.obstacles
    vote = "" if extras.alpha is None else f" by a vote, alpha = {extras.alpha:g}"
    replays = f" over {len(extras.replays)} replays of {extras.replay_passes:.0f} passes/image"
    facts = {
        "paper": _paper(row.paper),
        "kind": text(", ".join(filter(None, [row.kind, row.family]))),
        "macro-F1": f"{percent(row.macro_f1[0])} clean, lowest {percent(row.macro_f1[1])}",
        "a constant answer": percent(row.constant),
        "undefended, same attacks": "" if extras.base is None else percent(extras.base),
        "certified": _estimate(extras.certified) + vote if extras.certified else "",
        "replayed": _estimate(extras.replayed) + replays if extras.replayed else "",
        "right in all draws": "" if draws is None else " -> ".join(map(percent, draws)),
        "any view": _estimate(extras.any_view),
        "passes of all attacks": f"{row.passes:.0f} an image",
        "time of all attacks": f"{sum(one.budget.seconds for one in row.attacks):.0f} s",
        "passes of a prediction": _number(extras.passes),
        "denoiser passes": _number(extras.denoiser_passes),
        "RobustBench": "" if obstacles is None else text(", ".join(obstacles) or "admits it"),
        "spec": f"<code>{text(row.spec)}</code>",
        "built": "<br>".join(map(text, _built(row))),
    }
    told = "".join(
        f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts.items() if value
    )
    return f"<dl>{told}</dl>"


def _built(row: Row) -> list[str]:
    """What all builds say once, and what only some say with their seeds."""
    said: dict[str, list[str]] = {}
    for build in row.builds:
        for message in build.built:
            said.setdefault(message, []).append(str(build.seed))
    return [
        message if len(seeds) == len(row.builds) else f"build {', '.join(seeds)}: {message}"
        for message, seeds in said.items()
    ]


def _paper(paper: str) -> str:
    """With a link where it names a number of arXiv; no address is taken from the text itself."""
    found = _ARXIV.search(paper)
    link = (
        f' <a href="https://arxiv.org/abs/{found[1]}" rel="noreferrer">arXiv</a>' if found else ""
    )
    return text(paper) + link if paper else ""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _builds(builds: Sequence[Build]) -> str:
    rows = [
        [
            str(build.seed),
            _estimate(build.clean),
            _estimate(build.robust),
            f"{percent(build.macro_f1[0])} -> {percent(build.macro_f1[1])}",
            f"{build.passes:.0f}",
            text(build.audit.state),
            ", ".join(["collapsed"] * build.collapsed + ["failed a check"] * build.failed),
        ]
        for build in builds
    ]
    header = ["seed", "clean", "robust", "macro-F1", "passes/image", "audit", "notes"]
    return _table("Builds", header, rows)


def _attacks(attacks: Sequence[Attacked], where: Where) -> str:
    header = ["attack", "robust", "seeds", "replayed", "passes/image", "seconds", "role", "records"]
    rows = [
        [
            text(one.attack),
            _estimate(one.robust),
            _range(one),
            _estimate(one.replayed),
            f"{one.budget.passes:.0f} (at most {one.budget.most})",
            f"{one.budget.seconds:.1f}",
            _role(one),
            " ".join(map(where.record, one.sources)),
        ]
        for one in attacks
    ]
    return _table("Attacks: accuracy left in percent, and what they cost", header, rows)


def _range(attack: Attacked) -> str:
    seeds = ", ".join(map(str, attack.seeds))
    if len(attack.sources) == 1:
        return seeds
    return f"{seeds}: {percent(attack.lowest)} to {percent(attack.highest)}"


def _role(attack: Attacked) -> str:
    roles = {"control": attack.control, "transfer": attack.transfer, "required": attack.required}
    return ", ".join(role for role, has in roles.items() if has)


def _audits(row: Row) -> list[str]:
    """That of each build, told once where all say the same."""
    audits: dict[Audit, list[str]] = {}
    for build in row.builds:
        audits.setdefault(build.audit, []).append(str(build.seed))
    return [
        _audit(audit, f"Build {', '.join(seeds)}: " if len(audits) > 1 else "")
        for audit, seeds in audits.items()
    ]


def _audit(audit: Audit, of: str) -> str:
    profile = f", profile {text(audit.profile)}" if audit.profile else ""
    silent = f", {audit.silent} other checks found nothing" if audit.silent else ""
    head = f"<p>{of}<b>{text(audit.state)}</b>{profile}{silent}.</p>"
    lines = [
        f"<li><b>{text(one.id)} {text(one.name)}</b>, {text(one.verdict)}: {text(one.message)}"
        f"{_advice(one.advice)}</li>"
        for one in audit.spoke
    ]
    return head + (f"<ul>{''.join(lines)}</ul>" if lines else "")


def _advice(advice: str) -> str:
    return f' <span class="quiet">{text(advice)}</span>' if advice else ""


def _source_text(content: str) -> str:
    """Lines as they are; a script adds a button that copies them."""
    lines = "\n".join(map(escape.html, content.split("\n")))
    return f'<pre class="copied" dir="ltr"><bdi>{lines}</bdi></pre>'
