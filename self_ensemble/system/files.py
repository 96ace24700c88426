"""Writing so that it lasts: what is written is on the disk, and a name never means half a file."""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO


def make_folder(folder: Path) -> None:
    """Makes a folder and those above it, and lets them last."""
    missing = missing_folders(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync_folder(path.parent)


def missing_folders(folder: Path) -> list[Path]:
    """It and those above it that are not there yet, the nearest first."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


def nearest_existing(path: Path) -> Path:
    """The path itself, or the first folder above it that is there."""
    return next(each for each in (path, *path.absolute().parents) if each.exists())


def temporary_path(path: Path) -> Path:
    """Where `path` is written before it is renamed to its own name.

    In the same folder, since a rename is atomic within one file system only.
    """
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def remove_leftovers(stem: Path) -> None:
    """Removes what killed processes left under temporary names of `stem` and its files."""
    name = re.compile(re.escape(f".{stem.name}.") + r"[a-z]+\.[0-9]+\.tmp")
    for path in stem.parent.glob(".*.tmp"):
        if name.fullmatch(path.name):
            unlink_quietly(path)


@contextlib.contextmanager
def synced_file(path: Path) -> Iterator[IO[bytes]]:
    """A new file, on the disk once the block has ended."""
    with open(path, "wb") as handle:
        yield handle
        handle.flush()
        os.fsync(handle.fileno())


def write_synced(path: Path, content: bytes) -> None:
    with synced_file(path) as handle:
        handle.write(content)


def append_synced(path: Path, content: bytes, *, at: int) -> None:
    """Puts `content` at byte `at`, the end of what is kept; what stood behind it goes."""
    with open(path, "r+b") as handle:
        handle.truncate(at)
        handle.seek(at)
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())


def replace_synced(path: Path, content: bytes) -> None:
    """The whole file in one step: a crash leaves the old one or the new one."""
    temporary = temporary_path(path)
    try:
        write_synced(temporary, content)
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        unlink_quietly(temporary)


def sync_folder(folder: Path) -> None:
    """Makes renames and removals in `folder` last through a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def unlink_quietly(path: Path) -> None:
    """For the way out, perhaps with an error under way that must not be hidden by another."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
