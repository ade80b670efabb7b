"""Turns a request into evaluations, runs them, and watches over what is run."""
