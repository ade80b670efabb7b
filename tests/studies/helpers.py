"""Purifying defenses on the exact Gaussian denoiser, whose chain is linear; and gratings."""

import numpy as np
import torch
from torch import nn

from bench.contract.setups import built_in_setup, setup_in_memory
from bench.contract.toys import SmallNet, gratings
from bench.data.dataset import ImageSet
from bench.engine.request import Request
from bench.models.classifier import Classifier
from bench.plugins.create import STUDIES, create
from bench.spec import parse
from bench.studies.study import StudySetting
from tests.helpers import ROOT

MEAN, STD = 0.1, 0.5  # in diffusion space
MODEL = "model=(gaussian:channels=3,side=16,mean=0.55,std=0.25)"
DIFFPURE, REVPURE = f"(diffpure:steps=4,{MODEL})", f"(revpure:steps=4,{MODEL})"
QUICK = "images=30,iterations=10,synthesis_batch=10,epochs=2,batch=10,group=1,synthesis_rate=0.1"
STAGED = "mode=staged,images=30,updates=10,batch=6,width=4,epochs=1"
SELF_MADE = "(datafreeshield:images=30,iterations=20,synthesis_batch=10)"


class TwoClasses(nn.Module):
    """A linear model of two classes: every gradient of its cross-entropy has one direction, up to
    the label's sign.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(
            torch.randn(2, 768, generator=torch.Generator().manual_seed(0)) / 30
        )

    def forward(self, images):
        return images.flatten(1) @ self.weight.T


def purifier_setting(setup=None, **given) -> StudySetting:
    request = Request(
        **{name: given.pop(name) for name in tuple(given) if name in Request.model_fields}
    )
    made = StudySetting(request, **given)
    vars(made)["setup"] = setup or built_in_setup()
    return made


def linear_setup(n: int = 6):
    images = torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(2)) * 0.6 + 0.2
    image_set = ImageSet(images, torch.arange(n) % 2, np.arange(n))
    return setup_in_memory(Classifier(TwoClasses(), 2).eval(), image_set, image_set)


def gratings_setting() -> StudySetting:
    """Gratings of three classes behind a small network."""
    test, train = gratings(30, 60), gratings(60)
    return purifier_setting(
        setup_in_memory(Classifier(SmallNet(train), 3).eval(), test, train), n=30
    )


def study(text: str):
    return create(STUDIES, parse(text)).plugin


def answer(text: str, where: StudySetting | None = None):
    plugin = study(text)
    assert plugin.plugins()
    return plugin.run(where or purifier_setting())


def unwrapped(text: str) -> str:
    return " ".join(text.split())


def quoted_results() -> str:
    """The page that quotes the committed results."""
    return unwrapped((ROOT / "docs" / "results" / "studies.md").read_text())
