"""The page of one record: its images, what became of each, and what may be asked of the defense."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from bench.report import one_record
from bench.report.escape import html
from bench.report.page.document import document
from bench.report.pictures.levels import columns_of, tiles_of
from bench.report.pictures.seen import Seen
from bench.report.pictures.verdicts import KINDS, breakers, kinds
from bench.report.words import attack_label, defense_label, heading
from bench.results.outcomes import decode
from bench.results.record import Record

_HERE = Path(__file__).parent

_LABELS = {"clean": "clean", "attacked": "attacked", "change": "change"}

NOT_STORED = (
    "Logits, what the defense makes of an image, and the path of the attack's loss are not "
    "stored with a record. "
)
_ON_DEMAND = "They are computed here when you ask for them, image by image."
_ELSEWHERE = (
    "<code>bench view FOLDER</code> computes them on demand; with <code>--compute</code> logits "
    "and images are written beside the pages."
)
_WRITTEN = (
    "Logits and images below were computed when this page was written. <code>bench view "
    "FOLDER</code> computes the path of the loss on demand."
)


@dataclass(frozen=True)
class Answers:
    """What a page knows of the defense beyond its record.

    Attributes:
        served: whether the page may ask for more.
        asked: what was asked beforehand, by the image's place; see `bench.commands.view.asking`.
        note: why nothing was or can be asked; empty where all is well.
    """

    served: bool = False
    asked: Mapping[int, Any] = field(default_factory=dict)
    note: str = ""


def record_page(record: Record, others: Sequence[Record], seen: Seen, answers: Answers) -> str:
    """HTML of a record's page; its pictures lie in a folder named by its id beside it.

    Args:
        record: the record.
        others: records of other attacks on the same defense and images.
        seen: what can be shown of its images.
        answers: what can be told of the defense beyond the record.
    """
    title = f"{defense_label(record)} under {attack_label(record)}"
    return document(
        title,
        "\n".join(_body(record, seen, answers, title)),
        data=_data(record, others, seen, answers),
        scripts=[_source("record.js")],
        styles=[_source("record.css")],
        beside=True,
    )


@cache
def _source(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _body(record: Record, seen: Seen, answers: Answers, title: str) -> list[str]:
    metrics = record.metrics
    draws = len(record.outcomes.clean)
    facts = {
        "clean": str(metrics.clean.mean),
        "under attack": str(metrics.adversarial.mean),
        **({"replayed": str(metrics.replayed.mean)} if metrics.replayed else {}),
        "judged": f"{draws} draws an image" if draws > 1 else "one answer an image",
    }
    return [
        '<nav class="bar"><span><a href="../index.html">Boards</a> '
        '<a href="../records.html">All records</a></span>',
        '<label class="controls">Colours <select class="theme"><option value="auto">as the '
        'system</option><option value="light">light</option><option value="dark">dark</option>'
        "</select></label></nav>",
        "<main>",
        f"<h1>{html(title)}</h1>",
        f'<p class="quiet">{html(heading(record))}, seed {html(record.title["seed"])}</p>',
        '<dl class="facts">',
        *(f"<div><dt>{name}</dt><dd>{html(value)}</dd></div>" for name, value in facts.items()),
        "</dl>",
        "<p>Accuracies in percent with 95 % intervals.</p>",
        *_doubts(record),
        *_more(record),
        "<h2>Images</h2>",
        *_key(record, seen),
        *_controls(record),
        '<div id="cards"></div>',
        '<p><button type="button" id="more" hidden>Show more</button></p>',
        *_without_scripts(record, seen),
        '<dialog id="one" aria-labelledby="one-title"></dialog>',
        "<h2>What else can be asked</h2>",
        f'<p id="asking">{_asking(answers)}</p>',
        "</main>",
    ]


def _doubts(record: Record) -> list[str]:
    """What a reader must know before the number is believed."""
    reason = record.metrics.collapse_reason
    told = [f"COLLAPSED: {reason}"] if reason else []
    told += [f"{one.name}: {one.message}" for one in record.findings if one.verdict != "note"]
    return [f'<p class="warn">{html(text)}</p>' for text in told]


def _more(record: Record) -> list[str]:
    text = one_record.render(one_record.under_every_rule(record))
    return [
        f"<details><summary>The record in words</summary><pre>{_lines(text)}</pre></details>",
        f'<p><a href="{record.id}/record.json">The record as a file</a></p>',
    ]


def _lines(text: str) -> str:
    return "\n".join(map(html, text.split("\n")))


def _key(record: Record, seen: Seen) -> list[str]:
    told = [f'<p class="warn">{html(note)}</p>' for note in seen.notes]
    if seen.which:
        shown = "Pixels are rounded to the nearest of 256 levels."
        if "change" in seen.which:
            shown += (
                f" The change is multiplied by {seen.factor:g} around grey, the same for every "
                "image here: brighter was raised, darker was lowered."
            )
        told.append(f"<p>{shown}</p>")
    if "attacked" in seen.which and record.points:
        told.append(
            "<p>The attacked images are those of the file of points, whose SHA-256 "
            f"<code>{record.points.sha256[:16]}</code> was checked.</p>"
        )
    draws = len(record.outcomes.clean)
    rule = f" Of {draws} draws the majority decides, and a tie is wrong." if draws > 1 else ""
    told.append(
        "<p><b>Broken</b>: right without the attack, wrong under it. <b>Survived</b>: right both "
        f"times. <b>Clean-wrong</b>: wrong without an attack.{rule}</p>"
    )
    return told


def _controls(record: Record) -> list[str]:
    counts = Counter(kinds(record))
    options = [f'<option value="all">all ({record.metrics.n})</option>']
    options += [f'<option value="{kind}">{kind} ({counts[kind]})</option>' for kind in KINDS]
    return [
        '<div class="controls filters">',
        f'<label>Show <select id="kind">{"".join(options)}</select></label>',
        '<label>Broken by <select id="by"><option value="">anything or nothing</option></select>'
        "</label>",
        '<label>Label <select id="label"><option value="">any</option></select></label>',
        '<span id="count" role="status"></span>',
        "</div>",
    ]


def _without_scripts(record: Record, seen: Seen) -> list[str]:
    sheets = [
        f'<p>{name}<br><img src="{record.id}/{name}-0.png" alt="{name}, the first images"></p>'
        for name in seen.which
    ]
    told = "<p>Filters and verdicts image by image need scripts.</p>"
    return ["<noscript>", told, *sheets, "</noscript>"]


def _asking(answers: Answers) -> str:
    if answers.note:
        return NOT_STORED + html(answers.note)
    if answers.served:
        return NOT_STORED + _ON_DEMAND
    return _WRITTEN if answers.asked else NOT_STORED + _ELSEWHERE


def _data(record: Record, others: Sequence[Record], seen: Seen, answers: Answers) -> dict[str, Any]:
    outcomes, names = record.outcomes, seen.class_names
    known = names if len(names) == outcomes.num_classes else ()
    shape = seen.shape
    targets = None if record.targets is None else decode(record.targets, outcomes.num_classes)
    return {
        "id": record.id,
        "ids": outcomes.image_ids().tolist(),
        "labels": outcomes.true_labels().tolist(),
        # Names that are the numbers say nothing.
        "names": [] if all(name.isdigit() for name in known) else list(known),
        **{
            which: outcomes.predictions(which).T.tolist()
            for which in ("clean", "adversarial", "replayed")
        },
        "kinds": [KINDS.index(kind) for kind in kinds(record)],
        "kindNames": list(KINDS),
        "breakers": [
            {
                "name": one.name,
                "href": f"{one.record}.html" if one.record else "",
                "images": one.images.nonzero()[0].tolist(),
            }
            for one in breakers(record, others)
        ],
        "targets": targets.tolist() if targets is not None else None,
        "distances": list(record.distances.values) if record.distances else None,
        "pictures": {
            "which": [{"name": name, "label": _label(name, seen)} for name in seen.which],
            "height": shape[1],
            "width": shape[2],
            "tiles": tiles_of(shape),
            "columns": columns_of(tiles_of(shape)),
        }
        if seen.which
        else None,
        "served": answers.served and not answers.note,
        "asked": {str(place): one for place, one in answers.asked.items()},
    }


def _label(name: str, seen: Seen) -> str:
    return f"change \N{MULTIPLICATION SIGN} {seen.factor:g}" if name == "change" else _LABELS[name]
