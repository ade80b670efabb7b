"""The hash that names an evaluation, a study or an artifact by all that can change it."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def identity_hash(identity: dict[str, Any]) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of its JSON with sorted keys.

    Raises `ValueError` where a number is not finite.
    """
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
