"""From what the user asked to the cells that answer it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, get_args

from torch import nn

from bench.attack import Attack, Setting
from bench.data.dataset import Dataset, ImageSet
from bench.defense import DefendedClassifier, Defense, Need, gradient_name
from bench.diffusion.load import load_model
from bench.diffusion.model import DiffusionModel
from bench.errors import BadInput
from bench.fingerprint import fingerprint
from bench.laws import read_law
from bench.models.classifier import Classifier
from bench.models.source import ClassifierSource
from bench.noise import Law, isolated
from bench.plugins import (
    BASE,
    CLASSIFIERS,
    DATASETS,
    DEFENSES,
    AttackChoice,
    Named,
    create,
    create_attack,
)
from bench.pool import POOL_VERSION, outside
from bench.preflight import probe
from bench.public import PublicImages, check_foreign, load_public
from bench.record import Sources, Title, cell_id
from bench.registry import load_file
from bench.spec import parse
from bench.suite import RunOptions
from bench.threat import Norm, ThreatModel, parse_threat

JUDGED_DRAWS = 20
"""Fresh draws on which a stochastic defense is judged, after the attack has ended."""

PROTOCOL = 1
"""Raise it when the engine's own arithmetic may change an outcome."""

DEFAULT_N = 1000


@dataclass(frozen=True)
class Request:
    """What a user asked: a matrix of defenses, attacks and seeds on one data set and classifier.

    None stands for the default: the data set's own classifier and threat model, its first 1,000 images, and whatever an attack's
    spec says of gradient and randomness (else `full` and `fresh`).
    """

    defenses: tuple[str, ...]
    attacks: tuple[str, ...]
    dataset: str = "mnist5k"
    classifier: str | None = None
    norm: str | None = None
    eps: float | None = None
    n: int | None = None
    randomness: str | None = None
    gradient: str | None = None
    seeds: tuple[int, ...] = (0,)
    build_seed: int = 0


def request_of(options: RunOptions) -> Request:
    """A request from checked options. Raises `BadInput` where no defense or no attack is given."""
    if not options.defense or not options.attack:
        raise BadInput("no defense or no attack given: add --defense NAME and --attack NAME (see `bench list`)")
    return Request(
        defenses=options.defense,
        attacks=options.attack,
        dataset=options.dataset or Request.dataset,
        classifier=options.classifier,
        norm=options.norm,
        eps=options.eps,
        n=options.n,
        randomness=options.randomness,
        gradient=options.gradient,
        seeds=options.seed or (0,),
        build_seed=options.build_seed or 0,
    )


@dataclass(frozen=True)
class Subject:
    """Images and the classifier that every cell of a request shares.

    Attributes:
        images: the evaluated images, in evaluation order.
        available: how many images the split has.
        classifier: on the CPU, in evaluation mode.
        classifier_spec, classifier_sha: how to name it and what it is.
        sources: specs as given, to rebuild from.
    """

    dataset: Named[Dataset[Any]]
    images: ImageSet
    available: int
    threat: ThreatModel
    classifier: DefendedClassifier
    classifier_spec: str
    classifier_sha: str
    sources: Sources
    given: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """One row to be: a defense under an attack on a subject."""

    subject: Subject
    defense: Named[Defense[Any]]
    attack: Named[Attack[Any]]
    gradient: str
    law: Law
    seed: int
    build_seed: int

    @property
    def stochastic(self) -> bool:
        """Whether the defended classifier draws random numbers."""
        return bool(self.defense.plugin.stochastic) or self.subject.classifier.stochastic

    @property
    def gradients(self) -> tuple[str, ...]:
        """The backward passes that the defended classifier offers."""
        return tuple(dict.fromkeys((*self.defense.plugin.gradients, *self.subject.classifier.gradients)))

    @property
    def setting(self) -> Setting:
        """What the attack may know before anything is built."""
        return Setting(self.stochastic, self.law, self.subject.threat, self.subject.classifier.num_classes)

    @property
    def judged_draws(self) -> int:
        """Fresh draws an image on which the verdict rests."""
        return JUDGED_DRAWS if self.stochastic else 1

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that can change the outcome, and nothing else."""
        subject = self.subject
        return {
            "protocol": PROTOCOL,
            "defense": self.defense.identity,
            "attack": self.attack.identity,
            "gradient": self.gradient,
            "randomness": str(self.law),
            "dataset": {"name": subject.dataset.name, "sha256": subject.images.sha256, "n": len(subject.images)},
            "classifier": {"sha256": subject.classifier_sha},
            "threat": {"norm": subject.threat.norm, "eps": subject.threat.eps},
            "seeds": {"build": self.build_seed, "attack": self.seed},
            "judged_draws": self.judged_draws,
            "data": {str(need): self._served(need) for need in sorted(self.defense.plugin.needs)},
        }

    def _served(self, need: Need) -> str:
        """Hash of what a declared need is served with, which can change the defense; empty where nothing serves it."""
        if need == Need.TRAINING_DATA:
            return self.subject.dataset.plugin.train().sha256
        if need == Need.PUBLIC_IMAGES:
            return self.public_images().images.sha256
        if need == Need.UNLABELLED_TEST:
            return f"{POOL_VERSION}:{self.free_images().sha256}"
        return fingerprint(self.generator()) if need == Need.GENERATOR else ""

    def free_images(self) -> ImageSet:
        """The data set's test images that are not evaluated."""
        return outside(self.subject.dataset.plugin.test(), self.subject.images)

    def public_images(self) -> PublicImages:
        """The public images that the defense asks for, as they come. Raises `BadInput` where they are the evaluated ones."""
        spec = self.defense.plugin.asks.get(Need.PUBLIC_IMAGES)
        if not spec:
            raise BadInput(f"defense {self.defense.name!r} needs public images and names none: let `asks` say which")
        public = load_public(spec)
        check_foreign(public, self.subject.dataset, self.subject.images)
        return public

    def generator(self) -> DiffusionModel:
        """The diffusion model that the defense asks for, one for all cells. Raises `BadInput` where there is none."""
        spec = self.defense.plugin.asks.get(Need.GENERATOR) or self.subject.dataset.plugin.default_generator
        if not spec:
            raise BadInput(
                f"dataset {self.subject.dataset.name!r} has no diffusion model of its own: give {self.defense.name}:model=SPEC "
                "(see `bench list diffusion-models`)"
            )
        return load_model(spec)

    @cached_property
    def id(self) -> str:
        """The cell's name by content."""
        return cell_id(self.identity)

    @cached_property
    def title(self) -> Title:
        """Canonical specs to read."""
        return {
            "defense": self.defense.spec,
            "attack": self.attack.spec,
            "gradient": self.gradient,
            "randomness": str(self.law) if self.stochastic else "none",
            "dataset": self.subject.dataset.spec,
            "classifier": self.subject.classifier_spec,
            "threat": str(self.subject.threat),
            "n": str(len(self.subject.images)),
            "seed": str(self.seed),
        }

    def __str__(self) -> str:
        title = self.title
        extra = [title["gradient"]] * (title["gradient"] != "full") + [title["randomness"]] * self.stochastic
        return f"{title['defense']} x {title['attack']}{' (' + ', '.join(extra) + ')' if extra else ''}"

    def base(self) -> Cell | None:
        """The undefended base under the same attack; None for the base itself."""
        if self.defense.name == BASE:
            return None
        return _settled(replace(self, defense=create(DEFENSES, parse(BASE))))


def _ignore(_: str) -> None:
    pass


def plan(request: Request, subject: Subject | None = None, note: Callable[[str], None] = _ignore) -> list[Cell]:
    """All cells of a request, each base before the first row that needs it, without duplicates.

    `note` is told where a requested gradient is not offered and the native one takes its place.

    Raises `BadInput` for anything that cannot work, before anything is computed.
    """
    defenses = [create(DEFENSES, parse(text)) for text in request.defenses]
    attacks = [(create_attack(text), text) for text in request.attacks]
    settings = [_settings(choice, text, request) for choice, text in attacks]
    subject = subject or subject_of(request)
    cells: dict[str, Cell] = {}
    for seed in request.seeds:
        for defense in defenses:
            for (choice, _), (gradient, law) in zip(attacks, settings, strict=True):
                cell = Cell(subject, defense, choice.attack, gradient, law, seed, request.build_seed)
                _check_gradient(cell)
                _check_stages(cell)
                if gradient_name(cell.gradient) not in cell.gradients:
                    note(
                        f"{defense.spec} offers no gradient {cell.gradient!r}; it runs with its native one, as {choice.attack.spec}"
                    )
                cell = _settled(cell)
                choice.attack.plugin.check(cell.setting)
                for one in filter(None, (cell.base(), cell)):
                    cells.setdefault(one.id, one)
    return list(cells.values())


def _settings(choice: AttackChoice, text: str, request: Request) -> tuple[str, Law]:
    if choice.gradient and request.gradient and choice.gradient != request.gradient:
        raise BadInput(f"attack {text!r} means gradient {choice.gradient}, but --gradient {request.gradient}: keep one")
    law = read_law(choice.randomness or request.randomness or "fresh")
    if choice.randomness and request.randomness:
        asked = read_law(request.randomness)
        detailed = parse(choice.randomness).options
        if asked.name != law.name or (detailed and asked != law):
            raise BadInput(f"attack {text!r} means randomness {law}, but --randomness {asked}: keep one")
        law = asked
    return choice.gradient or request.gradient or "full", law


def _check_gradient(cell: Cell) -> None:
    offered = cell.gradients
    if gradient_name(cell.gradient) not in offered and cell.gradient != "bpda":
        raise BadInput(f"defense {cell.defense.name!r} offers no gradient {cell.gradient!r}: use {' or '.join(offered)}")


def _check_stages(cell: Cell) -> None:
    stages = cell.defense.plugin.stages
    unknown = [stage for stage in cell.law.freeze if stage not in stages]
    if cell.stochastic and unknown:
        has = f"its stages are {' and '.join(stages)}" if stages else "none of its randomness can be frozen alone: use replay"
        raise BadInput(f"defense {cell.defense.name!r} has no stage {unknown[0]!r} to freeze: {has}")


def _settled(cell: Cell) -> Cell:
    """Settings that cannot matter, set to their plain value, so that equal work has one name.

    Where the native backward is exact there is nothing for BPDA to replace; where nothing is random, no law to choose; where all
    stages are frozen, the whole tape is; where none of the frozen stages is there (the base of a random classifier), no tape is;
    where nothing is drawn in the construction, no build seed is.
    """
    gradient = cell.gradient if gradient_name(cell.gradient) in cell.gradients else "full"
    law, stages = cell.law if cell.stochastic else Law(), set(cell.defense.plugin.stages)
    if law.freeze and not stages & set(law.freeze):
        law = Law()
    if law.freeze and set(law.freeze) == stages and not cell.subject.classifier.stochastic:
        law = replace(law, freeze=())
    return replace(cell, gradient=gradient, law=law, build_seed=cell.build_seed if cell.defense.plugin.seeded else 0)


# Loading ------------------------------------------------------------------------------------------------------------


def subject_of(request: Request, model: nn.Module | None = None) -> Subject:
    """Load data set and classifier (or take the user's own `model`) and settle the threat model."""
    dataset = create(DATASETS, parse(request.dataset))
    everything = dataset.plugin.test()
    images = everything.first(_count(request.n, len(everything)))
    threat = _threat(request, dataset.plugin)
    threat.check_shape(tuple(images.images.shape[1:]))
    text = request.classifier or dataset.plugin.default_classifier
    given: list[str]
    if model is not None:
        classifier, text, given = _own(model, dataset.plugin.num_classes), f"python:{type(model).__name__}", []
    elif not text:
        raise BadInput(f"dataset {dataset.name!r} has no classifier of its own: give --classifier file:PATH or zoo:NAME")
    else:
        classifier, text, given = _load_classifier(text, dataset.plugin.num_classes, images.images.shape[1])
    if isinstance(classifier, Classifier):
        probe(classifier, images.first(min(4, len(images))).pixels().to(classifier.mean.device))
    return Subject(
        dataset=dataset,
        images=images,
        available=len(everything),
        threat=threat,
        classifier=classifier,
        classifier_spec=text,
        classifier_sha=fingerprint(classifier),
        sources={"dataset": request.dataset, "classifier": request.classifier or text},
        given={"dataset": list(dataset.given), "classifier": given, "request": _given(request)},
    )


def _given(request: Request) -> list[str]:
    defaults = Request((), ())
    names = ("dataset", "classifier", "norm", "eps", "n", "randomness", "gradient", "seeds", "build_seed")
    return [name for name in names if getattr(request, name) != getattr(defaults, name)]


def _count(asked: int | None, available: int) -> int:
    if asked is None:
        return min(DEFAULT_N, available)
    if not 1 <= asked <= available:
        raise BadInput(f"n is {asked}, but the split has {available} images: give 1 to {available}")
    return asked


def _threat(request: Request, dataset: Dataset[Any]) -> ThreatModel:
    norm = (request.norm or dataset.default_norm).lower()
    if norm not in get_args(Norm):
        raise BadInput(f"unknown norm {norm!r}: use {' or '.join(get_args(Norm))}")
    eps = request.eps
    if eps is None and norm == dataset.default_norm:
        eps = dataset.default_eps or None
    if eps is None:
        raise BadInput(f"no default eps under {norm} for this data set: give --eps, such as --eps 8/255")
    return parse_threat(norm, eps)


def _load_classifier(text: str, num_classes: int, channels: int) -> tuple[DefendedClassifier, str, list[str]]:
    spec = parse(text)
    kind: object = _attribute(spec.name) if "@" in spec.name else CLASSIFIERS.get(spec.name)
    if not (inspect.isclass(kind) and issubclass(kind, ClassifierSource)):
        if spec.positional or spec.options:
            raise BadInput(f"{spec.name!r} is a function and takes no parameters: drop what follows the colon")
        return _own(_call(kind, spec.name), num_classes), text, []
    source = create(CLASSIFIERS, spec)
    return source.plugin.load(num_classes, channels), source.spec, list(source.given)


def _attribute(name: str) -> object:
    path, _, attribute = name.rpartition("@")
    module = load_file(path, "classifier")
    if not hasattr(module, attribute):
        raise BadInput(f"{path} defines no {attribute!r}: name a function that returns the model")
    return getattr(module, attribute)


def _call(make: object, name: str) -> nn.Module:
    if not callable(make):
        raise BadInput(f"{name!r} is not a function: name a function that returns the model")
    try:
        with isolated(0):
            model = make()
    except Exception as error:
        raise BadInput(f"{name} fails with {type(error).__name__}: {error}".replace("\n", " ")) from error
    if not isinstance(model, nn.Module):
        raise BadInput(f"{name} returned {type(model).__name__}: return a torch.nn.Module")
    return model


def _own(model: nn.Module, num_classes: int) -> DefendedClassifier:
    """A user's own module as a classifier. One that speaks the contract already stays as it is."""
    if isinstance(model, DefendedClassifier):
        return model
    if model.training:
        model.eval()
    return Classifier(model, num_classes)
