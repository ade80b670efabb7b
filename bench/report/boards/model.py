"""What a board is made of; every form of it (Markdown, HTML, CSV, LaTeX) is made from this.

All texts are as records have them: who writes a form escapes them for its place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from bench.results.audit import CheckVerdict
from bench.results.estimate import Estimate

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["deterministic", "stochastic"]


@dataclass(frozen=True)
class Source:
    """A record behind a number.

    Attributes:
        id: of the evaluation.
        path: the record's file, as it was found; empty where it is not known.
        command: what makes the record again.
        commit: of the code that made it; empty where it is not known.
        finished: date and time in UTC.
    """

    id: str
    path: str
    command: str
    commit: str
    finished: str


@dataclass(frozen=True)
class Budget:
    """Passes of an attack per image, and seconds of all its images together.

    Attributes:
        forwards, backwards: mean per image.
        most: forward and backward passes of the image that cost most.
        seconds: wall time.
    """

    forwards: float
    backwards: float
    most: int
    seconds: float

    @property
    def passes(self) -> float:
        """Forward and backward, mean per image."""
        return self.forwards + self.backwards


@dataclass(frozen=True)
class Attacked:
    """One attack on a build, or on all builds of a row, with all its seeds.

    Attributes:
        attack: with the settings that differ from plain: `pgd (bpda, eot:k=20)`.
        gradient, randomness: as the record's title says them.
        control: whether it is a control such as `null`, which is not meant to succeed.
        transfer: whether it attacked another function than the defense.
        required: whether the board's protocol asks for it.
        robust: the share of right answers, mean over seeds and builds.
        lowest, highest: over seeds and builds.
        replayed: the same under the attack's own fixed noise; None where it had none.
        budget: mean over seeds and builds.
        n: images.
        draws: that judge an image.
        seeds: of the attack.
        sources: its records.
    """

    attack: str
    gradient: str
    randomness: str
    control: bool
    transfer: bool
    required: bool
    robust: Estimate
    lowest: float
    highest: float
    replayed: Estimate | None
    budget: Budget
    n: int
    draws: int
    seeds: tuple[int, ...]
    sources: tuple[Source, ...]


@dataclass(frozen=True)
class AuditedCheck:
    """A check of an audit that spoke; see `bench.results.audit.AuditCheck`."""

    id: str
    name: str
    verdict: CheckVerdict
    message: str
    advice: str


@dataclass(frozen=True)
class Audit:
    """The audit of a build's strongest attack.

    Attributes:
        state: `not audited`, or the verdict.
        profile: how much was checked; empty where nothing was.
        spoke: the checks that failed or warned.
        silent: how many others there were.
    """

    state: str
    profile: str = ""
    spoke: tuple[AuditedCheck, ...] = ()
    silent: int = 0

    @property
    def failed(self) -> bool:
        return any(check.verdict == "fail" for check in self.spoke)


@dataclass(frozen=True)
class Note:
    """What a reader of a row must know.

    Attributes:
        flag: `COLLAPSED`, or a finding's name.
        reason: in a sentence.
        builds: the seeds of the builds that it is said of; empty where it is of all.
    """

    flag: str
    reason: str
    builds: tuple[int, ...] = ()


@dataclass(frozen=True)
class Build:
    """One build of a row's defense under all its attacks.

    Attributes:
        seed: of the construction.
        clean: accuracy without attack.
        robust: the worst case per image over all attacks; see `bench.results.worst_case`.
        macro_f1: without attack, and the lowest under one; shares.
        collapsed, failed: whether it answers one class whatever it sees; whether a check of a
            record or its audit says not to believe the number.
        passes: of all attacks together, forward and backward, mean per image.
        audit: of its strongest attack.
        attacks: one an attack, in the order in which they were found.
        built: what is to be known of how it was built.
        command: what makes all its records again.
    """

    seed: int
    clean: Estimate
    robust: Estimate
    macro_f1: tuple[float, float]
    collapsed: bool
    failed: bool
    passes: float
    audit: Audit
    attacks: tuple[Attacked, ...]
    built: tuple[str, ...]
    command: str


@dataclass(frozen=True)
class Extras:
    """Numbers that only some rows have; None where this one has not. Of several builds they are
    those of the first.

    Attributes:
        certified: images of which it is proven, or voted, that no attack breaks them.
        alpha: of a vote, the probability of error for each image.
        replayed: worst case per image over the attacks on the image's own fixed noise.
        replays, replay_passes: the attacks behind `replayed`, and their passes, all together, mean
            per image: only equal budgets can be compared.
        all_draws: images right in every judged draw, without attack and under all.
        any_view: images on which some scored view is right.
        base: robust accuracy of the undefended classifier under the same attacks.
        passes, denoiser_passes: through the classifier, and through a diffusion model, for one
            prediction.
        obstacles: which of RobustBench's conditions for admission it fails.
    """

    certified: Estimate | None = None
    alpha: float | None = None
    replayed: Estimate | None = None
    replays: tuple[str, ...] = ()
    replay_passes: float = 0.0
    all_draws: tuple[float, float] | None = None
    any_view: Estimate | None = None
    base: float | None = None
    passes: float | None = None
    denoiser_passes: float | None = None
    obstacles: tuple[str, ...] | None = None


@dataclass(frozen=True)
class OfClass:
    """The images of one class, of several builds their mean.

    Attributes:
        label: its number.
        n: images.
        clean, robust: without attack, and the worst case over all attacks; intervals over images.
    """

    label: int
    n: int
    clean: Estimate
    robust: Estimate


@dataclass(frozen=True)
class Row:
    """A defense on a board: all builds of one method.

    Attributes:
        rank: 1 + the ranked rows whose interval lies wholly above this one's; None where the row is
            not ranked.
        last: the number of ranked rows whose interval does not lie wholly below this one's: its
            place if all the others were above.
        leads: whether it is among the first, nothing is noted of it, and it is clearly better than
            a constant answer and than the undefended classifier.
        unranked: why not; empty where it is.
        defense: the name on the board: its spec, `(stand-in)` behind it where it is one, and what
            tells it from another of the same spec.
        own: the settings in it that not every row of the same defense has.
        spec: the defense's spec.
        kind: whether its answers are random.
        family: the folder of its plugin, such as `testtime`; empty where that is not known.
        base: whether it is the undefended classifier that others are compared with.
        attacked: whether anything but controls ran; where not, `robust` is no robust accuracy.
        clean, robust: as of a build; of several the mean, with an interval over builds and images.
        spread: the lowest and the highest build's robust accuracy; None for one build.
        gain: how much more robust it is than the undefended classifier, on the same images; None
            where that is not on the board.
        macro_f1: mean over builds.
        constant: accuracy of the best constant answer.
        access: the data that the defense declared; empty for weights alone.
        audit: of the build that failed most, or the first.
        notes: findings, `COLLAPSED`, what it was spared.
        attacks: over all builds, one an attack.
        builds: in the order of their seeds.
        passes: mean over builds.
        paper: where the defense was published; empty where its plugin does not say or is not here.
        citation: BibTeX of this row.
        extras: what only some rows have.
        classes: one a class that has images, by their numbers.
    """

    rank: int | None
    unranked: str
    defense: str
    own: tuple[str, ...]
    spec: str
    kind: Kind
    family: str
    base: bool
    attacked: bool
    clean: Estimate
    robust: Estimate
    spread: tuple[float, float] | None
    macro_f1: tuple[float, float]
    constant: float
    access: tuple[str, ...]
    audit: Audit
    notes: tuple[Note, ...]
    attacks: tuple[Attacked, ...]
    builds: tuple[Build, ...]
    passes: float
    paper: str
    citation: str
    extras: Extras = field(default_factory=Extras)
    classes: tuple[OfClass, ...] = ()
    gain: Estimate | None = None
    last: int | None = None
    leads: bool = False

    @property
    def place(self) -> str:
        """The rank, or the places that its interval allows, such as `1-3`; empty where it has
        none.
        """
        if self.rank is None:
            return ""
        return str(self.rank) if self.last in (None, self.rank) else f"{self.rank}-{self.last}"

    @property
    def counted(self) -> str:
        """How many builds, in words; empty where nothing is trained when it is built."""
        if self.spread:
            return f"{len(self.builds)} builds"
        return "one build" if self.builds and self.builds[0].built else ""

    @property
    def sources(self) -> tuple[Source, ...]:
        """All records behind it."""
        return tuple(source for attack in self.attacks for source in attack.sources)


@dataclass(frozen=True)
class Setup:
    """Where all rows of a board were measured.

    Attributes:
        dataset, classifier: specs without folders.
        threat: in words, such as `linf 8/255`.
        norm, eps: the same as a word and a number.
        n, available: images, and how many the data set has.
    """

    dataset: str
    classifier: str
    threat: str
    norm: str
    eps: float
    n: int
    available: int

    def __str__(self) -> str:
        images = f"{self.n} of {self.available} images"
        return f"{self.dataset}, {self.classifier}, {self.threat}, {images}"


@dataclass(frozen=True, repr=False)
class Board:
    """The leaderboard of one setup; printing it shows its table, as a notebook does.

    Attributes:
        title: in words.
        setup: data set, classifier, threat model, images.
        sentences: what was attacked and how; what to take home.
        protocol: what a row must have faced to be ranked, by kind or defense, in words.
        note: what the columns of its first table mean.
        more: what those of its other numbers mean.
        rows: ranked ones first, by rank and robust accuracy; the others below.
    """

    title: str
    setup: Setup
    sentences: tuple[str, ...]
    protocol: tuple[str, ...]
    note: str
    more: str
    rows: tuple[Row, ...]

    def __str__(self) -> str:
        from bench.report.boards.terminal import text

        return text([self])

    def __repr__(self) -> str:
        return f"<Board: {self.setup}, {len(self.rows)} rows>"

    def _repr_html_(self) -> str:
        from bench.report.notebook import board_table

        return board_table(self)

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON has it: dicts, lists, texts, numbers (shares in [0, 1]) and None."""
        return {**_plain(asdict(self)), "heading": str(self.setup)}

    def frame(self) -> pd.DataFrame:
        """Tidy: one line a row, build and attack; shares in [0, 1]."""
        import pandas as pd

        return pd.DataFrame(list(self._lines()))

    def wide(self) -> pd.DataFrame:
        """One line a row and build, with a column for each attack; shares in [0, 1]."""
        import pandas as pd

        return pd.DataFrame(
            [
                {
                    **self._of_row(row),
                    **_of_build(build),
                    **_of_extras(row),
                    **{f"under {one.attack}": one.robust.value for one in build.attacks},
                }
                for row in self.rows
                for build in row.builds
            ]
        )

    def _lines(self) -> Iterator[dict[str, Any]]:
        for row in self.rows:
            for build in row.builds:
                for attack in build.attacks:
                    yield {**self._of_row(row), **_of_build(build), **_of_attack(attack)}

    def _of_row(self, row: Row) -> dict[str, Any]:
        return {
            "board": self.title,
            **asdict(self.setup),
            "rank": row.rank,
            "rank_last": row.last,
            "unranked": row.unranked,
            "defense": row.defense,
            "spec": row.spec,
            "kind": row.kind,
            "family": row.family,
            "access": ", ".join(row.access),
            "clean": row.clean.value,
            "clean_low": row.clean.low,
            "clean_high": row.clean.high,
            "worst_case": row.robust.value if row.attacked else None,
            "worst_case_low": row.robust.low if row.attacked else None,
            "worst_case_high": row.robust.high if row.attacked else None,
            "certified": row.extras.certified and row.extras.certified.value,
            "constant": row.constant,
            "flags": ", ".join(note.flag for note in row.notes),
        }


def _of_build(build: Build) -> dict[str, Any]:
    return {
        "build": build.seed,
        "build_clean": build.clean.value,
        "build_worst_case": build.robust.value,
        "build_worst_case_low": build.robust.low,
        "build_worst_case_high": build.robust.high,
        "clean_macro_f1": build.macro_f1[0],
        "lowest_macro_f1": build.macro_f1[1],
        "collapsed": build.collapsed,
        "audit": build.audit.state,
        "passes": build.passes,
        "built": "; ".join(build.built),
    }


def _of_extras(row: Row) -> dict[str, Any]:
    extras, obstacles = row.extras, row.extras.obstacles
    return {
        "certified_alpha": extras.alpha,
        "replayed": extras.replayed and extras.replayed.value,
        "replay_passes": extras.replay_passes if extras.replays else None,
        "any_view": extras.any_view and extras.any_view.value,
        "base": extras.base,
        "passes_per_prediction": extras.passes,
        "denoiser_passes": extras.denoiser_passes,
        "robustbench": None if obstacles is None else ", ".join(obstacles) or "admits",
    }


def _of_attack(attack: Attacked) -> dict[str, Any]:
    return {
        "attack": attack.attack,
        "control": attack.control,
        "transfer": attack.transfer,
        "required": attack.required,
        "robust": attack.robust.value,
        "robust_low": attack.robust.low,
        "robust_high": attack.robust.high,
        "replayed": attack.replayed and attack.replayed.value,
        "forwards": attack.budget.forwards,
        "backwards": attack.budget.backwards,
        "seconds": attack.budget.seconds,
        "seeds": "+".join(map(str, attack.seeds)),
        "records": "+".join(source.id for source in attack.sources),
    }


def _plain(value: Any) -> Any:
    """With lists for tuples, and None for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    finite = not isinstance(value, float) or value - value == 0
    return value if finite else None
