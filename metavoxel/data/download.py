"""Files from the web: gone on with where they broke off, checked before they take their name.

By the standard library: pooch and its kin check sums, but start a broken download over, and scans come in gigabytes.
"""

from __future__ import annotations

import hashlib
import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from metavoxel.errors import MetavoxelError
from metavoxel.files import make_folder, write_error
from metavoxel.version import __version__

PIECE = 1 << 20
TIMEOUT_S = 60
TRIES = 5  # in a row without a byte
PAUSE_S = 1.0  # before the second try; doubled each time
BROKEN = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)


class Unreachable(MetavoxelError):
    """The host does not answer, or breaks off again and again."""


@dataclass(frozen=True)
class Remote:
    """A file at `url`, to lie at `path` below a folder; what the source says of it: bytes, MD5, its version's tag."""

    url: str
    path: str
    size: int | None = None
    md5: str | None = None
    tag: str | None = None


def fetch(remote: Remote, folder: Path, progress: Callable[[int], None] = lambda done: None) -> Path:
    """The file in `folder`, downloaded unless it is there whole. `progress` is told how many of its bytes are there.

    Raises Unreachable when the host does not answer or breaks off again and again; MetavoxelError when it has no such
    file, what came is not what the source promised, or the disk is full.
    """
    target = folder / remote.path
    if not target.resolve().is_relative_to(folder.resolve()):
        raise MetavoxelError(f"{remote.url}: would be written outside of {folder}; do not use this source")
    if not _is_whole(target, remote):
        make_folder(target.parent)
        version = hashlib.sha256(repr(remote).encode()).hexdigest()[:8]  # another version's bytes are not gone on with
        part = target.with_name(f".{target.name}.{version}.part")
        try:
            _fill(part, remote, progress)
            if not _is_whole(part, remote):
                part.unlink()
                raise MetavoxelError(f"{remote.url}: what came is not what was promised (size or checksum); start again")
            part.replace(target)
        except OSError as error:
            raise write_error(target, error) from error
    progress(target.stat().st_size)
    return target


def read_url(url: str) -> bytes:
    """A small file's content. Raises MetavoxelError when it cannot be had."""
    for attempt in range(TRIES):
        try:
            with _open(url, 0, None) as answer:
                return answer.read()
        except BROKEN as error:
            _pause_or_give_up(url, attempt, error, "")
    raise AssertionError


def _fill(part: Path, remote: Remote, progress: Callable[[int], None]) -> None:
    """Bring `part` to its full length, a connection at a time."""
    attempt = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        if before and before == remote.size:
            return
        try:
            if _transfer(part, remote, before, progress):
                return
            raise ConnectionError("the connection broke off")
        except BROKEN as error:
            if before and getattr(error, "code", None) == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
                return  # there is nothing after what we have
            there = part.stat().st_size if part.exists() else 0
            attempt = 0 if there > before else attempt + 1
            _pause_or_give_up(remote.url, attempt, error, f" at {there / 1e6:.1f} MB")


def _transfer(part: Path, remote: Remote, before: int, progress: Callable[[int], None]) -> bool:
    """One connection: append what comes. Whether all that the host promised has come."""
    with _open(remote.url, before, remote.tag) as answer:
        if before and answer.status != http.client.PARTIAL_CONTENT:  # a host that knows no ranges, or another version
            before = 0
        promised = answer.headers.get("Content-Length")
        done = before
        with part.open("ab" if before else "wb") as file:
            while piece := answer.read(PIECE):
                file.write(piece)
                done += len(piece)
                progress(done)
    return promised is None or done - before == int(promised)


def _open(url: str, start: int, tag: str | None) -> http.client.HTTPResponse:
    headers = {"User-Agent": f"metavoxel/{__version__}"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if tag:
            headers["If-Range"] = f'"{tag}"'
    return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)


def _pause_or_give_up(url: str, attempt: int, error: Exception, place: str) -> None:
    if isinstance(error, urllib.error.HTTPError) and error.code < 500:
        raise MetavoxelError(f"{url}: the host answers {error.code} {error.reason}; check the name, or get it by hand")
    if attempt + 1 >= TRIES or (isinstance(error, urllib.error.URLError) and not isinstance(error, urllib.error.HTTPError)):
        reason = getattr(error, "reason", None) or error
        raise Unreachable(f"{urlsplit(url).netloc} cannot be reached, or broke off{place} ({reason})") from error
    time.sleep(PAUSE_S * 2**attempt)


def _is_whole(path: Path, remote: Remote) -> bool:
    """Whether a file is what the source promises, as far as it does."""
    if not path.is_file() or (remote.size is not None and path.stat().st_size != remote.size):
        return False
    if remote.md5 is None:
        return True
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest() == remote.md5
