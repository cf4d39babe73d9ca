"""The page over all rows of a table, for one person on this machine."""

from __future__ import annotations

import html
import socket
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from deeplab.errors import UserError
from pipelines.report import gallery
from pipelines.report.figures import gather
from pipelines.report.static_page import render
from pipelines.table.results_table import ResultsTable
from pipelines.table.snapshot import Snapshot

HOST = "127.0.0.1"
KINDS = ("all", "low", "errors")
MOST = 100  # cards an answer
# In place of a photo that is gone: the reason, as a tooltip and for screen readers, under words that fit a thumbnail.
GONE = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 320 240" font-family="sans-serif" font-size="20" fill="#a32626">'
    '<title>{}</title><text x="160" y="120" text-anchor="middle">the photo cannot be shown</text></svg>'
)


def application(rows: Snapshot) -> Starlette:
    """`/`: the page; `/rows`: cards by filter and offset; `/photo/ID` and `/mask/ID`: pictures of a row of the table.

    A picture is named by the number of its row, never by a place, so nothing but the table's images can be asked for.
    """
    page = render(gather(rows), rows.classes, {"rows": "rows"})

    @lru_cache(maxsize=256)
    def pictures(number: int) -> gallery.Pictures | None:
        found = rows.masks([number])
        return gallery.pictures(*found[number], rows.classes) if number in found else None

    async def index(request: Request) -> Response:
        return HTMLResponse(page)

    async def cards(request: Request) -> Response:
        asked = request.query_params
        try:
            offset, limit = int(asked.get("offset", "0")), int(asked.get("limit", "24"))
            which = int(asked["class"]) if asked.get("class") else None
        except ValueError:
            return PlainTextResponse("offset, limit and class are numbers", 400)
        kind = asked.get("kind", "all")
        if offset < 0 or not 1 <= limit <= MOST or kind not in KINDS or (which is not None and not 0 <= which < len(rows.classes)):
            return PlainTextResponse(f"offset from 0, limit 1 to {MOST}, kind of {', '.join(KINDS)}, class of this table", 400)
        name = None if which is None else rows.classes.names[which]
        total, found = await run_in_threadpool(gallery.page, rows, offset, limit, kind, asked.get("name", ""), name)
        for card in found:
            if card["error"] is None:
                card |= {"photo": f"photo/{card['id']}", "mask": f"mask/{card['id']}"}
        return JSONResponse({"total": total, "cards": found})

    async def picture(request: Request) -> Response:
        made = await run_in_threadpool(pictures, request.path_params["number"])
        if made is None or request.path_params["kind"] not in ("photo", "mask"):
            return PlainTextResponse("no such picture", 404)
        if request.path_params["kind"] == "mask":
            return Response(made.mask, media_type="image/png")
        if made.photo is None:
            return Response(GONE.format(html.escape(made.gone)), media_type="image/svg+xml")
        return Response(made.photo, media_type="image/jpeg")

    routes: list[Any] = [
        Route("/", index),
        Route("/rows", cards),
        Route("/{kind:str}/{number:int}", picture),
    ]
    # A page of another origin that made its name resolve to 127.0.0.1 sends that name, and is refused.
    return Starlette(routes=routes, middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])])


def serve(table: ResultsTable, model: str, port: int, started: Callable[[str], None]) -> None:
    """Serve until interrupted. `started` hears the address. UserError for a port that is taken."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen()  # before the address is told: who comes before the server is up waits for it and is not refused
    except OSError as error:
        raise UserError(f"port {port}: cannot be listened on ({error.strerror}); choose another with --port") from error
    with listener, Snapshot(table, model) as rows:
        server = uvicorn.Server(uvicorn.Config(application(rows), log_level="error", access_log=False, timeout_graceful_shutdown=2))
        started(f"http://{HOST}:{listener.getsockname()[1]}/")
        try:
            server.run(sockets=[listener])
        except KeyboardInterrupt:
            return
