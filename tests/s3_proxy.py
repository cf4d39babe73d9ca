"""A store that misbehaves: a proxy before the real S3 server that refuses, delays or loses a share of the answers."""

from __future__ import annotations

import http.client
import random
import ssl
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "proxy-connection"}
SLOW_DOWN = b'<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>'


@dataclass
class Faults:
    """Shares of requests, 0..1: answered 503 without being done; done, but the answer is lost. `delay`: seconds before each."""

    refused: float = 0.0
    lost: float = 0.0
    delay: float = 0.0
    seed: int = 0
    counts: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.random, self.lock = random.Random(self.seed), threading.Lock()

    def choose(self) -> str:
        with self.lock:
            drawn = self.random.random()
            fault = "refused" if drawn < self.refused else "lost" if drawn < self.refused + self.lost else "none"
            self.counts[fault] = self.counts.get(fault, 0) + 1
            return fault


class Listener(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that died or trusts nobody is what is tested here, and no news."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class Proxy:
    """Listens on a free port of loopback between `start` and `stop`; signatures hold, as the Host header goes on unchanged.

    With `certificate` (a PEM file of certificate and key) it speaks TLS.
    """

    def __init__(self, server: str, faults: Faults, certificate: Path | None = None) -> None:
        self.upstream, self.faults = urlsplit(server), faults
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _forward(self) -> None:
                proxy.answer(self)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _forward

            def log_message(self, *_: Any) -> None:
                """Nothing: requests carry signatures."""

        self.http = Listener(("127.0.0.1", 0), Handler)
        self.scheme = "http"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            # Without a handshake on accepting, which a client that trusts nobody would break off there.
            self.http.socket = context.wrap_socket(self.http.socket, server_side=True, do_handshake_on_connect=False)
            self.scheme = "https"

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.http.server_address[1]}"

    def start(self) -> None:
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        body = self._body(request)
        time.sleep(self.faults.delay)
        fault = self.faults.choose()
        if fault == "refused":
            self._send(request, 503, {"Content-Type": "application/xml"}, SLOW_DOWN)
            return
        upstream = http.client.HTTPConnection(self.upstream.hostname or "", self.upstream.port, timeout=60)
        try:
            headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP}
            upstream.request(request.command, request.path, body, headers)
            response = upstream.getresponse()
            data = response.read()
            if fault == "lost":
                request.close_connection = True
                return
            self._send(request, response.status, dict(response.getheaders()), data)
        except OSError:  # the server is away, so this side breaks off, too
            request.close_connection = True
        finally:
            upstream.close()

    @staticmethod
    def _body(request: BaseHTTPRequestHandler) -> bytes:
        if request.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(request.rfile.readline().split(b";")[0], 16):
                parts.append(request.rfile.read(size))
                request.rfile.readline()
            request.rfile.readline()
            return b"".join(parts)
        return request.rfile.read(int(request.headers.get("Content-Length") or 0))

    @staticmethod
    def _send(request: BaseHTTPRequestHandler, status: int, headers: dict[str, str], data: bytes) -> None:
        request.send_response_only(status)
        length = headers.get("Content-Length") if request.command == "HEAD" else str(len(data))
        for name, value in headers.items():
            if name.lower() not in HOP_BY_HOP | {"content-length"}:
                request.send_header(name, value)
        if length is not None:
            request.send_header("Content-Length", length)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(data)
