"""The tutorial runs, and what is stored below its cells is what they show, but for the digits."""

import ast
import io
import json
import re
from contextlib import redirect_stdout
from pathlib import Path

from bench.noise import isolated

NOTEBOOK = Path(__file__).parents[1] / "docs" / "start" / "tutorial.ipynb"


def run(source: str, names: dict) -> tuple[str, object]:
    """What a cell prints, and the value of its last line."""
    tree, out, value = ast.parse(source), io.StringIO(), None
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    with redirect_stdout(out):
        exec(compile(tree, "cell", "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
    return out.getvalue(), value


def stored(cell: dict) -> dict[str, str]:
    """The outputs of a cell by their types."""
    found = {}
    for output in cell["outputs"]:
        parts = output.get("data") or {"text/plain": output["text"]}
        found |= {kind: "".join(text) for kind, text in parts.items()}
    return found


def worded(text: str) -> str:
    """Another machine may round otherwise: numbers are left out, and so is their width."""
    return re.sub(r"\s+", " ", re.sub(r"\d[\d.]*", "#", text)).strip()


def test_every_cell_of_the_tutorial_shows_what_is_stored(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells = [c for c in json.loads(NOTEBOOK.read_text())["cells"] if c["cell_type"] == "code"]
    names, kinds = {}, set()
    for cell in cells:
        expected = stored(cell)
        # A cell makes a network, which torch's own generator initialises.
        with isolated(0):
            said, value = run("".join(cell["source"]), names)
        kinds |= set(expected)
        if "text/plain" in expected:
            assert worded(said) == worded(expected["text/plain"])
        if "text/html" in expected:
            assert worded(value._repr_html_()) == worded(expected["text/html"])
        if "image/png" in expected:
            assert value._repr_png_().startswith(b"\x89PNG")
    assert kinds == {"text/plain", "text/html", "image/png"}
    assert not re.search(r"/(work|tmp|home|root)/|ipykernel", NOTEBOOK.read_text())
