"""The page with all rows of a table, served to one person on this machine."""

from __future__ import annotations

import html
import socket
from collections.abc import Callable
from functools import lru_cache

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
MAX_CARDS = 100  # per response
# In place of a photo that is gone: a text that fits a thumbnail, with the reason as a tooltip and for screen readers.
GONE = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 320 240" font-family="sans-serif" font-size="20" fill="#a32626">'
    '<title>{}</title><text x="160" y="120" text-anchor="middle">the photo cannot be shown</text></svg>'
)


def application(rows: Snapshot) -> Starlette:
    """`/`: the page; `/rows`: cards by filter and offset; `/photo/ID` and `/mask/ID`: pictures of a row of the table.

    Pictures are named by the id of their row, not by a path, so only the table's images can be requested.
    """
    page = render(gather(rows), rows.classes, {"rows": "rows"})

    @lru_cache(maxsize=256)
    def pictures(number: int) -> gallery.Pictures | None:
        masks = rows.masks([number])
        return gallery.pictures(*masks[number], rows.classes) if number in masks else None

    async def index(request: Request) -> Response:
        return HTMLResponse(page)

    async def cards(request: Request) -> Response:
        query = request.query_params
        try:
            offset, limit = int(query.get("offset", "0")), int(query.get("limit", "24"))
            class_id = int(query["class"]) if query.get("class") else None
        except ValueError:
            return PlainTextResponse("offset, limit and class are numbers", 400)
        kind = query.get("kind", "all")
        known_class = class_id is None or 0 <= class_id < len(rows.classes)
        if offset < 0 or not 1 <= limit <= MAX_CARDS or kind not in KINDS or not known_class:
            accepted = f"offset from 0, limit 1 to {MAX_CARDS}, kind {', '.join(KINDS)}, and class of this table are accepted"
            return PlainTextResponse(accepted, 400)
        name = None if class_id is None else rows.classes.names[class_id]
        total, selected = await run_in_threadpool(gallery.page, rows, offset, limit, kind, query.get("name", ""), name)
        for card in selected:
            if card["error"] is None:
                card["photo"], card["mask"] = f"photo/{card['id']}", f"mask/{card['id']}"
        return JSONResponse({"total": total, "cards": selected})

    async def picture(request: Request) -> Response:
        pair = await run_in_threadpool(pictures, request.path_params["number"])
        if pair is None or request.path_params["kind"] not in ("photo", "mask"):
            return PlainTextResponse("no such picture", 404)
        if request.path_params["kind"] == "mask":
            return Response(pair.mask, media_type="image/png")
        if pair.photo is None:
            return Response(GONE.format(html.escape(pair.gone)), media_type="image/svg+xml")
        return Response(pair.photo, media_type="image/jpeg")

    routes = [
        Route("/", index),
        Route("/rows", cards),
        Route("/{kind:str}/{number:int}", picture),
    ]
    # Refuses a page of another origin whose name resolves to 127.0.0.1 (DNS rebinding): it sends its own host name.
    return Starlette(routes=routes, middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])])


def serve(table: ResultsTable, model: str, port: int, started: Callable[[str], None]) -> None:
    """Serve until interrupted. `started` gets the address. UserError if the port is in use."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen()  # before `started`, so that early requests wait for the server instead of being refused
    except OSError as error:
        raise UserError(f"port {port}: cannot listen ({error.strerror}); choose another with --port") from error
    with listener, Snapshot(table, model) as rows:
        server = uvicorn.Server(uvicorn.Config(application(rows), log_level="error", access_log=False, timeout_graceful_shutdown=2))
        started(f"http://{HOST}:{listener.getsockname()[1]}/")
        try:
            server.run(sockets=[listener])
        except KeyboardInterrupt:
            return
