"""What a shell completes: names, modifiers, parameters; and how bash breaks words."""

import subprocess
import sys

import pytest

from bench.cli import main
from bench.commands.arguments import completion
from bench.commands.shell import joined, rest
from bench.plugins.create import ATTACKS, DATASETS, DEFENSES


def test_names_then_modifiers_then_parameters():
    values = {typed: [one for one, _ in completion(ATTACKS)(typed)] for typed in WANTED}
    assert values == WANTED
    assert ("pgd:restarts=", "independent starts") in completion(ATTACKS)("pgd:")
    assert completion(DEFENSES)("pgd+") == [] and completion(ATTACKS)("nothing:") == []


WANTED = {
    "AUTO": ["autoattack"],
    "pgd+re": ["pgd+replay"],
    "pgd:ste": ["pgd:steps=", "pgd:step="],
    "bpda:steps": ["bpda:steps=", "bpda:steps=20"],
    "pgd+eot:random_start=false,steps=5,r": [
        "pgd+eot:random_start=false,steps=5,restarts=",
        "pgd+eot:random_start=false,steps=5,restarts=1",
    ],
}


@pytest.mark.parametrize("registry", [DEFENSES, ATTACKS, DATASETS])
def test_parameters_are_those_of_the_class(registry):
    """Of classes with inherited, imported and own parameters."""
    names = set(registry.names()) & {"pgd", "ensemble", "diffpure", "dast", "mart", "npz"}
    assert names
    for name in names:
        fields = registry.get(name).Params.model_fields
        assert {one.name for one in registry.parameters(name)} == set(fields)


def test_no_plugin_is_imported_to_complete():
    code = (
        "import sys; from bench.commands.arguments import completion; from bench.plugins.create "
        "import ATTACKS; assert completion(ATTACKS)('pgd:'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("words", "at", "whole", "place"),
    [
        ("bench run --attack pgd : st", 5, "bench run --attack pgd:st", 3),
        ("bench run --attack pgd : steps = 5,re", 7, "bench run --attack pgd:steps=5,re", 3),
        ("bench run --attack = pgd :", 5, "bench run --attack=pgd:", 2),
        ("bench run --attack pgd : steps = 5 --n", 8, "bench run --attack pgd:steps=5 --n", 4),
        ("bench run --attack", 3, "bench run --attack", 3),
    ],
)
def test_bash_breaks_words_at_colons(words, at, whole, place):
    assert joined(words.split(), at) == (whole.split(), place)


def test_bash_gets_what_stands_behind_the_last_break(monkeypatch, capsys):
    assert rest("pgd:steps=", "pgd:st") == "steps="
    assert rest("pgd:steps=", "--attack=pgd:st") == "steps=" and rest("pgd", "p") == "pgd"
    monkeypatch.setenv("_BENCH_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "bench run --attack pgd : ste")
    monkeypatch.setenv("COMP_CWORD", "5")
    with pytest.raises(SystemExit):
        main([])
    assert capsys.readouterr().out.split() == ["steps=", "step="]
