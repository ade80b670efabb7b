"""`bench gallery`: do the attacks break what is known to be broken?

Every registered defense whose card has a known answer is attacked twice: as a user would begin, and
by the attack that fits it. A defense that survives although it is known to be broken says that
something is wrong with the attacks, or with the installation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tabulate import tabulate

from bench.defense import Card
from bench.engine.evaluation import Evaluation
from bench.engine.plan import plan
from bench.engine.request import Request
from bench.engine.run import Result
from bench.engine.setup import Setup, load_setup
from bench.errors import BadInput
from bench.plugins.create import DEFENSES, create_attack
from bench.plugins.registry import Alias
from bench.report.tables import percent
from bench.report.words import attack_label, flags, heading
from bench.results.record import Record
from bench.spec import parse
from bench.threat import read_norm

TOLERANCE = 0.05
"""How far above its known answer a defense may stay."""

DEFAULTS = Request(datasets=("mnist5k",), epsilons=(0.2,))
"""Where no data set is given: a threat under which no image of the shipped classifier survives."""

DEFAULT_N = 100

BROKEN = "broken"
"""The verdict on a defense that came down to its known answer."""


@dataclass(frozen=True)
class Exhibit:
    """A defense with a known answer and the two evaluations that ask for it.

    Attributes:
        defense: its spec.
        card: with `expected` and at least one attack.
        request: what its evaluations are planned from.
        naive, fitting: its evaluations; None where it cannot be planned.
        problem: why it cannot.
    """

    defense: str
    card: Card
    request: Request
    naive: Evaluation | None = None
    fitting: Evaluation | None = None
    problem: str = ""

    def evaluations(self) -> list[Evaluation]:
        """Its evaluations, each behind its base."""
        own = [evaluation for evaluation in (self.naive, self.fitting) if evaluation]
        return [evaluation for one in own for evaluation in (one.base(), one) if evaluation]


@dataclass(frozen=True)
class Row:
    """What came out for one exhibit; shares in percent as text.

    Attributes:
        defense: its spec.
        clean: accuracy without attack.
        naive, naive_base: under the naive attack, and the undefended classifier's.
        audit: findings on the naive row that warn or fail.
        attack: the fitting attack.
        fitting, base: under the fitting attack, and the undefended classifier's.
        expected: `base`, `share` or `unknown`.
        verdict: `broken`, `survives: ...`, why there is no number, or empty where no answer is
            known.
    """

    defense: str
    clean: str = ""
    naive: str = ""
    naive_base: str = ""
    audit: str = ""
    attack: str = ""
    fitting: str = ""
    base: str = ""
    expected: str = ""
    verdict: str = ""

    @property
    def held(self) -> bool:
        """Whether the known answer came out, or a number where none is known."""
        return self.verdict == BROKEN or (self.expected == "unknown" and not self.verdict)


def exhibits(request: Request, naive: str) -> list[Exhibit]:
    """All registered defenses with a known answer, or those that the request names.

    Args:
        request: data set, classifier, threat and seeds, as for a run.
        naive: the attack that a user would begin with.

    Raises `BadInput` for a defense without a known answer, an attack that does not exist, or data
    that cannot be loaded.
    """
    create_attack(naive)
    norm = request.one_setup("bench gallery").norm
    # The default eps is one of linf; under another norm every base would survive it, which proves
    # nothing.
    defaults = (
        DEFAULTS
        if norm is None or read_norm(norm) == "linf"
        else DEFAULTS.model_copy(update={"epsilons": ()})
    )
    settled = request if "datasets" in request.model_fields_set else request.over(defaults)
    n = DEFAULT_N if request.n is None else request.n
    names = request.defenses or tuple(name for name in DEFENSES.names() if _card(name).expected)
    asked = settled.model_copy(update={"defenses": names, "attacks": (naive,), "n": n})
    setup = load_setup(asked.one_setup("bench gallery"), given=asked.given())
    return [_exhibit(name, asked, setup) for name in names]


def _card(name: str) -> Card:
    plugin = DEFENSES.get(parse(name).name)
    return Card() if isinstance(plugin, Alias) else plugin.card


def _exhibit(name: str, request: Request, setup: Setup) -> Exhibit:
    card = _card(name)
    if not card.expected or not card.attacks:
        raise BadInput(
            f"defense {name!r} has no known answer: name one whose card says what to expect, or "
            "leave it out for all"
        )
    asked = request.model_copy(
        update={"defenses": (name,), "attacks": (*request.attacks, card.attacks[0])}
    )
    try:
        evaluations = plan(asked, setup)
    except BadInput as error:
        return Exhibit(name, card, asked, problem=str(error))
    own = [evaluation for evaluation in evaluations if evaluation.defense.name == parse(name).name]
    return Exhibit(name, card, asked, own[0], own[-1])


def evaluations_of(shown: Iterable[Exhibit]) -> list[Evaluation]:
    """Every evaluation once, bases first where they are needed."""
    by_id = {one.id: one for exhibit in shown for one in exhibit.evaluations()}
    return list(by_id.values())


def rows(shown: Sequence[Exhibit], results: Iterable[Result]) -> list[Row]:
    """One row an exhibit, from the results of its evaluations."""
    by_id = {result.evaluation.id: result for result in results}
    return [_row(exhibit, by_id) for exhibit in shown]


def _row(exhibit: Exhibit, results: dict[str, Result]) -> Row:
    problem = exhibit.problem or _problem(
        results[evaluation.id] for evaluation in exhibit.evaluations()
    )
    if problem:
        return Row(
            exhibit.defense, expected=exhibit.card.expected, verdict=f"not measured: {problem}"
        )
    naive, naive_base = _records(exhibit.naive, results)
    fitting, base = _records(exhibit.fitting, results)
    return Row(
        defense=exhibit.defense,
        clean=percent(naive.metrics.clean.mean.value),
        naive=percent(_robust(naive)),
        naive_base=percent(_robust(naive_base)),
        audit=", ".join(flags([naive], with_scale=False)),
        attack=attack_label(fitting),
        fitting=percent(_robust(fitting)),
        base=percent(_robust(base)),
        expected=exhibit.card.expected,
        verdict=verdict(exhibit.card, fitting, base),
    )


def _problem(results: Iterable[Result]) -> str:
    failed = (
        str(r.rejected) if r.rejected else r.failure.error if r.failure else "" for r in results
    )
    return next(filter(None, failed), "")


def _records(evaluation: Evaluation | None, results: dict[str, Result]) -> tuple[Record, Record]:
    """The evaluation's record and its base's; both are there once `_problem` has found none."""
    records = [
        results[one.id].record for one in (evaluation, evaluation and evaluation.base()) if one
    ]
    own, base = (record for record in records if record)
    return own, base


def verdict(card: Card, fitting: Record, base: Record) -> str:
    """`broken` where the fitting attack leaves no more than the known answer and the tolerance;
    empty where none is known.

    Where a check of the attacked defense failed, there is no number to believe.
    """
    failed = [finding.name for finding in fitting.findings if finding.verdict == "fail"]
    if failed:
        return f"no number: {', '.join(failed)} failed"
    answers = {"base": _robust(base), "share": fitting.metrics.constant_accuracy}
    if card.expected not in answers:
        return ""
    above = _robust(fitting) - answers[card.expected]
    # Shares such as 0.05 and 0.1 - 0.05 differ in the last bit.
    return (
        BROKEN
        if above <= TOLERANCE + 1e-9
        else f"survives: {percent(above)} points above its {card.expected}"
    )


def _robust(record: Record) -> float:
    return record.metrics.adversarial.mean.value


def render(table: Sequence[Row], results: Iterable[Result]) -> str:
    """The table in Markdown under the setup's heading."""
    record = next((result.record for result in results if result.record), None)
    text = tabulate(
        [vars(row) for row in table], headers=_HEADERS, tablefmt="github", disable_numparse=True
    )
    return "\n\n".join([*([heading(record)] if record else []), text, _LEGEND])


_LEGEND = (
    "Robust accuracy in percent. `base` behind an attack: the undefended classifier under it. "
    "`expected`: what the fitting attack "
    f"must come to within {100 * TOLERANCE:.0f} points: the base's number, the constant class's "
    "share, or unknown (no verdict)."
)


_HEADERS = {
    "defense": "defense",
    "clean": "clean",
    "naive": "naive",
    "naive_base": "base",
    "audit": "audit of the naive row",
    "attack": "fitting attack",
    "fitting": "robust",
    "base": "base",
    "expected": "expected",
    "verdict": "verdict",
}
