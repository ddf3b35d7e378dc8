"""Files that appear complete or not at all, even if the writing process is killed."""

import contextlib
import gzip
import hashlib
import os
import time
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

_LEFT_OVER_SECONDS = 3600
"""Age in seconds above which a partial file is no longer being written."""


@contextlib.contextmanager
def replacing(path: str | Path, mode: str = "wb", shared: bool = False) -> Iterator[IO[Any]]:
    """Opens a file for writing; it replaces `path` if the block succeeds and is removed otherwise.

    Until then it is called PATH.partial, so that a kill leaves the old file and at most that one. The content is
    synchronised to the disk before the rename: otherwise a power failure could leave an empty file under the old name.

    Args:
        path: The file.
        mode: Mode of `open`; text is UTF-8.
        shared: Whether several processes may write this file at once; each then has its own PATH.*.partial.

    Raises:
        OSError: with the file's name and the reason, even if a library wrapped it.
    """
    path = Path(path)
    own = f".{uuid.uuid4().hex}" if shared else ""
    partial = path.with_name(f"{path.name}{own}.partial")
    try:
        with named_errors(path):
            with partial.open(mode, encoding=None if "b" in mode else "utf-8") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
            _sync_folder(path.parent)
    finally:
        remove(partial)


@contextlib.contextmanager
def named_errors(path: str | Path) -> Iterator[None]:
    """Adds a file's name to an OSError that the block raises, directly or as the cause of another error.

    The operating system's "No space left on device" names no file, and torch hides it behind its own error.
    """
    try:
        yield
    except Exception as error:
        cause = _os_error(error)
        if cause is None or cause.errno is None:
            raise
        if isinstance(error, OSError) and error.filename and not str(error.filename).startswith(str(path)):
            raise  # about another file
        raise OSError(cause.errno, cause.strerror, str(path)) from error


def remove(path: Path) -> None:
    """Removes a file if it exists and can be removed."""
    with contextlib.suppress(OSError):
        path.unlink()


def remove_left_overs(folder: Path) -> None:
    """Removes partial files of `replacing` with `shared` that killed processes left; files in use are younger."""
    for partial in folder.glob("*.partial"):
        with contextlib.suppress(OSError):
            if time.time() - partial.stat().st_mtime > _LEFT_OVER_SECONDS:
                partial.unlink()


def check_writable(folder: str | Path) -> None:
    """Raises OSError, naming the folder, unless it exists or can be created and files can be written into it."""
    folder = Path(folder)
    probe = folder / f".{uuid.uuid4().hex}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"x")
    except OSError as error:
        raise OSError(error.errno, f"cannot write into this folder: {error.strerror}", str(folder)) from error
    finally:
        remove(probe)


def check_whole(path: str | Path) -> None:
    """Raises ValueError, naming the file, for a .gz that was cut off or damaged.

    SimpleITK reads half a .nii.gz without an error and fills the rest with zeros.
    """
    path = Path(path)
    if path.suffix.lower() != ".gz":
        return
    try:
        with gzip.open(path) as file:
            while file.read(1 << 20):
                pass
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is cut off or damaged: {error}") from error


def sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()  # hashlib.file_digest needs Python 3.11
    with Path(path).open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def _os_error(error: BaseException | None) -> OSError | None:
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def _sync_folder(folder: Path) -> None:
    """Synchronises the new name to the disk as well, where the system can open folders."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
