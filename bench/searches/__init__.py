"""Searches that need no trust in a defense's gradient, as plain functions over a Victim."""

from bench.searches.answers import by_answers
from bench.searches.inner import inner_steps
from bench.searches.margin import margin_steps
from bench.searches.minimal import nearest
from bench.searches.points import random_points
from bench.searches.search import NearestResult, SearchResult
from bench.searches.smoothing import smoothed
from bench.searches.squares import square

__all__ = [
    "NearestResult",
    "SearchResult",
    "by_answers",
    "inner_steps",
    "margin_steps",
    "nearest",
    "random_points",
    "smoothed",
    "square",
]
