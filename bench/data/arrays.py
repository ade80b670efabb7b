"""Arrays of any common layout as images and labels; `evaluate(dataset=(X, y))` and `npz:` read by
it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bench.data.dataset import Dataset, ImageSet
from bench.data.order import Integers, evaluation_order
from bench.errors import BadInput, one_line
from bench.spec import Params

MOST_CLASSES = 100_000

_LAYOUTS = "give (n, H, W), (n, H, W, C) or (n, C, H, W) with C 1 or 3"
_TOLERANCE = 1e-5


class Arrays(Dataset[Params]):
    """Images and labels that a Python program holds; they have no training images.

    The file's rules hold: the order is kept where its labels are mixed, ids are indices.

    Args:
        images, labels: as `read_images` and `read_labels` take them.
        classes: number of classes K; the largest label plus one, at least 2, by default.

    Raises:
        BadInput: where they cannot be used.
    """

    def __init__(self, images: object, labels: object, classes: int | None = None) -> None:
        super().__init__(Params())
        if np.ndim(as_array(labels, "labels")) > 2 and np.ndim(as_array(images, "images")) <= 2:
            raise BadInput("images and labels are swapped: give dataset=(images, labels)")
        pixels, notes = read_images("images", images)
        numbers = read_labels("labels", labels)
        if len(numbers) != len(pixels):
            raise BadInput(f"{len(pixels)} images but {len(numbers)} labels: give one each")
        self._classes = count_classes("labels", int(numbers.max()), classes)
        ordered = ImageSet(pixels, torch.from_numpy(numbers), np.arange(len(numbers)), notes)
        self._images = ordered.at(evaluation_order(numbers))

    @property
    def num_classes(self) -> int:
        return self._classes

    def test(self) -> ImageSet:
        """All images, in evaluation order."""
        return self._images

    def train(self) -> ImageSet:
        """Raises `BadInput`: nobody gave any."""
        raise BadInput(
            "arrays have no training images: save x_train, y_train, x_test and y_test by "
            "numpy.savez and give npz:FILE"
        )


def count_classes(what: str, largest: int, asked: int | None) -> int:
    """Number of classes K. Raises `BadInput` where a label lies beyond the K that is asked for."""
    if asked is None:
        return max(2, largest + 1)
    if isinstance(asked, bool) or not isinstance(asked, int) or not 2 <= asked <= MOST_CLASSES:
        raise BadInput(f"classes is {asked!r}: give a whole number from 2 to {MOST_CLASSES}")
    if largest >= asked:
        raise BadInput(
            f"{what} has the label {largest}, but classes={asked} allows 0 to {asked - 1}: give "
            "more classes"
        )
    return asked


def as_array(values: object, what: str) -> npt.NDArray[Any]:
    """An array, a tensor on any device, or a list, as a NumPy array. Raises `BadInput` where it
    holds no numbers.
    """
    if isinstance(values, Tensor):
        tensor = values.detach().cpu()
        return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    try:
        array = np.asarray(values)
    except Exception as error:
        raise BadInput(
            f"{what} cannot be made an array ({one_line(error)}): give a NumPy array or a tensor"
        ) from error
    if array.dtype == object:
        raise BadInput(
            f"{what} is a {type(values).__name__} that holds no plain numbers: give a NumPy array "
            "or a tensor"
        )
    return array


def read_images(what: str, values: object) -> tuple[Tensor, tuple[str, ...]]:
    """Images (n, C, H, W), uint8 or float32 in [0, 1], and what a user should know of them.

    Pixels that lie beyond [0, 1] by rounding are clipped, which is noted.

    Args:
        what: how to name them in a message.
        values: (n, H, W), (n, H, W, C) or (n, C, H, W) with C 1 or 3, uint8 or floats in [0, 1];
            where both orders of axes fit, the channels come last.

    Raises:
        BadInput: for other shapes, types and ranges.
    """
    array = as_array(values, what)
    if array.size == 0:
        raise BadInput(f"{what} is empty (shape {array.shape}): give at least one image")
    array = _channels_first(what, array)
    if array.dtype == np.uint8:
        return torch.from_numpy(np.ascontiguousarray(array)), ()
    note = _range_note(what, array, _precision(values, array))
    pixels = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    return (pixels.clamp(0, 1), (note,)) if note else (pixels, ())


def read_labels(what: str, values: object) -> Integers:
    """Labels int64 (n,), not negative, from integers (n,) or (n, 1).

    Raises:
        BadInput: for anything else; one-hot and multi-label arrays are told as such.
    """
    array = as_array(values, what)
    if array.size == 0 or array.ndim == 0:
        raise BadInput(f"{what} is empty (shape {array.shape}): give one class number an image")
    if array.shape not in ((len(array),), (len(array), 1)):
        raise BadInput(f"{what} has shape {array.shape}: {_many_columns(array)}")
    if array.dtype.kind not in "iu":
        raise BadInput(f"{what} is {array.dtype}: {_as_integers(array)}")
    if array.min() < 0 or array.max() >= MOST_CLASSES:
        raise BadInput(
            f"{what} has labels from {array.min()} to {array.max()}: number the classes from 0"
        )
    return array.reshape(-1).astype(np.int64)


def _many_columns(array: npt.NDArray[Any]) -> str:
    """What labels of several columns are, and what to do."""
    if array.ndim != 2 or array.dtype.kind not in "iufb":
        return "give one class number an image, (n,)"
    if bool(np.isin(array, (0, 1)).all()):
        if bool((array.sum(1) == 1).all()):
            return "it is one-hot; give class numbers, labels.argmax(1), not one-hot"
        return (
            "it is multi-label, several classes an image, which is not evaluated; choose one "
            "question, such as labels[:, 0]"
        )
    return "give one class number an image, (n,); of probabilities, labels.argmax(1)"


def _as_integers(array: npt.NDArray[Any]) -> str:
    if array.dtype.kind in "US":
        return (
            "labels must be integers; number the classes, such as numpy.unique(labels, "
            "return_inverse=True)[1]"
        )
    return "labels must be integers; convert them with .astype('int64')"


def _channels_first(what: str, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if array.ndim == 3:
        return array[:, None]
    if array.ndim == 4 and array.shape[3] in (1, 3):
        return array.transpose(0, 3, 1, 2)
    if array.ndim == 4 and array.shape[1] in (1, 3):
        return array
    raise BadInput(f"{what} has shape {array.shape}: {_LAYOUTS}")


def _precision(values: object, array: npt.NDArray[Any]) -> float:
    """How far rounding may carry a pixel beyond [0, 1]: a few units of the given type's last
    place.
    """
    if isinstance(values, Tensor) and values.dtype == torch.bfloat16:
        return 4 * torch.finfo(torch.bfloat16).eps
    return max(_TOLERANCE, 4 * float(np.finfo(array.dtype).eps) if array.dtype.kind == "f" else 0)


def _range_note(what: str, array: npt.NDArray[Any], precision: float) -> str:
    """A note where pixels lie beyond [0, 1] by rounding. Raises `BadInput` where they lie further
    off, or are no numbers.
    """
    if array.dtype.kind != "f":
        raise BadInput(f"{what} is {array.dtype}: {_eight_bits(array)}")
    low, high = float(array.min()), float(array.max())
    if np.isnan(low):
        raise BadInput(f"{what} has NaN pixels: remove or repair these images")
    if low < -precision or high > 1 + precision:
        raise BadInput(
            f"{what} has pixels from {low:g} to {high:g}, not in [0, 1]: {_scale(low, high)}"
        )
    beyond = int(((array < 0) | (array > 1)).sum())
    if not beyond:
        return ""
    return (
        f"{what} has {beyond} pixels beyond [0, 1] by rounding ({low:.9g} to {high:.9g}): clipped"
    )


def _eight_bits(array: npt.NDArray[Any]) -> str:
    if array.dtype.kind in "iu" and array.min() >= 0 and array.max() <= 255:
        return "store uint8 from 0 to 255, by .astype('uint8'), or floats in [0, 1]"
    return "store uint8 from 0 to 255, or floats in [0, 1]"


def _scale(low: float, high: float) -> str:
    """What the pixels seem to be, and how to bring them to [0, 1]."""
    if low >= 0 and 2 < high <= 256:
        return "they look like 0 to 255; divide by 255"
    if low >= 0 and 256 < high <= 65535:
        return "they look like 16 bits; divide by 65535"
    if low >= -1.001 and high <= 1.001:
        return "they look like -1 to 1; undo the normalisation by (images + 1) / 2"
    if low > -20 and high < 20:
        return (
            "they look normalised; undo the normalisation by images * std + mean, and put it "
            "into the model"
        )
    return "bring them to [0, 1]"
