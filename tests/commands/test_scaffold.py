"""`bench new`, the example package, and every code block of docs/start/own-defense.md."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from bench.cli import execute
from bench.commands.scaffold import class_name
from bench.noise import isolated
from bench.plugins.registry import Registry
from tests.helpers import ROOT, call


def shell(folder: Path, script: str) -> str:
    """Run a script in a folder, offline; what pip installs goes into folder/site, which is on the
    path.
    """
    binaries = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{binaries}:{os.environ['PATH']}",
        "PYTHONPATH": f"{folder / 'site'}:{ROOT}",
        "PIP_TARGET": str(folder / "site"),
        "PIP_NO_DEPS": "1",
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PYTEST_ADDOPTS": "-p no:cacheprovider -p no:xdist",
        "OMP_NUM_THREADS": "1",
    }
    preamble = (
        'set -euo pipefail\nbench() { python -m bench "$@"; }\npytest() { python -m pytest '
        '"$@"; }\npip() { python -m pip "$@"; }\n'
    )
    done = subprocess.run(
        ["bash", "-c", preamble + script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_example_is_what_the_template_writes(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call(capsys, "new", "defense", "median-smoothing", "--package")[0] == 0
    assert contents(tmp_path / "median-smoothing") == contents(
        ROOT / "examples" / "median-smoothing"
    )


def test_the_example_package_installs_runs_and_passes_its_tests(tmp_path):
    said = shell(
        tmp_path,
        f"""
        cp -r {ROOT}/examples/median-smoothing . && pip install --quiet ./median-smoothing
        bench list defenses
        bench run --defense median-smoothing:radius=2 --attack bpda --n 10
        pytest -q median-smoothing
        """,
    )
    assert re.search(r"median-smoothing +Median smoothing of the image", said)
    assert "| median-smoothing:radius=2 | pgd (bpda)" in said and "19 passed" in said


def run_here(line: str, folder: Path, monkeypatch) -> int:
    """Run one line of the guide; bench and pytest in this process, where torch is loaded
    already.
    """
    command, *arguments = shlex.split(line)
    if command == "bench":
        return execute(arguments)
    if command == "python":
        arguments = arguments[2:]
        return pytest.main(
            [
                "-p",
                "no:cacheprovider",
                "-p",
                "no:xdist",
                "-p",
                "no:timeout",
                "-c",
                os.devnull,
                *arguments,
            ]
        )
    assert command == "pip"
    shell(folder, line)
    monkeypatch.syspath_prepend(folder / "site")
    monkeypatch.setattr(
        "bench.plugins.create.ATTACKS", Registry("attack", "bench.attacks", "bench.attack:Attack")
    )
    return 0


def test_every_block_of_the_guide_runs(tmp_path, capsys, monkeypatch):
    guide = (ROOT / "docs" / "start" / "own-defense.md").read_text()
    blocks = re.findall(
        r'^```(\w+)(?: title="(.*?)")?\n(.*?)^```$', guide, re.MULTILINE | re.DOTALL
    )
    assert len(blocks) == guide.count("\n```") / 2
    monkeypatch.chdir(tmp_path)
    for kind, file, text in blocks:
        if kind == "python":
            (tmp_path / file).write_text(text)
        else:
            assert kind == "sh"
            # The progress bar's library numbers its styles with Python's global generator.
            with isolated(0):
                codes = {line: run_here(line, tmp_path, monkeypatch) for line in text.splitlines()}
            assert not any(codes.values()), codes
    said = capsys.readouterr().out
    assert said.count("checks, 0 failed") == 4 and "36 passed" in said and "my-push" in said
    assert "| jitter.py@Jitter " in said and "| my_guard.py@MyGuard" in said


@pytest.mark.parametrize("kind", ["defense", "attack"])
def test_a_new_file_passes_its_own_tests(kind, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, stdout, _ = call(capsys, "new", kind, "my-own_2")
    assert code == 0 and f"bench check my_own_2.py@{class_name('my-own_2')}" in stdout
    assert sorted(contents(tmp_path)) == ["my_own_2.py", "test_my_own_2.py"]
    code, stdout, _ = call(capsys, "check", "my_own_2.py@MyOwn2")
    assert code == 0 and "next: bench run --defense" in stdout and "FAIL" not in stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("dataset", "mine"), "give defense, attack or board"),
        (("defense", "My-Guard"), "small letters"),
        (("defense", "a/b"), "small letters"),
        (("defense", "a" * 300), "at most 100"),
        (("defense", "class"), "Python module already"),
        (("defense", "random"), "Python module already"),
        (("attack", "torch"), "Python module already"),
        (("defense", "bit-depth"), "exists already"),
    ],
)
def test_bad_names_get_one_line_and_write_nothing(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, stderr = call(capsys, "new", *arguments)
    assert code == 2 and said in stderr and stderr.count("\n") == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", [[], ["--package"]])
def test_nothing_is_overwritten(capsys, tmp_path, monkeypatch, package):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "mine" if package else tmp_path
    folder.mkdir(exist_ok=True)
    (folder / "test_mine.py").write_text("precious")
    code, _, stderr = call(capsys, "new", "attack", "mine", *package)
    assert (
        code == 2
        and "nothing is overwritten" in stderr
        and list(contents(folder)) == ["test_mine.py"]
    )
