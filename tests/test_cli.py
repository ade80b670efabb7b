"""The command as a user types it: output, exit codes, and one clear line for every bad input."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bench.cli import execute
from tests.helpers import MODEL, ROOT, call, refused
from tests.toys import linear_problem

TOY = ["--dataset", "toy:n=20", "--classifier", MODEL, "--device", "cpu"]


def archive(path: Path, **changes) -> Path:
    _, images, labels = linear_problem(3, 20, active_box=False)
    arrays = {"x_test": images[:, 0].numpy(), "y_test": labels.numpy(), **changes}
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return path


def test_run_prints_the_table_on_stdout_and_progress_on_stderr(capsys, tmp_path):
    code, stdout, stderr = call(
        capsys,
        "run",
        "--defense",
        "toy-jitter",
        "--attack",
        "pgd:steps=3",
        "--attack",
        "pgd+replay:steps=3",
        *TOY,
        "--out",
        str(tmp_path),
    )
    assert code == 0
    assert "| toy-jitter" in stdout and "| undefended" in stdout and "replayed" in stdout
    assert "images, robust" in stderr and "ETA" in stderr and "ETA" not in stdout
    assert len(list(tmp_path.glob("*.json"))) == 3
    _, again, said = call(
        capsys,
        "run",
        "--defense",
        "toy-jitter",
        "--attack",
        "pgd:steps=3",
        "--attack",
        "pgd+replay:steps=3",
        *TOY,
        "--out",
        str(tmp_path),
    )
    assert again == stdout and said.count("already stored") == 3


def test_json_and_dry_run(capsys, tmp_path):
    base = [
        "run",
        "--defense",
        "undefended",
        "--attack",
        "pgd",
        "--seed",
        "0",
        "--seed",
        "1",
        *TOY,
        "--out",
        str(tmp_path),
    ]
    code, stdout, _ = call(capsys, *base, "--dry-run")
    assert code == 0 and "2 evaluations, 2 to run" in stdout and not list(tmp_path.iterdir())
    assert "at most 24F 20B an image" in stdout and "hours of a GPU" in stdout
    code, stdout, _ = call(capsys, *base, "--json")
    records = json.loads(stdout)
    assert [r["title"]["seed"] for r in records] == ["0", "1"]
    _, stdout, _ = call(capsys, *base, "--dry-run", "--json")
    assert all(row["stored"] and row["cost"] is None for row in json.loads(stdout))


def test_suite_files_are_a_matrix_of_the_same_options(capsys, tmp_path):
    suite = tmp_path / "suite.toml"
    suite.write_text(
        f'dataset = "toy:n=20"\nclassifier = "{MODEL}"\neps = "1/20"\nattack = "pgd:steps=2"\n'
        '[[run]]\ndefense = ["undefended", "toy-jitter"]\n[[run]]\ndefense = '
        '"toy-jitter:sigma=0.1"\nseed = [0, 1]\n'
    )
    code, stdout, _ = call(capsys, "run", "--suite", str(suite), "--dry-run")
    assert code == 0 and "5 evaluations" in stdout
    code, stdout, _ = call(
        capsys, "run", "--suite", str(suite), "--n", "10", "--seed", "3", "--dry-run"
    )
    assert "3 evaluations" in stdout and "n=10, seed 3" in stdout


def test_a_failed_evaluation_exits_with_1(capsys, tmp_path):
    code, stdout, stderr = call(
        capsys, "run", "--defense", "toy-crash", "--attack", "pgd", *TOY, "--out", str(tmp_path)
    )
    assert code == 1
    assert "error" in stdout and "crashes on larger batches" in stderr
    code, stdout, _ = call(capsys, "leaderboard", str(tmp_path))
    assert code == 0 and "error" in stdout


def test_leaderboard_formats(capsys, tmp_path):
    call(
        capsys,
        "run",
        "--defense",
        "toy-jitter",
        "--attack",
        "pgd:steps=3",
        *TOY,
        "--out",
        str(tmp_path / "r"),
    )
    code, stdout, _ = call(capsys, "leaderboard", str(tmp_path / "r"), "--format", "csv")
    assert (
        code == 0
        and stdout.splitlines()[0].startswith("board,dataset")
        and len(stdout.splitlines()) == 3
    )
    code, stdout, _ = call(
        capsys, "leaderboard", str(tmp_path / "r"), "--out", str(tmp_path / "board.md")
    )
    assert stdout == "" and (tmp_path / "board.md").read_text().startswith("# toy")
    assert oct((tmp_path / "board.md").stat().st_mode & 0o777) != oct(0o600)


def test_list_info_doctor(capsys):
    _, stdout, _ = call(capsys, "list", "attacks")
    assert "pgd" in stdout and "alias of pgd:gradient=bpda" in stdout and "+replay" in stdout
    _, stdout, _ = call(capsys, "list", "--json")
    assert {"defenses", "attacks", "datasets", "classifiers", "diffusion-models", "studies"} == set(
        json.loads(stdout)
    )
    _, stdout, _ = call(capsys, "info", "random-resize")
    assert "grow" in stdout and "data access: none" in stdout and "Xie" in stdout
    _, stdout, _ = call(capsys, "info", "dast")
    assert (
        "bn: train|frozen | None = None" in stdout
        and "eps: str = auto" in stdout
        and "rate: float | None = None" in stdout
    )
    _, stdout, _ = call(capsys, "info", "bpda")
    assert "alias_of: pgd:gradient=bpda" in stdout and "steps" in stdout
    _, stdout, _ = call(capsys, "info", "npz", "--json")
    assert json.loads(stdout)["parameters"][0]["name"] == "path (positional)"
    _, stdout, _ = call(capsys, "info", "diffusion-models/zoo")
    assert stdout.startswith("zoo  (diffusion-models)") and "step: int = 0" in stdout
    code, stdout, _ = call(capsys, "doctor")
    assert code == 0 and "torch" in stdout and "broken: none" in stdout


def test_gallery_exits_by_what_is_broken(capsys, tmp_path):
    asked = [
        "gallery",
        "--defense",
        "one-hot",
        "--defense",
        "constant:label=3",
        "--n",
        "10",
        "--out",
        str(tmp_path),
    ]
    code, stdout, _ = call(capsys, *asked)
    assert code == 0 and "linf 0.2" in stdout and stdout.count("| broken") == 2
    code, again, said = call(capsys, *asked, "--json")
    assert code == 0 and [row["verdict"] for row in json.loads(again)] == ["broken", "broken"]
    assert said.count("ETA") == 0, "stored evaluations are not computed again"
    code, stdout, _ = call(capsys, *asked, "--naive", "null", "--eps", "0.001")
    assert code == 0, "the base survives as well"
    assert "no known answer" in refused(
        capsys, tmp_path / "none", "gallery", "--defense", "undefended"
    )


PLUGIN = '''
from bench_attacks.pgd import PGD
from bench.defense import Defense, InputTransform


class Flip(InputTransform):
    def transform(self, images, noise):
        return images.flip(-1).flip(-1)


class Mirror(Defense):
    """Two flips."""

    gradients = ("full", "bpda")

    def build(self, classifier, access, noise):
        return Flip(classifier)


class MyPGD(PGD):
    """PGD by another name."""
'''


def test_plugins_from_a_file(capsys, tmp_path):
    file = tmp_path / "plug,in.py"
    file.write_text(PLUGIN)
    file = file.rename(tmp_path / "plugin.py")
    code, stdout, stderr = call(
        capsys,
        "run",
        "--defense",
        f"{file}@Mirror",
        "--attack",
        f"{file}@MyPGD:steps=3",
        *TOY,
        "--out",
        str(tmp_path / "r"),
    )
    assert code == 0, stderr
    assert "Mirror" in stdout and "MyPGD:steps=3" in stdout
    record = next((tmp_path / "r").glob("*Mirror*.json"))
    code, stdout, stderr = call(capsys, "verify", str(record), "--device", "cpu")
    assert code == 2 and "--trust" in stderr
    code, stdout, stderr = call(capsys, "verify", str(record), "--device", "cpu", "--trust")
    assert code == 0, stderr
    code, stdout, _ = call(capsys, "info", f"{file}@Mirror")
    assert code == 0 and "Two flips." in stdout


RUN = ["run", "--defense", "undefended", "--attack", "pgd:steps=2"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "--defense", "undefendet", "--attack", "pgd"], "Did you mean 'undefended'"),
        (["run", "--defense", "undefended", "--attack", "pdg"], "Did you mean 'pgd'"),
        (["run", "--defense", "undefended"], "--attack"),
        (["run", "--defense", "undefended:x=1", "--attack", "pgd"], "no parameter 'x'"),
        (["run", "--defense", "undefended", "--attack", "pgd:steps=many"], "'steps' got 'many'"),
        (["run", "--defense", "undefended", "--attack", "pgd:steps=0"], "greater than or equal"),
        (
            ["run", "--defense", "undefended", "--attack", "pgd+eot", "--randomness", "replay"],
            "keep one",
        ),
        (["run", "--defense", "undefended", "--attack", "pgd:"], "nothing follows the colon"),
        ([*RUN, "--eps", "0"], "positive"),
        ([*RUN, "--eps", "-0.1"], "positive"),
        ([*RUN, "--eps", "8"], "8/255"),
        ([*RUN, "--eps", "big"], "'big'"),
        ([*RUN, "--eps", "nan"], "positive"),
        ([*RUN, "--norm", "l3", "--eps", "1"], "linf, l2 or l1"),
        ([*RUN, "--norm", "l1"], "give --eps"),
        ([*RUN, "--norm", "l2"], "--eps"),
        ([*RUN, "--data-root", __file__], "is a file"),
        ([*RUN, "--dataset", "npz", "--eps", "0.1"], "write npz:PATH"),
        ([*RUN, "--dataset", f"npz:{ROOT}", "--eps", "0.1"], "a folder where a file is expected"),
        ([*RUN, "--norm", "l2", "--eps", "100"], "lower it"),
        ([*RUN, "--n", "0"], "1 to 20"),
        ([*RUN, "--n", "21"], "1 to 20"),
        ([*RUN, "--n", "x"], "valid integer"),
        ([*RUN, "--seed", "-1"], "greater than"),
        ([*RUN, "--batch-size", "0"], "give 1 to"),
        ([*RUN, "--device", "cuda:99"], "no such GPU"),
        ([*RUN, "--device", "tpu"], "unknown device"),
        ([*RUN, "--randomness", "frosh"], "Did you mean 'fresh'"),
        ([*RUN, "--gradient", "adjoint"], "offers no gradient"),
        ([*RUN, "--dataset", "mnist6k"], "Did you mean 'mnist5k'"),
        ([*RUN, "--classifier", "zoo:mnist5k-cmn"], "Did you mean 'mnist5k-cnn'"),
        ([*RUN, "--classifier", "nofile.py@make"], "no such file"),
        ([*RUN, "--classifier", MODEL.replace("make_model", "make_mode")], "defines no"),
        ([*RUN, "--classifier", MODEL.replace("make_model", "make_number")], "returned int"),
        ([*RUN, "--classifier", MODEL + ":x=1"], "takes no parameters"),
        ([*RUN, "--suite", "none.toml"], "cannot read the suite"),
        (
            ["run", "--defense", f"{ROOT}/attacks/bench_attacks/pgd.py@PGD", "--attack", "pgd"],
            "no defense",
        ),
        (
            [
                "run",
                "--defense",
                f"{ROOT}/defenses/bench_defenses/undefended.py@Defense",
                "--attack",
                "pgd",
            ],
            "write its build",
        ),
        (
            [
                "run",
                "--defense",
                "undefended",
                "--attack",
                f"{ROOT}/attacks/bench_attacks/pgd.py@Attack",
            ],
            "write its run",
        ),
        (
            [
                "run",
                "--defense",
                "undefended",
                "--attack",
                f"{ROOT}/defenses/bench_defenses/undefended.py@Undefended",
            ],
            "no attack",
        ),
        (["run", "--defense", "undefended", "--attack", "pgd:step=eps/0"], "fraction"),
        (["run", "--defense", "undefended", "--attack", "fgsm:steps=50"], "keep one"),
        (
            [
                "run",
                "--defense",
                "undefended",
                "--attack",
                "pgd:randomness=(eot:k=3)",
                "--randomness",
                "eot:k=20",
            ],
            "keep one",
        ),
        ([*RUN, "--dataset", "npz:" + "x" * 300], "no such file"),
        ([*RUN, "--classifier", "y" * 300 + "@m"], "no such file"),
        ([*RUN, "--gradient", ""], "empty"),
        ([*RUN, "--bogus"], "--bogus"),
        ([*RUN, "--build-seed", "0", "--build-seed", "1"], "run the command once for each"),
        (["show", "a.json", "--images", "a.png", "--images", "b.png"], "--images takes one"),
        (["verify", "none.json"], "cannot read the record"),
        (["leaderboard", "nowhere"], "no such folder"),
        (["leaderboard", "--format", "pdf"], "unknown format 'pdf': use text, md, html"),
        (["list", "cats"], "unknown kind"),
        (["info", "pdg"], "Did you mean 'pgd'"),
        (["info", "my_defense.py"], "my_defense.py@MyClass"),
        (["info", "hf"], "write classifiers/hf or diffusion-models/hf"),
        (["info", f"{ROOT}/bench/errors.py@BadInput"], "is no plugin"),
        (["check", f"{ROOT}/attacks/bench_attacks/pgd.py@Optional"], "Known: Attempt, PGD"),
        (["gallery", "--n", "0"], "1 to 1000"),
        (["gallery", "--naive", "pdg"], "Did you mean 'pgd'"),
        (["gallery", "--naive", ""], "cannot read the spec"),
        (["gallery", "--dataset", "pneumoniamnist", "--data-root", __file__], "is a file"),
        (["train", "mnist5k", "--out", "x.safetensors", "--seed", "-1"], "give 0 to"),
        (["train", "toy", "--out", "x.safetensors", "--device", "cpu"], "no training recipe"),
        (["train", "mnist5k", "--out", "x.pt"], ".safetensors"),
        (["frobnicate"], "frobnicate"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(capsys, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    extra = [] if arguments[0] != "run" else [*TOY, "--out", str(tmp_path)]
    for option in ("--dataset", "--classifier", "--device"):
        if option in arguments and option in extra:
            at = extra.index(option)
            del extra[at : at + 2]
    if "mnist5k-cmn" in " ".join(arguments):
        extra[extra.index("--dataset") + 1] = "mnist5k"
    assert words in refused(capsys, tmp_path, *arguments, *extra)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"x_test": np.full((20, 4, 4), np.nan)}, "NaN"),
        ({"x_test": np.full((20, 4, 4), 200.0)}, "255"),
        ({"y_test": np.full(20, -1)}, "number the classes from 0"),
        ({"y_test": np.zeros(19, int)}, "19 labels"),
        ({"y_test": np.zeros(20)}, "integers"),
        ({"y_test": None}, "x_test"),
        ({"x_test": np.array([{}] * 20, dtype=object)}, "never unpickled"),
    ],
)
def test_bad_images_and_labels(capsys, tmp_path, changes, words):
    path = archive(tmp_path / "a.npz", **changes)
    line = refused(
        capsys,
        tmp_path,
        *RUN,
        "--dataset",
        f"npz:{path}",
        "--classifier",
        MODEL,
        "--eps",
        "0.1",
        "--out",
        str(tmp_path),
    )
    assert words in line


def test_missing_truncated_and_wrong_files(capsys, tmp_path):
    def line(dataset="toy:n=20", classifier=MODEL):
        return refused(
            capsys,
            tmp_path / "r",
            *RUN,
            "--dataset",
            dataset,
            "--classifier",
            classifier,
            "--eps",
            "0.1",
            "--out",
            str(tmp_path / "r"),
        )

    whole = archive(tmp_path / "a.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    assert "no such file" in line(f"npz:{tmp_path}/none.npz")
    assert "truncated" in line(f"npz:{tmp_path}/cut.npz")
    shipped = ROOT / "bench/models/weights/mnist5k-cnn.safetensors"
    copy = tmp_path / "net.safetensors"
    shutil.copy(shipped, copy)
    assert "arch=" in line("mnist5k", f"file:{copy}")
    shutil.copy(f"{shipped}.json", f"{copy}.json")
    copy.write_bytes(shipped.read_bytes()[:-100])
    assert "SHA-256" in line("mnist5k", f"file:{copy}")
    (tmp_path / "net.safetensors.json").unlink()
    assert "complete" in line("mnist5k", f"file:{copy},arch=cnn")
    with (tmp_path / "evil.pt").open("wb") as file:
        pickle.dump({"x": Path("y")}, file)
    assert "never unpickled" in line("mnist5k", f"file:{tmp_path}/evil.pt,arch=cnn")
    save_file({"w": torch.zeros(2)}, tmp_path / "other.safetensors")
    assert "lacks the tensor" in line("mnist5k", f"file:{tmp_path}/other.safetensors,arch=cnn")


def test_a_model_of_the_wrong_shape(capsys, tmp_path):
    (tmp_path / "m.py").write_text(
        "import torch\n"
        "class M(torch.nn.Module):\n"
        "    def __init__(self, k): super().__init__(); self.k = k\n"
        "    def forward(self, x): return x.flatten(1)[:, :self.k] if self.k else x.flatten(1) / "
        "0\n"
        "def four(): return M(4)\n"
        "def nan(): return M(0)\n"
        "def crash(): return torch.nn.Linear(99, 3)\n"
        "def broken(): raise RuntimeError('no weights')\n"
    )
    for name, words in (
        ("four", "(4, 3) were expected"),
        ("crash", "does not run"),
        ("broken", "no weights"),
        ("nan", "were expected"),
    ):
        line = refused(
            capsys,
            tmp_path / "r",
            *RUN,
            "--dataset",
            "toy:n=20",
            "--classifier",
            f"{tmp_path}/m.py@{name}",
            "--out",
            str(tmp_path / "r"),
        )
        assert words in line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("run = []", "[[run]]"),
        ("run = 3", "[[run]]"),
        ("eps = true", "mean nothing"),
        ("seed = [true]", "mean nothing"),
        ("n = 2.5", "integer"),
        ("epz = 1", "Did you mean 'eps'"),
        ("= 3", "not TOML"),
        ("[[run]]\nattack = []", "at least 1"),
        ("seed = [-1]", "greater than"),
        ("build_seed = [0, 1]", "write a [[run]] for each"),
        ("n = [20, 30]", "write a [[run]] for each"),
    ],
)
def test_bad_suites(capsys, tmp_path, text, words):
    (tmp_path / "s.toml").write_text(text)
    assert words in refused(
        capsys,
        tmp_path,
        *RUN,
        *TOY,
        "--suite",
        str(tmp_path / "s.toml"),
        "--out",
        str(tmp_path / "r"),
    )


CLASS = "from bench.defense import Defense\nclass D(Defense):\n"


def test_plugin_files_that_fail(capsys, tmp_path):
    cases = {
        "import sys; sys.exit(0)": "SystemExit",
        "raise ValueError('one\\ntwo')": "ValueError: one",
        "def x(:": "SyntaxError",
        f"{CLASS} def __init__(self, p): raise ValueError('no')\n def build(self, *a): pass": "no",
    }
    for i, (text, words) in enumerate(cases.items()):
        file = tmp_path / f"p{i}.py"
        file.write_text(text)
        assert words in refused(
            capsys,
            tmp_path,
            "run",
            "--defense",
            f"{file}@D",
            "--attack",
            "pgd",
            *TOY,
            "--out",
            str(tmp_path / "r"),
        )


@pytest.mark.parametrize(
    "key", ["identity", "title", "scale", "sources", "outcomes", "id", "schema_version"]
)
def test_records_edited_by_hand_are_refused(capsys, tmp_path, key):
    call(capsys, "run", "--defense", "undefended", "--attack", "null", *TOY, "--out", str(tmp_path))
    (path,) = tmp_path.glob("*.json")
    record = json.loads(path.read_text())
    record[key] = (
        99 if key == "schema_version" else {} if isinstance(record[key], dict) else "0" * 16
    )
    path.write_text(json.dumps(record))
    for command in ("verify", "leaderboard"):
        code, stdout, stderr = call(capsys, command, str(path if command == "verify" else tmp_path))
        assert code == 2 and "is no record" in stderr and stderr.count("\n") == 1 and not stdout


def test_an_unwritable_folder(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot write" in refused(
        capsys, tmp_path, *RUN, *TOY, "--out", str(tmp_path / "file" / "r")
    )


def test_a_damaged_record_is_named(capsys, tmp_path):
    (tmp_path / "a--b.json").write_text("{")
    assert execute(["leaderboard", str(tmp_path)]) == 2
    assert "a--b.json is no record" in capsys.readouterr().err


def test_help_and_list_do_not_import_torch():
    for arguments in (["--help"], ["run", "--help"], ["list"]):
        unwanted = {"torch", "numpy", "scipy", "matplotlib", "pandas"}
        code = (
            f"import sys\nfrom bench.cli import execute\nexecute({arguments!r})\nassert not "
            f"{unwanted} & set(sys.modules)"
        )
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert done.returncode == 0, done.stderr
        print(f"{arguments}: {time.perf_counter() - began:.2f} s")


def test_the_main_job_on_the_embedded_data(capsys, tmp_path):
    """A known answer for the whole chain: the shipped classifier is 97.9 % clean and is broken to
    nothing.
    """
    code, stdout, _ = call(
        capsys,
        "run",
        "--defense",
        "undefended",
        "--attack",
        "pgd",
        "--n",
        "200",
        "--out",
        str(tmp_path),
        "--json",
    )
    (record,) = json.loads(stdout)
    assert code == 0
    assert record["metrics"]["clean"]["mean"]["value"] > 0.96
    assert record["metrics"]["adversarial"]["mean"]["value"] <= 0.01
    assert record["scale"] == {"n": 200, "available": 1000, "reduced": True}


def test_without_a_command_the_help_is_shown(capsys):
    assert execute([]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("Usage: bench") and "\n  gallery " in shown


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("run --defense random-re", "random-resize"),
        ("run --attack pg", "pgd"),
        ("run --dataset mnist5", "mnist5k"),
        ("run --classifier pytorch", "pytorchcv"),
        ("info fashion", "fashion-mnist"),
        ("study theore", "theorem"),
        ("check jpe", "jpeg"),
        ("train pneu", "pneumoniamnist"),
    ],
)
def test_the_shell_completes_names_without_torch(typed, expected):
    words = ["bench", *typed.split()]
    code = (
        "import sys\nfrom bench.cli import execute\n"
        "try: execute([])\nexcept SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "_BENCH_COMPLETE": "complete_bash",
            "COMP_WORDS": " ".join(words),
            "COMP_CWORD": str(len(words) - 1),
        },
    )
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout.split()


def test_too_little_memory_is_one_line_that_names_the_batch_size(capsys, tmp_path):
    (tmp_path / "big.py").write_text(
        "import torch\nfrom bench import Defense, Wrapper\n"
        "class Greedy(Wrapper):\n"
        "    def forward_pass(self, gradient='full', view='logits'):\n"
        "        inner = self.inner(gradient, view)\n"
        "        def run(images, noise):\n"
        "            if len(images) > 8: torch.empty(2**55)\n"
        "            return inner(images, noise)\n"
        "        return run\n"
        "class Big(Defense):\n"
        "    'Wants more memory than there is for more than 8 images.'\n"
        "    def build(self, classifier, access, noise): return Greedy(classifier)\n"
    )
    run = ["run", "--defense", f"{tmp_path}/big.py@Big", "--attack", "null", *TOY]
    code, stdout, stderr = call(capsys, *run, "--out", str(tmp_path / "r"), "--batch-size", "20")
    assert code == 1 and "Traceback" not in stdout + stderr
    assert "out of memory on cpu with --batch-size 20: give a smaller one, such as 5" in stderr
    code, *_ = call(capsys, *run, "--out", str(tmp_path / "r"), "--batch-size", "5")
    assert code == 0
