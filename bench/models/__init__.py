"""Classifiers: architectures, weights, loading and training."""
