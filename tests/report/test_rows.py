"""The table of a run."""

from bench.report.boards.make import boards
from bench.report.rows import rows_table
from bench.results.findings import Finding
from tests.helpers import run_toys


def test_tables_say_how_their_rows_were_built(tmp_path):
    defenses = ("undefended", "bit-depth:bits=2", "bit-depth:bits=4")
    records = run_toys(tmp_path, defenses=defenses, attacks=("null", "noise:tries=1"))
    assert "How these were built" not in rows_table(records)

    def said(record, *messages):
        notes = tuple(
            Finding(name="built", verdict="note", message=message) for message in messages
        )
        return record.model_copy(update={"findings": (*record.findings, *notes)})

    own = {
        "undefended": (),
        "bit-depth:bits=2": ("same", "two"),
        "bit-depth:bits=4": ("four", "same"),
    }
    annotated = [said(record, *own[record.title["defense"]]) for record in records]
    (board,) = boards(annotated)
    built = {row.defense: row.builds[0].built for row in board.rows}
    assert built == own
    page = rows_table(annotated)
    assert page.count("How these were built") == 1 and page.count("- bit-depth:bits=2: two") == 1
    shared = next(line for line in page.splitlines() if line.endswith(": same"))
    assert set(shared[2:-6].split(", ")) == {"bit-depth:bits=2", "bit-depth:bits=4"}


def test_setups_are_not_mixed_in_one_table(tmp_path):
    records = run_toys(
        tmp_path, defenses=("undefended",), attacks=("null",), eps=0.01, seeds=(0, 1)
    )
    records += run_toys(tmp_path, defenses=("undefended",), attacks=("null",), eps=0.1)
    text = rows_table(records)
    assert "linf 0.01, 150 of 150" in text and "linf 0.1, 150 of 150" in text
    assert text.count("| defense") == 2 and "| seed" in text
