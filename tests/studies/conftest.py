import pytest

from tests.studies.helpers import gratings_setting


@pytest.fixture(scope="module")
def setting():
    """Gratings of three classes behind a small network."""
    return gratings_setting()
