"""Writing files whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import secrets
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from metavoxel.errors import MetavoxelError

DIGITS = "%.9g"
"""Of numbers in tables of answers: a float32's, so that a volume in mm3 loses nothing."""


@contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path` ("w" or "wb"); it takes the place of `path` only if the block ends well.

    Raises MetavoxelError when the disk is full or the folder missing or read-only. A failure leaves nothing behind.
    """
    path = Path(path)
    temporary = temporary_beside(path)
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    try:
        with temporary.open(mode.replace("w", "x"), **text) as handle:  # type: ignore[call-overload]
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)  # noqa: PTH105 - the call that the tests make fail
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def temporary_beside(path: Path) -> Path:
    """A name in the same folder that no other process takes."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


def write_error(path: Path, error: OSError) -> Exception:
    """What went wrong while `path` was written, in words where a person can mend it; else the error itself."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return MetavoxelError(f"disk full while writing {path}; free space or choose another folder")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return MetavoxelError(f"{path}: no permission to write here; choose another folder")
    if error.errno in (errno.ENOENT, errno.ENOTDIR) and not path.parent.is_dir():
        return MetavoxelError(f"{path}: there is no folder {path.parent}; create it first")
    if error.errno == errno.EISDIR:
        return MetavoxelError(f"{path}: is a folder; give the name of a file")
    return error


def files_of(path: Path) -> list[Path]:
    """A scan's files: itself, or those in a folder that is a DICOM series, by name; none where nothing is there."""
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.is_file())
    return [path] if path.is_file() else []


def checksum(path: Path) -> str:
    """sha256: and the digits for all bytes of a scan's files."""
    digest = hashlib.sha256()
    for file in files_of(path):
        digest.update(file.read_bytes())
    return f"sha256:{digest.hexdigest()}"


def digits_of(content: str | bytes) -> str:
    """16 hexadecimal digits of its sha256: enough to tell contents apart."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()[:16]


def make_folder(folder: str | os.PathLike[str]) -> Path:
    """The folder, made with its parents if it does not exist."""
    folder = Path(folder).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MetavoxelError(f"{folder}: cannot be made ({error.strerror}); choose another folder") from error
    return folder


def remove_others(folder: Path, written: Collection[Path], *patterns: str) -> None:
    """What an earlier run left in the folder under such names, which would be taken for this one's."""
    for pattern in patterns:
        for path in folder.glob(pattern):
            if path not in written:
                path.unlink()


LOCK = "lock"
"""The file that says which process is at work in a folder."""


@contextmanager
def only_one(folder: Path, doing: str) -> Iterator[None]:
    """Hold a lock on the folder's file LOCK for the block; the system frees it when the process ends, however it ends.

    Raises MetavoxelError that says who holds it (`doing`: "preparing into OUT") when another process does.
    """
    import fcntl

    path = folder / LOCK
    try:
        handle = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise write_error(path, error) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            handle.seek(0)
            who = handle.read().strip() or "another process"
            raise MetavoxelError(f"{who} is {doing} already; wait for it, or choose another folder") from error
        handle.truncate(0)
        handle.write(f"process {os.getpid()} on {platform.node()}\n")
        handle.flush()
        yield
        handle.truncate(0)
