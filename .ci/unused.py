"""Fails where vulture finds code that nobody uses, beyond the names below and the plugins' classes.

A name below that is no longer reported fails as well, so the list cannot outlive its reasons.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PATHS = ("bench", "defenses/bench_defenses", "attacks/bench_attacks")

LIBRARY = "set on an object of a library, which reads it"
SERVER = "read or called by http.server"
PYDANTIC = "read, checked or written by pydantic"
ALLOWED = {
    "n_iter": LIBRARY,
    "n_queries": LIBRARY,
    "dlr_loss": LIBRARY,
    "dlr_loss_targeted": LIBRARY,
    "track_running_stats": LIBRARY,
    "__annotations__": LIBRARY,
    "_apply": "called by torch to move a module",
    "types": "an argument whose name torch's function mode fixes",
    "__getattr__": "called by Python for the lazy names of `bench`",
    "__dir__": "called by Python for the lazy names of `bench`",
    "schema_version": PYDANTIC,
    "prediction_type": PYDANTIC,
    "rescale_betas_zero_snr": PYDANTIC,
    "_repr_html_": "called by notebooks",
    "_repr_png_": "called by notebooks",
    "do_GET": SERVER,
    "do_HEAD": SERVER,
    "log_message": SERVER,
    "daemon_threads": SERVER,
    "protocol_version": SERVER,
    "server_version": SERVER,
    "sys_version": SERVER,
    "timeout": SERVER,
    "register": "for authors of plugins: the decorator that adds one for this process",
    "input_backwards": "read by its name, as `Claims` names it",
    "weight_backwards": "read by its name, as `Claims` names it",
    "clamped": "written to the log of the synthesis through asdict",
    "right_before": "written to the log of the synthesis through asdict",
    "largest_share": "written to the log of the training through asdict",
    "adapted": "written to the log of the training through asdict",
}
DECORATORS = "@app.command*,@app.callback*,@field_validator*,@model_validator*,@staticmethod"


def plugins() -> set[str]:
    """Classes and aliases that entry points of pyproject.toml name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {
        target.partition(":")[2]
        for group in project["entry-points"].values()
        for target in group.values()
    }


def reported() -> dict[str, str]:
    """What vulture finds at 60 %, by name."""
    command = [sys.executable, "-m", "vulture", *PATHS, "--min-confidence", "60"]
    command += ["--ignore-decorators", DECORATORS, "--ignore-names", "model_config"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 3):
        sys.exit(done.stdout + done.stderr)
    lines = done.stdout.splitlines()
    names = [re.search(r"unused \w+ '(\w+)'", line) for line in lines]
    return {name[1] if name else line: line for name, line in zip(names, lines, strict=True)}


def main() -> None:
    """Print what is wrong, a line each."""
    lines, known = reported(), plugins()
    faults = [line for name, line in lines.items() if name not in known and name not in ALLOWED]
    faults += [
        f"{name}: allowed, but not reported any more" for name in ALLOWED if name not in lines
    ]
    if faults:
        sys.exit("\n".join(faults))


if __name__ == "__main__":
    main()
