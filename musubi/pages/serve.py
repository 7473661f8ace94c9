"""Pages over HTTP on this machine alone: read only, behind a random token, no path from outside.

An address names a page or a file by a number that this process gave out; a path never comes in.
"""

from __future__ import annotations

import json
import re
import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from musubi.pages import document

HOST = "127.0.0.1"
KINDS = {
    ".mp4": "video/mp4",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
}
LISTENERS = 64
"""Pages that can wait for news at once."""
_PACE = 1.0
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_CHUNK = 1 << 18


class Files:
    """Files that may be sent: each is known by a number, and lies within the given folders.

    Args:
        roots: The folders.
    """

    def __init__(self, roots: list[Path]) -> None:
        self.roots = [root.resolve() for root in roots]
        self._numbers: dict[Path, int] = {}
        self._paths: dict[int, Path] = {}

    def number(self, path: Path) -> int | None:
        """The number of a file; None for one that is no picture, or leads out of the folders."""
        real = path.resolve()
        inside = any(real.is_relative_to(root) for root in self.roots)
        if not inside or real.suffix.lower() not in KINDS or not real.is_file():
            return None
        number = self._numbers.setdefault(real, len(self._numbers))
        self._paths[number] = real
        return number

    def path(self, number: int) -> Path | None:
        """The file of a number, looked at again: it may have become a link since."""
        path = self._paths.get(number)
        return path if path is not None and self.number(path) == number else None


@dataclass
class Page:
    """One page that is served.

    Args:
        title: For the tab.
        data: All that it shows.
        changed: A value that differs when the data would.
    """

    title: str
    data: Callable[[], Mapping[str, Any]]
    changed: Callable[[], Any]


@dataclass
class Site:
    """What is served.

    Args:
        page: Address below the token ("" or "run/3") → the page, or None.
        files: What may be sent.
        token: First part of every address.
    """

    page: Callable[[str], Page | None]
    files: Files
    token: str = field(default_factory=lambda: secrets.token_urlsafe(18))


class Server(ThreadingHTTPServer):
    """Serves a site; threads end with the process.

    Raises:
        OSError: The port is taken.
    """

    daemon_threads = True

    def __init__(self, site: Site, port: int = 0) -> None:
        self.site = site
        self.over = threading.Event()
        self.listeners = threading.BoundedSemaphore(LISTENERS)
        super().__init__((HOST, port), _Handler)

    @property
    def address(self) -> str:
        """Where the first page is."""
        return f"http://{HOST}:{self.server_port}/{self.site.token}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that leaves in the middle is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: Server  # type: ignore[assignment]
    server_version, sys_version = "musubi", ""
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        """Answer."""
        place = self._place()
        if place is None:
            self._nothing()
            return
        head, _, last = place.rpartition("/")
        if head == "file" and last.isdecimal():
            self._send_file(int(last))
            return
        page = self.server.site.page(head)
        if page is None or last not in ("", "data.json", "events"):
            self._nothing()
        elif last == "events":
            self._send_events(page)
        else:
            self._send_page(page, head, as_json=last == "data.json")

    do_HEAD = do_GET  # noqa: N815 - the names of http.server

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the terminal belongs to the command."""

    def _place(self) -> str | None:
        """The address below the token, when the token is right and this machine itself is asked."""
        port = self.server.server_port
        # A host name that was made to point here belongs to a foreign website.
        if self.headers.get("Host") not in (f"{HOST}:{port}", f"localhost:{port}"):
            return None
        path = self.path.partition("?")[0]
        token, slash, place = path.removeprefix("/").partition("/")
        right = secrets.compare_digest(token.encode(), self.server.site.token.encode())
        return place if right and slash else None

    def _head(self, status: HTTPStatus, kind: str, length: int | None, **more: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if length is not None:
            self.send_header("Content-Length", str(length))
        else:
            self.send_header("Connection", "close")
            self.close_connection = True
        for name, value in {
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cross-Origin-Opener-Policy": "same-origin",
            **{name.replace("_", "-"): value for name, value in more.items()},
        }.items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self._head(status, kind, len(body))
        if self.command != "HEAD":
            self.wfile.write(body)

    def _nothing(self) -> None:
        self._send(HTTPStatus.NOT_FOUND, "text/plain; charset=utf-8", b"There is nothing here.\n")

    def _send_page(self, page: Page, head: str, *, as_json: bool) -> None:
        home = "../" * (head.count("/") + 1) if head else None
        live = {"data": "data.json", "events": "events"}
        data = {**page.data(), "live": live, "home": home}
        if as_json:
            body = json.dumps(data, ensure_ascii=False).encode()
            self._send(HTTPStatus.OK, "application/json", body)
        else:
            body = document.page(page.title, data).encode()
            self._send(HTTPStatus.OK, "text/html; charset=utf-8", body)

    def _send_file(self, number: int) -> None:
        path = self.server.site.files.path(number)
        if path is None:
            self._nothing()
            return
        with path.open("rb") as file:
            size = file.seek(0, 2)
            first, last = self._range(size)
            whole = (first, last) == (0, size - 1)
            if first > last:
                self._head(
                    HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
                    "text/plain",
                    0,
                    Content_Range=f"bytes */{size}",
                )
                return
            more = {} if whole else {"Content_Range": f"bytes {first}-{last}/{size}"}
            self._head(
                HTTPStatus.OK if whole else HTTPStatus.PARTIAL_CONTENT,
                KINDS[path.suffix.lower()],
                last - first + 1,
                Accept_Ranges="bytes",
                **more,
            )
            left = 0 if self.command == "HEAD" else last - first + 1
            file.seek(first)
            while left:
                part = file.read(min(left, _CHUNK))
                if not part:
                    return
                self.wfile.write(part)
                left -= len(part)

    def _range(self, size: int) -> tuple[int, int]:
        """First and last byte that are asked for; of a request that asks oddly, all."""
        match = _RANGE.fullmatch(self.headers.get("Range", ""))
        if match is None or match[1] == match[2] == "":
            return 0, size - 1
        if match[1] == "":
            return max(0, size - int(match[2])), size - 1
        return int(match[1]), min(int(match[2] or size - 1), size - 1)

    def _send_events(self, page: Page) -> None:
        """A line whenever the page would change, until one side ends."""
        if self.command == "HEAD" or not self.server.listeners.acquire(blocking=False):
            self._send(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", b"Too many pages are open.\n")
            return
        try:
            self._head(HTTPStatus.OK, "text/event-stream", None)
            known: Any = None
            quiet = 0
            while not self.server.over.is_set():
                now = page.changed()
                quiet += 1
                if now != known or quiet > 15:  # a line now and then, to notice who has left
                    known, quiet = now, 0
                    self.wfile.write(f"event: change\ndata: {hash(now)}\n\n".encode())
                    self.wfile.flush()
                self.server.over.wait(_PACE)
        finally:
            self.server.listeners.release()
