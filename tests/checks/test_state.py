"""What counts as state, and what may change without being any."""

import copy
import itertools
import random
from collections import deque
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from bench.checks.caches import growing, harmless
from bench.checks.state import moved, state_of
from bench.noise import isolated


@pytest.fixture(autouse=True)
def own_generators():
    with isolated(0):
        yield


class Plain:
    def __init__(self):
        self.count = 0


class Slotted:
    __slots__ = ("count",)

    def __init__(self):
        self.count = 0


def closure():
    held = [0]

    def count():
        held[0] += 1

    return count


class Everything(nn.Module):
    shared: list[int] = []

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 2)
        self.register_buffer("table", torch.zeros(2))
        self.bias = nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
        self.number, self.text, self.flag, self.nothing = 1, "a", False, None
        self.array, self.tensor = np.zeros(3), torch.zeros(3)
        self.seen, self.answers, self.known = [], {}, set()
        self.queue, self.nested = deque([1]), {"a": [torch.zeros(2)]}
        self.torch_generator = torch.Generator()
        self.numpy_generator = np.random.default_rng(0)
        self.old_generator, self.python_generator = np.random.RandomState(0), random.Random(0)
        self.plain, self.slotted, self.counter = Plain(), Slotted(), itertools.count()
        self.function, self.partial = closure(), partial(print, [1])
        self.hidden = [nn.Linear(2, 2)]
        self.me = self.seen


def set_inner(net):
    net.inner.weight.data[0, 0] += 1


def set_hidden(net):
    net.hidden[0].weight.data[0, 0] += 1


def put(name, value):
    return lambda net: setattr(net, name, value)


MOVES = {
    "inner.weight": set_inner,
    "hidden": set_hidden,
    "table": lambda net: net.table.add_(1),
    "bias": lambda net: net.bias.data.add_(1),
    "number": put("number", 2),
    "text": put("text", "b"),
    "flag": put("flag", True),
    "nothing": put("nothing", 0),
    "array": lambda net: net.array.__setitem__(1, 5),
    "tensor": lambda net: net.tensor.add_(1),
    "seen": lambda net: net.seen.append(1),
    "answers": lambda net: net.answers.update(a=1),
    "known": lambda net: net.known.add(1),
    "queue": lambda net: net.queue.append(2),
    "nested": lambda net: net.nested["a"][0].add_(1),
    "torch_generator": lambda net: torch.rand(1, generator=net.torch_generator),
    "numpy_generator": lambda net: net.numpy_generator.random(),
    "old_generator": lambda net: net.old_generator.rand(),
    "python_generator": lambda net: net.python_generator.random(),
    "plain": lambda net: setattr(net.plain, "count", 1),
    "slotted": lambda net: setattr(net.slotted, "count", 1),
    "counter": lambda net: next(net.counter),
    "function": lambda net: net.function(),
    "partial": lambda net: net.partial.args[0].append(2),
    "shared": lambda net: net.shared.append(1),
    "inner.training": lambda net: net.inner.eval(),
    "new": put("new", 1),
}


@pytest.mark.parametrize("name", MOVES)
def test_whatever_moves_is_seen_and_named(name):
    net = Everything()
    before = state_of(net)
    assert moved(before, state_of(net)) == []
    MOVES[name](net)
    assert moved(before, state_of(net)) == [name]
    Everything.shared.clear()


SEEN, COUNT = {"images": []}, 0


def remember(x, noted=[]):  # noqa: B006
    noted.append(1)
    return x


def count(x):
    global COUNT
    COUNT += 1
    return x


def note(x):
    note.last = float(x.sum())
    return x


def hooked():
    seen = []
    net = nn.Linear(2, 2)
    net.register_forward_hook(lambda *_: seen.append(1))
    return net


def module_of(function):
    return type("Named", (nn.Module,), {"forward": function, "__module__": __name__})()


BYTES, NAMED = bytearray(), SimpleNamespace(seen=0)


class Above(nn.Module):
    memory: list[int] | None = None

    def forward(self, x):
        return x


class Shadowed(Above):
    """Its memory has the name of an attribute of the class above, its pass that of a method."""

    def __init__(self):
        super().__init__()
        self.memory = []

    def forward(self, x):
        self.memory.append(1)
        return x


class Overridden(Above):
    def forward(self, x):
        return count(x)


HIDDEN = {
    "global bytes": lambda: module_of(lambda _, x: (BYTES.append(1), x)[1]),
    "a global namespace": lambda: module_of(lambda _, x: (setattr(NAMED, "seen", 1), x)[1]),
    "an attribute that the class has too": Shadowed,
    "a method that the class above has too": Overridden,
    "a global list": lambda: module_of(lambda _, x: (SEEN["images"].append(1), x)[1]),
    "a global number": lambda: module_of(lambda _, x: count(x)),
    "a default": lambda: module_of(lambda _, x: remember(x)),
    "an attribute of a function": lambda: module_of(lambda _, x: note(x)),
    "a hook": hooked,
}


@pytest.mark.parametrize("name", HIDDEN)
def test_what_functions_hold_is_state(name):
    net = HIDDEN[name]()
    before = state_of(net)
    assert moved(before, state_of(net)) == []
    net(torch.ones(1, 2))
    assert len(moved(before, state_of(net))) == 1


def test_gradients_flags_and_hooks_are_no_state():
    net = Everything()
    before = state_of(net)
    net.inner(torch.zeros(1, 3)).sum().backward()
    net.inner.weight.requires_grad_(False)
    net.inner.register_forward_hook(lambda *_: None)
    assert moved(before, state_of(net)) == []


def test_an_attribute_that_goes_is_seen_and_a_circle_is_walked_once():
    net = Everything()
    net.answers["self"] = net.answers
    net.owner = [net]
    before = state_of(net)
    del net.text
    assert moved(before, state_of(net)) == ["text"]


class Filling(nn.Module):
    """One of each kind: caches and notes, and state that looks like them."""

    def __init__(self):
        super().__init__()
        self.by_shape, self.lazy, self.last = {}, None, None
        self.calls, self.memory, self.mean = 0, {}, None
        self.limit = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        self.by_shape.setdefault(tuple(x.shape), torch.ones(x.shape[1:]))
        if self.lazy is None:
            self.lazy = torch.ones(2)
        self.last = x.detach().clone()
        self.calls += 1
        self.memory[float(x.sum())] = 1
        self.mean = x.mean() if self.mean is None else (self.mean + x.mean()) / 2
        self.limit.data.fill_(float(x.detach().max()))
        return x


def test_caches_and_notes_are_told_from_what_holds_images():
    net, images = Filling(), torch.rand(4, 2, generator=torch.Generator().manual_seed(0))
    before = state_of(net)
    net(images)
    names = moved(before, state_of(net))
    assert set(names) == {"by_shape", "lazy", "last", "calls", "memory", "mean", "limit"}

    def run(module, other):
        module(1 - images if other else images)

    fresh = Filling()
    kept = harmless(lambda: copy.deepcopy(fresh), names, run)
    assert kept == {"by_shape", "lazy", "last"}
    assert fresh.calls == 0


GRID, REMEMBERED = {}, []


class Gridded(nn.Module):
    """A cache that all copies share."""

    def forward(self, x):
        GRID.setdefault(tuple(x.shape[1:]), torch.ones(x.shape[1:]))
        return x


class Remembering(nn.Module):
    """A memory that all copies share."""

    def forward(self, x):
        REMEMBERED.append(x.clone())
        return x


@pytest.mark.parametrize(("kind", "grows"), [(Gridded, False), (Remembering, True)])
def test_a_memory_that_copies_share_is_told_from_a_cache(kind, grows):
    images, net = torch.rand(4, 2, generator=torch.Generator().manual_seed(0)), kind()
    before = state_of(net)
    net(images)
    names = moved(before, state_of(net))
    assert names == ["forward"]
    kept = growing(kind, names, lambda module, other: module(1 - images if other else images))
    assert kept == (set(names) if grows else set())
    GRID.clear()
    REMEMBERED.clear()
