"""Files that appear complete or not at all, whatever ends the process that writes them."""

import contextlib
import gzip
import os
import time
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

_LEFT_OVER_SECONDS = 3600
"""A file that is being written changes more often."""


@contextlib.contextmanager
def replacing(path: str | Path, mode: str = "wb", shared: bool = False) -> Iterator[IO[Any]]:
    """A file to write to; it takes the place of `path` if the block ends well, else it is removed.

    It is PATH.partial until then, so that a kill leaves the old file and at most that one. The content is on the disk
    before the name is (fsync): without that, a loss of power after the rename can leave an empty file under the name
    that was good before.

    Args:
        path: The file.
        mode: Of `open`; text is UTF-8.
        shared: Whether several processes may write this file at once: each then has a PATH.*.partial of its own.

    Raises:
        OSError: with the file's name and the reason, also where a library had wrapped it.
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
    """Raises an OSError of the block, or one that was the cause of what it raised, with the name of a file.

    The operating system's "No space left on device" comes without a name, and torch hides it behind its own error.
    """
    try:
        yield
    except Exception as error:
        cause = _os_error(error)
        if cause is None or cause.errno is None:
            raise
        if isinstance(error, OSError) and error.filename and not str(error.filename).startswith(str(path)):
            raise  # of another file
        raise OSError(cause.errno, cause.strerror, str(path)) from error


def remove(path: Path) -> None:
    """Removes a file if it is there and can be removed."""
    with contextlib.suppress(OSError):
        path.unlink()


def remove_left_overs(folder: Path) -> None:
    """Removes what killed processes left of `replacing` with `shared`; what others write now is younger."""
    for partial in folder.glob("*.partial"):
        with contextlib.suppress(OSError):
            if time.time() - partial.stat().st_mtime > _LEFT_OVER_SECONDS:
                partial.unlink()


def check_writable(folder: str | Path) -> None:
    """Raises OSError, naming the folder, unless it is there, or can be made, and files can be written into it."""
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

    SimpleITK reads half a .nii.gz without a word and takes zeros for the rest.
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


def _os_error(error: BaseException | None) -> OSError | None:
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def _sync_folder(folder: Path) -> None:
    """Has the new name on the disk, too; not everywhere can a folder be opened."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
