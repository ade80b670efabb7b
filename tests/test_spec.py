"""The grammar of specs: parsing, typing, hints, and one canonical form."""

import pytest
from bench_attacks.pgd import PGDParams, step_length
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from bench.errors import BadInput
from bench.plugins.create import ATTACKS, DATASETS, DEFENSES, create, create_attack
from bench.plugins.registry import Registry
from bench.spec import (
    Number,
    Numbers,
    Params,
    Spec,
    Specs,
    canonical,
    parse,
    read_params,
    show_number,
    spelled_out,
)


class Example(Params):
    path: str = "x"
    eps: Number = 0.5
    mean: Numbers = (0.5,)
    flag: bool = False
    count: int = Field(3, ge=1)


def read(text: str) -> Example:
    return read_params(Example, parse(text), "thing 'example'", "path")


def test_grammar():
    assert parse("pgd") == Spec("pgd")
    assert parse("npz:/a/b.npz,split=test") == Spec("npz", "/a/b.npz", {"split": "test"})
    nested = parse("public-at:images=(fashion:n=1000,x=(a:b=1)),objective=trades")
    assert nested.options == {"images": "(fashion:n=1000,x=(a:b=1))", "objective": "trades"}
    assert parse('npz:"/a,b=c.npz",split=train') == Spec("npz", "/a,b=c.npz", {"split": "train"})
    assert parse("file:C:/x.pt").positional == "C:/x.pt"


@pytest.mark.parametrize(
    "text",
    ["", ":a=1", "a:", "a:b=", "a:=1", "a:b=1,c", "a:b=1,b=2", "a:x=(b", 'a:"b', "a b,c", "a:x=b)"],
)
def test_bad_grammar_is_one_clear_line(text):
    with pytest.raises(BadInput) as error:
        parse(text)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) > 20


names = st.from_regex(r"[a-z][a-z0-9-]{0,8}", fullmatch=True)
values = st.text(
    st.characters(codec="ascii", exclude_characters='"\n\r\\', categories=("L", "N", "P", "S")),
    min_size=1,
).filter(lambda v: v == v.strip() and not (v.startswith("(") and v.endswith(")")))


@given(names, st.none() | values, st.dictionaries(names, values, max_size=3))
def test_text_and_spec_are_inverse(name, positional, options):
    spec = Spec(name, positional, options)
    assert parse(str(spec)) == spec


def test_types():
    assert read("e:eps=8/255").eps == 8 / 255
    assert read("e:eps=0.5/255").eps == read("e:eps=.5 / 255").eps == 0.5 / 255
    for wrong in ("1e9999999/255", "8/255/2", "/255", "8/0", "8/x", "nan/2", "1_0/255"):
        with pytest.raises(BadInput, match="not a fraction"):
            read(f"e:eps={wrong}")
    assert read("e:mean=0.1+1/4+0.5").mean == (0.1, 0.25, 0.5)
    assert read("e:flag=true").flag is True
    assert read("e:/p,count=4") == Example(path="/p", count=4)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("e:epz=1", "did you mean 'eps'"),
        ("e:eps=a", "'eps' got 'a'"),
        ("e:eps=1/0", "fraction"),
        ("e:eps=nan", "finite"),
        ("e:count=0", "greater than or equal to 1"),
        ("e:count=1.5", "integer"),
        ("e:flag=maybe", "boolean"),
        ("e:/p,path=/q", "twice"),
    ],
)
def test_bad_parameters_say_what_and_why(text, words):
    with pytest.raises(BadInput) as error:
        read(text)
    assert words.lower() in str(error.value).lower()
    assert "\n" not in str(error.value)


def test_canonical_form():
    assert canonical("e", Example(), "path") == "e"
    assert canonical(
        "e",
        read("e:flag=yes,eps=8/255,/q".replace("flag=yes,eps=8/255,/q", "/q,flag=yes,eps=8/255")),
        "path",
    ) == ("e:/q,eps=8/255,flag=true")
    for text in ("e", "e:/q,count=7", "e:mean=0.1+0.2", "e:eps=0.031"):
        assert read(canonical("e", read(text), "path")) == read(text)
    assert [show_number(v) for v in (8 / 255, 0.1, 1.0, 0.3, 0.5 / 255)] == [
        "8/255",
        "0.1",
        "1",
        "0.3",
        repr(0.5 / 255),
    ]


def test_near_misses_and_unknown_names():
    with pytest.raises(BadInput, match="Did you mean 'pgd'"):
        create_attack("pgdd")
    with pytest.raises(BadInput, match="Did you mean 'bit-depth'"):
        create(DEFENSES, parse("bitdepth"))
    with pytest.raises(BadInput, match="no parameter 'stepz'"):
        create_attack("pgd:stepz=3")


def test_aliases_expand_before_anything_is_hashed():
    expanded = {
        "bpda": ("pgd", "bpda", None),
        "pgd+eot": ("pgd", None, "eot"),
        "pgd+replay": ("pgd", None, "replay"),
        "bpda+eot": ("pgd", "bpda", "eot"),
        "bpda+eot:randomness=(eot:k=3),steps=7": ("pgd:steps=7", "bpda", "eot:k=3"),
        "fgsm": ("pgd:random_start=false,step=eps,steps=1", None, None),
        "fgsm+replay": ("pgd:random_start=false,step=eps,steps=1", None, "replay"),
    }
    for text, (spec, gradient, randomness) in expanded.items():
        choice = create_attack(text)
        assert (choice.attack.spec, choice.gradient, choice.randomness) == (
            spec,
            gradient,
            randomness,
        )
    assert create_attack("bpda").attack.identity == create_attack("pgd:steps=20").attack.identity
    with pytest.raises(BadInput, match=r"write randomness=\(eot:k=3\)"):
        create_attack("fgsm+eot:k=3")
    for bad in ("pgd+eott", "bpda:gradient=full", "pgd+eot:randomness=replay", "pgd+"):
        with pytest.raises(BadInput):
            create_attack(bad)


def test_identity_holds_every_parameter_but_given_only_the_written_ones():
    attack = create_attack("pgd:steps=40").attack
    assert attack.given == ("steps",)
    assert set(attack.identity["params"]) == set(PGDParams.model_fields) - {"targeted"}
    targeted = create_attack("pgd:targeted=random").attack
    assert set(targeted.identity["params"]) == set(PGDParams.model_fields)
    assert attack.identity["params"]["steps"] == 40


def test_step_lengths():
    assert step_length("auto", 0.1, 20) == pytest.approx(0.0125)
    assert step_length("eps/16", 0.16, 20) == pytest.approx(0.01)
    assert step_length("eps", 0.1, 20) == 0.1
    assert step_length("2/255", 0.1, 20) == 2 / 255
    assert PGDParams(step=0.01).step == "0.01"
    for bad in ("0", "-1", "eps/0x", "fast", "nan"):
        with pytest.raises(BadInput):
            create_attack(f"pgd:step={bad}")


def test_registry_takes_decorators_and_refuses_doubles():
    registry: Registry[Params] = Registry("thing", "bench.no_such_group", "bench.spec:Params")

    @registry.register("one")
    class One(Params):
        """First line.

        More.
        """

    assert registry.names() == ["one"]
    assert registry.entries()[0].summary == "First line."
    assert registry.get("one") is One
    other = type("Other", (Params,), {"__module__": "elsewhere"})
    with pytest.raises(BadInput, match="registered twice"):
        registry.register("one")(other)


def test_listing_reads_source_without_importing():
    summaries = {entry.name: entry.summary for entry in ATTACKS.entries()}
    assert summaries["pgd"].startswith("Projected gradient descent")
    assert summaries["bpda"] == "alias of pgd:gradient=bpda"


def test_a_summary_is_the_whole_first_paragraph():
    """Docstrings wrap at 100 characters; half a sentence says nothing."""
    for registry in (ATTACKS, DATASETS, DEFENSES):
        for entry in registry.entries():
            assert "\n" not in entry.summary
            assert entry.summary.endswith((".", ")")) or entry.summary.startswith("alias"), entry


class Listed(Params):
    defenses: Specs = ("a",)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x:defenses=a", ("a",)),
        ("x:defenses=a+b-c", ("a", "b-c")),
        ("x:defenses=(a:k=1,j=2)", ("a:k=1,j=2",)),
        ("x:defenses=(a:k=1,j=2)+b+(c:m=(d:e=1+2))", ("a:k=1,j=2", "b", "c:m=(d:e=1+2)")),
        ("x:defenses=b+(a:k=1)", ("b", "a:k=1")),
    ],
)
def test_lists_of_specs_survive_as_text(text, expected):
    params = read_params(Listed, parse(text), "it")
    assert params.defenses == expected
    for printed in (canonical("x", params), spelled_out("x", params)):
        assert read_params(Listed, parse(printed), "it") == params
