import pytest


@pytest.fixture(scope="module")
def network():
    """A small U-Net; skips where diffusers is missing."""
    from bench.diffusion.unet import build_unet
    from tests.diffusion.helpers import CONFIG

    return build_unet(CONFIG, seed=1).eval()
