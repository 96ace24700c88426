"""Several files that change together: all of them new, or all of them old."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO

from self_ensemble.system.errors import UserError
from self_ensemble.system.files import (
    make_folder,
    sync_folder,
    synced_file,
    temporary_path,
    unlink_quietly,
)

# Opens a file that is to stand at a path once all are written.
OpenNew = Callable[[Path], AbstractContextManager[IO[bytes]]]


@contextmanager
def replaced_together(seal: Path, *, keep_seal: bool) -> Iterator[OpenNew]:
    """Files that are written inside take the places of what is there when the block ends.

        with replaced_together(manifest, keep_seal=False) as new:
            with new(table) as file:
                file.write(…)
            with new(manifest) as file:
                file.write(…)

    Every byte is on the disk under a temporary name before the first file is touched: what commonly
    fails, fails there and leaves the old files alone. A crash between the renames leaves each file
    old or new, and no seal; with `keep_seal` the old one stays until the new one takes its place.

    Args:
        seal: one of the files, which says that all are there: away while the others change.

    Raises:
        UserError: the disk is full, a folder cannot be written and the like. No temporary file
            stays.
    """
    temporary: dict[Path, Path] = {}

    @contextmanager
    def new(path: Path) -> Iterator[IO[bytes]]:
        try:
            make_folder(path.parent)
            temporary[path] = temporary_path(path)
            with synced_file(temporary[path]) as file:
                yield file
        except OSError as error:
            raise _cannot_write(path, error) from None

    try:
        yield new
        assert seal in temporary, (seal, sorted(temporary))
        _rename(temporary, seal, keep_seal=keep_seal)
    finally:
        for leftover in temporary.values():
            unlink_quietly(leftover)


def _rename(temporary: Mapping[Path, Path], seal: Path, *, keep_seal: bool) -> None:
    path, folders = seal, dict.fromkeys((*(each.parent for each in temporary), seal.parent))
    try:
        if not keep_seal:
            seal.unlink(missing_ok=True)
            sync_folder(seal.parent)
        for path in temporary:
            if path != seal:
                os.replace(temporary[path], path)
        path = seal
        for folder in folders:
            sync_folder(folder)
        os.replace(temporary[seal], seal)
        sync_folder(seal.parent)
    except OSError as error:
        raise _cannot_write(path, error) from None


def _cannot_write(path: Path, error: OSError) -> UserError:
    return UserError(f"cannot write {path}: {error.strerror or error}")


def replace_files(contents: Mapping[Path, bytes], *, seal: Path, keep_seal: bool) -> None:
    """Puts all files in place of what is there; see `replaced_together`."""
    with replaced_together(seal, keep_seal=keep_seal) as new:
        for path, content in contents.items():
            with new(path) as file:
                file.write(content)
