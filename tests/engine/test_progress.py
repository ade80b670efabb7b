"""Progress of several evaluations on one screen."""

import time
from types import SimpleNamespace

from bench.engine import progress
from bench.engine.progress import Reporter
from bench.results.agenda import Item


class Evaluation(SimpleNamespace):
    def __str__(self):
        return self.id


def test_all_evaluations_have_a_line_with_the_rest_of_the_time(monkeypatch, capsys):
    """Of 400 passes 150 are done after 30 s: the others take 50 s. What was built before does not
    count.
    """
    now = [time.monotonic()]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    items = {name: Item(title=name, images=10, passes=100.0) for name in "abcd"}
    reporter = Reporter(items)
    assert reporter._overall() == "0 of 4 evaluations"
    a, b = Evaluation(id="a"), Evaluation(id="b")
    now[0] += 1000
    reporter(a, 0, 10, 0.0)
    reporter(b, 0, 10, 0.0)
    reporter(b, 5, 10, 0.5)
    now[0] += 30
    reporter(a, 10, 10, 0.4)
    assert reporter._overall() == "1 of 4 evaluations, about 50 s left"
    assert "1 of 4 evaluations, about 50 s left" in capsys.readouterr().err
    reporter.ended("c", failed=True)
    assert reporter._overall() == "2 of 4 evaluations, 1 failed, about 18 s left"
    reporter.ended("x", failed=True)
    assert reporter._overall().startswith("2 of 4"), "it was stored before"


def test_one_evaluation_needs_no_such_line(capsys):
    reporter = Reporter({"a": Item(title="a", images=10, passes=1.0)})
    reporter(Evaluation(id="a"), 10, 10, 0.5)
    assert "1 of 1" not in capsys.readouterr().err


def test_an_evaluation_that_has_ended_leaves_the_screen():
    items = {name: Item(title=name, images=10, passes=100.0) for name in "ab"}
    reporter = Reporter(items)
    reporter(Evaluation(id="a"), 10, 10, 0.5)
    shown = {task.description: task.visible for task in reporter._bars.tasks}
    assert shown == {"a": False} and reporter._bars.headline.startswith("1 of 2 evaluations")


def test_a_long_name_keeps_both_ends():
    shortened = progress._shortened("0123456789", 5)
    assert shortened == "01…89" and progress._shortened("01234", 5) == "01234"


def test_in_a_notebook_one_line_changes_and_is_empty_in_the_end(monkeypatch, capsys):
    shown = []
    handle = SimpleNamespace(update=lambda data, raw: shown.append(data["text/plain"]))
    display = SimpleNamespace(display=lambda *_, **__: handle)
    monkeypatch.setitem(progress.sys.modules, "ipykernel", object())
    monkeypatch.setitem(progress.sys.modules, "IPython.display", display)
    items = {name: Item(title=name, images=10, passes=100.0) for name in "ab"}
    with Reporter(items) as reporter:
        reporter(Evaluation(id="a"), 0, 10, 0.0)
        reporter(Evaluation(id="a"), 5, 10, 0.5)
    assert shown[0].startswith("0 of 2 evaluations, about")
    assert shown[0].endswith("a: 5/10 images, robust 50.0 %") and shown[-1] == ""
    assert capsys.readouterr().err == ""
