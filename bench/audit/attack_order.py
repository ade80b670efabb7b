"""Which attack cannot leave more than which, by their names in print.

A name that is not understood is in no relation: nothing is said of it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

NOTHING = ("", "none")
"""No attack."""

AUTOATTACK = re.compile(r"(auto ?attack|aa)( ?\((standard|rand|plus)\))?", re.IGNORECASE)
PLAIN_PGD = re.compile(r"pgd(-ce)?(-\d+)?", re.IGNORECASE)

_LOSSES = r"(ce|kl|mse|cw|c&w|dlr|margin)"
_GRADIENT = re.compile(
    rf"([ir]-?fgsm|fgsm|bim|mi-?fgsm|pgd|cw|c&w)(-{_LOSSES})?(-\d+)?(\+{_LOSSES})*", re.IGNORECASE
)
_ARGUMENT = re.compile(r"\([^()]*\)")

# AutoAttack's members (Croce and Hein 2020, arXiv 2003.01690, section 5), each with its budget
# there, and the names of `rand`'s (APGD-DLR).
_MEMBER = re.compile(
    r"(?P<name>apgd(-(?:ce|t|dlr))?|fab(-t)?|square)( (?P<count>[\d,]+) (iter|steps|queries)\w*)?",
    re.IGNORECASE,
)
_BUDGET = {"apgd": 100, "fab": 100, "square": 5_000}

_STEPS = re.compile(r"(?P<name>.*?)([ -](?P<count>\d+)( (iter|steps|queries)\w*)?)?", re.IGNORECASE)
_EOT = re.compile(r"(?P<name>.+?) ?\+ ?eot(-(?P<count>\d+))?", re.IGNORECASE)
_ONE_STEP = re.compile(r"fgsm", re.IGNORECASE)
_MANY_STEPS = re.compile(r"(pgd|bim|i-?fgsm)(-(ce|\d+))*", re.IGNORECASE)


@dataclass(frozen=True)
class Order:
    """One attack cannot leave more than another in the same ball.

    Attributes:
        contains: whether the stronger runs the weaker and keeps what it breaks, or takes the place
            of it: then a difference is an inequality up to seeds. False: it should be stronger, and
            noise may say otherwise.
        why: the relation in words, after the stronger's name.
    """

    contains: bool
    why: str


def is_gradient_attack(name: str) -> bool:
    """Whether this is a gradient attack on the whole defense by one loss or a sum of losses, such
    as `PGD-20`, `PGD-KL(S(x')||S(x))`.
    """
    while _ARGUMENT.search(name):
        name = _ARGUMENT.sub("", name)
    return _GRADIENT.fullmatch(name) is not None


def order(stronger: str, weaker: str) -> Order | None:
    """How two attacks relate by name, None where the first need not be the stronger one."""
    if stronger.lower() == weaker.lower() or {stronger, weaker} & set(NOTHING):
        return None
    for rule in (_combination, _autoattack, _steps, _expectation, _one_step):
        if found := rule(stronger, weaker):
            return found
    return None


def _combination(stronger: str, weaker: str) -> Order | None:
    parts = _parts(stronger)
    known = weaker.lower() in parts or ("aa" in parts and AUTOATTACK.fullmatch(weaker))
    return Order(True, f"runs {weaker} among others") if known else None


def _parts(name: str) -> set[str]:
    """The attacks that a combination runs one after the other, in lower case."""
    if ", then " in name:
        return {part.strip().lower() for part in name.split(", then ")}
    parts = [part.strip().lower() for part in name.split("+")]
    # `+` joins attacks, or an attack and its gradient (BPDA, EOT), or the terms of a loss.
    attacks = all(
        AUTOATTACK.fullmatch(part) or _MEMBER.fullmatch(part) or "transfer" in part
        for part in parts
    )
    return set(parts) if len(parts) > 1 and attacks else set()


def _autoattack(stronger: str, weaker: str) -> Order | None:
    if not AUTOATTACK.fullmatch(stronger):
        return None
    member = _MEMBER.fullmatch(weaker)
    if member:
        family = member["name"].lower().split("-")[0]
        count = int((member["count"] or "0").replace(",", ""))
        return Order(True, f"runs {weaker}") if count <= _BUDGET[family] else None
    if is_gradient_attack(weaker):
        return Order(True, f"runs stronger attacks than {weaker}")
    return None


def _steps(stronger: str, weaker: str) -> Order | None:
    many, few = _STEPS.fullmatch(stronger), _STEPS.fullmatch(weaker)
    if not many or not few or many["name"].lower() != few["name"].lower():
        return None
    if not many["count"] or not few["count"] or int(many["count"]) <= int(few["count"]):
        return None
    return Order(False, f"takes more steps than {weaker}")


def _expectation(stronger: str, weaker: str) -> Order | None:
    many, few = _EOT.fullmatch(stronger), _EOT.fullmatch(weaker)
    if not many:
        return None
    if few:
        same = many["name"].lower() == few["name"].lower()
        more = int(many["count"] or 0) > int(few["count"] or 0) > 0
        return Order(False, f"averages more draws than {weaker}") if same and more else None
    same = many["name"].lower() == weaker.lower()
    return Order(False, f"averages gradients over draws, {weaker} does not") if same else None


def _one_step(stronger: str, weaker: str) -> Order | None:
    if _MANY_STEPS.fullmatch(stronger) and _ONE_STEP.fullmatch(weaker):
        return Order(True, f"takes the step of {weaker} and more")
    return None
