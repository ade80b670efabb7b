"""`pytorchcv:NAME`: the CIFAR and SVHN networks that pytorchcv publishes, read without the
package.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn

from bench.errors import BadInput
from bench.models.checkpoint import read_state
from bench.models.classifier import Classifier
from bench.models.file import Description, assemble
from bench.models.nets import build, wrong_channels, wrong_classes
from bench.models.published import unzipped
from bench.models.source import ClassifierSource
from bench.spec import Params, nearest

_RELEASES = "https://github.com/osmr/imgclsmob/releases/download"

# From pytorchcv 0.0.74, model_metainfos.csv: test error in units of 0.01 %, SHA-1 of the unpacked
# .pth, release.
NETWORKS = {
    "resnet20_cifar10": ("0597", "9b0024ac4c2f374cde2c5052e0d0344a75871cdb", "v0.0.163"),
    "resnet20_cifar100": ("2964", "a5322afed92fa96cb7b3453106f73cf38e316151", "v0.0.180"),
    "resnet20_svhn": ("0343", "8232e6e4c2c9fac1200386b68311c3bd56f483f5", "v0.0.265"),
    "resnet56_cifar10": ("0452", "628c42a26fe347b84060136212e018df2bb35e0f", "v0.0.163"),
    "resnet56_cifar100": ("2488", "d65f53b10ad5d124698e728432844c65261c3107", "v0.0.181"),
    "resnet56_svhn": ("0275", "6e08ed929b8f0ee649f75464f06b557089023290", "v0.0.265"),
    "resnet110_cifar10": ("0369", "4d6ca1fc02eaeed724f4f596011e391528536049", "v0.0.163"),
    "resnet110_cifar100": ("2280", "d8d397a767db6d22af040223ec8ae342a088c3e5", "v0.0.190"),
    "resnet110_svhn": ("0245", "c971f0a38943d8a75386a60c835cc0843c2f6c1c", "v0.0.265"),
    "wrn16_10_cifar10": ("0293", "ce810d8a17a2deb73eddb5bec8709f93278bc53e", "v0.0.166"),
    "wrn16_10_cifar100": ("1895", "bef9809c845deb1b2bb0c9aaaa7c58bd97740504", "v0.0.204"),
    "wrn16_10_svhn": ("0278", "5ab2a4edd5398a03d2e28db1b075bf0313ae5828", "v0.0.271"),
    "wrn28_10_cifar10": ("0239", "fe97dcd6d0dd8dda8e9e38e6cfa320cffb9955ce", "v0.0.166"),
    "wrn28_10_cifar100": ("1788", "8c3fe8185d3af9cc3813fe376cab895f6780ac18", "v0.0.320"),
    "wrn28_10_svhn": ("0271", "d62b6bbaef7228706a67c2c8416681f97c6d4688", "v0.0.276"),
    "wrn40_8_cifar10": ("0237", "8dc84ec730f35c4b8968a022bc045c0665410840", "v0.0.166"),
    "wrn40_8_cifar100": ("1803", "0d18bfbff85951d88a881dc6a15ad46f56ea8c28", "v0.0.321"),
    "wrn40_8_svhn": ("0254", "dee59602c10e5d56bd9c168e8e8400792b9a8b08", "v0.0.277"),
}

# One normalisation for all, SVHN included: imgclsmob,
# pytorch/datasets/{cifar10,cifar100,svhn}_cls_dataset.py. SVHN's extra images are not among the
# 73,257 that its networks were trained on.
_MEAN, _STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)

# Their names of tensors to ours; the first that fits the place wins.
_NAMES: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"^features\.init_block\.bn\.", "bn1."),
    (r"^features\.init_block\.(conv\.)?", "conv1."),
    (r"^features\.post_activ\.bn\.", "bn."),
    (r"^features\.stage(\d)\.unit(\d+)\.", lambda place: f"layer{place[1]}.{int(place[2]) - 1}."),
    (r"\bbody\.conv(\d)\.(conv|bn)\.", r"\2\1."),
    (r"\bidentity_conv\.conv\.", "shortcut.0."),
    (r"\bidentity_conv\.bn\.", "shortcut.1."),
    (r"\bidentity_conv\.", "shortcut."),
    (r"^output\.", "linear."),
)


class PytorchcvParams(Params):
    name: str = Field(description="network and data set, such as resnet20_cifar10 or wrn28_10_svhn")


class Pytorchcv(ClassifierSource[PytorchcvParams]):
    """A network published by pytorchcv (ResNet-20, -56, -110, WRN-16-10, -28-10, -40-8 for
    CIFAR-10, CIFAR-100 and SVHN).
    """

    Params: ClassVar[type[Params]] = PytorchcvParams
    positional: ClassVar[str | None] = "name"

    def load(self, num_classes: int, channels: int) -> Classifier:
        """The classifier, frozen, in evaluation mode. Raises `BadInput` for an unknown name or an
        unfit data set.
        """
        name = self.params.name
        _check_name(name)
        error, sha1, release = NETWORKS[name]
        file = f"{name}-{error}-{sha1[:8]}.pth"
        path = unzipped(f"pytorchcv/{file}", f"{_RELEASES}/{release}/{file}.zip", f"sha1:{sha1}")
        state = renamed(read_state(path, path.read_bytes()))
        return assemble(path, {"": state}, description(name), num_classes, channels)

    def architecture(self, num_classes: int, channels: int) -> nn.Module:
        """The network that the name says. Raises `BadInput` like `load`."""
        name = self.params.name
        _check_name(name)
        classes = 100 if name.endswith("_cifar100") else 10
        if classes != num_classes:
            raise BadInput(wrong_classes(classes, num_classes))
        if channels != 3:
            raise BadInput(wrong_channels(3, channels))
        return build(description(name).arch, num_classes, channels)


def _check_name(name: str) -> None:
    if name not in NETWORKS:
        raise BadInput(f"unknown pytorchcv network {name!r}.{nearest(name, NETWORKS)}")


def description(name: str) -> Description:
    """What must be known of the weights of a network in `NETWORKS`."""
    network, _, dataset = name.rpartition("_")
    arch = network.replace("_", "-") if network.startswith("wrn") else f"{network}-projection"
    return Description(arch=arch, mean=_MEAN, std=_STD, trained_on=(f"{dataset}/train",))


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state with pytorchcv's names of tensors under the names of `bench.models.resnet`."""
    return {_name(key): value for key, value in state.items()}


def _name(key: str) -> str:
    for pattern, replacement in _NAMES:
        key = re.sub(pattern, replacement, key)
    return key
