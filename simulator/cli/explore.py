"""``moesim explore``: a local page on which a scenario's keys are controls."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import sys
import threading
import webbrowser
from typing import TYPE_CHECKING, Annotated

from simulator.base.errors import INTERRUPTED, UserError
from simulator.cli import console

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

    from simulator.commands.explore import Asked, Exploration

_HOST = "127.0.0.1"
_RETAINED = 4
"""Pages of results that can still be asked for."""
_MOST_BYTES = 1 << 20
"""Bytes of a change, at most."""
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; connect-src 'self'; frame-src 'self'; form-action 'none'; "
    "base-uri 'none'; frame-ancestors 'self'"
)


def explore(
    scenario: console.ScenarioFile,
    port: Annotated[
        int,
        console.option("Port on this machine; by default any that is free.", "N", min=0, max=65535),
    ] = 0,
    overrides: console.Set = None,
    opens: Annotated[bool, console.option("Open it in the browser.", flag="--open")] = False,
    allow_code: console.AllowCode = False,
) -> None:
    """Change a scenario's keys on a local page, and see at once what comes of it.

    Each change simulates the scenario anew, with at most 2,000 requests unless the page asks for
    all. The page gives the changed TOML file and the command that does the same. It is served to
    this machine only, to whoever has the address that is printed; Ctrl-C ends it.
    """
    from simulator.runtime import require

    for package in ("starlette", "tomlkit", "uvicorn"):
        require(package, "moesim explore")
    import uvicorn

    from simulator.commands.explore import Exploration

    exploration = Exploration(scenario, overrides or [])
    listener = _listen(port)
    port, token = listener.getsockname()[1], secrets.token_urlsafe(16)
    app = make_app(exploration, token, f"moesim-{port}")
    server = uvicorn.Server(
        uvicorn.Config(app, log_level="warning", lifespan="off", timeout_graceful_shutdown=1)
    )
    address = f"http://{_HOST}:{port}/?token={token}"
    console.out.say(address)
    console.err.say(f"{exploration.path}: explore it at this address; Ctrl-C ends it")
    if opens:
        threading.Timer(0.5, webbrowser.open, [address]).start()
    with contextlib.suppress(KeyboardInterrupt):  # raised unless who began it ignores Ctrl-C
        server.run(sockets=[listener])
    console.err.say("stopped")
    sys.stdout.flush()
    os._exit(INTERRUPTED)  # a simulation that still runs is of no use, and would be waited for


def _listen(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((_HOST, port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise UserError(f"--port {port}: {error.strerror}; leave it out for a free one") from None
    return listener


def make_app(exploration: Exploration, token: str, cookie: str) -> Starlette:
    """Make the web application.

    Args:
        token: what the address must have; whoever does not know it is refused.
        cookie: name of the cookie that holds it afterwards.
    """
    from pydantic import ValidationError
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
    from starlette.routing import Route

    from simulator.commands.explore import QUICK_REQUESTS, Asked, compare
    from simulator.commands.report import render
    from simulator.report.rendering import render_part

    pages: dict[int, str] = {}
    lock, newest = threading.Lock(), dict[str, int]()

    def is_known(request: Request) -> bool:
        return secrets.compare_digest(request.cookies.get(cookie, "").encode(), token.encode())

    async def show(request: Request) -> Response:
        if secrets.compare_digest(request.query_params.get("token", "").encode(), token.encode()):
            moved = RedirectResponse("/")
            moved.set_cookie(cookie, token, httponly=True, samesite="strict")
            return moved
        if not is_known(request):
            return PlainTextResponse("Open the whole address that moesim printed.", 403)
        page = render_part(
            "explore.html",
            name=exploration.path.stem,
            given=exploration.given,
            quick_requests=QUICK_REQUESTS if exploration.is_serving else 0,
        )
        return HTMLResponse(page, headers={"Content-Security-Policy": _POLICY})

    async def change(request: Request) -> Response:
        origin = request.headers.get("origin", f"http://{request.headers.get('host')}")
        if not is_known(request) or origin != f"http://{request.headers.get('host')}":
            return PlainTextResponse("unknown", 403)
        if int(request.headers.get("content-length", 0)) > _MOST_BYTES:
            return PlainTextResponse("too long", 413)
        try:
            asked = Asked.model_validate_json(await request.body())
        except ValidationError as error:
            return PlainTextResponse(str(error), 400)
        newest[asked.page] = asked.number
        try:
            return await run_in_threadpool(_answer, asked)
        except asyncio.CancelledError:  # the command ends
            return PlainTextResponse("ended", 503)

    def _answer(asked: Asked) -> Response:
        with lock:
            if asked.number < newest[asked.page]:  # changed again while it waited
                return Response(status_code=204)
            number = max(pages, default=0) + 1
            view = exploration.view(dict(asked.changes), is_quick=asked.is_quick)
            now = view.results
            before = exploration.start(is_quick=asked.is_quick).results or now
            if now is not None:
                pages[number] = render(now)
                for old in sorted(pages)[:-_RETAINED]:
                    del pages[old]
            part = render_part(
                "explored.html",
                name=exploration.path.stem,
                folder=exploration.path.resolve().parent,
                view=view,
                changes=dict(asked.changes),
                table=now and before and compare(before, now),
                number=number,
            )
            return HTMLResponse(part)

    async def report(request: Request) -> Response:
        if not is_known(request):
            return PlainTextResponse("unknown", 403)
        page = pages.get(request.path_params["number"])
        return PlainTextResponse("no longer kept", 404) if page is None else HTMLResponse(page)

    routes = [
        Route("/", show),
        Route("/change", change, methods=["POST"]),
        Route("/report/{number:int}", report),
    ]
    app = Starlette(routes=routes)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[_HOST, "localhost"])
    return app
