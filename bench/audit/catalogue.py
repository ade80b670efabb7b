"""The checks of an audit: what each asks, where it comes from, and what to do where it speaks."""

from __future__ import annotations

from dataclasses import dataclass

_CARLINI = "Carlini et al. 2019, arXiv 1902.06705"
_ATHALYE = "Athalye et al. 2018, arXiv 1802.00420"
_IOAF = "Pintor et al. 2022, arXiv 2106.09947"
_TRAMER = "Tramer et al. 2020, arXiv 2002.08347"
_SQUARE = "Andriushchenko et al. 2020, arXiv 1912.00049"
_ATTACKBENCH = "Cina et al. 2024, arXiv 2404.19460"
_FMN = "Pintor et al. 2021, arXiv 2102.12827"
_HOP = "Chen et al. 2020, arXiv 1904.02144"
_BINARIZATION = "Zimmermann et al. 2022, arXiv 2206.13991"

_STRONGER = "report the stronger attack: its points already count in the worst case"
_ADAPT = "attack with a search that needs no gradient, or replace the gradient (bpda)"


@dataclass(frozen=True)
class Entry:
    """What is known of a check before it runs.

    Attributes:
        name: what it asks, in a few words.
        source: paper or rule.
        advice: what to do where it speaks.
    """

    name: str
    source: str
    advice: str = ""


CHECKS: dict[str, Entry] = {
    "P8": Entry("answers more than one class", "collapse rule", "train the defense anew"),
    "S1": Entry(
        "one step is no better than many", f"{_ATHALYE}; {_CARLINI}", "look at the gradient"
    ),
    "S2": Entry("twice the steps break no more", _CARLINI, "give the attack more steps"),
    "S3": Entry("more starts break no more", _CARLINI, "give the attack more restarts"),
    "S4": Entry("a larger eps breaks more", f"{_ATHALYE}; {_CARLINI}", _ADAPT),
    "S5": Entry("without a bound everything breaks", f"{_CARLINI}; {_IOAF}", _ADAPT),
    "S6": Entry("what reads no gradient breaks no more", f"{_SQUARE}; {_HOP}; {_CARLINI}", _ADAPT),
    "S7": Entry("random points break nothing more", _CARLINI, _ADAPT),
    "S8": Entry("points of the base break no more", _CARLINI, _ADAPT),
    "S9a": Entry(
        "known noise is no harder than unknown", _CARLINI, "attack the fixed noise for longer"
    ),
    "S9b": Entry(
        "with known noise it is no harder than its base",
        _CARLINI,
        "say what removes the attack: purification may, masking may",
    ),
    "S10": Entry("more draws a step break no more", f"{_ATHALYE}; {_TRAMER}", "double the draws"),
    "S11a": Entry("a success on the way is returned", _IOAF, "return the first success"),
    "S11b": Entry("the margin is smooth around the image", _IOAF, "smooth the gradient"),
    "S11c": Entry("the search has converged", _IOAF, "give the attack more steps"),
    "S11d": Entry("the attacked function is the deployed one", _IOAF, "attack the deployed one"),
    "S12": Entry("another gradient breaks no more", f"{_ATHALYE}; {_CARLINI}", _STRONGER),
    "S13": Entry("another loss breaks no more", f"{_TRAMER}; {_IOAF}", _STRONGER),
    "S14": Entry("nothing nearer is broken", f"{_FMN}; {_ATTACKBENCH}", _STRONGER),
    "S15": Entry("it finds points that were planted", _BINARIZATION, _ADAPT),
    "S16": Entry("attacks keep their order", _CARLINI, "run both attacks again"),
    "S17": Entry("how much chance alone breaks", "null attack on the judge's draws"),
    "S18": Entry("aimed at a class it breaks no more", _CARLINI, _STRONGER),
    "S19": Entry(
        "points of whole pixel values break no more",
        "the values that image files hold",
        "attack points that a file can hold, such as transfer:base rounded to n/255",
    ),
    "S20": Entry(
        "a new process answers alike",
        "a verdict on a fixed function",
        "keep nothing of earlier images, in modules and globals too",
    ),
    "margin": Entry("steps on the margin break no more", "Carlini and Wagner 2017, f6", _STRONGER),
    "together": Entry("all searches together break no more", _CARLINI, _STRONGER),
    "smoothed": Entry(
        "a gradient of function values breaks no more",
        "Ilyas et al. 2018, arXiv 1804.08598",
        _ADAPT,
    ),
}
"""By id, in the order of the documentation."""
