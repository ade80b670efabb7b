"""The setup that evaluations share: images, classifier and threat model, loaded and checked."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from torch import nn

from bench.data.dataset import Dataset, ImageSet
from bench.defense import DefendedClassifier
from bench.engine.fingerprint import fingerprint
from bench.engine.modules import NoiseModule, takes_noise
from bench.engine.preflight import probe
from bench.engine.request import Request, SetupRequest
from bench.errors import BadInput, Missing
from bench.models.classifier import Classifier
from bench.models.file import frozen
from bench.models.foreign import is_training, set_training
from bench.models.sketch import Sketch, sketches
from bench.models.source import ClassifierSource
from bench.noise import isolated
from bench.plugins.create import CLASSIFIERS, DATASETS, Named, create
from bench.plugins.registry import load_file
from bench.results.record import Sources
from bench.spec import parse
from bench.storage.missing import stand_in
from bench.threat import ThreatModel, read_norm

DEFAULT_N = 1000

OWN_RANDOMNESS = (
    "the model draws random numbers of its own, so its row `undefended` is that of a random "
    "defense: to name it as one beside its base, give bench.ModuleDefense(model, name='mine') "
    "among the defenses, and the plain model as the model"
)
"""A note on a model from Python that is stochastic and goes as the undefended base."""


@dataclass(frozen=True)
class Setup:
    """Images, classifier and threat model that the evaluations of a request share.

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

    @property
    def has_own_randomness(self) -> bool:
        """Whether the classifier is a user's own model and draws random numbers."""
        return self.classifier_spec.startswith("python:") and self.classifier.stochastic


def load_setup(
    asked: SetupRequest,
    model: nn.Module | None = None,
    given: Sequence[str] = (),
    objects: Mapping[str, Named[Any]] = MappingProxyType({}),
) -> Setup:
    """Load data set and classifier (or take the user's own `model`) and settle the threat model.

    Args:
        asked: data set, classifier, norm, eps and number of images.
        model: the user's own network; None loads the classifier.
        given: the options that the user wrote, for the record.
        objects: data sets that Python gave, by the text that stands for them in the request.

    Raises:
        BadInput: where they do not exist or do not go together.
    """
    dataset = objects.get(asked.dataset) or create(DATASETS, parse(asked.dataset))
    everything = dataset.plugin.test()
    images = everything.first(_count(asked.n, len(everything)))
    threat = _threat(asked, dataset.plugin, images)
    classifier, text, parameters = classifier_of(dataset, images, asked.classifier, model)
    return Setup(
        dataset=dataset,
        images=images,
        available=len(everything),
        threat=threat,
        classifier=classifier,
        classifier_spec=text,
        classifier_sha=fingerprint(classifier),
        sources={"dataset": asked.dataset, "classifier": asked.classifier or text},
        given={"dataset": list(dataset.given), "classifier": parameters, "request": list(given)},
    )


def classifier_of(
    dataset: Named[Dataset[Any]],
    images: ImageSet,
    spec: str | None = None,
    model: nn.Module | None = None,
) -> tuple[DefendedClassifier, str, list[str]]:
    """A classifier that runs on these images, its printed form, and the parameters given for it.

    Args:
        dataset: whose own classifier is taken where neither `spec` nor `model` is given.
        images: some of its images; the first few are tried.
        spec: as on the command line.
        model: the user's own network.

    Raises:
        BadInput: where there is none, or it does not run on the images.
    """
    text, parameters = spec or dataset.plugin.default_classifier, list[str]()
    classes = dataset.plugin.num_classes
    if model is not None:
        text, classifier = f"python:{type(model).__name__}", _own(model, classes)
    elif not text:
        raise BadInput(
            f"dataset {dataset.name!r} has no classifier of its own: give --classifier file:PATH "
            "or zoo:NAME, or from Python a model"
        )
    else:
        classifier, text, parameters = _load_classifier(text, classes, images.images.shape[1])
    if isinstance(classifier, Classifier) and not sketches(classifier):
        probe(classifier, images.first(min(4, len(images))).pixels().to(classifier.mean.device))
    return classifier, text, parameters


def load_setups(
    request: Request,
    model: nn.Module | None = None,
    objects: Mapping[str, Named[Any]] = MappingProxyType({}),
) -> list[Setup]:
    """The setups of a request, in order; of one data set and classifier all share the objects."""
    loaded: dict[tuple[str, str | None], Setup] = {}
    setups = []
    for asked in request.setups():
        shared = loaded.get((asked.dataset, asked.classifier))
        if shared is None:
            setup = load_setup(asked, model, request.given(), objects)
            loaded[asked.dataset, asked.classifier] = setup
        else:
            threat = _threat(asked, shared.dataset.plugin, shared.images)
            setup = replace(shared, threat=threat)
        setups.append(setup)
    return setups


def _count(asked: int | None, available: int) -> int:
    if asked is None:
        return min(DEFAULT_N, available)
    if not 1 <= asked <= available:
        raise BadInput(f"n is {asked}, but the split has {available} images: give 1 to {available}")
    return asked


def _threat(asked: SetupRequest, dataset: Dataset[Any], images: ImageSet) -> ThreatModel:
    norm = read_norm(asked.norm or dataset.default_norm)
    eps = asked.eps
    if eps is None and norm == dataset.default_norm:
        eps = dataset.default_eps or None
    if eps is None:
        raise BadInput(
            f"no default eps under {norm} for this data set: give --eps, such as --eps 8/255 (in "
            "Python eps='8/255')"
        )
    threat = ThreatModel(norm, float(eps))
    threat.check_shape(tuple(images.images.shape[1:]))
    return threat


def _load_classifier(
    text: str, num_classes: int, channels: int
) -> tuple[DefendedClassifier, str, list[str]]:
    spec = parse(text)
    kind: object = (
        _attribute(spec.name)
        if "@" in spec.name
        else CLASSIFIERS.get(CLASSIFIERS.known_name(spec.name))
    )
    if not (inspect.isclass(kind) and issubclass(kind, ClassifierSource)):
        if spec.positional or spec.options:
            raise BadInput(
                f"{spec.name!r} is a function and takes no parameters: drop what follows the colon"
            )
        return _own(_call(kind, spec.name), num_classes), text, []
    source = create(CLASSIFIERS, spec)
    return _loaded(source, num_classes, channels), source.spec, list(source.given)


def _loaded(
    source: Named[ClassifierSource[Any]], num_classes: int, channels: int
) -> DefendedClassifier:
    """The classifier; while a plan is made, its structure stands for a file that is missing."""
    try:
        return source.plugin.load(num_classes, channels)
    except Missing as error:
        # The name is bound to this block alone.
        missing = error

    def make() -> Classifier:
        def network() -> nn.Module:
            found = source.plugin.architecture(num_classes, channels)
            if found is None:
                raise missing
            return found

        return frozen(Classifier(Sketch(network, source.spec), num_classes))

    return stand_in(f"{source.spec} of {num_classes} x {channels}", missing, make)


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
        raise BadInput(
            f"{name} fails with {type(error).__name__}: {error}".replace("\n", " ")
        ) from error
    if not isinstance(model, nn.Module):
        raise BadInput(f"{name} returned {type(model).__name__}: return a torch.nn.Module")
    return model


def _own(model: nn.Module, num_classes: int) -> DefendedClassifier:
    """A user's own module as a classifier. One that speaks the contract already stays as it is."""
    if isinstance(model, DefendedClassifier):
        return model
    if is_training(model):
        set_training(model, False)
    if takes_noise(model):
        return NoiseModule(model, num_classes, stochastic=True)
    return Classifier(model, num_classes)
