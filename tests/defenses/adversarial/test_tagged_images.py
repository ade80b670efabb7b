"""A defense trains on what it declared, and on nothing else."""

from dataclasses import replace

import pytest
import torch
from bench_defenses.adversarial.tagged_images import Tag, accepted, check_tag, split

from bench.defense import AccessDenied, Need
from tests.defenses.adversarial.helpers import ONCE, noise


def test_a_defense_may_train_on_what_it_declared_alone(learn, source):
    assert accepted(()) == {"synthetic"}
    assert accepted({Need.TRAINING_DATA}) == {"synthetic", "training"}
    assert accepted({Need.PUBLIC_IMAGES}) == {"synthetic", "public"}
    assert accepted({Need.GENERATOR, Need.UNLABELLED_TEST}) == {
        "synthetic",
        "generated",
        "unlabelled",
    }
    assert accepted(set(Need)) == set(Tag), "no tag is for test images"
    for needs in (set(), {Need.TRAINING_DATA}, set(Need)):
        for tag in Tag:
            if tag in accepted(needs):
                check_tag(replace(source, tag=tag), needs)
            else:
                with pytest.raises(AccessDenied, match="declare what it uses"):
                    check_tag(replace(source, tag=tag), needs)
    with pytest.raises(AccessDenied):
        learn(needs={Need.PUBLIC_IMAGES})
    with pytest.raises(AccessDenied):
        learn(replace(ONCE, checkpoint="best"), held_out=replace(source, tag=Tag.PUBLIC))


def test_splitting_keeps_every_image_once(source):
    train, held = split(source, 0.25, noise())
    assert len(held.images) == 12 and len(train.images) == 36 and held.tag == source.tag
    rows = {image.numpy().tobytes() for part in (train, held) for image in part.images}
    assert rows == {image.numpy().tobytes() for image in source.images}
    index = [int((source.images == image).flatten(1).all(1).nonzero()) for image in held.images]
    assert torch.equal(held.labels, source.labels[index])
