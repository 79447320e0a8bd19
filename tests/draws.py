"""Draws that entries of step tables are averaged over in tests: a third of those that ship, which
take most of the time of laws. Laws hold for any number; numbers, and comparisons that need as many
as ship, take those.
"""

from pathlib import Path

import pytest

from simulator.engine import experts_table, shards
from simulator.planner import explore

FOLDERS = tuple(Path(__file__).parent / name for name in ("laws", "report", "unit", "contracts"))
"""Folders whose tests take fewer, unless their file is marked ``shipped_draws``."""
FEW = {"_DRAWN_TOKENS": 4096, "_FEWEST_DRAWS": 5, "_MOST_DRAWS": 24}


@pytest.fixture(scope="module", autouse=True)
def few_draws(request):
    file = request.node
    is_one_of_them = any(folder in file.path.parents for folder in FOLDERS)
    if not is_one_of_them or file.get_closest_marker("shipped_draws"):
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        for name, number in FEW.items():
            patch.setattr(experts_table, name, number)
        # Tables of one kind are no tables of the other.
        for module in (shards, explore):
            patch.setattr(module, "_TABLES", type(module._TABLES)(most=64))
        yield
