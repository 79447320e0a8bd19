"""``moesim explore``: a local page on which a scenario's keys are controls."""

from __future__ import annotations

import secrets
import socket
import threading
import webbrowser
from typing import TYPE_CHECKING, Annotated, Any

from simulator.base.errors import UserError
from simulator.cli import console

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

    from simulator.commands.explore import Exploration

_HOST = "127.0.0.1"
_RETAINED = 4
"""Pages of results that can still be asked for."""
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
    server.run(sockets=[listener])


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
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
    from starlette.routing import Route

    from simulator.commands.explore import QUICK_REQUESTS, compare
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
            quick_requests=QUICK_REQUESTS,
        )
        return HTMLResponse(page, headers={"Content-Security-Policy": _POLICY})

    async def change(request: Request) -> Response:
        if not is_known(request):
            return PlainTextResponse("unknown", 403)
        asked = await request.json()
        newest[asked["page"]] = asked["number"]
        return await run_in_threadpool(_answer, asked)

    def _answer(asked: dict[str, Any]) -> Response:
        with lock:
            if asked["number"] < newest[asked["page"]]:  # changed again while it waited
                return Response(status_code=204)
            number = max(pages, default=0) + 1
            changes = dict(asked["changes"])
            view = exploration.view(changes, is_quick=asked["is_quick"])
            before, now = exploration.start.results, view.results
            if now is not None:
                pages[number] = render(now)
                for old in sorted(pages)[:-_RETAINED]:
                    del pages[old]
            table = None if now is None else compare(before or now, now)
            part = render_part(
                "explored.html",
                name=exploration.path.stem,
                view=view,
                changes=changes,
                table=table,
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
