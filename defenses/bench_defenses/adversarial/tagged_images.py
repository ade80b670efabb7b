"""Images to train on, with a tag that says where they come from: a defense trains on nothing that
it did not declare.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from enum import StrEnum

from torch import Tensor

from bench.defense import Need
from bench.errors import AccessDenied, BadInput
from bench.noise import Noise


class Tag(StrEnum):
    """Where images come from."""

    TRAINING = "training"
    PUBLIC = "public"
    UNLABELLED = "unlabelled"
    GENERATED = "generated"
    SYNTHETIC = "synthetic"


_TAG_OF = {
    Need.TRAINING_DATA: Tag.TRAINING,
    Need.PUBLIC_IMAGES: Tag.PUBLIC,
    Need.UNLABELLED_TEST: Tag.UNLABELLED,
    Need.GENERATOR: Tag.GENERATED,
}


@dataclass(frozen=True)
class TaggedImages:
    """Images (n, C, H, W) in [0, 1], labels (n,) or None for the teacher's answers, and where they
    come from.
    """

    images: Tensor
    labels: Tensor | None
    tag: Tag

    def first(self, n: int) -> TaggedImages:
        """The first n images, or all where there are fewer."""
        return replace(
            self, images=self.images[:n], labels=None if self.labels is None else self.labels[:n]
        )

    def at(self, positions: Tensor) -> TaggedImages:
        """The images at these positions (int64)."""
        return replace(
            self,
            images=self.images[positions],
            labels=None if self.labels is None else self.labels[positions],
        )


def accepted(needs: Collection[Need]) -> frozenset[Tag]:
    """The tags that a defense with these needs may train on.

    Images synthesised from the classifier alone take no data. There is no tag for test images: no
    defense may train on them.
    """
    return frozenset({Tag.SYNTHETIC, *(_TAG_OF[need] for need in needs)})


def check_tag(images: TaggedImages, needs: Collection[Need]) -> None:
    """Raise `AccessDenied` for images whose tag the defense's needs do not cover."""
    if images.tag not in accepted(needs):
        declared = ", ".join(sorted(needs)) or "no data"
        raise AccessDenied(
            f"the defense declares {declared}, but trains on {images.tag} images: declare what it "
            "uses in `needs`"
        )


def split(images: TaggedImages, share: float, noise: Noise) -> tuple[TaggedImages, TaggedImages]:
    """Images to train on and images held out, a random `share` of at least one. `noise` has one
    row.
    """
    count = len(images.images)
    held = max(1, round(share * count))
    if held >= count:
        raise BadInput(
            f"there are only {count} images, too few to hold {held} out: use more, or "
            "checkpoint=last"
        )
    order = noise.uniform("held out", (count,))[0].argsort(stable=True).to(images.images.device)
    return images.at(order[held:]), images.at(order[:held])
