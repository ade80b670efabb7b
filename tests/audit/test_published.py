"""Published tables: what cannot be is found by rule, and consistent tables are left alone.

For each check there is a table that differs from a consistent one in a cell or two.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from bench.audit.attack_order import is_gradient_attack, order
from bench.audit.cells import known_test_set, read_cells
from bench.audit.published import TableAudit, as_csv, as_json, as_markdown, audit_tables
from bench.audit.table_checks import CHECKS
from bench.audit.table_findings import ADVICE
from bench.cli import execute
from bench.report.reference import Reference
from tests.toys import message

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "leaderboards" / "reference"
COLUMNS = list(Reference.model_fields)
FIXED = {
    "source": "A paper",
    "table": "Table 1",
    "dataset": "DermaMNIST",
    "architecture": "ResNet-18",
    "defense": "shield",
    "protocol": "",
    "note": "",
}


def row(attack: str, value: str, **given: str) -> dict[str, str]:
    """One accuracy, as a row of a table; attacked ones at 8/255."""
    clean = attack == "none"
    return {
        **FIXED,
        "attack": attack,
        "metric": "clean accuracy" if clean else "robust accuracy",
        "unit": "percent",
        "value": value,
        "norm": "" if clean else "linf",
        "eps": "" if clean else "8/255",
        "badges": "",
        **given,
    }


def rows(values: dict[str, str], **given: str) -> list[dict[str, str]]:
    return [row(attack, value, **given) for attack, value in values.items()]


CONSISTENT = [
    # 1,500, 1,100, 910, 900 and 890 of 2,005 images.
    *rows({"none": "74.81", "FGSM": "54.86", "PGD-CE": "45.39", "APGD-T": "44.89",
           "AutoAttack": "44.39"}),
    *rows({"none": "70.12", "PGD-CE": "36.91", "AutoAttack": "34.96"}, defense="other"),
    # An order within the rounding of one digit.
    *rows({"none": "80", "PGD-CE": "40.4", "AutoAttack": "40.5"}, dataset="CIFAR-10"),
    # 8,268 images, and no 8,216, give 35.90, 48.40 and 76.60.
    *rows({"none": "76.60", "PGD-CE": "48.40", "AutoAttack": "48.02"}, dataset="OrganCMNIST"),
    row("AutoAttack", "35.90", dataset="OrganCMNIST", defense="other"),
    # Means over seeds are no counts.
    *rows({"none": "74.83", "PGD-CE": "44.91", "AutoAttack": "43.01"}, defense="mean",
          note="mean over 3 seeds"),
    # Multiples of 1/256: more draws, larger balls, several aggregation rules.
    *rows({"none": "89.06"}, table="Table 2", dataset="CIFAR-10", protocol="one draw"),
    row("BPDA", "60.16", table="Table 2", dataset="CIFAR-10", protocol="worst of 10 draws",
        metric="robust accuracy (all draws)"),
    row("BPDA", "72.27", table="Table 2", dataset="CIFAR-10", protocol="majority of 10 draws",
        metric="robust accuracy (majority)"),
    row("BPDA", "78.52", table="Table 2", dataset="CIFAR-10", protocol="majority of 10 draws",
        metric="robust accuracy (majority)", eps="4/255"),
    row("BPDA", "65.43", table="Table 2", dataset="CIFAR-10", protocol="mean of 10 draws",
        metric="robust accuracy (mean of draws)"),
    # EOT that changes nothing beyond noise.
    row("BPDA+EOT", "73.05", table="Table 2", dataset="CIFAR-10",
        protocol="majority of 10 draws", metric="robust accuracy (majority)"),
    # Attacks of which nothing is known, attacks on the classifier alone, bounds, zeros.
    *rows({"none": "95.00", "strange": "30.00", "stranger": "40.00", "PGD-CE": "0.00",
           "AutoAttack": "0.00"}, dataset="SVHN", defense="undefended"),
    row("transfer", "96.00", dataset="SVHN", defense="undefended", badges="static-transfer"),
    row("AutoAttack", "5", dataset="SVHN", defense="undefended", badges="approximate",
        table="Table 3"),
    # The same name in another norm is another model; a wrong answer counts as broken elsewhere.
    *rows({"none": "91.00", "AutoAttack": "60.00"}, dataset="CIFAR-100", table="linf"),
    row("none", "88.00", dataset="CIFAR-100", table="l2"),
    row("AutoAttack", "70.00", dataset="CIFAR-100", table="l2", norm="l2", eps="0.5"),
    # Two sources with two undefended networks, and an unknown data set.
    row("AutoAttack", "1.00", dataset="SVHN", defense="undefended", source="Another paper"),
    *rows({"none": "10.00", "PGD": "9.99", "AutoAttack": "9.98"}, dataset="private"),
]  # fmt: skip


def table(folder: Path, given: list[dict[str, str]], name: str = "numbers.csv") -> Path:
    quoted = [",".join(f'"{one[column]}"' for column in COLUMNS) for one in given]
    path = folder / name
    path.write_text("\n".join([",".join(COLUMNS), *quoted]) + "\n")
    return path


def audited(folder: Path, given: list[dict[str, str]]) -> TableAudit:
    return audit_tables([table(folder, given)])


def changed(position: int, **given: str) -> list[dict[str, str]]:
    """The consistent rows with one of them changed."""
    return [{**one, **given} if at == position else one for at, one in enumerate(CONSISTENT)]


def found(audit: TableAudit) -> list[tuple[str, str]]:
    return [(finding.check, finding.verdict) for finding in audit.findings]


# Consistent tables --------------------------------------------------------------------------------


def test_a_consistent_table_yields_nothing(tmp_path):
    audit = audited(tmp_path, CONSISTENT)
    assert audit.findings == () and not audit.failed
    # All but the two that no order binds.
    assert audit.numbers == len(CONSISTENT) - 2 and set(audit.checks) == set(ADVICE)


@pytest.mark.parametrize("dataset", ["BloodMNIST", "DermaMNIST", "OrganCMNIST", "CIFAR-10"])
def test_chance_makes_no_findings(tmp_path, dataset):
    """Random counts in the right order, printed with two digits, for each size of the test set."""
    random = np.random.default_rng(0)
    for size in known_test_set(dataset).sizes:
        given = []
        for number in range(150):
            clean = random.integers(7 * size // 10, size)
            pgd = clean - random.integers(size // 20, size // 4)
            strong = pgd - random.integers(0, size // 15)
            shares = (f"{100 * count / size:.2f}" for count in (clean, pgd, strong))
            values = dict(zip(("none", "PGD-CE", "AutoAttack"), shares, strict=True))
            given += rows(values, dataset=dataset, defense=f"defense {number}")
        audit = audited(tmp_path, given)
        assert audit.numbers == 450 and audit.findings == ()


# One mutation a check -----------------------------------------------------------------------------


def test_a_stronger_attack_that_leaves_more(tmp_path):
    audit = audited(tmp_path, changed(4, value="47.38"))
    first, second = audit.findings
    assert found(audit) == [("order", "fail")] * 2 and audit.failed
    assert (first.attacks, second.attacks) == (("AutoAttack", "PGD-CE"), ("AutoAttack", "APGD-T"))
    assert (first.value, first.threshold, first.images) == (1.99, 0.5, 40)
    assert first.rows == ("numbers.csv:6", "numbers.csv:4") and first.dataset == "DermaMNIST"
    assert "1.99 points more, about 40 images if all 2,005 were used" in first.message


def test_a_handful_of_images_is_a_warning(tmp_path):
    # 903 images under AutoAttack, 900 under one of its members.
    audit = audited(tmp_path, changed(4, value="45.04"))
    assert found(audit) == [("order", "warn")] and audit.findings[0].images == 3
    assert not audit.failed


def test_of_a_random_defense_an_order_is_a_warning(tmp_path):
    given = rows({"PGD": "20.00", "AutoAttack": "30.00"}, dataset="CIFAR-10", protocol="10 draws")
    audit = audited(tmp_path, given)
    assert found(audit) == [("order", "warn")] and "random" in audit.findings[0].message


def test_more_steps_and_draws_count_beyond_noise(tmp_path):
    def steps(more: str, note: str = "") -> TableAudit:
        given = rows({"PGD-10": "50.00", "PGD-100": more}, dataset="CIFAR-10", note=note)
        return audited(tmp_path, given)

    assert found(steps("51.30")) == []
    assert found(steps("51.50")) == [("order", "fail")]
    # Of 1,000 images, three times the noise.
    assert found(steps("53.00", "n=1000")) == []
    assert found(steps("55.00", "n=1000")) == [("order", "fail")]


def test_an_unknown_test_set_is_taken_to_be_small(tmp_path):
    def gap(strong: str) -> TableAudit:
        return audited(tmp_path, rows({"PGD": "50", "AutoAttack": strong}, dataset="private"))

    assert found(gap("51")) == [] and found(gap("55")) == [("order", "warn")]
    assert found(gap("57")) == [("order", "fail")] and gap("57").findings[0].images is None


def test_attacked_above_clean(tmp_path):
    given = rows({"none": "9.82", "PGD-CE": "12.01"}, dataset="CIFAR-10", architecture="")
    audit = audited(tmp_path, given)
    assert found(audit) == [("clean", "fail"), ("below-constant", "warn")]
    assert audit.findings[0].attacks == ("PGD-CE", "none") and audit.findings[0].images == 219


def test_a_larger_ball_that_leaves_more(tmp_path):
    at = next(i for i, one in enumerate(CONSISTENT) if one["eps"] == "4/255")
    audit = audited(tmp_path, changed(at, value="67.97"))
    assert found(audit) == [("ball", "fail")]
    assert "BPDA at 8/255 leaves 72.27, BPDA at 4/255 67.97" in audit.findings[0].message
    assert "about 11 of 256 images" in audit.findings[0].message


def test_right_in_all_draws_more_often_than_in_most(tmp_path):
    at = next(i for i, one in enumerate(CONSISTENT) if "all draws" in one["metric"])
    audit = audited(tmp_path, changed(at, value="76.17"))
    assert found(audit) == [("draws", "fail")] * 2
    told = [finding.message for finding in audit.findings]
    assert "72.27 in the majority" in told[0] and "65.43 in the mean" in told[1]


def test_an_attack_far_behind_autoattack(tmp_path):
    given = rows({"none": "90.00", "PGD-CE": "55.00", "AutoAttack": "30.00"}, dataset="CIFAR-10")
    assert found(audited(tmp_path, given)) == [("weak-attack", "warn")]


@pytest.mark.parametrize(
    ("dataset", "values"),
    [
        ("DermaMNIST", ("66.98", "66.83", "66.63")),
        ("TissueMNIST", ("32.07", "31.93", "31.83")),
        ("DermaMNIST", ("11.12", "11.10", "11.07")),
    ],
)
def test_a_constant_answer(tmp_path, dataset, values):
    given = dict(zip(("none", "strange", "stranger"), values, strict=True))
    audit = audited(tmp_path, rows(given, dataset=dataset))
    assert ("constant", "fail") in found(audit)
    assert audit.findings[0].counts[0].count in (1_341, 15_165, 223)
    # One number away from the class, or spread: no constant answer.
    for attack, value in (("stranger", "60.00"), ("none", "70.00")):
        audit = audited(tmp_path, rows({**given, attack: value}, dataset=dataset))
        assert "constant" not in {check for check, _ in found(audit)}


def test_one_class_left(tmp_path):
    given = {"none": "95.79", "PGD-CE": "9.09", "AutoAttack": "9.09"}
    audit = audited(tmp_path, rows(given, dataset="BloodMNIST"))
    assert found(audit) == [("constant", "fail")]
    assert "311 of 3,421" in audit.findings[0].message
    assert "erythroblast" in audit.findings[0].message
    # One attack alone, a number that is no class, or too few digits tell nothing.
    for other in (
        {"none": "95.79", "PGD-CE": "9.21", "AutoAttack": "9.09"},
        {"none": "95.79", "PGD-CE": "9.06", "AutoAttack": "9.06"},
        {"none": "95.8", "PGD-CE": "9.1", "AutoAttack": "9.1"},
    ):
        assert found(audited(tmp_path, rows(other, dataset="BloodMNIST"))) == []
    mean = rows(given, dataset="BloodMNIST", note="mean over 3 seeds")
    assert found(audited(tmp_path, mean)) == []


def test_clean_below_a_constant_answer(tmp_path):
    assert found(audited(tmp_path, changed(0, value="66.83", defense="weak"))) == [
        ("below-constant", "warn")
    ]
    assert found(audited(tmp_path, changed(0, value="66.88", defense="weak"))) == []


def test_an_attack_that_breaks_nothing(tmp_path):
    base = {"none": "80.00", "PGD-CE": "80.00"}
    assert found(audited(tmp_path, rows(base, dataset="CIFAR-10"))) == [("unmoved", "fail")]
    other = {"none": "80.00", "strange": "80.00"}
    assert found(audited(tmp_path, rows(other, dataset="CIFAR-10"))) == [("unmoved", "warn")]
    few = rows(base, dataset="CIFAR-10", note="first 100 images")
    assert found(audited(tmp_path, few)) == [("unmoved", "warn")]


def test_a_number_that_is_no_count(tmp_path):
    audit = audited(tmp_path, changed(3, value="44.91"))
    assert found(audit) == [("count", "fail")]
    (finding,) = audit.findings
    assert [(count.count, count.fits) for count in finding.counts] == [(900, "no"), (901, "no")]
    assert finding.threshold == pytest.approx(44.91 - 100 * 900 / 2005, abs=1e-6)
    # 901 of 2,005 are 44.937...: digits that were cut off are a warning.
    assert found(audited(tmp_path, changed(3, value="44.93"))) == [("count", "warn")]


def test_two_sizes_of_a_test_set(tmp_path):
    """45.18 is a count of 8,216 images, the others are counts of 8,268."""
    at = next(i for i, one in enumerate(CONSISTENT) if one["value"] == "48.02")
    audit = audited(tmp_path, changed(at, value="45.18"))
    by_value = {finding.value: finding.message for finding in audit.findings}
    assert set(found(audit)) == {("count", "warn")} and set(by_value) == {76.6, 48.4, 45.18, 35.9}
    for text in ("3,712/8,216 = 45.1801", "no count of 8,268", "3,735 give 45.1742"):
        assert text in by_value[45.18]
    assert "no count of 8,216" in by_value[35.9] and "2,968/8,268" in by_value[35.9]


def test_numbers_of_other_images_are_no_counts(tmp_path):
    values = ("70.10", "44.40", "40.30", "30.70")
    given = [row("AutoAttack", value, defense=value) for value in values]
    assert found(audited(tmp_path, given)) == []


KL, SECOND = "PGD-KL(S||S)", "PGD-KL(S||T)"


def columns(name: str, values: dict[str, tuple[str, str]], dataset: str) -> list[dict[str, str]]:
    return [
        one
        for architecture, pair in values.items()
        for one in rows(
            dict(zip((KL, SECOND), pair, strict=True)),
            table=name,
            dataset=dataset,
            architecture=architecture,
        )
    ]


def test_columns_that_changed_places(tmp_path):
    one = {"A": ("71.95", "55.84"), "B": ("77.04", "62.95"), "C": ("81.39", "70.64")}
    two = {"D": ("24.70", "29.87"), "E": ("48.40", "65.47")}

    def both(other: dict[str, tuple[str, str]]) -> TableAudit:
        given = columns("one", one, "SVHN") + columns("two", other, "CIFAR-10")
        return audited(tmp_path, given)

    audit = both(two)
    assert found(audit) == [("swapped", "warn")]
    (finding,) = audit.findings
    assert finding.table == "two" and len(finding.rows) == 10
    assert (finding.value, finding.threshold) == (17.07, 10.75)
    # A row within noise does not count, whichever way it goes.
    assert found(both({**two, "F": ("66.98", "66.53")})) == [("swapped", "warn")]
    # One row of the second table is too few, and one that goes the first way speaks against it.
    assert found(both({"D": two["D"]})) == []
    assert found(both({**two, "F": ("60.00", "50.00")})) == []


def test_rows_that_changed_places(tmp_path):
    def twice(second: tuple[str, str], **given: str) -> TableAudit:
        one = [
            row("strange", "35.16", table="1", dataset="CIFAR-10"),
            row("strange", "8.59", table="1", dataset="CIFAR-10", defense="other"),
            row("strange", second[0], table="2", dataset="CIFAR-10", protocol="worst"),
            row("strange", second[1], table="2", dataset="CIFAR-10", defense="other",
                protocol="worst"),
        ]  # fmt: skip
        return audited(tmp_path, [{**cell, **given} for cell in one])

    assert found(twice(("8.59", "35.16"))) == [("exchanged", "warn")]
    assert found(twice(("35.16", "8.59"))) == [] and found(twice(("8.59", "35.17"))) == []


def test_another_clean_accuracy_elsewhere(tmp_path):
    again = row("none", "74.86", table="Table 9")
    audit = audited(tmp_path, [*CONSISTENT, again])
    assert found(audit) == [("clean-differs", "warn")] and audit.findings[0].images == 1
    assert found(audited(tmp_path, [*CONSISTENT, {**again, "value": "74.8"}])) == []


def test_two_figures_for_one_case(tmp_path):
    other = row("AutoAttack", "12.57", source="Another paper")
    audit = audited(tmp_path, [*CONSISTENT, other])
    assert found(audit) == [("two-figures", "warn")]
    assert "44.39 under AutoAttack in A paper" in audit.findings[0].message
    assert found(audited(tmp_path, [*CONSISTENT, {**other, "value": "44.4"}])) == []


def test_rows_that_share_numbers(tmp_path):
    copied = rows({"none": "74.81", "AutoAttack": "44.39"}, defense="third")
    audit = audited(tmp_path, [*CONSISTENT, *copied])
    assert found(audit) == [("copied", "warn")] and "74.81, 44.39" in audit.findings[0].message
    assert found(audited(tmp_path, [*CONSISTENT, copied[1]])) == []
    one = [row("strange", "40.12", dataset="CIFAR-10", defense=name) for name in ("a", "b")]
    assert found(audited(tmp_path, one)) == [], "one number that two cases share"
    # Of an unknown test set such numbers may be equal by chance.
    private = [{**one, "dataset": "private"} for one in [*CONSISTENT[:5], *copied]]
    assert found(audited(tmp_path, private)) == []


def test_every_check_has_its_advice():
    assert set(CHECKS) == set(ADVICE)


# Attacks, test sets, cells ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stronger", "weaker", "contains"),
    [
        ("AutoAttack", "PGD-CE", True),
        ("AutoAttack", "PGD-KL(S(x')||T(x))+KL(S(x')||S(x))", True),
        ("AutoAttack", "APGD-T", True),
        ("AutoAttack", "Square 5,000 queries", True),
        ("AutoAttack", "FGSM", True),
        ("PGD-20", "FGSM", True),
        ("AA+transfer APGD", "AutoAttack", True),
        ("APGD-CE, then APGD-DLR", "APGD-CE", True),
        ("PGD-100", "PGD-10", False),
        ("APGD-T 100 iter", "APGD-T 10 iter", False),
        ("BPDA+EOT", "BPDA", False),
        ("PGD+EOT-40", "PGD+EOT-20", False),
        ("AutoAttack", "Square 10,000 queries", None),
        ("AutoAttack", "APGD-CE+30xSquare", None),
        ("AutoAttack", "APGD+BPDA", None),
        ("AutoAttack", "PGD+EOT", None),
        ("AutoAttack", "AutoAttack", None),
        ("AutoAttack", "none", None),
        ("PGD-KL(S||T)+KL(S||S)", "PGD-KL(S||T)", None),
        ("PGD-CE", "AutoAttack", None),
        ("DiffAttack", "DiffHammer", None),
        ("PGD-10", "PGD-100", None),
    ],
)
def test_which_attack_is_the_stronger(stronger, weaker, contains):
    relation = order(stronger, weaker)
    assert (relation and relation.contains) == contains


def test_gradient_attacks_by_name():
    assert all(map(is_gradient_attack, ("PGD", "PGD-CE-20", "fgsm", "PGD-KL(S(x')||T(x))", "CW")))
    others = ("latent (Sabour et al.)", "BPDA", "PGD+EOT", "DiffAttack", "")
    assert not any(map(is_gradient_attack, others))


@pytest.mark.parametrize(
    ("note", "size"),
    [
        ("n=1000", 1_000),
        ("the first 100 images", 100),
        ("all 10,000 test images; x", 10_000),
        ("", None),
        ("n=0", None),
        ("n=,", None),
        ("ten images", None),
    ],
)
def test_how_many_images_a_note_states(tmp_path, note, size):
    given = rows({"none": "60", "PGD": "50", "AutoAttack": "70"}, dataset="private", note=note)
    (_, cell, _) = read_cells([table(tmp_path, given)])
    assert cell.stated_size == size
    assert ("order", "fail") in found(audit_tables([tmp_path]))


def test_data_sets_in_print():
    assert known_test_set("CIFAR-10").sizes == (10_000,)
    assert known_test_set("Fashion-MNIST").sizes == (10_000,)
    assert known_test_set("OrganCMNIST").sizes == (8_216, 8_268)
    assert known_test_set("a private one").sizes == known_test_set("").sizes == ()


def test_a_number_in_two_files_is_one(tmp_path):
    one = row("AutoAttack", "44.39", note="here")
    places = [
        table(tmp_path, [one], "a.csv"),
        table(tmp_path, [{**one, "note": "also in a.csv"}], "b.csv"),
    ]
    (cell,) = read_cells(places)
    assert cell.places == ("a.csv:2", "b.csv:2") and cell.printed == "44.39"


def test_digits_are_those_in_print(tmp_path):
    cells = read_cells(
        [table(tmp_path, [row("PGD", value) for value in ("5", "5.0", "5.90", "6.2e1")])]
    )
    # 5 and 5.0 are one number.
    assert [(cell.printed, cell.digits) for cell in cells] == [("5", 0), ("5.90", 2), ("62.0", 1)]


# The committed numbers, and the command -----------------------------------------------------------


@pytest.fixture(scope="module")
def committed() -> TableAudit:
    return audit_tables([FOLDER])


def of(audit: TableAudit, check: str) -> set[tuple[str, str, str]]:
    return {(one.verdict, one.dataset, one.defense) for one in audit.findings if one.check == check}


def test_what_is_known_of_the_committed_numbers_is_found(committed):
    assert {
        ("fail", "DermaMNIST", "TTE"),
        ("warn", "DermaMNIST", "DataFreeShield"),
        ("fail", "SVHN", "DFARD"),
    } < of(committed, "order")
    assert of(committed, "clean") == {("fail", "CIFAR-10", "DFARD")}
    assert of(committed, "constant") == {
        ("fail", "DermaMNIST", "DataFreeShield"),
        ("fail", "TissueMNIST", "DataFreeShield"),
        ("fail", "BloodMNIST", "TTE"),
        ("fail", "DermaMNIST", "DFME"),
    }
    assert of(committed, "count") == {
        ("fail", "BloodMNIST", "DataFreeShield"),
        ("warn", "OrganCMNIST", "DataFreeShield"),
        ("warn", "OrganCMNIST", "TTE"),
    }
    (swapped,) = [one for one in committed.findings if one.check == "swapped"]
    assert set(swapped.attacks) == {"PGD-KL(S(x')||T(x))", "PGD-KL(S(x')||S(x))"}
    text = " ".join(one.message for one in committed.findings)
    for told in ("66.53", "66.63", "19.24", "8,216", "8,268", "9.09", "311 of 3,421"):
        assert told in text


def test_nothing_else_is_found(committed):
    """Rows that are consistent are not named: whole files and defenses, and how many are."""
    files = {place.partition(":")[0] for one in committed.findings for place in one.rows}
    assert "robustbench.csv" not in files
    rows = {place for one in committed.findings for place in one.rows}
    own = [cell for cell in read_cells([FOLDER]) if not set(cell.places) & rows]
    assert len(own) / committed.numbers > 0.85
    defenses = {one.defense for one in committed.findings}
    assert not defenses & {"DAD_", "RevPure t=150", "k-WTA+AT", "MeanSparse", "SODEF", "undefended"}


def test_the_page_tells_all_of_it(committed):
    """Every number that a finding rests on stands on the page, and so do the totals."""
    page = (ROOT / "docs" / "results" / "published-audit.md").read_text()
    failed = sum(one.verdict == "fail" for one in committed.findings)
    warned = len(committed.findings) - failed
    assert f"Of {committed.numbers} accuracies" in page
    assert f"{failed} findings are failures, {warned} are warnings" in page.replace("\n", " ")
    cells = {place: cell for cell in read_cells([FOLDER]) for place in cell.places}
    for one in committed.findings:
        here = [cells[place] for place in one.rows if cells[place].reference.table == one.table]
        for cell in here or [cells[place] for place in one.rows]:
            assert cell.printed in page, (one.check, cell.printed)
    assert all(f"`{check}`" in page for check in CHECKS)


def test_formats(committed, tmp_path):
    assert "**order**. To settle it: " in as_markdown(committed)
    assert TableAudit.model_validate_json(as_json(committed)) == committed
    lines = as_csv(committed).splitlines()
    assert len(lines) == len(committed.findings) + 1 and lines[0].startswith("check,verdict,source")
    nothing = audited(tmp_path, CONSISTENT)
    assert as_csv(nothing).count("\n") == 1 and "0 failed, 0 warnings" in as_markdown(nothing)


def test_command(tmp_path, capsys):
    good = table(tmp_path, CONSISTENT)
    assert execute(["audit", str(good)]) == 0
    assert execute(["audit", str(FOLDER), "--format", "json"]) == 1
    shown = capsys.readouterr().out
    assert len(json.loads(shown[shown.index("{") :])["findings"]) > 20
    assert execute(["audit", str(tmp_path), str(good)]) == 0, "folders and files, mixed"


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("missing", "is not there"),
        ("missing.csv", "cannot read"),
        (".", "holds nothing to audit"),
        ("bad.csv", "line 1"),
    ],
)
def test_bad_places(tmp_path, place, told):
    from bench.commands.audit import audit

    (tmp_path / "empty").mkdir()
    if place == "bad.csv":
        (tmp_path / place).write_text("a,b\n1,2\n")
    text = message(lambda: audit([tmp_path / ("empty" if place == "." else place)], "md"))
    assert told in text and "\n" not in text
    assert "use md, json, csv" in message(lambda: audit([FOLDER], "sarif"))
