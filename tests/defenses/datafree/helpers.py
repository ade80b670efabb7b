"""What tests of the synthesis share."""

from bench_defenses.datafree.synthesis import (
    SynthesisRecipe,
)

from bench.noise import Noise, Stream

SHAPE = (3, 16, 16)


NOISE = Noise.of(0, Stream.BUILD, [0])


RECIPE = SynthesisRecipe(images=15, batch=5, iterations=12, every=4)
