"""Pages opened in a browser, offline, with what goes wrong."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from pathlib import Path
from typing import Any

import pytest

DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


def on_screens(names: Iterable[str], phones: Container[str]) -> list[Any]:
    """List pages by the screens that they are opened on: all on a desk, those of ``phones`` on a
    phone too, and in soak all.
    """
    found = []
    for name in names:
        marks = () if name in phones else pytest.mark.soak
        found.append(pytest.param(name, DESK, id=f"{name}-desk"))
        found.append(pytest.param(name, PHONE, id=f"{name}-phone", marks=marks))
    return found


class Opened:
    """A page that a window shows, with what it said and asked for since."""

    def __init__(self, page: Any, file: Path) -> None:
        self.page = page
        self.problems: list[str] = []
        self.requests: list[str] = []
        self._listeners: dict[str, Callable[[Any], None]] = {
            "console": lambda message: self.problems.append(message.text),
            "pageerror": lambda error: self.problems.append(str(error)),
            "popup": lambda other: self.requests.append(other.url),
            "request": lambda request: self.requests.append(request.url),
        }
        for event, listener in self._listeners.items():
            page.on(event, listener)
        page.goto(file.as_uri())
        page.wait_for_selector("html[data-drawn]", state="attached", timeout=60_000)

    @property
    def gone_out(self) -> list[str]:
        """Requests to anything but the page itself."""
        return [url for url in self.requests if not url.startswith(("file:", "data:", "blob:"))]

    @property
    def is_as_wide_as_shown(self) -> bool:
        """Whether nothing lies beyond the right edge of the window."""
        scrolled, shown = self.page.evaluate(
            "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
        )
        return bool(scrolled <= shown)

    def close(self) -> None:
        """Stop listening; the window goes on."""
        for event, listener in self._listeners.items():
            self.page.remove_listener(event, listener)


class Windows:
    """Windows of one browser, one for each kind of screen, which show one page after another: only
    the first one compiles Plotly, and takes twice as long as later ones.
    """

    def __init__(self, browser: Any) -> None:
        self._browser = browser
        self._pages: dict[bool, Any] = {}

    def open(
        self,
        file: Path,
        viewport: dict[str, int] | None = None,
        has_touch: bool = False,
        theme: str = "light",
    ) -> Opened:
        """Show a page, and wait until it has drawn its figures."""
        if has_touch not in self._pages:
            context = self._browser.new_context(has_touch=has_touch)
            context.set_offline(True)
            self._pages[has_touch] = context.new_page()
        page = self._pages[has_touch]
        page.set_viewport_size(viewport or DESK)
        page.emulate_media(media="screen", color_scheme=theme)
        return Opened(page, file)
