"""Figures."""

import subprocess
import sys

from tests.helpers import ROOT


def test_figures_touch_no_global_state_and_repeat():
    code = (
        # Asking for the backend would import pyplot.
        "import sys, matplotlib\n"
        "def settings():\n"
        "    keys = [key for key in matplotlib.rcParams if key != 'backend']\n"
        "    return {key: matplotlib.rcParams[key] for key in keys}\n"
        "before = settings()\nfrom bench.studies import plots\n"
        "made = []\nfor _ in range(2):\n    figure, (left, right) = plots.panels('t ' * 80, [('x', "
        "'y', 'a'), ('x', 'y', 'b')])\n"
        "    left.plot([1, 2], "
        "label='l')\n    plots.legend(left)\n    made.append(plots.png(figure))\n"
        "assert made[0] == made[1]\nassert settings() == before\nassert 'matplotlib.pyplot' not in "
        "sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
