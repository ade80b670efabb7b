"""`bench check`: what is broken, and how to fix it."""

import json

from tests import toy_plugins  # noqa: F401
from tests.helpers import ROOT, call


def test_check_reports_what_is_broken_and_how_to_fix_it(capsys):
    code, stdout, _ = call(capsys, "check", "toy-secret")
    assert (
        code == 1
        and "FAIL  builds: " in stdout
        and "on the defense" in stdout
        and "skip  shape" in stdout
        and "next:" not in stdout
    )
    code, stdout, _ = call(
        capsys,
        "check",
        "bit-depth",
        "--dataset",
        "toy:n=20",
        "--classifier",
        f"{ROOT}/tests/toy_model.py@make_model",
        "--json",
    )
    printed = json.loads(stdout)
    assert (
        code == 0
        and {v["outcome"] for v in printed["verdicts"]} == {"ok"}
        and "--attack bpda --attack pgd" in printed["next"]
    )
    classifier = f"{ROOT}/tests/toy_model.py@make_model"
    toys = ("--dataset", "toy:n=20", "--classifier", classifier)
    code, stdout, _ = call(capsys, "check", "undefended", *toys)
    assert code == 0 and stdout.endswith("--attack ensemble:fast\n")
    for arguments, said in (
        (("mnist5k",), "only defenses and attacks"),
        (("bit-dept",), "Did you mean 'bit-depth'"),
        (("bit-depth:bits=9",), "bits"),
        (("pgd", "--dataset", "mnist5k"), "drop --dataset"),
        (("bit-depth", "--classifier", "zoo:mnist5k-cnn"), "set dataset"),
    ):
        code, stdout, stderr = call(capsys, "check", *arguments)
        assert code == 2 and said in stderr and not stdout
