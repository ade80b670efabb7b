"""Records that somebody mangled: one line, never a number, never a crash."""

import contextlib
import copy
import json
import os
import subprocess
import sys

import pytest

from bench.results.record import Record
from bench.storage.identity import identity_hash
from tests.helpers import ROOT, call, run_toys
from tests.report.helpers import REPLAY

HOSTILE = "|\n<img src=x onerror=alert(1)>\x1b[31m=cmd()"
VALUES = [None, True, -1, 10**30, 1.5, -(2.0**70), "", "x", HOSTILE, [], [[]], {}, {"a": {}}]
IDS = ["0-99999999999", "0-" + "9" * 18, "0,0", "5-1", "-", ",", "9" * 5000, "0-9" * 1000]


def paths(content, before=()):
    """Every field, at any depth; of lists the first item."""
    yield before
    inside = content.items() if isinstance(content, dict) else []
    if isinstance(content, list):
        inside = list(enumerate(content))[:1]
    for key, value in inside:
        yield from paths(value, (*before, key))


def at(content, path):
    for key in path:
        content = content[key]
    return content


def rehashed(content):
    with contextlib.suppress(KeyError, TypeError, ValueError):
        content["id"] = identity_hash(content["identity"])
    return content


def mangled(base):
    """Name and bytes of records with one harm each."""
    for path in paths(base):
        if path:
            changed = copy.deepcopy(base)
            del at(changed, path[:-1])[path[-1]]
            yield f"without {path}", json.dumps(rehashed(changed)).encode()
    for number, path in enumerate(paths(base)):
        if path:
            changed = copy.deepcopy(base)
            at(changed, path[:-1])[path[-1]] = VALUES[number % len(VALUES)]
            yield (
                f"{path} = {VALUES[number % len(VALUES)]!r}",
                json.dumps(rehashed(changed)).encode(),
            )
    for ids in IDS:
        changed = copy.deepcopy(base)
        changed["outcomes"]["ids"] = ids
        yield f"ids {ids[:20]}", json.dumps(changed).encode()
    for key in ("labels", "clean", "adversarial"):
        for text in ("!!!", "z" * len(base["outcomes"]["labels"]), "", "é" * 1000, "-" * 1000):
            changed = copy.deepcopy(base)
            changed["outcomes"][key] = text if key == "labels" else [text]
            yield f"{key} {text[:5]}", json.dumps(changed).encode()
    whole = json.dumps(base).encode()
    yield from {
        "empty": b"",
        "truncated": whole[:500],
        "binary": bytes(range(256)) * 100,
        "nested": b"[" * 100_000,
        "deep": b'{"identity":' * 50_000,
        "list": b"[]",
        "null": b"null",
        "nan": whole.replace(b'"eps": 0.2', b'"eps": NaN').replace(b'"value": ', b'"value": N'),
        "digits": whole.replace(b'"n": ', b'"n": ' + b"9" * 6000),
        "surrogate": whole.replace(b'"full"', b'"\\ud800"'),
        "twice": whole[:-1] + b', "id": "0000000000000000"}',
        "future": json.dumps({**base, "schema_version": 99}).encode(),
        "past": json.dumps({**base, "schema_version": 1}).encode(),
        "more": json.dumps({**base, "more": 1}).encode(),
    }.items()


READ = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
from pathlib import Path
from bench.cli import execute
from tests import toy_plugins
for path in sorted(Path(sys.argv[1]).iterdir()):
    for command in (["show"], ["compare"]):
        code = execute([*command, str(path)])
        print("CODE", code, *command, path.name, flush=True)
    code = execute(["leaderboard", str(path.parent / path.name), "--out", "/dev/null/x.md"])
    print("CODE", 0 if code == 2 else code, "leaderboard", path.name, flush=True)
# Of this program alone: ru_maxrss begins with what the process that started it had.
peak = Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]
print("PEAK", peak)
"""


@pytest.mark.parametrize("step", [9, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.timeout(900)
def test_no_mangled_record_crashes_a_reader(tmp_path, step):
    folder, names = tmp_path / "mangled", {}
    folder.mkdir()
    base = json.loads(REPLAY.read_text())
    for number, (name, content) in enumerate(list(mangled(base))[::step]):
        (folder / f"{number:04d}--x.json").write_bytes(content)
        names[f"{number:04d}--x.json"] = name
    (folder / "9990--x.json").symlink_to(folder / "9990--x.json")
    (folder / "9991--x.json").symlink_to("/dev/zero")
    (folder / "9992--x.json").symlink_to(tmp_path / "nothing")
    assert len(names) >= 200 // step
    done = subprocess.run(
        [sys.executable, "-c", READ, str(folder)],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=800,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Traceback" not in done.stderr and "\x1b" not in done.stdout + done.stderr
    codes = [line.split() for line in done.stdout.splitlines() if line.startswith("CODE")]
    assert len(codes) == 3 * (len(names) + 3)
    told = [line for line in done.stderr.splitlines() if line.startswith("bench: ")]
    assert len(told) >= sum(code != "0" for _, code, *_ in codes)
    peak = int(done.stdout.rpartition("PEAK ")[2])
    assert peak < 2_000_000, "kilobytes"


# Verify ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    record = run_toys(
        folder, defenses=("toy-jitter",), dataset="toy:n=40", attacks=("pgd:steps=2",)
    )[-1]
    for file in folder.glob("*.safetensors"):
        file.unlink()
    return json.loads((folder / f"{record.stem}.json").read_text())


# What nobody can recompute: when, how long and with what it ran, and what was typed; and what was
# not measured says nothing.
_FREE = {"finished", "environment", "given", "points"}
_UNMEASURED = {f"without ('{name}',)" for name in ("inference", "pool", "views", "stages")}
_UNMEASURED |= {f"without ('{name}',)" for name in ("targets", "distances", "schema_version", "id")}


def is_loose(name):
    top = name.partition("('")[2].partition("'")[0]
    return top in _FREE or "'seconds'" in name or name in _UNMEASURED


@pytest.mark.parametrize("step", [9, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.timeout(900)
def test_verify_accepts_no_changed_field(tmp_path, capsys, written, step):
    path, unnoticed = tmp_path / "a--b.json", []
    path.write_text(json.dumps(written))
    original = Record.model_validate_json(path.read_bytes())
    assert call(capsys, "verify", str(path), "--device", "cpu")[0] == 0
    for name, content in list(mangled(written))[::step]:
        with contextlib.suppress(ValueError, RecursionError):
            # A field without a value that is left out changes nothing.
            if Record.model_validate_json(content) == original:
                continue
        path.write_bytes(content)
        code, _, told = call(capsys, "verify", str(path), "--device", "cpu")
        if "Traceback" in told or (code not in (1, 2) and not is_loose(name)):
            unnoticed.append((name, code))
    assert not unnoticed
