"""Ends a local Ray when its driver ends, however it ends: no process and no file stays behind.

    python keeper.py FOLDER

Ray's own processes die with their driver, but for some: its agents wait for a minute to report to a
server that is gone, and its folder stays. This process waits for the driver to close the pipe that
is its standard input, which the kernel does for one that is killed; then it kills what has a file
of FOLDER open, and removes FOLDER. It imports the standard library only, so that it starts at once.
"""

import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator

# Until nothing of it runs any more; then the folder is removed whatever does.
PATIENCE_SECONDS = 10.0
PAUSE_SECONDS = 0.05


def processes_of(folder: str) -> Iterator[int]:
    """Ids of the processes that have a file of a folder open, as Ray's have their logs."""
    for name in filter(str.isdigit, os.listdir("/proc")):
        # Processes of others, and those that have just ended, cannot be looked into.
        with contextlib.suppress(OSError):
            descriptors = f"/proc/{name}/fd"
            for descriptor in os.listdir(descriptors):
                if os.readlink(f"{descriptors}/{descriptor}").startswith(f"{folder}/"):
                    yield int(name)
                    break


def kill_all(folder: str, *, but: int) -> None:
    due = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < due:
        found = [process for process in processes_of(folder) if process != but]
        if not found:
            return
        for process in found:
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)
        time.sleep(PAUSE_SECONDS)


def main() -> None:
    [folder] = sys.argv[1:]
    driver = os.getppid()
    sys.stdin.buffer.read()
    kill_all(folder, but=driver)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
