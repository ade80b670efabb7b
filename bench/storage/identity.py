"""Names by content."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def identity_hash(identity: dict[str, Any]) -> str:
    """Hash of an identity: its JSON with sorted keys."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
