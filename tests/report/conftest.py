"""Small runs and made-up executions to report, and a browser to open their pages with."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NoReturn

import pytest

from simulator.report import execution, page
from simulator.results.executed import Executed
from simulator.results.folder import Results
from tests.report.made_up_executions import CASES
from tests.report.small_runs import HOSTILE, RUNS
from tests.report.windows import Opened, Windows


@pytest.fixture(scope="session")
def runs() -> dict[str, Results]:
    return {name: make() for name, make in RUNS.items()}


@pytest.fixture(scope="session", params=RUNS)
def run(request: pytest.FixtureRequest, runs: dict[str, Results]) -> Results:
    return runs[request.param]


@pytest.fixture(scope="session")
def page_of(runs: dict[str, Results]) -> Callable[[str], str]:
    """The page of a run by its name, rendered once."""
    return cache(lambda name: page.render(runs[name]))


@pytest.fixture(scope="session")
def executions() -> dict[str, Executed]:
    return {name: make() for name, make in CASES.items()}


@pytest.fixture(scope="session")
def execution_page_of(executions: dict[str, Executed]) -> Callable[[str], str]:
    """The page of an execution by its name, rendered once."""
    return cache(lambda name: execution.render(executions[name]))


@pytest.fixture(scope="session")
def hostile_name() -> str:
    return HOSTILE


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium; where there is none the test is skipped, but not in continuous
    integration.
    """
    try:
        from playwright import sync_api
    except ImportError:
        _no_browser("playwright is not installed")
    named = [os.environ.get("PLAYWRIGHT"), os.environ.get("CHROME")]
    found = [
        shutil.which(name)
        for name in (
            "chromium",
            "chromium-browser",
            "google-chrome",
            "google-chrome-stable",
            "chrome",
        )
    ]
    path = next((candidate for candidate in (*named, *found) if candidate), None)
    with sync_api.sync_playwright() as playwright:
        try:
            opened = playwright.chromium.launch(
                executable_path=path,
                args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
            )
        except sync_api.Error as error:
            _no_browser(str(error).splitlines()[0])
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def windows(browser: Any) -> Windows:
    return Windows(browser)


@pytest.fixture
def open_page(windows: Windows) -> Iterator[Callable[..., Opened]]:
    """``open_page(file, viewport, has_touch=..., theme=...)``: a page with its figures drawn."""
    opened: list[Opened] = []

    def open_one(*arguments: Any, **options: Any) -> Opened:
        opened.append(windows.open(*arguments, **options))
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()


def _no_browser(why: str) -> NoReturn:
    message = f"no Chromium to open the page with: {why}"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)
