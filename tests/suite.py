"""What tests need, by where they are and what they ask for, and the quick part of the suite, which needs nothing heavy."""

import sys
from pathlib import Path

import pytest

import tests.cases  # noqa: F401 - its profiles must be there before --hypothesis-profile is read
from tests.shared import ABSENT, SHARED

HEAVY = ("ray", "torch", "playwright")
"""Packages that no quick test may import."""
NOT_QUICK = ("ray", "torch", "browser", "slow", "soak")
_LEFT_OUT = pytest.StashKey[int]()


def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true", help="leave out what needs Ray, torch, a browser or its time")


def pytest_itemcollected(item):
    groups = {group for mark in item.iter_markers("xdist_group") for group in mark.args}
    for name in ("ray", "torch", "browser"):
        is_below = name == "torch" and "runtime" in item.path.relative_to(Path(__file__).parent).parts
        if name in item.fixturenames or name in groups or is_below:
            item.add_marker(name)
    if item.get_closest_marker("measured") and not SHARED.is_dir():
        item.add_marker(pytest.mark.skip(reason=ABSENT))


def pytest_collection_modifyitems(config, items):
    # Long tests first: whoever gets the last of them does not leave the other workers waiting for long.
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    if config.getoption("quick"):
        left_out = [item for item in items if any(map(item.get_closest_marker, NOT_QUICK))]
        items[:] = [item for item in items if item not in set(left_out)]
        config.hook.pytest_deselected(items=left_out)
        config.stash[_LEFT_OUT] = len(left_out)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    result = yield
    if item.config.getoption("quick") and (found := [name for name in HEAVY if name in sys.modules]):
        pytest.fail(f"a quick test imported {', '.join(found)}: mark what needs it, or leave it out", pytrace=False)
    return result


def pytest_sessionfinish(session):
    """Tell the process that prints how many tests were left out, which only its workers know."""
    if hasattr(session.config, "workeroutput") and _LEFT_OUT in session.config.stash:
        session.config.workeroutput["left_out"] = session.config.stash[_LEFT_OUT]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    if not error and "left_out" in getattr(node, "workeroutput", {}):
        node.config.stash[_LEFT_OUT] = node.workeroutput["left_out"]


def pytest_terminal_summary(terminalreporter, config):
    if config.getoption("quick"):
        terminalreporter.write_line(f"{config.stash.get(_LEFT_OUT, 0)} tests of these folders were left out as not quick")
