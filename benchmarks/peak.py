"""Peak memory in MiB of PGD-10 on efficientnet-lite0 at 224 x 224, printed: this process's whole
memory on a CPU, torch's on a GPU.

    BENCH_REAL_DATA=/path/with/data/and/models python benchmarks/peak.py bench|foolbox IMAGES [cpu]
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.allocator import keep_freed_memory
from bench.engine.plan import plan
from bench.engine.request import read_request
from benchmarks.peers import data_folder, evaluated, foolbox_pgd

EPS, STEPS = 4 / 255, 10


def main(side: str, n: int, device: str = "cpu") -> None:
    folder = data_folder()
    options = {
        "dataset": f"imagefolder:path={folder}/data/imagenet_sample,size=224",
        "classifier": f"timm:name=tf_efficientnet_lite0,weights={folder}/models/"
        "tf_efficientnet_lite0.safetensors",
        "norm": "linf",
        "eps": str(EPS),
        "n": n,
    }
    if side == "bench":
        keep_freed_memory()
        asked = {**options, "defense": "undefended", "attack": f"pgd:steps={STEPS},step=eps/4"}
        evaluated(plan(read_request(asked, "benchmark"))[-1:], device)
    else:
        with_foolbox(options, n, device)
    if device == "cuda":
        print(torch.cuda.max_memory_allocated() / 2**20)
    else:
        unit = 2**20 if sys.platform == "darwin" else 2**10
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)


def with_foolbox(options: dict, n: int, device: str) -> None:
    """All images in one batch of at most 128, as ours."""
    evaluation = plan(
        read_request({**options, "defense": "undefended", "attack": "null"}, "benchmark")
    )[-1]
    model = evaluation.setup.classifier.to(device)
    images, labels = evaluation.setup.images.pixels().to(device), evaluation.setup.images.labels

    class Answers(torch.nn.Module):
        def forward(self, x):
            return model.network((x - model.mean) / model.std)

    attack = foolbox_pgd(EPS, STEPS)
    for x, y in zip(images.split(128), labels.to(device).split(128), strict=True):
        attack(Answers().eval(), x, y)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
