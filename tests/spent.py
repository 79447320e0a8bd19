"""CPU seconds that each file of the suite takes, its commands included: the longest are printed
behind the tests, so that what makes ``make test`` longer is seen when it comes.
"""

import resource
from collections import Counter

import pytest

_SPENT = pytest.StashKey[Counter]()
_SHOWN = 12
"""Files that are printed."""


def _read_cpu():
    """CPU seconds of this process and of those that it has waited for."""
    used = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def pytest_configure(config):
    config.stash[_SPENT] = Counter()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item):
    before_s = _read_cpu()
    result = yield
    item.config.stash[_SPENT][item.nodeid.partition("::")[0]] += _read_cpu() - before_s
    return result


def pytest_sessionfinish(session):
    """Tell the process that prints what its workers took."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["spent_s"] = dict(session.config.stash[_SPENT])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    node.config.stash[_SPENT].update(getattr(node, "workeroutput", {}).get("spent_s", {}))


def pytest_terminal_summary(terminalreporter, config):
    if config.getoption("part"):
        spent = config.stash[_SPENT]
        longest = (
            f"{seconds:.0f} {file}" for file, seconds in spent.most_common(_SHOWN) if seconds >= 1
        )
        terminalreporter.write_line(
            f"{spent.total():.0f} s of CPU in tests, most of it in: {', '.join(longest)}"
        )
