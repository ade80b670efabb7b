"""The figures of the page of claims, made anew from committed records, studies and tables.

`figures()` gives for each row of docs/results/claims.md the pieces of text that it may show.
"""

import csv
import json
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np

from bench.results.aggregation import mean_of_draws
from bench.results.comparisons import gap, gap_over_builds, mean_over_builds
from bench.results.estimate import Estimate
from bench.results.intervals import share, student_mean, wilson
from bench.results.record import Record
from bench.results.store import read_record
from bench.results.views import any_right
from bench.results.worst_case import attacked, best_fresh, worst_case

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "leaderboards" / "records"
STUDIES = ROOT / "leaderboards" / "studies"
REFERENCE = ROOT / "leaderboards" / "reference"

# Records by the ids that the boards show: one string a build, one id an attack.
DATAFREE = {
    "datafreeshield": ("cf63899 cc4bf48", "a294b0e 2e8e69a", "4042b25 06e4718"),
    "dfme": ("c9fd0ce 3fa1667", "41d5906 5a9eafe", "fbc8367 893910e"),
    "dfard": ("06c9141 2fc7276", "1b0b92f 8080798", "c859482 489a8dd"),
    "ait": ("18b62b6 d826981", "79621e2 1f480dd", "7e55d40 a9604df"),
    "dast": ("8a5a33d c34fe1e", "1d0d164 c427221", "ef24a2a 6fb4fac"),
}
DIFFPURE = {
    "replay": "86ecfbe",
    "restarts": "475b18b",
    "bpda": "8407f72",
    "fresh": "3c5b887",
    "eot": "b7ecdf7",
    "blind": "8ea20f7",
}
EM = "0b33a83"
"""EM on fresh noise, of DiffPure."""
FASHION = ("9e445fe", "7709248")
"""DiffPure with a purifier of Fashion-MNIST: under fresh and under replayed noise."""
REVPURE = {"replay": "a698952", "bpda": "ade6d43", "fresh": "8efc553", "blind": "63ea354"}
NOT_ATTACKED = ("31981f1", "d1a955e")
"""DiffPure's and RevPure's clean images, under the judge's draws and under one fixed noise."""
PURIFIERS = ("DiffPure", "RevPure")
CIFAR, DIGITS = 0, 1
TESTTIME = {
    "undefended": ("3390976 c183c28", "eadd5c7 c578df1"),
    "dad": (
        "d524d69 f66be2d 0a1e800 006f19b fe81dcc df02483",
        "cdc0740 fbfe4eb c31508c 6d498d7 34d4a51 c9b2298",
    ),
    "dadpp": (
        "4fb1300 b8fef67 1b9846f c4030d2 0103103 bf99c77",
        "28e6d3b 6e55c2d 6d9888c 4f712ca 8c4e38d a4f71a6",
    ),
    "tte": ("8ea9fd8 6b8c36b addf9d7 63decfe", "774c2bb 328f176 a867f8f 6ad4f72"),
    "as_released": ("f384a50 e8195a6 1a4ad17 0bd542d", "64210e0 cae0799 d87ee5c 4f0644b"),
}
"""On CIFAR-10, and on digits. The last of DAD's attacks sees the base alone."""
COLOUR = {
    "R23": ("3da1506", "6444432"),
    "R24": ("c8268ec", "a0c9c39"),
}
"""Purified CIFAR-10: under fresh and under replayed noise."""
COLOUR_REVPURE = ("9ef8096", "572330d")
TTE_ON_TRAINED = "2acdcd7 23f85f9 2c2e614 d70ddec 70d80aa 6f9a425"
TRAINED = "680e50e 67c2b5c 7836691 4858d08 014a721"


# Reading ------------------------------------------------------------------------------------------


@cache
def record(board: str, short: str) -> Record:
    (path,) = (RECORDS / board).glob(f"*--{short}?????????.json")
    return read_record(path)


def records(board: str, ids: str) -> list[Record]:
    return [record(board, short) for short in ids.split()]


def worst(board: str, *builds: str) -> np.ndarray:
    """Scores (builds, n) under the worst attack for each image."""
    made = [records(board, ids) for ids in builds]
    assert len({str(one[0].identity["seeds"]) for one in made}) == len(made), "builds are one"
    return np.stack([worst_case([c for r in one for c in attacked(r)]) for one in made])


def right(board: str, short: str, which: str = "adversarial") -> np.ndarray:
    """Scores (n,): the share of draws that are right."""
    return mean_of_draws(record(board, short).outcomes.correct(which))


def cleanly(board: str, *builds: str) -> np.ndarray:
    return np.stack([right(board, ids.split()[0], "clean") for ids in builds])


def table(study: str, name: str) -> list[dict[str, str]]:
    (path,) = (STUDIES / study).glob(f"*/{name}.csv")
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def row_of(study: str, name: str, **where: str) -> dict[str, str]:
    """The one row of a table whose columns hold these texts."""
    rows = table(study, name)
    (row,) = [one for one in rows if all(text in one[key] for key, text in where.items())]
    return row


def of(row: dict[str, str], column: str) -> Estimate:
    """A column with its interval."""
    return Estimate(*(float(row[column + end]) for end in ("", "_low", "_high")))


def images_of(study: str) -> str:
    return f"{int(setup_of(study)['n'].split()[0]):,} images"


def setup_of(study: str) -> dict[str, str]:
    (path,) = (STUDIES / study).glob("*/study.json")
    setup: dict[str, str] = json.loads(path.read_text("utf-8"))["setup"]
    return setup


def printed(file: str, **where: str) -> str:
    """A published number."""
    with (REFERENCE / f"{file}.csv").open(encoding="utf-8", newline="") as text:
        rows = [r for r in csv.DictReader(text) if all(r[k] == v for k, v in where.items())]
    (value,) = {row["value"] for row in rows}
    return value


# Writing ------------------------------------------------------------------------------------------


def pct(*estimates: Estimate) -> list[str]:
    return [estimate.scaled(100, 1) for estimate in estimates]


def num(digits: int, *estimates: Estimate) -> list[str]:
    return [estimate.scaled(1, digits) for estimate in estimates]


def scale(board: str, ids: str) -> list[str]:
    """The ball and the number of images, on which all these records agree."""
    ((threat, n),) = {(r.title["threat"], r.scale["n"]) for r in records(board, ids)}
    return [threat.removeprefix("linf "), f"{n:,} images"]


# Rows ---------------------------------------------------------------------------------------------

Rows = dict[str, list[str]]


def datafree() -> Rows:
    board, own = "mnist5k-datafree", DATAFREE["datafreeshield"]
    ours, base = worst(board, *own), worst(board, "eadd5c7 c578df1")
    here = [*scale(board, own[0]), f"{len(ours)} builds"]
    clean = [mean_over_builds(cleanly(board, *own)), share(cleanly(board, "eadd5c7")[0])]
    rows = {"D1": [*here, *pct(mean_over_builds(ours), share(base[0]), *clean)]}
    for key, name in (("D6", "dast"), ("D7", "ait"), ("D8", "dfme"), ("D9", "dfard")):
        theirs = worst(board, *DATAFREE[name])
        fallen = sum(records(board, ids)[0].metrics.collapsed for ids in DATAFREE[name])
        rows[key] = [*here, *pct(gap_over_builds(ours, theirs), mean_over_builds(theirs))]
        rows[key] += [f"{fallen} of {len(theirs)}"]
    pairs = [records(board, ids) for builds in DATAFREE.values() for ids in builds]
    left = [[one.metrics.adversarial.mean.value for one in pair] for pair in pairs]
    rows["O5"] = [*here, f"{sum(aa > pgd for pgd, aa in left)} of {len(left)}"]
    tte = worst("testtime", TESTTIME["tte"][DIGITS])
    rounded = worst("mnist5k-families", "95d406f 8e08fbe b5bb7f4")
    rows["O3"] = [*here, *pct(share(rounded[0]), mean_over_builds(ours))]
    for other in (tte, rounded):
        rows["O3"] += pct(gap_over_builds(ours, np.repeat(other, len(ours), axis=0)))
        rows["O3"] += pct(gap_over_builds(np.repeat(other, len(ours), axis=0), ours))
    board = "cifar10-attack-order"
    attacks = ("7370757", "dda202b", "e6416c2", "6b991a4")
    rows["D10"] = [*scale(board, " ".join(attacks))]
    rows["D10"] += pct(*(share(right(board, one)) for one in attacks))
    return rows


def other_images() -> Rows:
    board, ids = "cifar10-resnet20", "83eb205 fc4a875"
    student, base = worst(board, ids)[0], worst(board, "a16a0ed 9d088ab")[0]
    rows = {"D2": [*scale(board, ids), *pct(share(student), share(base))]}
    rows["D2"] += pct(share(cleanly(board, ids)[0]), share(right(board, "9d088ab", "clean")))
    rows["O9"] = rows["D2"][1:2]
    taught = worst("cifar10", "ffd7f3a 9cd008b")[0]
    rows["D2"] += pct(share(taught), gap(taught, student))
    rows["D2"].append(f"{100 * record(board, '83eb205').metrics.constant_accuracy:.1f}")
    board = "pneumoniamnist"
    fallen = record(board, "c87dd88").metrics
    constant = fallen.constant_accuracy
    # The macro-F1 of one answer out of two.
    constant_f1 = constant / (1 + constant)
    rows["D4"] = [
        *scale(board, "3009295 c87dd88"),
        *pct(fallen.clean.mean, fallen.adversarial.mean, fallen.adversarial.macro_f1),
        *(f"{100 * x:.1f}" for x in (constant, constant_f1, fallen.largest_predicted_share)),
    ]
    assert fallen.collapsed
    rows["O4"] = rows["D4"]
    rows["D26"] = in_a_smaller_ball(board)
    public, own = worst(board, "b63edd7 7acf37e")[0], worst(board, "2bd67fe 91a7277")[0]
    rows["O1"] = [*scale(board, "2bd67fe 91a7277"), *pct(share(public), share(own))]
    rows["O1"] += pct(gap(public, own))
    rows["O18"] = other_kinds()
    return rows


def other_kinds() -> list[str]:
    """Clothes in place of a classifier's own images, for digits and for X-rays."""
    board, cells = "public-images", ["500"]
    for clothes, own in (
        ("59046b2 316edad", "6dd3a78 1314e57"),
        ("3febb52 0ebd76b", "cff9c0e dc97f39"),
    ):
        theirs, ours = worst(board, clothes)[0], worst(board, own)[0]
        cells += [scale(board, own)[1], *pct(gap(theirs, ours), share(theirs), share(ours))]
    return cells


def in_a_smaller_ball(board: str) -> list[str]:
    ids, base_ids = "2c3779a 76d0dd1", "16db09c 0ebd6ac"
    student, base = worst(board, ids)[0], worst(board, base_ids)[0]
    one, other = record(board, "76d0dd1").metrics, record(board, "0ebd6ac").metrics
    assert not one.collapsed
    constant = one.constant_accuracy
    f1 = [one.adversarial.macro_f1, other.adversarial.macro_f1]
    before = f"{100 * other.adversarial.macro_f1.value:.1f}"
    cells = [*scale(board, ids), *pct(share(student), share(base), gap(student, base), *f1)]
    cells += pct(share(cleanly(board, ids)[0]), share(cleanly(board, base_ids)[0]))
    return [*cells, before, *(f"{100 * x:.1f}" for x in (constant, constant / (1 + constant)))]


def parts() -> Rows:
    rows = {}
    for key, variant in {
        "D11": "objective=trades",
        "D12": "objective=mart",
        "D14": "(datafreeshield:clean=0)",
        "D15": "(datafreeshield:adv_teacher=0)",
        "D16": "(datafreeshield:smooth=0)",
        "D17": "coefficients=fixed",
        "D20": "group=1",
        "O7": "checkpoint=best",
    }.items():
        tests = [row for row in table("ablation", "builds") if variant in row["defense"]]
        lower = sum(float(row["lost"]) > float(row["won"]) for row in tests)
        row = row_of("ablation", "ablation", defense=variant)
        rows[key] = [*pct(of(row, "difference")), f"{len(tests)} builds"]
        rows[key] += [f"{lower} of {len(tests)}", images_of("ablation")]
        rows[key] += [setup_of("ablation")["threat"].removeprefix("linf ")]
    others = ("objective=pgd-at", "objective=ard", "objective=rslad")
    same = [row_of("ablation", "ablation", defense=other) for other in others]
    harder = row_of("ablation-ensemble", "ablation", defense=others[1])
    rows["D13"] = pct(*(of(row, "difference") for row in (*same, harder)))
    ways = [
        row_of("surface", "surface", defense="group=1", direction=way, **{"share of eps": "1.0"})
        for way in ("adversarial", "random")
    ]
    rows["D21"] = [
        *num(3, *(of(row, "difference") for row in ways)),
        setup_of("surface")["threat"].removeprefix("linf "),
        images_of("surface"),
        f"{len(tests)} builds",
    ]
    rows |= more_images()
    made, trained = table("time", "time")
    passes = ("forwards", "input_backwards", "weight_backwards")
    rows["D23"] = [f"{float(made[column]):.2f}" for column in passes[:2]]
    rows["D24"] = [f"{float(trained[column]):.1f}" for column in passes]
    every: Counter[str] = Counter()
    for row in table("time-baselines", "time"):
        counted = sum(float(row[column]) for column in passes)
        every[row["defense"].partition(":")[0]] += float(row["iterations"]) * counted
    rows["D25"] = [f"{round(total):,}" for total in every.values()]
    return rows


def more_images() -> Rows:
    """The curve over synthetic images, and what the last doubling brings, over builds."""
    curve, left = table("quantity", "quantity"), {}
    for row in curve:
        images = int(float(row["images"]))
        builds = [
            one for one in table("quantity", "builds") if f"images={images}," in one["defense"]
        ]
        left[images] = [float(one["robust"]) for one in builds]
    here = [setup_of("quantity")["threat"].removeprefix("linf "), images_of("quantity")]
    here += [f"{len(left[1000])} builds"]
    doubled = student_mean(np.subtract(left[2000], left[1000]))
    ends = [of(curve[0], "robust"), of(curve[-1], "robust")]
    return {
        "D22": [*here, *pct(*ends, of(curve[-1], "difference")), "125", "2,000"],
        "D27": [*here, *pct(doubled), "2,000", "1,000"],
    }


def images_made() -> Rows:
    fixed, drawn = table("diversity", "diversity")[:2]
    n = f"{int(fixed['n']):,} images"
    rows = {"D18": [*num(3, of(drawn, "coverage"), of(fixed, "coverage")), n]}
    spread = [f"{float(row[c]):.2f}" for row in (drawn, fixed) for c in ("residual", "variance")]
    rows["O8"] = [*spread, n]
    repeats = table("toy", "repeats")
    drawn_, fixed_ = (
        np.array([float(r["coverage"]) for r in repeats if f"coefficients={name}" in r["defense"]])
        for name in ("dss", "fixed")
    )
    rows["D19"] = [*num(3, student_mean(drawn_ - fixed_)), f"{len(drawn_)} sets"]
    ours = "datafreeshield:images"
    leak = row_of("leakage", "membership", score=ours)
    near = row_of("leakage", "distances", images=ours)
    share_ = Estimate(*(float(near[f"nearer_{end}"]) for end in ("to_training", "low", "high")))
    rows["O2"] = [*pct(share_), *num(3, of(leak, "auc")), f"{int(leak['n']):,} images"]
    return rows


def purified_colour() -> Rows:
    """Who knows the noise, on CIFAR-10."""
    rows = {}
    for name, (fresh, replayed) in COLOUR.items():
        one, other = right("cifar10", fresh), right("cifar10", replayed, "replayed")
        clean = right("cifar10", fresh, "clean")
        made = record("cifar10", fresh).identity
        rows[name] = [
            *scale("cifar10", f"{fresh} {replayed}"),
            f"t = {made['defense']['params']['t']}",
            f"{made['attack']['params']['steps']} steps",
            *pct(share(one), share(other), gap(one, other), share(clean)),
        ]
    # Two draws a step.
    rows["R24"] += pct(share(right("cifar10", "23cdabe")))
    ours, theirs = right("cifar10", COLOUR_REVPURE[0]), right("cifar10", COLOUR["R23"][0])
    known = right("cifar10", COLOUR_REVPURE[1], "replayed")
    rows["R25"] = [
        *scale("cifar10", " ".join(COLOUR_REVPURE)),
        *pct(share(ours), share(theirs), gap(ours, theirs), share(known)),
    ]
    return rows


def still(board: str, short: str) -> list[str]:
    """Clean accuracy under one fixed noise, on fresh draws, and the difference."""
    known, fresh = right(board, short, "replayed"), right(board, short, "clean")
    return pct(share(known), share(fresh), gap(known, fresh))


def beside(board: str, few: str, many: str, which: str = "adversarial") -> list[np.ndarray]:
    """The scores of two records on the images of the first, with which the second begins."""
    assert record(board, many).outcomes.ids.startswith(f"{record(board, few).outcomes.ids},")
    scores = right(board, few, which)
    return [scores, right(board, many, which)[: len(scores)]]


def on_fresh_noise(board: str) -> list[str]:
    """EM beside PGD on single draws and on averaged ones, on EM's images."""
    here = scale(board, EM)
    for name in ("fresh", "eot"):
        em, other = beside(board, EM, DIFFPURE[name])
        here += pct(share(em), share(other), gap(other, em))
    return [*here, *passes(board, EM, DIFFPURE["fresh"])]


def of_other_images(board: str) -> list[str]:
    """A purifier of Fashion-MNIST beside that of digits, on the former's images."""
    fresh, replay = FASHION
    pairs = [
        beside(board, fresh, DIFFPURE["fresh"], "clean"),
        beside(board, fresh, DIFFPURE["fresh"]),
        beside(board, replay, DIFFPURE["replay"], "replayed"),
    ]
    shown = [text for one, own in pairs for text in pct(share(one), share(own), gap(one, own))]
    return [*scale(board, " ".join(FASHION)), "3,000 steps", *shown]


def passes(board: str, *ids: str) -> list[str]:
    """Of the attacks, forward and backward, an image."""
    costs = [record(board, short).cost for short in ids]
    return [f"{cost.attack_forwards + cost.attack_backwards:.0f}" for cost in costs]


def purified() -> Rows:
    board = "mnist5k-purification"
    here = scale(board, " ".join([*DIFFPURE.values(), *REVPURE.values()]))
    replayed = {key: right(board, DIFFPURE[key], "replayed") for key in ("replay", "bpda")}
    fresh = right(board, DIFFPURE["fresh"])
    other, other_fresh = right(board, REVPURE["replay"], "replayed"), right(board, REVPURE["fresh"])
    known = np.minimum.reduce([*replayed.values(), right(board, DIFFPURE["restarts"], "replayed")])
    diffpure = records(board, " ".join(DIFFPURE.values()))
    best = best_fresh([[correct for one in diffpure for correct in attacked(one)]])
    eot = right(board, DIFFPURE["eot"])
    draws = record(board, DIFFPURE["fresh"]).outcomes
    all_right, all_clean = (
        draws.correct(which).all(axis=1).astype(float) for which in ("adversarial", "clean")
    )
    clean = [right(board, ids["fresh"], "clean") for ids in (REVPURE, DIFFPURE)]
    rows = {
        "R1": pct(share(known), share(best), gap(best, known)),
        "R2": pct(share(fresh), share(replayed["replay"]), gap(fresh, replayed["replay"])),
        "R4": [text for short in NOT_ATTACKED for text in still(board, short)],
        "R5": [
            *pct(share(replayed["bpda"]), share(replayed["replay"])),
            *pct(gap(replayed["bpda"], replayed["replay"])),
        ],
        "R6": [
            *pct(share(other), share(replayed["replay"])),
            *pct(gap(other, replayed["replay"])),
        ],
        "R7": pct(share(other_fresh), share(fresh), gap(other_fresh, fresh)),
        "R8": pct(*map(share, clean), gap(*clean)),
        "R10": pct(share(eot), share(fresh), gap(eot, fresh)),
        "O10": [
            *pct(share(all_right), share(all_clean), share(known), gap(all_right, known)),
            f"{len(draws.clean)} tries",
        ],
    }
    rows = {key: [*here, *texts] for key, texts in rows.items()}
    rows["O16"] = on_fresh_noise(board)
    rows["O15"] = of_other_images(board)
    both, *halves = (right(board, s, "replayed") for s in ("2d6e3ec", "820c9b1", "3aa8322"))
    rows["R11"] = [*scale(board, "2d6e3ec 820c9b1 3aa8322"), *pct(*(gap(h, both) for h in halves))]
    rows["O13"] = [*scale(board, "698788b"), *pct(share(right(board, "698788b", "replayed")))]
    return rows


def theory() -> Rows:
    points = table("theorem", "points")

    def simulated(**where: str) -> list[str]:
        (point,) = [p for p in points if all(p[key] == text for key, text in where.items())]
        trials = int(point["trials"])
        return [wilson(round(float(point["simulated"]) * trials), trials).scaled(100, 2)]

    small = {"radius": "3.0", "rho": "", "n": "8"}
    large, grown = {**small, "n": "64"}, {"randomness": "ideal eot", "n": "3072"}
    return {
        "R13": [f"{sum(p['held'] == 'True' for p in points)} of {len(points)}"],
        "R14": [
            *simulated(randomness="ideal eot", **small),
            *simulated(randomness="ideal eot", **large),
            *("8", "64"),
        ],
        "R15": [*simulated(rho="0.9", **grown), *simulated(rho="1.1", **grown), "0.9", "1.1"],
        "R16": [
            *simulated(randomness="replay", **small),
            *simulated(randomness="replay-set", k="20.0", **small),
            *("8", "20 draws"),
        ],
    }


def inside() -> Rows:
    pearson = [
        of(row_of("direction", "directions", defense="diffpure", compared=kind), "pearson")
        for kind in ("other draws", "fixed noise")
    ]
    last = row_of("projection", "projection", defense="diffpure", step="10")
    distances = {
        row["image"]: row
        for row in table("projection", "distances")
        if row["defense"] == "diffpure"
    }
    pair = [distances[image] for image in ("purified attacked", "attacked")]
    ranks = [row_of("quality", "ranks", of=by, **{"and": "robust"}) for by in ("fd", "step")]
    rho = [Estimate(*(float(row[c]) for c in ("rho", "low", "high"))) for row in ranks]
    ema, raw = table("quality", "quality")[-2:]
    assert (ema["weights"], raw["weights"], ema["step"]) == ("ema", "raw", raw["step"])
    cost = row_of("overhead", "inference", defense="diffpure")
    agree = [
        of(row_of("gradients", "gradients", defense="diffpure", **where), "cosine")
        for where in (
            {"compared": "independent", "k": "16"},
            {"gradient": "bpda"},
        )
    ]
    (one,) = [
        of(row, "cosine")
        for row in table("gradients", "gradients")
        if (row["defense"], row["gradient"], row["k"]) == ("diffpure", "full", "1")
    ]
    audit = row_of("masking", "profiles", profile="standard", half="both")
    found, accused = (of(audit, name) for name in ("recall", "false_alarms"))
    return {
        "R12": [*num(3, *pearson), images_of("direction")],
        "R17": [*pct(of(last, "kappa"), of(last, "pi")), images_of("projection")],
        "R18": [*num(2, *(of(row, "L2") for row in pair)), images_of("projection")],
        "R19": [*num(2, *(of(row, "Linf") for row in pair)), images_of("projection")],
        "R20": [*num(2, *rho), f"{ranks[0]['checkpoints']} checkpoints"],
        "R21": [*pct(of(ema, "robust"), of(raw, "robust")), images_of("quality")],
        "R22": [
            f"{cost['evaluations']} passes",
            f"{100 * float(cost['share_of_generation']):.0f} %",
            f"{float(cost['latency_ratio']):.0f} times",
        ],
        "O11": [*num(3, one, *agree), images_of("gradients"), "16 draws"],
        "O17": [
            *pct(found, accused),
            f"{audit['recall_count']} of {audit['recall_of']}",
            f"{audit['false_alarms_count']} of {audit['false_alarms_of']}",
        ],
    }


def at_test_time() -> Rows:
    board = "testtime"

    def scores(name: str, on: int) -> np.ndarray:
        return worst(board, TESTTIME[name][on])[0]

    def lost(name: str, on: int, than: str = "undefended") -> list[str]:
        one, other = (cleanly(board, TESTTIME[who][on])[0] for who in (name, than))
        return pct(gap(one, other), share(one), share(other))

    def blind(name: str) -> np.ndarray:
        return right(board, TESTTIME[name][CIFAR].split()[-1])

    def flagged(short: str) -> list[str]:
        views = record(board, short).views
        assert views is not None
        seen = np.array(views.detector["adversarial"])[views.moved()]
        return pct(wilson(int((seen > 0).sum()), len(seen)))

    def any_view(on: int) -> list[str]:
        made = [r for r in records(board, TESTTIME["dad"][on]) if r.views]
        return pct(share(np.min([any_right(r.views, r.outcomes) for r in made], 0).astype(float)))

    here = {on: scale(board, TESTTIME["dad"][on]) for on in (CIFAR, DIGITS)}
    digits = record(board, TESTTIME["tte"][DIGITS].split()[0])
    labels = Counter(digits.outcomes.true_labels()[scores("tte", DIGITS) > 0].tolist())
    colour: Rows = {
        "T1": flagged("df02483"),
        "T2": flagged("0a1e800"),
        "T3": pct(share(blind("dad"))),
        "T4": pct(*(share(scores(name, CIFAR)) for name in ("dad", "dadpp"))),
        "T6": any_view(CIFAR),
        "T8": lost("dad", CIFAR),
        "T10": pct(gap(blind("dadpp"), blind("dad")), share(blind("dadpp")), share(blind("dad"))),
        "T11": lost("dadpp", CIFAR),
        "T12": pct(share(scores("tte", CIFAR))),
        "T14": lost("tte", CIFAR),
        "T16": lost("as_released", CIFAR, "tte"),
    }
    grey: Rows = {
        "T5": pct(*(share(scores(name, DIGITS)) for name in ("dad", "dadpp"))),
        "T7": any_view(DIGITS),
        "T9": lost("dad", DIGITS),
        "T13": [
            *pct(share(scores("tte", DIGITS)), digits.metrics.adversarial.macro_f1),
            *(f"{count} of {labels.total()} have the label {one}" for one, count in labels.items()),
        ],
        "T15": lost("tte", DIGITS),
    }
    rows = {key: [*here[CIFAR], *texts] for key, texts in colour.items()}
    rows["T17"] = added_to_trained()
    return rows | {key: [*here[DIGITS], *texts] for key, texts in grey.items()}


def added_to_trained() -> list[str]:
    """What TTE adds to an adversarially trained network, under all attacks of its board."""
    one, other = (worst("cifar10", ids)[0] for ids in (TTE_ON_TRAINED, TRAINED))
    return [
        *scale("cifar10", TTE_ON_TRAINED),
        *pct(share(one), share(other), gap(one, other)),
    ]


def published() -> Rows:
    thread = "DataFreeShield, ICLR 2024 thread on OpenReview"
    shield = {"source": thread, "defense": "DataFreeShield", "attack": "AutoAttack"}
    tte = {"source": thread, "defense": "TTE"}
    derma, blood = {"dataset": "DermaMNIST"}, {"dataset": "BloodMNIST"}
    dad = {"defense": "DAD", "dataset": "CIFAR-10", "attack": "AutoAttack"}
    replay = {"attack": "BPDA", "protocol": "replay", "metric": "robust accuracy"}
    at_150 = {**replay, "dataset": "CIFAR-10", "table": "rebuttal"}
    fallen = {"source": thread, "defense": "DFME", "attack": "AutoAttack", **derma}
    return {
        "P1": [printed("datafreeshield", dataset="CIFAR-10", architecture="ResNet-20", **shield)],
        "P2": [printed("datafreeshield", **derma, **shield)],
        "P3": [printed("datafreeshield", dataset="TissueMNIST", **shield)],
        "P4": [printed("datafreeshield", dataset="CIFAR-100", **shield)],
        "P5": [printed("datafreeshield", **fallen)],
        "P6": [printed("testtime", metric="accuracy on static adversarials", **dad)],
        "P7": [printed("testtime", metric="detection rate", **dad)],
        "P8": [printed("datafreeshield", attack="AutoAttack", **blood, **tte)],
        "P9": [
            printed("datafreeshield", attack=a, **derma, **tte) for a in ("PGD-CE", "AutoAttack")
        ],
        "P10": [printed("purification", defense="DiffPure reimpl. (guided)", **replay)],
        "P11": [
            *(printed("purification", defense=f"{who} t=150", **at_150) for who in PURIFIERS),
            *pct(share(right("mnist5k-purification", REVPURE["bpda"], "replayed"))),
        ],
    }


@cache
def figures() -> Rows:
    """The texts of every row that has any, by its name."""
    made = (
        datafree, other_images, parts, images_made, purified, purified_colour, theory, inside,
        at_test_time, published,
    )  # fmt: skip
    return {key: texts for rows in made for key, texts in rows().items()}
