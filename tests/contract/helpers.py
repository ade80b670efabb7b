"""How the checks are run."""

from bench.contract.check import examine


def failures(checks, case):
    return {
        verdict.name: verdict.message
        for verdict in examine(checks, case)
        if verdict.outcome == "FAIL"
    }
