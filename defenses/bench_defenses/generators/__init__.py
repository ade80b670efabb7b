"""Data-free baselines: a generator makes the images that a student of the classifier is trained on,
both at once.

- `nets`: the generators; `terms`: the terms of their loss
- `loop`: the training of both; `adaptation`: what some methods adapt on the way
- `trained_pair`: the result as an artifact
- `methods`: the four methods as tables over these; `baselines`: the defenses
"""
