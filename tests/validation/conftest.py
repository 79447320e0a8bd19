"""Answers that several modules look at; their tests are in the group ``published``, so that one
worker makes them, once.
"""

import pytest

from simulator.lab.validation.suites import answer_published


@pytest.fixture(scope="session")
def published():
    """All shipped cases, answered."""
    return answer_published(None)
