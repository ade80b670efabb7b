"""Where the weights of a trained defense lie beside its record: weights/<16 digits>.safetensors."""

from __future__ import annotations

from pathlib import Path

from bench.results.record import Record

FOLDER = "weights"


def weights_of(record: Record) -> str:
    """The SHA-256 of the weights of a record's defense; empty where it names none."""
    return str(record.environment.get("weights", ""))


def file_of_weights(record: Record) -> Path:
    """Their file, from the record's folder."""
    return Path(FOLDER) / f"{weights_of(record)[:16]}.safetensors"
