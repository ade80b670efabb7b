"""Data-free baselines: a generator makes the images that a student of the classifier is trained on,
both at once.

`nets` the generators; `terms` what a generator wants; `adaptive` what some methods adapt on the
way; `loop` the training; `trained` its result as an artifact; `methods` the four methods as tables
over these; `baselines` the defenses.
"""
