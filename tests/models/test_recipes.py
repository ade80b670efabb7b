"""Training recipes."""

import pytest

from bench.errors import BadInput
from bench.models.nets import ARCHITECTURES
from bench.models.recipes import RECIPES, Recipe, recipe_for
from tests.models.helpers import MNIST5K


def test_recipes_by_name_architecture_and_family():
    colour, grey = (3, 32, 32), (1, 28, 28)
    assert (
        recipe_for("cifar10", "resnet18", colour)
        == RECIPES["cifar10", ""]
        != RECIPES["cifar10", "wrn28-10"]
    )
    assert recipe_for("cifar10", "wrn28-10", colour) == RECIPES["cifar10", "wrn28-10"]
    assert (
        recipe_for("tissuemnist", "cnn", grey).epochs
        < recipe_for("pneumoniamnist", "cnn", grey).epochs
    )
    assert (
        recipe_for("cifar10", "cnn", colour).flip and recipe_for("pneumoniamnist", "cnn", grey).flip
    )
    assert not any(
        recipe_for(name, "cnn", grey).flip for name in ("mnist5k", "mnist", "svhn", "organcmnist")
    )
    # Of images nobody knows, it is not known whether a mirror image is one of them.
    assert not recipe_for("npz", "cnn", grey).flip and not recipe_for("npz", "cnn", colour).flip
    assert all(arch in ("", *ARCHITECTURES) for _, arch in RECIPES)
    assert Recipe(epochs=30, batch=64, rate=0.1) == MNIST5K


@pytest.mark.parametrize("shape", [(3, 224, 224), (3, 32, 224), (1, 4, 4)])
def test_images_without_a_recipe(shape):
    with pytest.raises(
        BadInput, match=f"no training recipe for images of {shape[1]} x {shape[2]} pixels"
    ):
        recipe_for("imagenet", "resnet50", shape)
