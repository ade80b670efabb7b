"""`bench verify` against a record that says more than is true: every field that follows from
something else is compared, and attacked points are answered before any clean image is seen.
"""

import hashlib
import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save

from bench.attack import Attack, AttackOutput
from bench.commands.verify import verify
from bench.defense import Defense, NoParams, Wrapper
from bench.engine.build import build
from bench.engine.execution import Execution
from bench.engine.plan import plan
from bench.plugins.create import ATTACKS, DEFENSES
from bench.results.metrics import measure
from bench.results.outcomes import NO_STAGE, encode_ids
from bench.results.record import Record
from tests.helpers import run_toys, toy_request

NOT_COMPARED = {"schema_version", "id", "identity", "sources", "finished"}
"""Fields that a record is found and rebuilt by, and the date, which nobody can recompute."""


EPS = 0.05
"""Of the toy images' threat model."""


class Viewed(Wrapper):
    """Looks at an image twice: its own answer, a second one, and a detector's."""

    scored = ("second", "detector")

    def views(self):
        return (*self.classifier.views(), *self.scored)

    def forward_pass(self, gradient="full", view="logits"):
        inner = self.inner(gradient, "logits")

        def run(images, noise):
            logits = inner(images, noise)
            if view == "detector":
                return torch.stack([logits[:, 0], images.flatten(1).mean(1)], 1)
            return logits.flip(1) if view == "second" else logits

        return run


@DEFENSES.register("toy-verify-views")
class Views(Defense[NoParams]):
    """A classifier with scored views."""

    def build(self, classifier, access, noise):
        return Viewed(classifier)


@ATTACKS.register("toy-verify-stages")
class InStages(Attack[NoParams]):
    """PGD behind a stage that does nothing."""

    @property
    def stages(self):
        return ("idle", "pgd")

    def run(self, victim, images, labels, threat):
        from bench_attacks.pgd import PGD, PGDParams

        points = PGD(PGDParams(steps=5))(victim, images, labels, threat).points
        wrong = victim.verify(points)[:, 0] != labels
        return AttackOutput(points, torch.where(wrong, 1, NO_STAGE))


class Memory(Wrapper):
    """Answers what lies near an image that it saw before as it answered that one."""

    def __init__(self, classifier):
        super().__init__(classifier)
        self.seen, self.said = [], []

    def forward_pass(self, gradient="full", view="logits"):
        inner = self.inner(gradient, view)

        def run(images, noise):
            answers = []
            for image, answer in zip(images, inner(images, noise), strict=True):
                near = [
                    said
                    for seen, said in zip(self.seen, self.said, strict=True)
                    if (seen - image).abs().max() <= EPS + 1e-4
                ]
                if not near:
                    self.seen.append(image.detach().clone())
                    self.said.append(answer.detach().clone())
                answers.append(near[0] + 0 * answer if near else answer)
            return torch.stack(answers)

        return run


@DEFENSES.register("toy-verify-memory")
class Remembering(Defense[NoParams]):
    """A memory of images."""

    def build(self, classifier, access, noise):
        return Memory(classifier)


class Counting(torch.nn.Module):
    """A plain module that keeps every image it sees."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.seen = inner, []

    def forward(self, images):
        self.seen += list(images.detach())
        return self.inner(images)


@DEFENSES.register("toy-verify-counting")
class CountingDefense(Defense[NoParams]):
    """A plain module that remembers images."""

    def build(self, classifier, access, noise):
        return Counting(classifier)


def told(path):
    """Names of fields in the messages of all checks that do not hold."""
    return [
        f"{check.name}: {check.message}" for check in verify(path, Execution()) if not check.held
    ]


def rewritten(folder, record, content):
    """The record's file with other content."""
    path = folder / f"{record.stem}.json"
    path.write_text(json.dumps(content))
    return path


def content_of(record):
    return json.loads(record.model_dump_json())


def measured(content):
    """Metrics that follow from forged outcomes."""
    record = Record.model_validate_json(json.dumps(content))
    return json.loads(measure(record.outcomes, by_gradient=True).model_dump_json())


# A defense that remembers -------------------------------------------------------------------------


@pytest.mark.parametrize("with_points", [True, False])
def test_a_defense_that_remembers_is_told(tmp_path, with_points):
    """Its record says that most images survive; findings of the run's own checks are struck out."""
    base, record = run_toys(tmp_path, defenses=("toy-verify-memory",), dataset="toy:n=40")
    robust, undefended = (one.metrics.adversarial.mean.value for one in (record, base))
    assert robust > undefended + 0.3
    content = content_of(record)
    assert {one["name"] for one in content["findings"]} & {"remembers", "state-moved"}
    content["findings"] = []
    path = rewritten(tmp_path, record, content)
    if not with_points:
        (tmp_path / record.points.file).unlink()
    wrong = " ".join(told(path))
    assert ("adversarial: re-scoring" if with_points else "findings.remembers") in wrong


def test_a_plain_module_that_was_just_built_has_seen_no_image():
    """How it wants to be run is found out on a copy."""
    evaluation = plan(toy_request(defenses=("toy-verify-counting",), dataset="toy:n=40"))[-1]
    assert build(evaluation, torch.device("cpu")).network.seen == []


# Every field that follows from something else -----------------------------------------------------


def flipped(word):
    return word[1:] + word[:1]


def forge_outcomes(which):
    def forge(content):
        content["outcomes"][which][0] = flipped(content["outcomes"][which][0])
        content["metrics"] = measured(content)

    return forge


def put(*path_and_value):
    *path, last, value = path_and_value

    def forge(content):
        place = content
        for step in path:
            place = place[step]
        place[last] = value(place[last]) if callable(value) else value

    return forge


def without(name):
    def forge(content):
        del content[name][0]

    return forge


FINDING = {"name": "zero-gradient", "verdict": "warn", "message": "none"}
INVENTED = {"name": "S6", "ids": "0", "adversarial": ["0"], "by": ""}
TOY = {"defenses": ("toy-jitter",), "attacks": ("pgd+replay:steps=5",)}
VIEWS = {"defenses": ("toy-verify-views",), "attacks": ("pgd:steps=5",)}
STAGES = {"defenses": ("undefended",), "attacks": ("toy-verify-stages",)}
REPLAYED = {"defenses": ("toy-jitter",), "attacks": ("toy-verify-stages+replay",)}
TARGETS = {"defenses": ("undefended",), "attacks": ("pgd:steps=5,targeted=random",)}
DISTANCES = {**TARGETS, "attacks": ("fmn:steps=5,classes=1",), "eps": 0.005}

FORGED = [
    ("title", TOY, put("title", "threat", "linf 0.04"), "title.threat"),
    ("given", TOY, put("given", "attack", []), "given"),
    ("access", TOY, put("access", ["training data"]), "access"),
    ("stochastic", TOY, put("stochastic", False), "stochastic"),
    ("replay_level", TOY, put("replay_level", "process"), "replay_level"),
    ("base", TOY, put("base", "0" * 16), "base"),
    ("scale", TOY, put("scale", {"n": 40, "available": 50, "reduced": True}), "scale.available"),
    ("pool", TOY, put("pool", {"images": 5, "adversarial": 0.0}), "pool"),
    ("inference", TOY, put("inference", "passes", 2.0), "inference.passes"),
    ("inference", TOY, put("inference", None), "inference"),
    ("outcomes", TOY, forge_outcomes("clean"), "clean: "),
    ("outcomes", TOY, forge_outcomes("adversarial"), "adversarial: "),
    ("outcomes", TOY, forge_outcomes("replayed"), "replayed: "),
    ("stages", TOY, put("stages", {"names": ["a"], "broken_by": "-" * 40}), "stages.names"),
    ("stages", STAGES, put("stages", "broken_by", "-" * 40), "stages.broken_by"),
    ("stages", REPLAYED, put("stages", "broken_by", flipped), "stages.broken_by"),
    ("targets", TOY, put("targets", "-" * 40), "targets"),
    ("targets", TARGETS, put("targets", None), "targets"),
    ("distances", DISTANCES, put("distances", None), "distances"),
    ("distances", DISTANCES, put("distances", "values", [0.0] * 40), "distances"),
    ("distances", DISTANCES, put("distances", "values", [9.0] * 40), "distances"),
    ("distances", TARGETS, put("distances", {"values": [0.0] * 40}), "distances"),
    ("views", VIEWS, put("views", None), "views"),
    ("views", VIEWS, put("views", "attacked", "0" * 40), "views.attacked"),
    ("metrics", TOY, put("metrics", "adversarial", "mean", "high", 1.0), "metrics.adversarial"),
    ("findings", TOY, put("findings", [FINDING]), "findings.zero-gradient"),
    ("findings", TARGETS, put("findings", 0, "message", "all were reached"), "findings.targets"),
    ("findings", TARGETS, put("findings", 0, "value", 1.0), "findings.targets"),
    ("findings", TARGETS, without("findings"), "findings.targets"),
    ("extra", TOY, put("extra", 0, "adversarial", 0, flipped), "extra.base points"),
    ("extra", TOY, put("extra", 0, "adversarial", lambda one: one[:1]), "extra.base points"),
    ("extra", TOY, without("extra"), "extra.base points"),
    ("extra", TOY, put("extra", lambda extra: [*extra, INVENTED]), "extra.S6"),
    ("extra", TOY, put("extra", 0, "name", "checks"), "extra.checks"),
    ("cost", TOY, put("cost", "judge_forwards", 1.0), "cost.judge_forwards"),
    ("cost", TOY, put("cost", "attack_forwards", 0.03), "cost.attack_forwards"),
    ("cost", TOY, put("cost", "max_attack_backwards", 1000), "cost.max_attack_backwards"),
    ("cost", TOY, put("cost", "check_forwards", 1.0), "cost.check_forwards"),
    ("environment", TOY, put("environment", "weights", "0" * 64), "weights: "),
    ("points", TOY, put("points", "file", "other.safetensors"), "points.file"),
]


@pytest.mark.parametrize(
    ("field", "run", "forge", "name"), FORGED, ids=[f"{f}-{i}" for i, (f, *_) in enumerate(FORGED)]
)
def test_each_field_that_follows_is_named(tmp_path, field, run, forge, name):
    record = run_toys(tmp_path, dataset="toy:n=40", **run)[-1]
    content = content_of(record)
    forge(content)
    if field == "points":
        (tmp_path / record.points.file).rename(tmp_path / content["points"]["file"])
    path = rewritten(tmp_path, record, content)
    assert any(name in message for message in told(path))


@pytest.mark.parametrize("run", [TOY, VIEWS, STAGES, REPLAYED, TARGETS, DISTANCES])
@pytest.mark.parametrize("with_points", [True, False])
def test_what_was_not_forged_holds(tmp_path, run, with_points):
    record = run_toys(tmp_path, dataset="toy:n=40", **run)[-1]
    if not with_points:
        (tmp_path / record.points.file).unlink()
    assert told(tmp_path / f"{record.stem}.json") == []


def test_every_field_is_compared():
    assert {field for field, *_ in FORGED} == set(Record.model_fields) - NOT_COMPARED


# Points of the checks -----------------------------------------------------------------------------


def with_checks(folder, record, rows, extra, *, written=True, said=None):
    """The record's content with points of the checks beside the attack's."""
    tensors = load_file(folder / record.points.file)
    data = save({**tensors, "extra": extra} if written else tensors)
    digest = hashlib.sha256(data).hexdigest()
    name = f"{record.stem}.{digest[:8]}.points.safetensors"
    (folder / name).write_bytes(data)
    content = content_of(record)
    content["points"] = {"file": name, "sha256": digest}
    said = said or "".join(record.outcomes.adversarial[0][row] for row in rows)
    content["extra"] = [one for one in content["extra"] if one["name"] != "checks"]
    content["extra"].append(
        {"name": "checks", "ids": encode_ids(rows), "adversarial": [said], "by": ""}
    )
    content["findings"] = [one for one in content["findings"] if one["name"] != "weak-attack"]
    return content


def attacked_points(folder, record, rows):
    return load_file(folder / record.points.file)["points"][rows].copy()


@pytest.mark.parametrize("move", ["nothing", "answers", "points", "away"])
def test_points_of_the_checks_are_scored_again(tmp_path, move):
    """They lie in the sidecar beside the attack's, in the order of their ids."""
    record = run_toys(tmp_path, dataset="toy:n=40", **STAGES)[-1]
    rows = [3, 5, 8]
    extra = attacked_points(tmp_path, record, rows) + np.float32(0.5 * (move == "points"))
    said = "".join(str((int(record.outcomes.adversarial[0][row]) + 1) % 3) for row in rows)
    content = with_checks(
        tmp_path,
        record,
        rows,
        extra,
        written=move != "away",
        said=said if move == "answers" else None,
    )
    wrong = " ".join(told(rewritten(tmp_path, record, content)))
    assert ("budget" in wrong) == (move == "points")
    if move != "points":
        assert ("extra.checks" in wrong) == (move != "nothing")


def test_many_images_that_the_checks_break_must_be_told(tmp_path):
    record = run_toys(tmp_path, dataset="toy:n=40", **STAGES)[-1]
    broken = [row for row, code in enumerate(record.stages.broken_by) if code == "1"]
    assert len(broken) >= 10
    rows = broken[:10]
    content = with_checks(tmp_path, record, rows, attacked_points(tmp_path, record, rows))
    path = rewritten(tmp_path, record, content)
    assert any("findings.beaten" in one for one in told(path))
    finding = {"name": "beaten", "verdict": "fail", "message": "m", "images": encode_ids(rows)}
    path = rewritten(tmp_path, record, {**content, "findings": [*content["findings"], finding]})
    assert told(path) == []
    finding["images"] = encode_ids(rows[:8])
    path = rewritten(tmp_path, record, {**content, "findings": [*content["findings"], finding]})
    assert any("findings.beaten" in one for one in told(path))


def test_another_points_file_beside_the_base_is_not_taken_for_it(tmp_path):
    """Without the base's points its answers stay as they are; nobody can tell."""
    base, record = run_toys(tmp_path, dataset="toy:n=40", **TOY)
    (tmp_path / base.points.file).unlink()
    assert told(tmp_path / f"{record.stem}.json") == []
    (tmp_path / record.points.file).unlink()
    assert told(tmp_path / f"{record.stem}.json") == []
