"""Small files in the official formats."""

import hashlib

import numpy as np

from bench.data.imagefolder import ImageFolder
from bench.data.medmnist import BreastMnist
from bench.spec import Params


def random_images(n: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, *shape), dtype=np.uint8)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def folder_of(root, pillow, names: dict[str, np.ndarray]):
    for name, pixels in names.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pillow.fromarray(pixels).save(root / name)


def small_breast(root, name="breastmnist", **changes) -> BreastMnist:
    arrays = {
        f"{s}_{kind}": random_images(4, 28, 28)
        if kind == "images"
        else np.array([[0], [1], [1], [0]], np.uint8)
        for s in ("train", "val", "test")
        for kind in ("images", "labels")
    }
    arrays.update(changes)
    path = root / f"{name}.npz"
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})

    class Small(BreastMnist):
        splits = {"test": 4, "train": 4, "val": 4}
        md5 = hashlib.md5(path.read_bytes()).hexdigest()

    return Small(Params())


def image_folder(root, **params) -> ImageFolder:
    return ImageFolder(ImageFolder.Params(path=str(root), **params))
