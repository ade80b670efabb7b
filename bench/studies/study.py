"""The contract of a study: it gets a setting and answers with tables, figures and one sentence."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from bench.engine.request import Request
from bench.engine.setup import Setup, load_setup
from bench.plugins.plugin import P, Plugin

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
    """What a user may give to a study, checked.

    Attributes:
        request: data set, classifier, ball, number of images and root seed.
        default_n: how many of the images that `bench run` takes where n is not given; None: all.
        device: where to compute.
        batch_size: most rows in one forward pass.
        progress: called with a few words at each step.
        workers: how many processes compute; None as for a run.
    """

    request: Request = Request()
    default_n: int | None = None
    device: torch.device = torch.device("cpu")
    batch_size: int = 128
    progress: Callable[[str], None] = _ignore
    workers: int | None = None

    @property
    def seed(self) -> int:
        """Root seed of all that the study draws."""
        return self.request.seeds[0]

    @cached_property
    def setup(self) -> Setup:
        """Images, classifier and ball, loaded when first asked for. Raises `BadInput` where they
        cannot be.
        """
        setup = load_setup(self.request.one_setup("a study"), given=self.request.given())
        if self.request.n is not None or self.default_n is None:
            return setup
        return replace(setup, images=setup.images.first(min(self.default_n, len(setup.images))))


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


class Study(Plugin[P]):
    """Subclasses set the class attributes and write `run`; the first line of their docstring is the
    summary in `bench list`.

    Attributes:
        uses: the options of the command that mean something to it, of `EVERYTHING` and `workers`;
            others are refused. One that uses an option of `IMAGES` has an evaluation setup, which
            then is part of the identity.
        default_n: how many images it takes where the user does not say; None: as many as `bench
            run`.
    """

    uses: ClassVar[frozenset[str]] = EVERYTHING
    default_n: ClassVar[int | None] = None

    def plugins(self) -> dict[str, Any]:
        """`Named.identity` of every defense and attack that it uses, by role: their versions can
        change the numbers.
        """
        return {}

    def sources(self, setting: StudySetting) -> dict[str, str]:
        """Hash of whatever else can change the numbers, such as a diffusion model's weights, by
        role.
        """
        return {}

    @abstractmethod
    def run(self, setting: StudySetting) -> StudyResult:
        """The answer: a pure function of the parameters and the setting, apart from rounding on
        another device.
        """
