"""`median-smoothing`, a defense for bench: it smooths images by a median.

Put your own method in its place.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from bench import (
    BuildNoise,
    Card,
    DataAccess,
    DefendedClassifier,
    Defense,
    InputTransform,
    Noise,
    Params,
)


class MedianSmoothingParams(Params):
    """Parameters of `median-smoothing`; `median-smoothing:radius=2` sets one."""

    radius: int = Field(1, ge=1, le=7, description="pixels that the window reaches to each side")


class MedianSmoothingTransform(InputTransform):
    """What is deployed: the transform, then the classifier."""

    # Attacks may choose the gradient: the transform's own, or that of `surrogate`.
    gradients = ("full", "bpda")

    def __init__(self, classifier: DefendedClassifier, radius: int) -> None:
        super().__init__(classifier)
        self.radius = radius

    def transform(self, images: Tensor, noise: Noise) -> Tensor:
        """The median of each pixel's window; images (n, C, H, W) in [0, 1] to the same shape.

        Random numbers would come from `noise`.
        """
        side = 2 * self.radius + 1
        windows = self._padded(images).unfold(2, side, 1).unfold(3, side, 1)
        return windows.flatten(-2).median(-1).values

    def surrogate(self, images: Tensor, noise: Noise) -> Tensor:
        """The mean of each pixel's window, whose gradient stands in for the median's."""
        return avg_pool2d(self._padded(images), 2 * self.radius + 1, stride=1)

    def _padded(self, images: Tensor) -> Tensor:
        return pad(images, [self.radius] * 4, mode="reflect")


class MedianSmoothing(Defense[MedianSmoothingParams]):
    """Median smoothing of the image."""

    Params = MedianSmoothingParams
    gradients = ("full", "bpda")
    card = Card(
        paper="Xu et al., NDSS 2018, arXiv 1704.01155",
        note="adaptive attacks break it (He et al., WOOT 2017, arXiv 1706.04701)",
        attacks=("pgd", "bpda"),
    )

    def build(
        self, classifier: DefendedClassifier, access: DataAccess, noise: BuildNoise
    ) -> DefendedClassifier:
        """The transform in front of the classifier."""
        return MedianSmoothingTransform(classifier, self.params.radius)
