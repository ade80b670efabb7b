"""What becomes of a study: command, files, identity."""

import json
import math
from pathlib import Path

import pandas as pd
import pytest

from bench.cli import execute
from bench.plugins.create import DEFENSES, STUDIES, create
from bench.spec import Params, parse
from bench.studies import plots, store, study
from bench.studies.store import StudyRecord, find, identity_of
from bench.studies.study import Study, StudyResult, StudySetting
from tests.helpers import MODEL, ROOT, call, refused
from tests.studies.helpers import quoted_results, unwrapped

runs = []


class CountParams(Params):
    power: int = 2
    held: bool | None = None
    fail: bool = False
    name: str = "powers"


@STUDIES.register("toy-powers")
class ToyPowers(Study[CountParams]):
    """Powers of small numbers."""

    Params = CountParams
    positional = "power"
    uses = frozenset({"seed"})

    def run(self, setting):
        runs.append(setting)
        setting.progress("counting")
        if self.params.fail:
            raise ArithmeticError("out of numbers")
        table = pd.DataFrame(
            {
                "base": [1, 3, 7],
                "power": [x**self.params.power / 3 for x in (1, 3, 7)],
                "note": ["a", None, "c"],
            }
        )
        table.loc[1, "power"] = math.nan
        other = pd.DataFrame({"seed": [setting.seed], "limit": [math.inf]})
        figure, axes = plots.axes("Powers grow", "base", "power (units)")
        axes.plot([1, 3, 7], [1, 9, 49], label="power")
        plots.legend(axes)
        tables = {self.params.name: table, "other": other}
        return StudyResult(
            tables, "Powers grow.", {"growth": figure}, self.params.held, "3 numbers"
        )


@STUDIES.register("toy-images")
class ToyImages(Study[Params]):
    """Counts images."""

    Params = Params

    def plugins(self):
        return {"defense": create(DEFENSES, parse("toy-jitter")).identity}

    def run(self, setting):
        setup = setting.setup
        assert setting.setup is setup
        return StudyResult(
            {"images": pd.DataFrame({"n": [len(setup.images)]})}, f"{len(setup.images)} images."
        )


def test_a_study_is_stored_printed_and_found_again(capsys, tmp_path):
    runs.clear()
    code, stdout, stderr = call(capsys, "study", "toy-powers:3", "--out", str(tmp_path))
    (folder,) = tmp_path.iterdir()
    assert (
        code == 0
        and stdout.startswith("Powers grow.\n\n|")
        and "114.3" in stdout
        and "nan" not in stdout
    )
    assert "counting" in stderr and f"stored: {folder}" in stderr and "already" not in stderr
    assert {path.name for path in folder.iterdir()} == {
        "powers.csv",
        "other.csv",
        "growth.png",
        "study.json",
    }
    assert folder.name.startswith("toy-powers_3--") and len(folder.name.rsplit("--", 1)[1]) == 16
    assert (folder / "growth.png").read_bytes().startswith(b"\x89PNG")
    assert pd.read_csv(folder / "powers.csv")["power"][2] == pytest.approx(343 / 3, rel=1e-15)
    code, again, stderr = call(
        capsys, "study", "toy-powers:power=3", "--seed", "0", "--out", str(tmp_path)
    )
    assert (code, again, len(runs)) == (0, stdout, 1) and f"already stored: {folder}" in stderr


def test_what_study_json_says(capsys, tmp_path):
    _, stdout, _ = call(
        capsys, "study", "toy-powers", "--seed", "5", "--out", str(tmp_path), "--json"
    )
    said = json.loads(stdout)
    folder = Path(said.pop("folder"))
    assert json.loads((folder / "study.json").read_text()) == said
    assert (
        said["identity"]["seeds"] == {"root": 5}
        and said["identity"]["study"]["params"]["power"] == 2
    )
    assert said["identity"]["study"]["version"] == 1 and "setup" not in said["identity"]
    assert said["study"] == "toy-powers" and said["scale"] == "3 numbers" and said["held"] is None
    assert {"torch", "numpy", "scipy", "pandas", "matplotlib"} <= set(
        said["environment"]["versions"]
    )
    assert (
        said["seconds"] >= 0
        and said["finished"]
        and list(said["tables"]) == ["powers.csv", "other.csv"]
    )


@pytest.mark.parametrize("name", ["powers.csv", "growth.png", "study.json"])
def test_a_damaged_result_is_computed_again(capsys, tmp_path, name):
    call(capsys, "study", "toy-powers", "--out", str(tmp_path))
    (folder,) = tmp_path.iterdir()
    whole = (folder / "powers.csv").read_bytes()
    (folder / name).write_bytes((folder / name).read_bytes()[:-9])
    runs.clear()
    call(capsys, "study", "toy-powers", "--out", str(tmp_path))
    assert (
        len(runs) == 1
        and list(tmp_path.iterdir()) == [folder]
        and (folder / "powers.csv").read_bytes() == whole
    )


@pytest.mark.parametrize(("held", "code"), [("true", 0), ("false", 1)])
def test_the_exit_code_says_whether_it_held(capsys, tmp_path, held, code):
    arguments = ["study", f"toy-powers:held={held}", "--out", str(tmp_path)]
    assert [call(capsys, *arguments)[0], call(capsys, *arguments)[0]] == [code, code]


def test_a_crash_leaves_nothing(capsys, tmp_path, monkeypatch):
    with pytest.raises(ArithmeticError):
        execute(["study", "toy-powers:fail=true", "--out", str(tmp_path)])
    with pytest.raises(RuntimeError, match="small letters"):
        execute(["study", "toy-powers:name=../Out", "--out", str(tmp_path)])

    def full(path, data):
        if path.name == "growth.png":
            raise OSError(28, "No space left on device", str(path))
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)

    monkeypatch.setattr("bench.storage.files.write_whole", full)
    capsys.readouterr()
    code, _, told = call(capsys, "study", "toy-powers", "--out", str(tmp_path))
    assert code == 2 and "No space left on device): free some space" in told
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["toy-powers", "--dataset", "mnist5k"],
            "does not use --dataset: leave it out (it uses --seed)",
        ),
        (["toy-powers", "--batch-size", "7"], "does not use --batch-size"),
        (["toy-powers", "--device", "cpu"], "does not use --device"),
        (["theorem", "--eps", "0.1"], "does not use --eps"),
        (["theorem:trials=7"], "greater than or equal to 100"),
        (["theorem:dimensions=8+0"], "greater than or equal to 1"),
        (["theorem:draws=two"], "parameter 'draws' got"),
        (["theorem:sigma=0"], "greater than 0"),
        (["theorm"], "Did you mean 'theorem'"),
        (["toy-powers:strength=3"], "has no parameter 'strength'"),
        (["toy-powers", "--seed", "-1"], "seed"),
        (["toy-images", "--dataset", "no-such"], "unknown dataset"),
        (
            ["toy-images", "--dataset", "toy:n=20", "--classifier", MODEL, "--n", "21"],
            "the split has 20 images",
        ),
        (
            [
                "toy-images",
                "--dataset",
                "toy:n=20",
                "--classifier",
                MODEL,
                "--batch-size",
                "0",
            ],
            "batch size is 0",
        ),
        (["toy-images", "--device", "tpu9"], "unknown device"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(capsys, tmp_path, arguments, said):
    out = tmp_path / "out"
    assert said in refused(capsys, out, "study", *arguments, "--out", str(out))
    assert not out.is_dir() or not list(out.iterdir())


def test_an_unwritable_folder(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, stderr = call(capsys, "study", "toy-powers", "--out", str(tmp_path / "file" / "out"))
    assert code == 2 and "cannot write" in stderr


def test_a_study_of_images_is_named_by_what_it_saw(capsys, tmp_path):
    base = [
        "study",
        "toy-images",
        "--dataset",
        "toy:n=20",
        "--classifier",
        MODEL,
        "--out",
        str(tmp_path),
        "--json",
    ]
    first = json.loads(call(capsys, *base)[1])
    assert (
        first["sentence"] == "20 images."
        and first["setup"]["dataset"] == "toy:n=20"
        and first["setup"]["n"] == "20 of 20"
    )
    assert first["identity"]["plugins"]["defense"]["name"] == "toy-jitter"
    same = [["--device", "cpu"], ["--batch-size", "3"], ["--norm", "Linf"], ["--eps", "0.05"]]
    other = [["--n", "10"], ["--eps", "0.1"], ["--norm", "l2", "--eps", "0.05"], ["--seed", "1"]]
    assert {json.loads(call(capsys, *base, *more)[1])["id"] for more in same} == {first["id"]}
    assert (
        len({json.loads(call(capsys, *base, *more)[1])["id"] for more in other} | {first["id"]})
        == 5
    )


def test_versions_enter_the_identity(monkeypatch):
    before = identity_of(create(STUDIES, parse("toy-powers")), StudySetting())
    monkeypatch.setattr(ToyPowers, "version", 2)
    assert identity_of(create(STUDIES, parse("toy-powers")), StudySetting()) != before


def test_a_study_from_a_file(capsys, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "import pandas as pd\nfrom bench.studies.study import Study, StudyResult\n\n\nclass "
        "Mine(Study):\n"
        '    """Mine."""\n\n    uses = frozenset()\n\n    def run(self, setting):\n'
        '        return StudyResult({"one": pd.DataFrame({"x": [1]})}, "One.")\n'
    )
    code, stdout, _ = call(capsys, "study", f"{file}@Mine", "--out", str(tmp_path / "out"))
    assert code == 0 and stdout.startswith("One.")
    assert [path.name.split("--")[0] for path in (tmp_path / "out").iterdir()] == ["mine.py_Mine"]
    assert execute(["info", f"{file}@Mine"]) == 0 and "(studies)" in capsys.readouterr().out
    none = tmp_path / "none"
    arguments = ["study", f"{file}@Mine", "--seed", "1", "--out", str(none)]
    assert "does not use --seed" in refused(capsys, none, *arguments)
    assert not none.exists()


def test_list_and_info(capsys):
    assert execute(["list", "studies"]) == 0
    assert "theorem            Success of fresh, EOT and replay" in capsys.readouterr().out
    assert execute(["info", "theorem"]) == 0
    shown = capsys.readouterr().out
    assert "options: --seed" in shown and "dimensions" in shown and "(studies)" in shown


@pytest.mark.parametrize("name", ["theorem", "coverage"])
def test_the_committed_result_is_the_one_of_this_version(name):
    identity = identity_of(create(STUDIES, parse(name)), StudySetting())
    stored = find(ROOT / "leaderboards" / "studies" / name, store.identity_hash(identity))
    assert stored is not None and isinstance(stored.record, StudyRecord)
    assert stored.record.held is True
    assert unwrapped(stored.render()) in quoted_results()


@pytest.mark.parametrize(
    "spec",
    ["direction:points=2", "projection:steps=1", "gradients:draws=1+2", "overhead:repeats=1"],
)
def test_the_command_runs_them(capsys, tmp_path, spec):
    pure = "defenses=(diffpure:t=20,steps=2,model=gaussian)+(revpure:t=20,steps=2,model=gaussian)"
    arguments = ["study", f"{spec},{pure}", "--n", "3", "--out", str(tmp_path)]
    assert execute(arguments) == 0
    out = capsys.readouterr().out
    (folder,) = tmp_path.iterdir()
    names = {path.suffix for path in folder.iterdir()}
    assert names == {".csv", ".png", ".json"} and "revpure" in out and "nan" not in out
    assert '"sources"' in (folder / "study.json").read_text()
    assert execute(arguments) == 0 and "already stored" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["direction", "projection", "quality", "gradients", "overhead", "surface"]
)
def test_the_committed_results_are_whole_and_quoted(name):
    (path,) = (ROOT / "leaderboards" / "studies" / name).glob("*/study.json")
    record = StudyRecord.model_validate_json(path.read_bytes())
    stored = find(path.parents[1], record.id)
    assert stored is not None and record.held is not False and record.scale
    plugin = create(STUDIES, parse(record.study)).plugin
    assert record.identity["study"]["version"] == plugin.version
    assert record.identity["plugins"] == plugin.plugins(), (
        "a newer version of a defense: run the study again"
    )
    # Its table has a line for each point of four ways, named by whole specs.
    said = record.sentence if name == "surface" else stored.render()
    assert unwrapped(said) in quoted_results()


def test_a_study_without_images_loads_none(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "load_setup", lambda request: pytest.fail("loaded"))
    assert call(capsys, "study", "toy-powers", "--out", str(tmp_path))[0] == 0
