"""Several files that change together: all of them new, or all of them old."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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


class NewFiles:
    """Files that are to stand at their paths once all are written.

    Attributes:
        temporary: where each is until then.
    """

    def __init__(self) -> None:
        self.temporary: dict[Path, Path] = {}

    @contextmanager
    def __call__(self, path: Path) -> Iterator[IO[bytes]]:
        """Opens the one that is to stand at a path."""
        try:
            make_folder(path.parent)
            self.temporary[path] = temporary_path(path)
            with synced_file(self.temporary[path]) as file:
                yield file
        except OSError as error:
            raise _cannot_write(path, error) from None

    def rename(self, path: Path, to: Path) -> None:
        """Another path of the same folder for one that is written."""
        self.temporary[to] = self.temporary.pop(path)


@contextmanager
def replaced_together(seal: Path, *, keep_seal: bool) -> Iterator[NewFiles]:
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
    new = NewFiles()
    try:
        yield new
        assert seal in new.temporary, (seal, sorted(new.temporary))
        _rename(new.temporary, seal, keep_seal=keep_seal)
    finally:
        for leftover in new.temporary.values():
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
