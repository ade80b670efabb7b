"""Names of defenses that are short and still tell the rows of a board apart."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

_SETTING = re.compile(r"(?:[^,(]|\([^)]*\))+")


def split(defense: str) -> tuple[str, list[str]]:
    """`a:x=1,y=(b:z=2,w=3)` as its name and its settings."""
    name, _, settings = defense.partition(":")
    return name, _SETTING.findall(settings)


def own_settings(defenses: Sequence[str]) -> list[tuple[str, ...]]:
    """Of each defense the settings that not every other one of the same name has; none where there
    is no other.
    """
    named: dict[str, list[set[str]]] = defaultdict(list)
    for defense in defenses:
        name, settings = split(defense)
        named[name].append(set(settings))
    found = []
    for defense in defenses:
        name, settings = split(defense)
        common = set.intersection(*named[name])
        found.append(tuple(one for one in settings if one not in common))
    return found
