"""Defenses whose cards are wrong."""

from bench.defense import Card, Defense, InputTransform
from bench.errors import BadInput
from bench.plugins.create import DEFENSES, create
from bench.spec import parse


class Overrated(Defense):
    """Says that an attack breaks it that does nothing."""

    card = Card(expected="base", truth="none", attacks=("fgsm",))
    gradients = ("full", "bpda")

    def build(self, classifier, access, noise):
        return create(DEFENSES, parse("gradient-killer")).plugin.build(classifier, access, noise)


class Unfinished(Overrated):
    """Cannot be built."""

    def build(self, classifier, access, noise):
        raise BadInput("not here")


class Darkened(InputTransform):
    """The image itself; under bpda another function, a darker image."""

    def transform(self, images, noise):
        return images.detach()

    def forward_pass(self, gradient="full", view="logits"):
        if gradient != "bpda":
            return super().forward_pass(gradient, view)
        inner = self.inner(gradient, view)
        return lambda images, noise: inner(0.9 * images, noise.at("classifier"))


class Untrue(Overrated):
    """Its forward pass under bpda is another function, so that the attack aims past the defense."""

    card = Card(expected="base", truth="none", attacks=("bpda",))

    def build(self, classifier, access, noise):
        return Darkened(classifier)
