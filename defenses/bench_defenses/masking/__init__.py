"""Modules whose true robust accuracy is known: most hide from an attack or from the judge, the
others are honest. One file a kind.
"""
