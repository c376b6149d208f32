"""What the tests of training share."""

import pytest

from quadranas.space.search_space import SearchSpace
from tests.small_supernets import SPACES


@pytest.fixture(params=SPACES)
def space(request: pytest.FixtureRequest) -> SearchSpace:
    return SPACES[request.param]
