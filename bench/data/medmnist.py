"""MedMNIST at 28 x 28: the official .npz files, by release."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from bench.data.npz import Archive
from bench.data.official import Bytes, Official
from bench.data.order import Integers
from bench.errors import BadInput
from bench.plugins.plugin import P
from bench.spec import Params
from bench.storage.data_root import data_root
from bench.storage.download import digest_of, fetch

_ZENODO = "https://zenodo.org/records"
_LATEST = "10519652"


class MedMnist(Official[P]):
    """A MedMNIST data set: `NAME.npz` below the data root, with the official training, validation
    and test images.

    Attributes:
        md5: of the file in releases 2.2.4 to 3.0.2 of the package `medmnist` (Zenodo 10519652).
        others: MD5 of other files that bear this name, to what they are.
    """

    default_eps: ClassVar[float] = 8 / 255
    licence: ClassVar[str] = "CC BY 4.0"
    source: ClassVar[str] = f"{_ZENODO}/{_LATEST} (MedMNIST 3.0, 28 x 28; the same file since 2.0)"
    md5: ClassVar[str]
    others: ClassVar[dict[str, str]] = {}

    def read(self, split: str) -> tuple[Bytes, Integers]:
        file, record, md5 = self.published()
        self._check_release(file, md5)
        url = f"{_ZENODO}/{record}/files/{self.name}.npz?download=1"
        with Archive(str(fetch(file, [url], f"md5:{md5}"))) as archive:
            return archive.images(split)[0].numpy(), archive.labels(split)

    def published(self) -> tuple[str, str, str]:
        """File name, Zenodo record and MD5."""
        return f"{self.name}.npz", _LATEST, self.md5

    def _check_release(self, file: str, md5: str) -> None:
        path = data_root() / file
        if not path.is_file():
            return
        digest = digest_of(path, "md5").removeprefix("md5:")
        if digest != md5:
            what = self.others.get(digest, "of no version known here, or damaged")
            raise BadInput(
                f"{path} has MD5 {digest}, not {md5}: it is {what}; replace it or remove it to "
                "download the right one"
            )


class TissueMnist(MedMnist[Params]):
    """MedMNIST's kidney cortex cells, 165,466 training, 23,640 validation and 47,280 test images,
    28 x 28 grey.
    """

    name: ClassVar[str] = "tissuemnist"
    md5: ClassVar[str] = "ebe78ee8b05294063de985d821c1c34b"
    image_shape: ClassVar[tuple[int, int, int] | None] = (1, 28, 28)
    splits: ClassVar[dict[str, int]] = {"test": 47_280, "train": 165_466, "val": 23_640}
    test_counts: ClassVar[tuple[int, ...]] = (
        15_165,
        2_233,
        1_677,
        4_402,
        3_369,
        2_202,
        11_201,
        7_031,
    )
    class_names: ClassVar[tuple[str, ...]] = (
        "collecting duct or connecting tubule",
        "distal convoluted tubule",
        "glomerular endothelial cells",
        "interstitial endothelial cells",
        "leukocytes",
        "podocytes",
        "proximal tubule segments",
        "thick ascending limb",
    )


class BloodMnist(MedMnist[Params]):
    """MedMNIST's blood cells, 11,959 training, 1,712 validation and 3,421 test images, 28 x 28
    colour.
    """

    name: ClassVar[str] = "bloodmnist"
    md5: ClassVar[str] = "7053d0359d879ad8a5505303e11de1dc"
    image_shape: ClassVar[tuple[int, int, int] | None] = (3, 28, 28)
    splits: ClassVar[dict[str, int]] = {"test": 3_421, "train": 11_959, "val": 1_712}
    test_counts: ClassVar[tuple[int, ...]] = (244, 624, 311, 579, 243, 284, 666, 470)
    class_names: ClassVar[tuple[str, ...]] = (
        "basophil",
        "eosinophil",
        "erythroblast",
        "immature granulocyte",
        "lymphocyte",
        "monocyte",
        "neutrophil",
        "platelet",
    )


class DermaMnist(MedMnist[Params]):
    """MedMNIST's skin lesions, 7,007 training, 1,003 validation and 2,005 test images, 28 x 28
    colour.
    """

    name: ClassVar[str] = "dermamnist"
    md5: ClassVar[str] = "0744692d530f8e62ec473284d019b0c7"
    licence: ClassVar[str] = "CC BY-NC 4.0"
    image_shape: ClassVar[tuple[int, int, int] | None] = (3, 28, 28)
    splits: ClassVar[dict[str, int]] = {"test": 2_005, "train": 7_007, "val": 1_003}
    test_counts: ClassVar[tuple[int, ...]] = (66, 103, 220, 23, 223, 1_341, 29)
    class_names: ClassVar[tuple[str, ...]] = (
        "actinic keratosis or intraepithelial carcinoma",
        "basal cell carcinoma",
        "benign keratosis-like lesion",
        "dermatofibroma",
        "melanoma",
        "melanocytic nevus",
        "vascular lesion",
    )


class OrganCParams(Params):
    release: Literal["2024", "2021"] = Field(
        "2024", description="2021: the larger file of medmnist 2.0.1 to 2.2.3"
    )


class OrganCMnist(MedMnist[OrganCParams]):
    """MedMNIST's abdominal organs in coronal slices, 12,975 training, 2,392 validation and 8,216
    test images, 28 x 28 grey.

    The file was replaced in January 2024. `release=2021` means the one before (13,000 and 8,268
    images), which published tables may rest on; it is kept as `organcmnist-2021.npz`.
    """

    Params: ClassVar[type[Params]] = OrganCParams
    name: ClassVar[str] = "organcmnist"
    md5: ClassVar[str] = "b9ceb9546e10131b32923c5bbeaea2b1"
    md5_2021: ClassVar[str] = "0afa5834fb105f7705a7d93372119a21"
    others: ClassVar[dict[str, str]] = {
        "b9ceb9546e10131b32923c5bbeaea2b1": "MedMNIST's of 2024, kept as organcmnist.npz",
        "0afa5834fb105f7705a7d93372119a21": "MedMNIST's of 2021, kept as organcmnist-2021.npz and "
        "used with release=2021",
    }
    source: ClassVar[str] = f"{_ZENODO}/{_LATEST} (MedMNIST 3.0, 28 x 28; the file of January 2024)"
    image_shape: ClassVar[tuple[int, int, int] | None] = (1, 28, 28)
    splits: ClassVar[dict[str, int]] = {"test": 8_216, "train": 12_975, "val": 2_392}
    splits_2021: ClassVar[dict[str, int]] = {"test": 8_268, "train": 13_000, "val": 2_392}
    other_test_sizes: ClassVar[tuple[int, ...]] = (splits_2021["test"],)
    class_names: ClassVar[tuple[str, ...]] = (
        "bladder",
        "left femur",
        "right femur",
        "heart",
        "left kidney",
        "right kidney",
        "liver",
        "left lung",
        "right lung",
        "pancreas",
        "spleen",
    )

    def published(self) -> tuple[str, str, str]:
        """File name, Zenodo record and MD5 of the release."""
        return (
            super().published()
            if self._latest
            else ("organcmnist-2021.npz", "6496656", self.md5_2021)
        )

    def size(self, split: str) -> int:
        """How many images a split of the release must have."""
        return (self.splits if self._latest else self.splits_2021)[split]

    @property
    def _latest(self) -> bool:
        return self.params.release == "2024"


class PathMnist(MedMnist[Params]):
    """MedMNIST's colon tissue, 89,996 training, 10,004 validation and 7,180 test images, 28 x 28
    colour.
    """

    name: ClassVar[str] = "pathmnist"
    md5: ClassVar[str] = "a8b06965200029087d5bd730944a56c1"
    image_shape: ClassVar[tuple[int, int, int] | None] = (3, 28, 28)
    splits: ClassVar[dict[str, int]] = {"test": 7_180, "train": 89_996, "val": 10_004}
    test_counts: ClassVar[tuple[int, ...]] = (1_338, 847, 339, 634, 1_035, 592, 741, 421, 1_233)
    class_names: ClassVar[tuple[str, ...]] = (
        "adipose",
        "background",
        "debris",
        "lymphocytes",
        "mucus",
        "smooth muscle",
        "normal colon mucosa",
        "cancer-associated stroma",
        "colorectal adenocarcinoma epithelium",
    )


class PneumoniaMnist(MedMnist[Params]):
    """MedMNIST's chest X-rays of children, 4,708 training, 524 validation and 624 test images, 28 x
    28 grey.
    """

    name: ClassVar[str] = "pneumoniamnist"
    default_classifier: ClassVar[str] = "zoo:pneumoniamnist-cnn"
    md5: ClassVar[str] = "28209eda62fecd6e6a2d98b1501bb15f"
    image_shape: ClassVar[tuple[int, int, int] | None] = (1, 28, 28)
    splits: ClassVar[dict[str, int]] = {"test": 624, "train": 4_708, "val": 524}
    test_counts: ClassVar[tuple[int, ...]] = (234, 390)
    class_names: ClassVar[tuple[str, ...]] = ("normal", "pneumonia")


class BreastMnist(MedMnist[Params]):
    """MedMNIST's breast ultrasound, 546 training, 78 validation and 156 test images, 28 x
    28 grey.
    """

    name: ClassVar[str] = "breastmnist"
    md5: ClassVar[str] = "750601b1f35ba3300ea97c75c52ff8f6"
    image_shape: ClassVar[tuple[int, int, int] | None] = (1, 28, 28)
    splits: ClassVar[dict[str, int]] = {"test": 156, "train": 546, "val": 78}
    test_counts: ClassVar[tuple[int, ...]] = (42, 114)
    class_names: ClassVar[tuple[str, ...]] = ("malignant", "normal or benign")
