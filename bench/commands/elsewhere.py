"""What a defense answers in a process where it has seen no image.

`python -m bench.commands.elsewhere FOLDER` reads a record and sets of points from a folder, builds
the record's defense, and writes its answers there.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bench.commands.verify import attacked, rebuild
from bench.engine.compute import judge
from bench.engine.execution import Execution, exact_float32
from bench.errors import BadInput, one_line
from bench.results.record import Record
from bench.victim import frozen

Ints = npt.NDArray[np.int64]

_RECORD, _POINTS, _HOW, _ANSWERS = (
    "record.json",
    "points.safetensors",
    "how.json",
    "answers.safetensors",
)


def answers_elsewhere(
    record: Record, path: Path, execution: Execution, points: Sequence[Tensor], ids: Ints
) -> list[Ints]:
    """The answers of a record's defense on sets of points, in a new process that sees them in this
    order and nothing before.

    Args:
        record: names defense, data set and classifier.
        path: its file, with perhaps the weights of a trained defense beside it.
        execution: how to compute.
        points: sets of points of the same images, each (n, C, H, W).
        ids: their image ids (n,).

    Returns:
        For each set the predictions under the judge's draws, (n, draws).

    Raises:
        BadInput: where that process fails.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / _RECORD).write_text(record.model_dump_json(), encoding="utf-8")
        device, threads = str(execution.device), torch.get_num_threads()
        how = [device, execution.batch_size, threads, str(path.absolute())]
        (folder / _HOW).write_text(json.dumps(how), encoding="utf-8")
        sets = {str(at): one.detach().cpu().contiguous() for at, one in enumerate(points)}
        save_file({"ids": torch.from_numpy(ids), **sets}, folder / _POINTS)
        command = [sys.executable, "-m", "bench.commands.elsewhere", name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip() or "no message").splitlines()[-1]
            raise BadInput(f"it ended with code {done.returncode}: {one_line(ValueError(last))}")
        found = load_file(folder / _ANSWERS)
        return [found[str(at)].numpy() for at in range(len(points))]


def answer(folder: Path) -> None:
    """The other process."""
    device, batch_size, threads, path = json.loads((folder / _HOW).read_text("utf-8"))
    torch.set_num_threads(threads)
    execution = Execution(device=torch.device(device), batch_size=batch_size)
    record = Record.model_validate_json((folder / _RECORD).read_text("utf-8"))
    evaluation = rebuild(record)
    asked = load_file(folder / _POINTS)
    ids = asked.pop("ids").numpy()
    with exact_float32(execution.device):
        defended = attacked(record, evaluation, Path(path), execution.device)
        with frozen(defended):
            answers = {
                name: judge(defended, asked[name], ids, evaluation, execution).contiguous()
                for name in sorted(asked, key=int)
            }
    save_file(answers, folder / _ANSWERS)


if __name__ == "__main__":
    answer(Path(sys.argv[1]))
