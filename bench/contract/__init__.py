"""The contracts of defenses and attacks as checks that a plugin passes or fails; `bench.testing`
and `bench check` run them.
"""
