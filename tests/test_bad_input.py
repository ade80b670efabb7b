"""Bad input, in hundreds: every option of every command, data, weights, suites and plugin files.

Each ends with exit code 2 and one line: no traceback, no file, nothing computed.
"""

import json
import pickle
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bench.cli import execute
from bench.diffusion.training import DiffusionRun
from bench.engine.compute import ShardComputer
from bench.models.training import TrainingRun
from tests import toy_plugins  # noqa: F401
from tests.helpers import MODEL, ROOT

LONG = "x" * 5_000
WORDS = {
    "unknown": "no-such-name",
    "empty": "",
    "blank": "   ",
    "zero": "0",
    "negative": "-1",
    "nan": "nan",
    "infinite": "inf",
    "10^22": "1" + 22 * "0",
    "2^63": str(2**63),
    "fraction": "1.5",
    "unicode": "größe→漢字",
    "control": "a\x07\x1b[31mb\nc",
    "null": "a\x00b",
    "long": LONG,
    "traversal": "../../../../etc/passwd",
    "quote": 'a"b',
    "parenthesis": "pgd:(",
    "colon": ":",
    "comma": "pgd:,",
    "equals": "pgd:=",
    "twice": "pgd:steps=1,steps=2",
    "folder": "{folder}",
    "device": "/dev/null",
    "binary": "{binary}",
    "plugin without a name": "{binary}@",
    "modifier": "pgd++",
}
"""What is tried for every option, by its family; in braces stand files that a test makes."""

TOY = {"dataset": "toy:n=4", "classifier": MODEL, "device": "cpu", "out": "r"}
TRAIN = {"": "mnist5k", "out": "net.safetensors", "device": "cpu", "epochs": "1"}
VALID: dict[str, dict[str, str]] = {
    "run": {"defense": "undefended", "attack": "null", **TOY},
    "gallery": {"defense": "constant", **TOY},
    "study": {"": "theorem:trials=10", "out": "r"},
    "list": {},
    "info": {},
    "check": {"": "undefended"},
    "new": {},
    "train": TRAIN,
    "train-diffusion": {"": "mnist5k", "out": "model", "device": "cpu", "steps": "1"},
    "verify": {},
    "export": {"": "{binary}", "out": "images.npz", "device": "cpu"},
    "show": {},
    "compare": {},
    "leaderboard": {},
    "reference": {},
    "audit": {"": str(ROOT / "leaderboards" / "reference" / "robustbench.csv")},
}
"""Arguments with which each command would run; a positional one has no name."""

SPECS = ("defense", "attack", "dataset", "classifier", "naive")
INTEGERS = ("seed", "build-seed", "n", "batch-size", "epochs", "steps")
OPTIONS = {
    "run": ["defense", "attack", "seed", "build-seed", "dataset", "classifier", "norm", "eps", "n",
            "randomness", "gradient", "device", "batch-size", "out", "memory", "data-root",
            "suite", "frobnicate"],
    "gallery": ["defense", "dataset", "classifier", "norm", "eps", "n", "naive", "device",
                "batch-size", "out", "data-root"],
    "study": ["", "seed", "dataset", "norm", "eps", "n", "device", "batch-size", "out", "memory"],
    "list": [""],
    "info": [""],
    "check": ["", "dataset", "classifier"],
    "new": ["", "name"],
    "train": ["", "out", "arch", "seed", "epochs", "choose", "device"],
    "train-diffusion": ["", "out", "seed", "steps", "recipe", "start", "device"],
    "verify": ["", "device", "batch-size", "memory", "sample", "seed"],
    "export": ["", "out", "format", "device", "batch-size"],
    "show": [""],
    "compare": [""],
    "leaderboard": ["", "format"],
    "reference": [""],
    "audit": ["", "format"],
}  # fmt: skip

WRITABLE = {"unknown", "zero", "negative", "nan", "infinite", "10^22", "2^63", "fraction",
            "unicode", "control", "quote", "parenthesis", "colon", "comma", "equals", "twice",
            "folder", "plugin without a name", "modifier", "empty", "blank"}  # fmt: skip
"""Families that may name a new folder."""


RIGHT: dict[tuple[str, str], set[str]] = {
    ("run", "suite"): {"device"},
    ("run", "memory"): {"fraction"},
    ("study", "memory"): {"fraction"},
    ("verify", "memory"): {"fraction"},
    ("new", "name"): {"unknown", "nan", "infinite"},
    ("check", "dataset"): {"empty"},
    ("train-diffusion", "out"): WRITABLE,
}
"""Families that are right for an option of a command, beside those of `fitting`."""


def fitting(command: str, option: str) -> set[str]:
    """The families that are right for an option, and so not tried."""
    by_option = {
        "seed": {"zero"},
        "build-seed": {"zero"},
        "norm": {"infinite"},
        "out": WRITABLE | {"traversal"},
        "data-root": WRITABLE | {"traversal"},
    }
    if (command, option) in (("train", "out"), ("study", "norm")):
        return set()
    return by_option.get(option, set()) | RIGHT.get((command, option), set())


def arguments_of(command: str, option: str, value: str) -> list[str]:
    """A command line that is right but for one option."""
    given = {**VALID[command], option: value}
    if command == "new":
        given = {"": value, "name": "my-guard"} if option == "" else {"": "defense", "name": value}
    positional = [given.pop(name) for name in ("", "name") if name in given]
    return [command, *(f"--{name}={text}" for name, text in given.items()), "--", *positional]


@pytest.fixture
def refuses(capsys, tmp_path, monkeypatch) -> Callable[[list[str]], str]:
    """Runs a command line and says what is wrong with how it ends; empty where all is well."""
    files = tmp_path / "files"
    (files / "folder").mkdir(parents=True)
    (files / "binary").write_bytes(bytes(range(256)) * 8)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    computed: list[str] = []

    def compute(self: object, *_: object) -> None:
        computed.append(type(self).__name__)
        raise RuntimeError("something was computed")

    for kind, method in ((ShardComputer, "__call__"), (TrainingRun, "advance"),
                         (DiffusionRun, "advance")):  # fmt: skip
        monkeypatch.setattr(kind, method, compute)

    def run(arguments: list[str]) -> str:
        named = [
            text.replace("{folder}", str(files / "folder")).replace(
                "{binary}", str(files / "binary")
            )
            for text in arguments
        ]
        computed.clear()
        try:
            code: object = execute(named)
        except BaseException as error:
            code = f"{type(error).__name__}: {error}"[:200]
        out, err = capsys.readouterr()
        left = [str(path) for path in work.rglob("*")]
        faults = [f"exit code {code}"] * (code != 2) + [f"computed {computed}"] * bool(computed)
        faults += ["a traceback"] * ("Traceback" in out + err) + [f"left {left}"] * bool(left)
        lines = [line for line in err.splitlines() if not line.startswith("bench: note: ")]
        faults += [f"{len(lines)} lines"] * (len(lines) != 1) + ["output"] * bool(out)
        faults += [f"{len(err)} characters"] * (len(err) > 2_000)
        for path in list(work.iterdir()):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return ", ".join(faults) + (f" :: {err[:300]!r}" if faults else "")

    return run


def matrix() -> Iterator[tuple[str, str, list[str]]]:
    """Every option of every command: command, option, and the families to try."""
    for command, options in OPTIONS.items():
        for option in options:
            families = [one for one in WORDS if one not in fitting(command, option)]
            yield command, option, families


def check_options(refuses, command: str, option: str, families: list[str]) -> None:
    faults = {
        family: fault
        for family in families
        if (fault := refuses(arguments_of(command, option, WORDS[family])))
    }
    assert not faults, "\n".join(f"{family}: {fault}" for family, fault in faults.items())


@pytest.mark.parametrize(
    ("number", "case"),
    list(enumerate(matrix())),
    ids=lambda value: f"{value[0]}-{value[1]}" if isinstance(value, tuple) else "",
)
def test_options(refuses, number, case):
    """Every option with a quarter of the families, another quarter for the next option."""
    command, option, families = case
    check_options(refuses, command, option, families[number % 4 :: 4])


@pytest.mark.slow
@pytest.mark.parametrize(("command", "option", "families"), list(matrix()))
def test_options_with_every_family(refuses, command, option, families):
    check_options(refuses, command, option, families)


CONFLICTS = [
    ["run", "--defense=undefended", "--attack=pgd+replay", "--randomness=eot"],
    ["run", "--defense=undefended", "--attack=bpda", "--gradient=blind"],
    ["run", "--defense=undefended", "--attack=fgsm:steps=9"],
    ["run", "--defense=undefended", "--attack=pgd+frob"],
    ["run", "--defense=undefended", "--attack=pgd:step=eps/0"],
    ["run", "--defense=undefended", "--attack=pgd", "--n=5"],
    ["run", "--defense=undefended", "--attack=pgd", "--norm=l2", "--eps=100"],
    ["run", "--defense=undefended", "--attack=pgd", "--eps=0.1", "--eps=0"],
    ["run", "--defense=constant:label=10", "--attack=null"],
    ["run", "--defense=random-resize", "--attack=pgd", "--randomness=replay:freeze=forward"],
    ["run", "--defense=diffpure:model=(gaussian:channels=3,side=4)", "--attack=null"],
    ["run", "--attack=null"],
    ["audit"],
    ["audit", "--attack=null"],
    ["audit", "--defense=undefended", "{binary}"],
    ["audit", "--profile=deep", "{binary}"],
    ["run", "--defense=undefended"],
    ["run", "surplus"],
    ["run", "--seed=1", "--n"],
    ["gallery", "--defense=undefended"],
    ["gallery", "--dataset=toy", "--dataset=mnist5k"],
    ["check", "pgd", "--dataset=mnist5k"],
    ["check", "undefended", "--classifier=zoo:mnist5k-cnn"],
    ["check", "mnist5k"],
    ["new", "defense", "os"],
    ["new", "attack", "pgd"],
    ["new", "attack", "json", "--package"],
    ["train", "mnist5k", "--out=net.safetensors", "--choose=best"],
    ["train", "npz", "--out=net.safetensors"],
    ["leaderboard", "--format=md", "{binary}"],
    ["compare", "{folder}", "--to=nobody"],
    ["list", "attacks", "defenses"],
    ["doctor", "now"],
    ["frobnicate"],
    ["--frobnicate"],
]


@pytest.mark.parametrize("arguments", CONFLICTS, ids=" ".join)
def test_options_that_contradict_each_other(refuses, arguments):
    if arguments[0] == "run":
        given = {one.partition("=")[0] for one in arguments}
        arguments = arguments + [
            f"--{name}={value}" for name, value in TOY.items() if f"--{name}" not in given
        ]
    assert not refuses(arguments)


X, Y = np.random.default_rng(0).random((6, 4, 4), dtype=np.float32), np.arange(6) % 3
ARCHIVES: dict[str, dict[str, object]] = {
    **{
        f"images {kind}": {"x_test": X.astype(kind)}
        for kind in ("int8", "int16", "int32", "int64", "uint16", "uint32", "bool", "complex64")
    },
    **{
        f"images of shape {shape}": {"x_test": np.zeros(shape, np.uint8)}
        for shape in ((), (6,), (6, 4), (6, 4, 4, 2), (6, 2, 4, 4), (6, 1, 1, 4, 4), (0, 4, 4),
                      (6, 0, 4), (6, 4, 0), (5, 4, 4), (7, 4, 4), (6, 4, 4, 0))
    },
    **{
        f"pixels {low} to {high}": {"x_test": X * (high - low) + low}
        for low, high in ((0, 255), (-1, 1), (-2.1, 2.6), (0, 1.01), (-0.01, 1), (0, 65535),
                          (0, 1e30), (-1e30, 0))
    },
    **{
        f"a pixel is {value}": {"x_test": np.where(np.arange(16).reshape(4, 4) == 5, value, X)}
        for value in (np.nan, np.inf, -np.inf, 2.0, -0.5)
    },
    **{
        f"labels {kind}": {"y_test": Y.astype(kind)}
        for kind in ("float32", "float64", "bool", "complex64", "U8", "S8")
    },
    **{
        f"labels of shape {shape}": {"y_test": np.zeros(shape, np.int64)}
        for shape in ((), (0,), (5,), (7,), (6, 2), (6, 1, 1), (1, 6))
    },
    "labels negative": {"y_test": Y - 1},
    "labels huge": {"y_test": Y + 2**40},
    "labels 2^63": {"y_test": Y.astype(np.uint64) + 2**63},
    "labels one-hot": {"y_test": np.eye(3)[Y]},
    "labels multi-label": {"y_test": np.ones((6, 14), int)},
    "images are objects": {"x_test": np.array([{}] * 6, object)},
    "labels are objects": {"y_test": np.array([{}] * 6, object)},
    "images are text": {"x_test": np.array(["a"] * 6)},
    "records": {"x_test": np.zeros(6, dtype=[("a", "f4")])},
    "no images": {"x_test": None},
    "no labels": {"y_test": None},
    "nothing": {"x_test": None, "y_test": None},
    "other names": {"x_test": None, "y_test": None, "data": X, "target": Y},
    "more classes than the model": {"y_test": Y + 4},
}  # fmt: skip


@pytest.mark.parametrize("case", ARCHIVES)
def test_archives(refuses, tmp_path, case):
    arrays = {"x_test": X, "y_test": Y, **ARCHIVES[case]}
    path = tmp_path / "a.npz"
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    assert not refuses(run_on(dataset=f"npz:{path}", eps="0.1"))


def run_on(**changes: str) -> list[str]:
    given = {**VALID["run"], **changes}
    return ["run", *(f"--{name}={value}" for name, value in given.items())]


def damaged(path: Path) -> Iterator[tuple[str, bytes]]:
    """Files that are no archives."""
    np.savez(path, x_test=X, y_test=Y)
    whole = path.read_bytes()
    yield from {
        "empty": b"",
        "text": b"x_test",
        "half": whole[: len(whole) // 2],
        "no end": whole[:-30],
        "no begin": whole[40:],
        "a pickle": pickle.dumps({"x_test": [1]}),
        "zeros": bytes(1000),
        "flipped": whole[:200] + bytes(100) + whole[300:],
    }.items()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x_test.npy", b"\x80\x04}.")
        archive.writestr("y_test.npy", b"\x93NUMPY\x01\x00\xff\xff")
    yield "members are none", path.read_bytes()


def test_files_that_are_no_archives(refuses, tmp_path):
    faults = {}
    for name, content in list(damaged(tmp_path / "a.npz")):
        (tmp_path / "b.npz").write_bytes(content)
        faults[name] = refuses(run_on(dataset=f"npz:{tmp_path}/b.npz", eps="0.1"))
    for options in ("split=tset", "classes=1", "classes=2", "classes=x", "size=3", "split=train"):
        np.savez(tmp_path / "c.npz", x_test=X, y_test=Y)
        faults[options] = refuses(run_on(dataset=f"npz:{tmp_path}/c.npz,{options}", eps="0.1"))
    assert not any(faults.values()), faults


def weights() -> dict[str, bytes]:
    shipped = (ROOT / "bench/models/weights/mnist5k-cnn.safetensors").read_bytes()
    size = int.from_bytes(shipped[:8], "little")
    header = json.loads(shipped[8 : 8 + size])
    name = next(key for key in header if key != "__metadata__")

    def headed(**change: object) -> bytes:
        text = json.dumps({**header, name: {**header[name], **change}}).encode()
        return len(text).to_bytes(8, "little") + text + shipped[8 + size :]

    return {
        "empty": b"",
        "text": b"weights",
        "zeros": bytes(5000),
        "half": shipped[: len(shipped) // 2],
        "one byte short": shipped[:-1],
        "one byte long": shipped + b"x",
        "header beyond the file": (2**62).to_bytes(8, "little") + shipped[8:],
        "header of nothing": (0).to_bytes(8, "little") + shipped[8:],
        "header no JSON": shipped[:8] + b"x" * size + shipped[8 + size :],
        "dtype unknown": headed(dtype="F31"),
        "dtype of another size": headed(dtype="F64"),
        "shape negative": headed(shape=[-1]),
        "shape huge": headed(shape=[2**60, 2**60]),
        "shape another": headed(shape=[1]),
        "offsets beyond": headed(data_offsets=[0, 2**50]),
        "offsets backwards": headed(data_offsets=[8, 0]),
        "a pickle": pickle.dumps({"w": Path("x")}),
        "a pickle of a function": pickle.dumps(print),
    }


def tensors() -> dict[str, dict[str, torch.Tensor]]:
    right = {"0.weight": torch.zeros(3, 16), "0.bias": torch.zeros(3)}
    return {
        "none": {},
        "other names": {"w": torch.zeros(2)},
        "integers": {key: value.long() for key, value in right.items()},
        "booleans": {key: value.bool() for key, value in right.items()},
        "complex": {key: value.to(torch.complex64) for key, value in right.items()},
        "scalars": {key: torch.tensor(1.0) for key in right},
    }


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights(refuses, tmp_path, suffix):
    faults = {}
    file = tmp_path / f"net{suffix}"
    ask = run_on(dataset="mnist5k", classifier=f"file:{file},arch=cnn")
    for name, content in weights().items():
        if suffix == ".pt" and name in ("one byte long",):
            continue
        file.write_bytes(content)
        faults[name] = refuses(ask)
    for name, content in tensors().items():
        save_file(content, file) if suffix == ".safetensors" else torch.save(content, file)
        faults[name] = refuses(ask)
    for options in ("", ",arch=nonet", ",arch=cnn,mean=x", ",arch=cnn,mean=0.5,std=0",
                    ",arch=cnn,std=1", ",arch=cnn,frob=1"):  # fmt: skip
        faults[options] = refuses(run_on(dataset="mnist5k", classifier=f"file:{file}{options}"))
    assert not any(faults.values()), "\n".join(f"{k}: {v}" for k, v in faults.items() if v)


SUITES = {
    "brackets": "[" * 100_000,
    "nested lists": "attack = " + "[" * 100_000,
    "nested lists, short lines": "attack = " + "[\n" * 5_000,
    "nested tables": "a" + ".a" * 50_000 + " = 1",
    "inline tables": "a = " + "{a = " * 50_000,
    "broken": "= 3",
    "open string": 'attack = "pgd',
    "run is a number": "run = 3",
    "run is empty": "run = []",
    "run is a table": "[run]\nn = 1",
    "run holds numbers": "run = [1]",
    "unknown key": "epz = 1",
    "table": "[attack]\nname = 1",
    "boolean": "eps = true",
    "boolean in a list": "seed = [true]",
    "fraction": "n = 2.5",
    "text for a number": 'n = "many"',
    "nan": "eps = nan",
    "inf": "eps = inf",
    "negative": "eps = -1",
    "zero": "eps = 0",
    "seed negative": "seed = [-1]",
    "seed 2^64": f"seed = {2**64}",
    "seed 10^4000": "seed = 1" + "0" * 4000,
    "n 10^22": "n = 1" + "0" * 22,
    "date": "n = 2020-01-01",
    "empty list": "[[run]]\nattack = []",
    "empty text": 'attack = ""',
    "list in a list": 'attack = [["pgd"]]',
    "number for text": "attack = 3",
    "unknown name": 'attack = "pdg"',
    "control": 'attack = "a\\u0007"',
    "long": f'attack = "{LONG}"',
    "twice": "n = 1\nn = 2",
    "no UTF-8": "\udcff",
}


@pytest.mark.parametrize("case", SUITES)
def test_suites(refuses, tmp_path, case):
    path = tmp_path / "s.toml"
    path.write_bytes(SUITES[case].encode(errors="surrogateescape"))
    named = "attack" in SUITES[case]
    given = {name: value for name, value in VALID["run"].items() if not named or name != "attack"}
    arguments = ["run", *(f"--{name}={value}" for name, value in given.items()), f"--suite={path}"]
    assert not refuses(arguments)


_DEFENSE = "from bench import Defense\nclass D(Defense):\n def build(self, *a): "

PLUGINS = {
    "does not parse": "def x(:",
    "tabs": "if 1:\n\tx=1\n        y=2",
    "null byte": "x = 1\x00",
    "no UTF-8": "# \udcff",
    "nested": "x = " + "(" * 5_000,
    "raises": "raise ValueError('one\\ntwo')",
    "exits": "import sys; sys.exit(0)",
    "interrupts": "raise SystemError('x')",
    "imports nothing": "import no_such_module_at_all",
    "lacks the name": "x = 1",
    "is a number": "D = 3",
    "is a function": "def D(): pass",
    "is a class": "class D: pass",
    "is an instance": _DEFENSE.replace("D(", "E(") + "1\nD=E()",
    "is abstract": "from bench import Defense\nclass D(Defense): pass",
    "fails in init": "from bench import Defense\nclass D(Defense):\n"
    " def __init__(self, p): raise ValueError('no')\n def build(self, *a): pass",
    "builds a number": _DEFENSE + "return 3",
    "builds nothing": _DEFENSE + "pass",
    "builds a class": "from bench import Defense, Wrapper\nclass D(Defense):\n"
    " def build(self, *a): return Wrapper",
    "another kind": "from bench import Attack as D",
}


@pytest.mark.parametrize("command", ["run", "check", "info"])
@pytest.mark.parametrize("case", PLUGINS)
def test_plugin_files(refuses, tmp_path, case, command):
    if case.startswith(("builds", "fails")) and command != "run":
        pytest.skip("told as a failed check, or not made at all")
    if case in ("is abstract", "another kind") and command != "run":
        pytest.skip("a class that can be described")
    file = tmp_path / "p.py"
    file.write_bytes(PLUGINS[case].encode(errors="surrogateescape"))
    spec = f"{file}@D"
    ask = run_on(defense=spec) if command == "run" else [command, spec]
    assert not refuses(ask)
