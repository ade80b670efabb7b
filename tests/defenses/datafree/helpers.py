"""What tests of the synthesis share."""

from bench_defenses.datafree.synthesis import (
    SynthesisRecipe,
)

from bench.noise import BuildNoise

SHAPE = (3, 16, 16)


NOISE = BuildNoise(0)


RECIPE = SynthesisRecipe(images=15, batch=5, iterations=12, every=4)
