"""`bench export`: the adversarial images of a record as files that other programs read.

    npz    one file: x_test (adversarial, uint8), y_test, original, ids; `npz:FILE` reads it
    png    a folder: adversarial/LABEL/ID.png and original/LABEL/ID.png
    pt     a folder: adversarial.pt, original.pt, labels.pt, ids.pt; bare tensors, float32
           (n, C, H, W) as RobustBench takes them

8 bits hold no more than 256 values a pixel, so points are rounded for npz and png: inside the ball,
and judged again.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image
import torch
from torch import Tensor

from bench.commands.trust import check_trusted
from bench.commands.verify import attacked, rebuild
from bench.defense import DefendedClassifier
from bench.engine.compute import judge
from bench.engine.evaluation import Evaluation
from bench.engine.execution import Execution, exact_float32
from bench.errors import BadInput
from bench.results.points import read_points
from bench.results.record import Record
from bench.results.store import read_record
from bench.spec import Spec, parse
from bench.storage.files import write_whole
from bench.threat import ThreatModel
from bench.victim import frozen

FORMATS = ("npz", "png", "pt")

# float32 carries 255 times a pixel to this; a level that is missed by less is met.
_LEVEL_SLACK = 1e-4


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: the file or folder.
        images: how many images.
        robust: share of right answers on the points as they are, mean over draws.
        exported: the same on what was written.
        changed: how many images have another verdict in some draw.
        rounded: whether the points were rounded to 8 bits.
        hint: a command that judges the file again; empty where none does.
    """

    path: Path
    images: int
    robust: float
    exported: float
    changed: int
    rounded: bool
    hint: str = ""

    def __str__(self) -> str:
        told = f"{self.images} images written to {self.path}"
        if not self.rounded:
            return f"{told}: robust accuracy {100 * self.exported:.1f}, points as they are"
        lines = [
            f"{told}: robust accuracy {100 * self.exported:.1f} after rounding to 8 bits, "
            f"{100 * self.robust:.1f} before; {self.changed} of {self.images} verdicts changed"
        ]
        return "\n".join([*lines, *([f"judge it again: {self.hint}"] if self.hint else [])])


@dataclass(frozen=True)
class _Images:
    """What is written: uint8 or float32 (n, C, H, W), labels (n,), ids (n,)."""

    original: Tensor
    adversarial: Tensor
    labels: Tensor
    ids: npt.NDArray[np.int64]


def export(
    path: Path, form: str, out: Path, execution: Execution, *, trust: bool = False
) -> Exported:
    """Write the images of a record.

    Args:
        path: the record; its points lie beside it.
        form: `npz`, `png` or `pt`.
        out: file to write, for npz; folder, for png and pt.
        execution: how the points are judged again.
        trust: run `FILE.py@NAME` of the record wherever that file is.

    Raises:
        BadInput: where the points are missing, the record's objects cannot be rebuilt, or nothing
            can be written there.
    """
    if form not in FORMATS:
        raise BadInput(f"unknown format {form!r}: use {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    record = read_record(path)
    stored = torch.from_numpy(read_points(record, path.parent))
    if not trust:
        check_trusted(record)
    _check_free(out, form)
    evaluation = rebuild(record)
    images = evaluation.setup.images
    original = images.pixels()
    if stored.shape != original.shape:
        raise BadInput(f"the points of {path} are not those of its images: run it again")
    if form == "pt":
        written = _Images(original, stored, images.labels, images.ids)
        judged = stored
    else:
        written = _rounded(original, stored, evaluation.setup.threat, images.labels, images.ids)
        judged = written.adversarial.float() / 255
    with exact_float32(execution.device):
        defended = attacked(record, evaluation, path, execution.device)
        right = _right(defended, evaluation, (stored, judged), execution)
    _WRITERS[form](out, written)
    return Exported(
        out,
        len(images),
        float(right[0].mean()),
        float(right[1].mean()),
        int((right[0] != right[1]).any(1).sum()),
        form != "pt",
        _hint(record, evaluation, out) if form == "npz" else "",
    )


def _check_free(out: Path, form: str) -> None:
    """Raise `BadInput` where something of another kind lies there already."""
    if form == "npz" and out.is_dir():
        raise BadInput(f"{out} is a folder: give a file, such as --out {out / 'images.npz'}")
    if form != "npz" and (out.is_file() or (out.is_dir() and any(out.iterdir()))):
        raise BadInput(f"{out} is there already: give a new folder for {form}")


def _right(
    defended: DefendedClassifier,
    evaluation: Evaluation,
    points: tuple[Tensor, ...],
    execution: Execution,
) -> list[npt.NDArray[np.bool_]]:
    """Which answers are right on each of these points, as the record counts them: (n, draws)."""
    images = evaluation.setup.images
    with frozen(defended):
        answers = [
            judge(defended, judged, images.ids, evaluation, execution)
            for judged in (images.pixels(), *points)
        ]
    clean, *others = [(one == images.labels[:, None]).numpy() for one in answers]
    return [one & clean for one in others]


def _hint(record: Record, evaluation: Evaluation, out: Path) -> str:
    """A command that judges the file under the null attack."""
    classes = evaluation.setup.classifier.num_classes
    lacking = int(evaluation.setup.images.labels.max()) + 1 < classes
    dataset = Spec("npz", str(out), {"classes": str(classes)} if lacking else {})
    threat, source = evaluation.setup.threat, parse(record.sources["classifier"])
    return (
        f"bench run --defense '{record.title['defense']}' --attack null --dataset '{dataset}' "
        f"--classifier '{source}' --norm {threat.norm} --eps {threat.eps:g} "
        f"--n {len(evaluation.setup.images)}"
    )


# Rounding -----------------------------------------------------------------------------------------


def _rounded(
    original: Tensor,
    points: Tensor,
    threat: ThreatModel,
    labels: Tensor,
    ids: npt.NDArray[np.int64],
) -> _Images:
    levels = to_levels(original)
    return _Images(levels, round_points(points, levels, threat), labels, ids)


def to_levels(pixels: Tensor) -> Tensor:
    """The nearest of 256 levels: uint8 of the shape of `pixels`, which lie in [0, 1]."""
    return (pixels.double() * 255).round().to(torch.uint8)


def round_points(points: Tensor, levels: Tensor, threat: ThreatModel) -> Tensor:
    """Points (n, C, H, W) in 8 bits, inside the ball around the originals in 8 bits, `levels`.

    The nearest level inside the ball, pixel by pixel in Linf. In L2 and L1 a point whose nearest
    levels leave the ball is rounded towards the original, which shortens every pixel's move.
    """
    centre = levels.float() / 255
    inner = threat.project(points, centre)
    move = inner.double() * 255 - levels
    nearest = move.round()
    if threat.norm == "linf":
        most = int(threat.eps * 255 + _LEVEL_SLACK)
        return (levels + nearest.clamp(-most, most)).clamp(0, 255).to(torch.uint8)
    towards = (move + _LEVEL_SLACK * move.sign()).trunc(), move.trunc()
    rounded = (levels + nearest).clamp(0, 255).to(torch.uint8)
    for shorter in towards:
        outside = ~threat.contains(rounded.float() / 255, centre)
        rounded[outside] = (levels + shorter).to(torch.uint8)[outside]
    return rounded


# Writing ------------------------------------------------------------------------------------------


def _write_npz(out: Path, images: _Images) -> None:
    arrays: Mapping[str, Any] = {
        "x_test": images.adversarial.permute(0, 2, 3, 1).numpy(),
        "y_test": images.labels.numpy(),
        "original": images.original.permute(0, 2, 3, 1).numpy(),
        "ids": images.ids,
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, buffer.getvalue())


def _write_png(out: Path, images: _Images) -> None:
    digits = len(str(int(images.labels.max())))
    for which, pixels in (("adversarial", images.adversarial), ("original", images.original)):
        for pixel, label, image in zip(pixels, images.labels, images.ids, strict=True):
            buffer = io.BytesIO()
            PIL.Image.fromarray(pixel.permute(1, 2, 0).squeeze(-1).numpy()).save(buffer, "png")
            file = out / which / f"{int(label):0{digits}d}" / f"{int(image)}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, buffer.getvalue())


def _write_pt(out: Path, images: _Images) -> None:
    out.mkdir(parents=True, exist_ok=True)
    tensors = {
        "adversarial": images.adversarial,
        "original": images.original,
        "labels": images.labels,
        "ids": torch.from_numpy(images.ids),
    }
    for name, tensor in tensors.items():
        buffer = io.BytesIO()
        torch.save(tensor.contiguous().clone(), buffer)
        write_whole(out / f"{name}.pt", buffer.getvalue())


_WRITERS = {"npz": _write_npz, "png": _write_png, "pt": _write_pt}
