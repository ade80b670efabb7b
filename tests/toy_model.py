"""A classifier as a user's file would define it."""

from tests.toys import linear_problem


def make_model():
    """The linear model of the toy data set."""
    return linear_problem(3, 1, active_box=False)[0]


def make_four():
    """The linear model of the toy data set with four classes."""
    return linear_problem(4, 1, active_box=False)[0]


def make_number():
    """Not a model."""
    return 7
