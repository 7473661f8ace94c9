"""One file over HTTP into a part file that a later call goes on with, compared with its hash at the end.

The hub's own client throws away what an interrupted process had; 28 GB are too much for that.
"""

from __future__ import annotations

import hashlib
import http.client
import importlib
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from musubi.errors import MissingPackageError, RunError

ATTEMPTS = 6
"""In a row without a single byte, before it is given up."""
_CHUNK = 1 << 20
_TIMEOUT = 30.0
_PATIENCE = 1.0


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows a redirection without handing the user's token to another host."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # type: ignore[no-untyped-def]
        new = super().redirect_request(req, fp, code, msg, headers, newurl)
        if new is not None and urlsplit(newurl).netloc != urlsplit(req.full_url).netloc:
            new.remove_header("Authorization")
        return new


def download(
    url: Callable[[], str],
    part: Path,
    *,
    size: int,
    sha256: str | None,
    headers: Mapping[str, str],
    grown: Callable[[int], None],
) -> None:
    """Bring a part file to its full size, from wherever it stands.

    Args:
        url: Gives the address; asked again for each attempt, since signed ones expire.
        part: The file that grows.
        size: In bytes, when it is whole.
        sha256: Of the whole, when it is known.
        headers: To send with each request.
        grown: Called with the number of bytes received.

    Raises:
        RunError: The connection breaks again and again, or the content is another one.
        OSError: The disk refuses.
    """
    part.parent.mkdir(parents=True, exist_ok=True)
    opener = urllib.request.build_opener(_Stay, urllib.request.HTTPSHandler(context=_trust()))
    failures = 0
    if part.exists():
        grown(min(part.stat().st_size, size))
    while (start := _stands(part)) < size:
        try:
            request = urllib.request.Request(url(), headers={**headers, "Range": f"bytes={start}-"})
            with opener.open(request, timeout=_TIMEOUT) as answer:
                _append(answer, part, start if answer.status == 206 else 0, grown)
            failures = 0
        except (
            urllib.error.URLError,
            http.client.HTTPException,
            ConnectionError,
            TimeoutError,
        ) as error:
            failures = 0 if _stands(part) > start else failures + 1
            if failures >= ATTEMPTS or _final(error):
                raise RunError(
                    f"The connection broke at {_stands(part)} of {size} bytes: {error}.",
                    fix="Run this again, and it goes on from there.",
                ) from error
            time.sleep(_PATIENCE * failures)
    if part.stat().st_size != size or (sha256 is not None and _hash(part) != sha256):
        grown(-part.stat().st_size)
        part.unlink()
        raise RunError(
            "Its content is damaged: the hash is not the one that the hub names.",
            fix="Run this again; a mirror (HF_ENDPOINT) may hold another file.",
        )


def _stands(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _append(answer: http.client.HTTPResponse, part: Path, start: int, grown: Callable[[int], None]) -> None:  # fmt: skip
    with part.open("r+b" if part.exists() else "wb") as file:
        file.seek(0, 2)
        grown(start - file.tell())  # a server that knows no ranges begins again
        file.truncate(start)
        file.seek(start)
        left = int(answer.headers.get("Content-Length") or 0)
        while chunk := answer.read1(_CHUNK):
            file.write(chunk)
            grown(len(chunk))
            left -= len(chunk)
    if left > 0:
        raise http.client.IncompleteRead(b"", left)


def _final(error: Exception) -> bool:
    """Whether asking again cannot help."""
    return isinstance(error, urllib.error.HTTPError) and error.code in (
        400,
        401,
        403,
        404,
        410,
        416,
    )


def _trust() -> ssl.SSLContext:
    """The system's certificates, and those of the package certifi where the system has none.

    Raises:
        MissingPackageError: There are none at all.
    """
    context = ssl.create_default_context()
    if not context.cert_store_stats()["x509_ca"]:
        try:
            certifi = importlib.import_module("certifi")
        except ImportError as error:
            raise MissingPackageError(
                "This computer has no certificates to check a server with.",
                fix="Run `pip install certifi`.",
            ) from error
        context.load_verify_locations(certifi.where())
    return context


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 22):
            digest.update(part)
    return digest.hexdigest()
