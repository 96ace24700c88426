"""One process at a time on a result; the lock of a process that died is free."""

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from self_ensemble.system.errors import UserError
from self_ensemble.system.files import make_folder


@contextmanager
def held(stem: str | Path) -> Iterator[None]:
    """Holds `<stem>.lock`, in whose folder the result lies, until the block ends.

    Raises:
        UserError: another process holds it (who and since when), or it cannot be made.
    """
    path = lock_file(stem)
    descriptor = _take(path)
    try:
        yield
    finally:
        # First away, then let go: who waits for this very file must find that it is not there.
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        os.close(descriptor)


def sweep(stem: str | Path) -> None:
    """Removes the lock that a killed process left. One that is held, or cannot go, stays."""
    path = lock_file(stem)
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_there(path, descriptor):
                path.unlink()
        finally:
            os.close(descriptor)


def lock_file(stem: str | Path) -> Path:
    return Path(stem).with_name(Path(stem).name + ".lock")


def _take(path: Path) -> int:
    """The descriptor of the locked file. Two runs never hold two files of one name."""
    try:
        make_folder(path.parent)
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_there(path, descriptor):
                    _sign(descriptor)
                    return descriptor
            except BlockingIOError:
                holder = _holder(descriptor)
                os.close(descriptor)
                raise UserError(
                    f"{path.with_suffix('')} is being written by another run{holder}; wait for "
                    "it, or take another --output_dir"
                ) from None
            except OSError:
                with contextlib.suppress(OSError):
                    path.unlink()
                os.close(descriptor)
                raise
            os.close(descriptor)  # another run took it away between our open and our lock
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None


def _is_there(path: Path, descriptor: int) -> bool:
    """Whether the file of that name is still the one that is locked."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _sign(descriptor: int) -> None:
    holder = {"process": os.getpid(), "machine": socket.gethostname(), "since": time.time()}
    os.ftruncate(descriptor, 0)
    os.write(descriptor, json.dumps(holder).encode())


def _holder(descriptor: int) -> str:
    """` (process 12 on host, since 12:03:55)`, or nothing where the holder has not signed yet."""
    try:
        holder = json.loads(os.pread(descriptor, 1000, 0))
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder["since"]))
        return f" (process {holder['process']} on {holder['machine']}, since {since})"
    except (ValueError, KeyError, TypeError):
        return ""
