"""Zip files of models: written in nnU-Net's layout, and unpacked without trusting anything in them."""

import hashlib
import re
import shutil
import stat
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath

from nnunet_ext.utils.files import replacing

_BLOCK = 1 << 20
_NAME = re.compile(r"[^\\:\0]+")


def write_archive(path: Path, files: Mapping[str, Path | str]) -> None:
    """Writes a zip file, completely or not at all.

    All is compressed, checkpoints too: they are zip files themselves, and if one stood in the archive as it is, what is
    left of an archive that was cut off could be taken for it.

    Args:
        path: The file.
        files: Files, or texts, by their names in the archive.
    """
    with replacing(path) as target, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            if isinstance(content, str):
                archive.writestr(name, content)
            else:
                archive.write(content, name)


def read_text(path: Path, name: str) -> str:
    """A text file of an archive."""
    with zipfile.ZipFile(path) as archive:
        return archive.read(name).decode("utf-8")


def check_members(archive: zipfile.ZipFile, folder: str) -> list[zipfile.ZipInfo]:
    """The files in an archive, all of which must lie in one folder.

    Raises:
        ValueError: for a name that leads elsewhere, a link, and two files of one name where case does not matter.
    """
    seen: set[str] = set()
    members = [member for member in archive.infolist() if not member.is_dir()]
    for member in members:
        path = PurePosixPath(member.filename)
        if not _NAME.fullmatch(member.filename) or path.is_absolute() or ".." in path.parts:
            raise ValueError(f"it has the file {member.filename!r}, whose name leads out of the model's folder")
        if not path.is_relative_to(folder):
            raise ValueError(f"it has the file {member.filename!r} outside of the model's folder {folder}")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise ValueError(f"it has the link {member.filename!r}; models have none")
        if member.filename.lower() in seen:
            raise ValueError(f"it has the file {member.filename!r} twice")
        seen.add(member.filename.lower())
    return members


def check_room(members: Collection[zipfile.ZipInfo], folder: Path) -> None:
    """Raises OSError unless the disk of a folder has room for all files."""
    needed, free = sum(member.file_size for member in members), shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(f"the model needs {needed / 1e9:.1f} GB, and {folder} has {free / 1e9:.1f} GB left")


def extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> str:
    """Extracts a file and returns its SHA-256 digest.

    Raises:
        ValueError: if it is longer than the archive says, or damaged.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, left = hashlib.sha256(), member.file_size
    try:
        with archive.open(member) as source, target.open("wb") as file:
            while block := source.read(_BLOCK):
                left -= len(block)
                if left < 0:
                    raise ValueError(f"{member.filename} is longer than the archive says")
                digest.update(block)
                file.write(block)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{member.filename} is damaged: {error}") from error
    return digest.hexdigest()
