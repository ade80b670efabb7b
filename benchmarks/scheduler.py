"""What claims, files and plans cost a suite of a million shards, whose workers fail.

    python -m benchmarks.scheduler [--workers 64] [--evaluations 10000] [--shards 100]

Two steps. What the code of `bench.engine.shards` and `bench.results.store` costs is measured in a
temporary folder. Then the suite is played through with these costs, worker by worker: a worker
takes the evaluations that nobody has begun, shard by shard; when all are begun it helps where
something is left. A worker that fails loses its shard, holds its claim until it is stale, and its
successor plans the suite anew. Bookkeeping is everything but the seconds of shards.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from bench.engine.plan import plan
from bench.engine.request import Request
from bench.engine.shards import Arrays, Shard, Workspace, complete
from bench.results.store import Store
from bench.storage.claims import STALE_SECONDS

SAMPLE, PART = 100, 10
POINTS = (128, 3, 32, 32)


@dataclass(frozen=True)
class Costs:
    """Seconds of bookkeeping.

    Attributes:
        shard: of a shard that is claimed, computed and saved.
        load: of one that another worker has saved.
        visit: of an evaluation that another worker has begun.
        plan: of an evaluation, where a suite is planned.
    """

    shard: float
    load: float
    visit: float
    plan: float


def measured(evaluations: int) -> Costs:
    """The costs on this machine, in a folder with so many records."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        for number in range(evaluations):
            (store.folder / f"data--defense--attack--{number:016x}.error.json").touch()
        arrays: Arrays = {"points": np.zeros(POINTS, np.float32), "answers": np.zeros(128, int)}
        parts = [
            [(n, n + 1) for n in range(start, start + PART)] for start in range(0, SAMPLE, PART)
        ]
        place = store.place("suite", "weights")
        mine = _fastest(
            [lambda part=part: _complete(Workspace(place), part, arrays, store) for part in parts]
        )
        theirs = _fastest(
            [lambda part=part: _complete(Workspace(place), part, arrays, store) for part in parts]
        )
        store.begin("other")
        time.sleep(2.1)  # until the names of records are kept
        store.find("none")
        visit = _fastest([lambda: [_visit(store) for _ in range(PART)]] * PART)
    attacks = tuple(f"pgd:steps={steps}" for steps in range(1, SAMPLE + 1))
    request = Request(defenses=("undefended",), attacks=attacks)
    planned = _fastest([lambda: [one.id for one in plan(request)]] * 3) * PART / SAMPLE
    return Costs(*(seconds / PART for seconds in (mine, theirs, visit, planned)))


def _complete(work: Workspace, shards: list[Shard], arrays: Arrays, store: Store) -> None:
    def finished() -> bool:
        return not work.stands() and store.find("none") is not None

    complete(work, shards, lambda _: arrays, finished, lambda *_: None)


def _visit(store: Store) -> None:
    store.find("none")
    store.begin("other")


def _fastest(runs: Sequence[Callable[[], object]]) -> float:
    """Seconds of the fastest: what else the machine does only adds."""
    seconds = []
    for run in runs:
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


@dataclass
class Played:
    """Seconds of all workers together."""

    work: float = 0.0
    lost: float = 0.0
    shards: float = 0.0
    loads: float = 0.0
    visits: float = 0.0
    plans: float = 0.0
    waiting: float = 0.0
    failures: int = 0
    ends: float = 0.0

    @property
    def bookkeeping(self) -> float:
        return self.shards + self.loads + self.visits + self.plans


class Suite:
    """A suite played through; time is simulated."""

    def __init__(
        self, costs: Costs, evaluations: int, shards: int, seconds: float, failing: float
    ) -> None:
        self.costs, self.seconds, self.failing = costs, seconds, failing
        self.evaluations, self.shards = evaluations, shards
        self.done = [0] * evaluations
        self.free = [shards] * evaluations
        # Shards of the dead: when their claims are stale.
        self.stale: dict[int, list[float]] = {}
        self.begun = 0
        self.played = Played()
        self._dice = random.Random(0)

    def run(self, workers: int) -> Played:
        """Until every shard is done."""
        queue = [(self._start(), number, -1, 0) for number in range(workers)]
        heapq.heapify(queue)
        left = self.evaluations * self.shards
        while left:
            now, worker, at, seen = heapq.heappop(queue)
            if at < 0 or not self._available(at, now):
                at, seen, now = self._next(at, seen, now)
            if at < 0:
                self.played.waiting += 1.0
                heapq.heappush(queue, (now + 1.0, worker, -1, seen))
                continue
            ended, alive = self._shard(at, now)
            left -= alive
            self.played.ends = max(self.played.ends, ended)
            if not alive:
                ended, at, seen = ended + self._start(), -1, 0
            heapq.heappush(queue, (ended, worker, at, seen))
        return self.played

    def _start(self) -> float:
        """A worker plans the suite, and looks once which of it is stored."""
        seconds = self.evaluations * (self.costs.plan + self.costs.visit)
        self.played.plans += seconds
        return seconds

    def _available(self, at: int, now: float) -> bool:
        waiting = self.stale.get(at, [])
        while waiting and waiting[0] <= now:
            heapq.heappop(waiting)
            self.free[at] += 1
        return self.free[at] > 0

    def _next(self, at: int, seen: int, now: float) -> tuple[int, int, float]:
        """The evaluation to go on with, -1 for none now; what it passed by costs visits."""
        if self.begun < self.evaluations:
            at = self.begun
            self.begun += 1
            passed = at - seen
        else:
            open_ones = [one for one in self.stale if self.done[one] < self.shards]
            passed = self.evaluations - seen + len(open_ones)
            at = next((one for one in open_ones if self._available(one, now)), -1)
            if at >= 0:
                loads = self.done[at] * self.costs.load
                self.played.loads += loads
                now += loads
        visits = passed * self.costs.visit
        self.played.visits += visits
        return at, self.begun, now + visits

    def _shard(self, at: int, now: float) -> tuple[float, bool]:
        """Compute one; when that ended, and whether its worker lives."""
        self.free[at] -= 1
        self.played.shards += self.costs.shard
        if self._dice.random() < self.failing:
            lost = self._dice.random() * self.seconds
            self.played.lost += lost
            self.played.failures += 1
            heapq.heappush(self.stale.setdefault(at, []), now + lost + STALE_SECONDS)
            return now + lost, False
        self.done[at] += 1
        self.played.work += self.seconds
        return now + self.seconds + self.costs.shard, True


def main() -> None:
    """Print costs and shares, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--evaluations", type=int, default=10_000)
    parser.add_argument("--shards", type=int, default=100, help="of each evaluation")
    parser.add_argument("--seconds", type=float, default=10.0, help="of a shard")
    parser.add_argument("--failing", type=float, default=0.001, help="of the shards begun")
    parser.add_argument("--out", type=Path, help="file to write it to as well")
    asked = parser.parse_args()
    out = asked.out
    del asked.out
    costs = measured(asked.evaluations)
    suite = Suite(costs, asked.evaluations, asked.shards, asked.seconds, asked.failing)
    played = suite.run(asked.workers)
    shares = {
        name: f"{getattr(played, name) / played.work:.3%}"
        for name in ("bookkeeping", "shards", "loads", "visits", "plans", "lost", "waiting")
    }
    told = {"asked": vars(asked), "costs": asdict(costs), "failures": played.failures}
    text = json.dumps({**told, "days": played.ends / 86400, "of the work": shares}, indent=1)
    print(text)
    if out is not None:
        out.write_text(text + "\n")


if __name__ == "__main__":
    main()
