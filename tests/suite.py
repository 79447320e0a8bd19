"""What tests need, by where they are and what they ask for, and the light part of the suite, which
needs nothing big.
"""

import gc
import os
import sys
from functools import cache
from pathlib import Path

import pytest

import tests.cases  # noqa: F401 - its profiles must be there before --hypothesis-profile is read
from simulator.base.machine import look_rarely
from tests.shared import ABSENT, SHARED

HEAVY = ("ray", "torch", "playwright")
"""Packages that no light test may import."""
LIGHT = ("unit", "contracts")
"""Folders that have light tests."""
NOT_LIGHT = ("ray", "torch", "browser", "slow", "soak")
FIRST = ("ray-apart", "ray", "published", "pages")
"""Groups that take minutes, so that none is still at work when all others have ended."""
_LEFT_OUT = pytest.StashKey[int]()


def pytest_configure(config):
    gc.disable()  # until all tests are collected


def pytest_addoption(parser):
    told = (
        "light: unit and contract tests that need no Ray, torch or browser, nor over a second; "
        "rest: all others"
    )
    parser.addoption("--part", choices=("light", "rest"), help=told)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """One worker a core, and one more where tests wait for processes, clocks and browsers."""
    return len(os.sched_getaffinity(0)) + (config.getoption("part") == "rest")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Groups and files whole, in the order of collection, since every worker sets up anew what a
    module, or the session, shares.
    """
    if config.getoption("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadGroupScheduling

    class ByFile(LoadGroupScheduling):
        def _split_scope(self, nodeid):
            group = super()._split_scope(nodeid)
            return nodeid.partition("::")[0] if group == nodeid else group

    config.option.loadscopereorder = False
    return ByFile(config, log)


def _groups_of(item):
    return [group for mark in item.iter_markers("xdist_group") for group in mark.args]


def pytest_itemcollected(item):
    asked = getattr(item, "fixturenames", ())
    # "ray" shares a cluster of simulated nodes; the tests of "ray-apart" start their own meanwhile.
    groups = {group.partition("-")[0] for group in _groups_of(item)}
    for name in ("ray", "torch", "browser"):
        if name in asked or name in groups or (name == "torch" and _folder_of(item) == "runtime"):
            item.add_marker(name)
    if item.get_closest_marker("measured") and not SHARED.is_dir():
        item.add_marker(pytest.mark.skip(reason=ABSENT))


def pytest_collection_modifyitems(config, items):
    # Long groups and files with long tests first: whoever gets the last of them does not leave the
    # other workers waiting for long. Files stay together, so that what a module or class sets up is
    # set up once.
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (_place_of(item), item.path not in slow))
    if part := config.getoption("part"):
        left_out = [item for item in items if _is_light(item) != (part == "light")]
        items[:] = [item for item in items if _is_light(item) == (part == "light")]
        config.hook.pytest_deselected(items=left_out)
        config.stash[_LEFT_OUT] = len(left_out)


def _place_of(item):
    return min(
        (FIRST.index(group) for group in _groups_of(item) if group in FIRST), default=len(FIRST)
    )


def _is_light(item):
    return _folder_of(item) in LIGHT and not any(map(item.get_closest_marker, NOT_LIGHT))


def _folder_of(item):
    """The folder of the suite, or of the program, that holds the test, however deep."""
    return _folder_of_file(item.path)


@cache
def _folder_of_file(path):
    return path.relative_to(Path(__file__).parents[1]).parts[1]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    before = _imported()
    result = yield
    if item.config.getoption("part") == "light" and (found := _imported() - before):
        pytest.fail(
            f"a light test imported {', '.join(found)}: mark what needs it, or leave it out",
            pytrace=False,
        )
    return result


def pytest_collection_finish(session):
    # What tests import and share stays; looking through it took an eighth of their time.
    look_rarely()
    gc.freeze()
    gc.enable()
    grouped = [item for item in session.items if item.get_closest_marker("xdist_group")]
    if getattr(session.config.option, "loadgroup", False) and not all(
        "@" in item.nodeid for item in grouped
    ):
        pytest.exit("pytest and xdist do not keep groups of tests together", returncode=1)
    if session.config.getoption("part") == "light" and (found := _imported()):
        pytest.exit(f"collecting the light tests imported {', '.join(found)}", returncode=1)


def _imported():
    return {name for name in HEAVY if name in sys.modules}


def pytest_sessionfinish(session):
    """Tell the process that prints how many tests were left out, which only its workers know."""
    if hasattr(session.config, "workeroutput") and _LEFT_OUT in session.config.stash:
        session.config.workeroutput["left_out"] = session.config.stash[_LEFT_OUT]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    if not error and "left_out" in getattr(node, "workeroutput", {}):
        node.config.stash[_LEFT_OUT] = node.workeroutput["left_out"]


def pytest_terminal_summary(terminalreporter, config):
    if part := config.getoption("part"):
        terminalreporter.write_line(
            f"{config.stash.get(_LEFT_OUT, 0)} tests of these folders are not {part}"
        )
