"""The study `masking`: how many modules that hide something do the checks find, and do they accuse
honest ones?
"""

from __future__ import annotations

import hashlib
import inspect
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field

from bench.audit.audit import audit
from bench.engine.evaluation import Evaluation
from bench.engine.execution import Execution
from bench.engine.plan import plan
from bench.engine.request import Request
from bench.engine.run import Result, run_evaluations
from bench.engine.setup import Setup, load_setup
from bench.errors import BadInput
from bench.noise import isolated
from bench.plugins.create import create_attack
from bench.plugins.registry import Alias
from bench.results.audit import Profile
from bench.results.record import Record
from bench.results.store import Store
from bench.spec import Params, Specs
from bench.storage.artifacts import artifact
from bench.storage.files import write_whole
from bench.studies.cases import CATALOGUES, Case, Catalogue, Place, halves
from bench.studies.masking_tables import (
    Measured,
    Signal,
    case_table,
    check_table,
    held,
    profile_figure,
    profile_table,
    roc_table,
    sentence,
    signal_table,
)
from bench.studies.study import Study, StudyResult, StudySetting
from bench.studies.truth import upper_bound

_SEED = 20_000_000_021
_FILE = "case.json"


class MaskingParams(Params):
    catalogue: str = Field("masking", description="catalogue of cases, or FILE.py@NAME")
    half: Literal["settled", "unseen", "both"] = Field(
        "both", description="which kinds: those that thresholds were settled on, the others, or all"
    )
    profile: Literal["quick", "standard"] = Field(
        "standard", description="the checks of every run alone, or the audit's too"
    )
    cases: Specs = Field((), description="names or kinds of cases, joined by +; empty: all")
    published: bool = Field(
        False, description="also cases whose images lie in data/ and whose weights in models/"
    )


class Masking(Study[MaskingParams]):
    """How many modules that hide something do the checks find, and do they accuse honest ones?

    Every case of a catalogue is attacked and checked as a user would do it (`pgd`). Its truth
    is an upper bound of its robust accuracy: points of an attack that sees through it, answered
    by a copy that has seen nothing. It is masked where the reported number exceeds that by 10
    points, whatever it was meant to be. Counted are masked cases with a failed check (recall)
    and the others with one (false alarms), on each half of the kinds. The audit runs where no
    check of the run failed. It holds where on the half `unseen` recall is at least 95 % and
    nowhere a case that is not masked has a failed check.
    """

    Params = MaskingParams
    uses = frozenset({"seed"})

    def sources(self, setting: StudySetting) -> dict[str, str]:
        """The code of the catalogue, all files of its package, and that of the suite: every check
        may change a verdict.
        """
        file = Path(inspect.getfile(_catalogue(self.params.catalogue)))
        package = (file.parent / "__init__.py").exists()
        own = file.parent.glob("*.py") if package else [file]
        suite = Path(inspect.getfile(Study)).parents[1].rglob("*.py")
        return {"catalogue": _hash_of(own), "suite": _hash_of(suite)}

    def run(self, setting: StudySetting) -> StudyResult:
        measured = []
        setups: dict[Place, Setup] = {}
        chosen, code = chosen_cases(self.params), self.sources(setting)
        for number, (case, half) in enumerate(chosen, 1):
            setting.progress(f"{number} of {len(chosen)}: {case.name} ({case.kind})")
            setup = setups.get(case.place) or load_setup(_request(case, setting.seed).one_setup(""))
            setups[case.place] = setup
            measured.append(kept(case, half, setup, setting.seed, self.params.profile, code))
        tables = {
            "profiles": profile_table(measured),
            "checks": check_table(measured),
            "roc": roc_table(measured),
            "cases": case_table(measured),
            "signals": signal_table(measured),
        }
        return StudyResult(
            tables=tables,
            figures={"profiles": profile_figure(tables["profiles"])},
            sentence=sentence(measured),
            held=held(measured),
            scale=f"{len(measured)} cases of {len({one.case.kind for one in measured})} kinds",
        )


def _catalogue(name: str) -> type[Catalogue]:
    kind = CATALOGUES.get(name)
    CATALOGUES.check(kind, name)
    if isinstance(kind, Alias):
        raise BadInput(f"catalogue {name!r} is an alias: name the catalogue itself")
    return kind


def chosen_cases(params: MaskingParams) -> list[tuple[Case, str]]:
    """The cases that the parameters name, with the half of each. Raises `BadInput` where there are
    none.
    """
    everything = _catalogue(params.catalogue)().cases()
    half_of = halves(everything)
    chosen = [
        (case, half_of[case.kind])
        for case in everything
        if params.half in ("both", half_of[case.kind])
        and (params.published or not case.published)
        and (not params.cases or case.name in params.cases or case.kind in params.cases)
    ]
    known = {word for case in everything for word in (case.name, case.kind)}
    for name in params.cases:
        if name not in known:
            raise BadInput(f"no case and no kind is called {name!r}: see the catalogue's page")
    if not chosen:
        raise BadInput("no case is left: drop cases=, or half=, or give published=true")
    return chosen


def _hash_of(files: Iterable[Path]) -> str:
    texts = (one.read_bytes() for one in sorted(files))
    return hashlib.sha256(b"\0".join(texts)).hexdigest()


# One case -----------------------------------------------------------------------------------------


def kept(
    case: Case,
    half: str,
    setup: Setup,
    seed: int,
    profile: Profile,
    code: Mapping[str, str],
) -> Measured:
    """As `measure`, from the cache where the case was measured by the same code before: a study of
    an hour goes on where it was interrupted.
    """
    identity = {
        "case": case.name,
        "images": setup.images.sha256,
        "attack": create_attack(case.attack).attack.identity,
        "seed": seed,
        "profile": profile,
        **code,
    }

    def make(folder: Path) -> None:
        text = measure(case, half, setup, seed, profile).to_json()
        write_whole(folder / _FILE, text.encode())

    folder = artifact("masking-case", identity, make)
    return Measured.from_json((folder / _FILE).read_text(encoding="utf-8"), case)


def measure(
    case: Case, half: str, setup: Setup, seed: int, profile: Profile = "standard"
) -> Measured:
    """Attack a case, check it, and learn its truth."""
    truth = _truth(case, setup, seed)
    # Some modules draw from global generators without saying so.
    with tempfile.TemporaryDirectory() as scratch, isolated(_SEED + seed):
        evaluation, result = _run(case, setup, case.attack, seed, Store(Path(scratch)))
        if result.record is None:
            return _refused(case, half, truth, result)
        record = result.record
        signals = [
            Signal("quick", one.name, one.verdict, one.value, one.threshold)
            for one in record.findings
        ]
        cost = record.cost
        passes = {"quick": cost.check_forwards + cost.check_backwards}
        # Nobody audits a number that is struck out already.
        if profile != "quick" and not any(one.verdict == "fail" for one in record.findings):
            told, passes[profile] = _audited(evaluation, record, profile)
            signals += told
    return Measured(
        case,
        half,
        truth,
        record.metrics.clean.mean.value,
        record.metrics.adversarial.mean.value,
        "",
        tuple(signals),
        cost.attack_forwards + cost.attack_backwards,
        passes,
    )


def _refused(case: Case, half: str, truth: float, result: Result) -> Measured:
    why = str(result.rejected) if result.rejected else str(result.failure and result.failure.error)
    nan, signal = float("nan"), Signal("quick", "refused", "fail")
    return Measured(case, half, truth, nan, nan, why.partition("\n")[0], (signal,), nan, {})


def _audited(
    evaluation: Evaluation, record: Record, profile: Profile
) -> tuple[list[Signal], float]:
    """What the audit says beside the run's own findings, and its passes an image."""
    report = audit(evaluation, record, profile=profile)
    own = {finding.name for finding in record.findings}
    signals = [
        Signal(profile, one.id, one.verdict, one.value, one.threshold)
        for one in report.checks
        if one.id not in own
    ]
    return signals, sum(one.forwards + one.backwards for one in report.checks)


def _truth(case: Case, setup: Setup, seed: int) -> float:
    """The least of what attacks that see through it leave, a share."""
    if not case.defense:
        module = case.make(setup) if case.make else setup.classifier
        return upper_bound(module, setup, alone=case.alone, draws=case.draws)
    with tempfile.TemporaryDirectory() as scratch:
        result = _run(case, setup, case.fitting, seed, Store(Path(scratch)))[1]
    if result.record is None:
        raise BadInput(f"the fitting attack on {case.name} left no number: correct the case")
    return result.record.metrics.adversarial.mean.value


def _run(
    case: Case, setup: Setup, attack: str, seed: int, store: Store
) -> tuple[Evaluation, Result]:
    """The evaluation of a case under an attack, as a user would ask for it, and its result."""
    asked = {"defenses": (case.defense or "undefended",), "attacks": (attack,)}
    request = _request(case, seed)
    if case.make is None:
        evaluations = plan(request.model_copy(update=asked), setup)
    else:
        # The module stands in the classifier's place.
        alone = request.model_copy(update={**asked, "classifiers": ()})
        evaluations = plan(alone, model=case.make(setup))
    return evaluations[-1], list(run_evaluations(evaluations, store, Execution()))[-1]


def _request(case: Case, seed: int) -> Request:
    place = case.place
    return Request(
        datasets=(place.dataset,),
        classifiers=(place.classifier,),
        epsilons=(place.eps,),
        n=place.n,
        seeds=(seed,),
    )
