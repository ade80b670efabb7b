"""The contract of a study: it gets a setting and answers with tables, figures and one sentence."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import torch

from bench.defense import NoParams
from bench.plan import Request, Subject, subject_of
from bench.spec import Params

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

IMAGES = frozenset({"dataset", "classifier", "norm", "eps", "n"})
"""The options that say which images, classifier and ball."""

EVERYTHING = IMAGES | {"seed", "device", "batch_size"}


def _ignore(_: str) -> None:
    pass


@dataclass(frozen=True)
class StudySetting:
    """What a user may give to a study, checked; None stands for the data set's own.

    Attributes:
        dataset, classifier: specs.
        norm, eps: the ball; pixels in [0, 1].
        n: how many images.
        default_n: how many of the images that `bench run` takes where n is not given; None: all of them.
        seed: root seed of all that the study draws.
        device: where to compute.
        batch_size: most rows in one forward pass.
        progress: told of each step in a few words.
    """

    dataset: str | None = None
    classifier: str | None = None
    norm: str | None = None
    eps: float | None = None
    n: int | None = None
    default_n: int | None = None
    seed: int = 0
    device: torch.device = torch.device("cpu")
    batch_size: int = 128
    progress: Callable[[str], None] = _ignore

    def subject(self) -> Subject:
        """Images, classifier and ball, loaded when first asked for. Raises `BadInput` where they cannot be."""
        return self._subject

    @cached_property
    def _subject(self) -> Subject:
        subject = subject_of(
            Request(
                (),
                (),
                dataset=self.dataset or Request.dataset,
                classifier=self.classifier,
                norm=self.norm,
                eps=self.eps,
                n=self.n,
                seeds=(self.seed,),
            )
        )
        if self.n is not None or self.default_n is None:
            return subject
        return replace(subject, images=subject.images.first(min(self.default_n, len(subject.images))))


@dataclass(frozen=True)
class StudyResult:
    """What came out.

    Attributes:
        tables: by name; the first one is printed. Names are file names without their ending.
        figures: by name, made by `bench.studies.plots`.
        sentence: what came out, with the numbers.
        held: whether what the study checks came out as it must; None where it checks nothing.
        scale: how much was computed, such as "20000 trials a point".
    """

    tables: dict[str, DataFrame]
    sentence: str
    figures: dict[str, Figure] = field(default_factory=dict)
    held: bool | None = None
    scale: str = ""


P = TypeVar("P", bound=Params)


class Study(ABC, Generic[P]):
    """Subclasses set the class attributes and write `run`; the first line of their docstring is the summary in `bench list`.

    Attributes:
        Params: the parameter model; `name:key=value` fills it.
        positional: the parameter that a spec's item without key fills.
        version: raise it when the numbers may change; it enters the identity of every result.
        uses: the options of the command that mean something to it, of `EVERYTHING`; others are refused. One that uses an option of
            `IMAGES` has a subject, which then is part of the identity.
        default_n: how many images it takes where the user does not say; None: as many as `bench run`.
    """

    Params: ClassVar[type[Params]] = NoParams
    positional: ClassVar[str | None] = None
    version: ClassVar[int] = 1
    uses: ClassVar[frozenset[str]] = EVERYTHING
    default_n: ClassVar[int | None] = None

    def __init__(self, params: P) -> None:
        self.params = params

    def plugins(self) -> dict[str, Any]:
        """`Named.identity` of every defense and attack that it uses, by role: their versions can change the numbers."""
        return {}

    def sources(self, setting: StudySetting) -> dict[str, str]:
        """Hash of whatever else can change the numbers, such as a diffusion model's weights, by role."""
        return {}

    @abstractmethod
    def run(self, setting: StudySetting) -> StudyResult:
        """The answer: a pure function of the parameters and the setting, apart from rounding on another device."""
