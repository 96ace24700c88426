"""The Ray that workers run on: one of the run's own on this machine, or one that is running."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from self_ensemble.system.errors import UserError
from self_ensemble.workers import keeper

# Of a local Ray: requests and answers go through its object store, weights never. Where /dev/shm
# has less (64 MB in a container, if nothing is said), Ray keeps them in its folder.
OBJECT_STORE_BYTES = 256 << 20
FOLDER_PREFIX = "se-ray-"
# Characters: Ray adds 62 for the paths of its sockets, which may have 107.
LONGEST_FOLDER = 45
# Until the keeper has ended a local Ray.
END_SECONDS = 12
# What is to be said of deaths, the driver says. Ray prints it on stdout, where results belong.
QUIET_ENVIRONMENT = {
    "RAY_DEDUP_LOGS_SKIP_REGEX": "A worker died or was killed|Raylet is terminated|"
    "has been marked dead|cannot be scheduled right now",
    "RAY_USAGE_STATS_ENABLED": "0",
}
# Ray takes 127.0.0.1 for a wish to be reached from elsewhere, unless this machine is said to be no
# part of a cluster. The token is for what of it other users of this machine could reach.
LOCAL_ENVIRONMENT = QUIET_ENVIRONMENT | {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}


class Cluster:
    """A Ray that this process is connected to.

    Attributes:
        is_local: it was started for this run, and ends with it.
        hosts: (GPUs, CPUs) of each.
    """

    def __init__(self, *, is_local: bool):
        import ray

        self.is_local = is_local
        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self.hosts = [(int(has.get("GPU", 0)), int(has.get("CPU", 0))) for has in alive]


@contextmanager
def connected(address: str | None, *, verbose: bool = False) -> Iterator[Cluster]:
    """A Ray cluster, until the end.

    One that this process is connected to already, as a notebook may be, is used and left alone.

    Args:
        address: see `WorkersConfig`.
        verbose: what workers write is shown.

    Raises:
        UserError: nothing can be reached under the address.
    """
    if _is_connected():
        yield Cluster(is_local=False)
    elif address is None:
        with _environment(LOCAL_ENVIRONMENT), _local(verbose) as cluster:
            yield cluster
    else:
        with _environment(QUIET_ENVIRONMENT), _joined(address, verbose) as cluster:
            yield cluster


def _is_connected() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def _settings(verbose: bool) -> dict[str, Any]:
    return {"log_to_driver": verbose, "logging_level": "INFO" if verbose else "ERROR"}


@contextmanager
def _joined(address: str, verbose: bool) -> Iterator[Cluster]:
    import ray

    try:
        ray.init(address, **_settings(verbose))
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"--ray_address {address}: no Ray cluster answers: {reason}") from error
    try:
        yield Cluster(is_local=False)
    finally:
        ray.shutdown()


@contextmanager
def _local(verbose: bool) -> Iterator[Cluster]:
    """A Ray of our own, on the loopback interface, with its keeper."""
    import ray

    folder = _new_folder()
    with subprocess.Popen(
        [sys.executable, "-S", "-E", keeper.__file__, str(folder)],
        stdin=subprocess.PIPE,
        start_new_session=True,  # a Ctrl-C on the terminal is not for it
    ) as kept:
        assert kept.stdin is not None
        try:
            on_terminate = signal.getsignal(signal.SIGTERM)
            ray.init(
                "local",
                num_cpus=os.cpu_count(),
                num_gpus=torch.cuda.device_count(),
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                _node_ip_address="127.0.0.1",
                _temp_dir=str(folder),
                **_settings(verbose),
            )
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, on_terminate)  # Ray's aborts, with a page of text
            yield Cluster(is_local=True)
        except KeyboardInterrupt:
            raise  # the keeper is quicker than Ray itself
        except BaseException:
            ray.shutdown()
            raise
        else:
            ray.shutdown()
        finally:
            kept.stdin.close()
            kept.wait(END_SECONDS)
            ray.shutdown()  # or a notebook that goes on after Ctrl-C would join what is dead


def _new_folder() -> Path:
    """An empty folder with a short path, as Ray's sockets in it need, resolved: as /proc has it."""
    root = tempfile.gettempdir()
    long = len(root) > LONGEST_FOLDER - len(FOLDER_PREFIX) - len("/12345678")
    return Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir="/tmp" if long else root)).resolve()


@contextmanager
def _environment(settings: dict[str, str]) -> Iterator[None]:
    """Ray with these settings, which it reads from the environment when it is imported."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    _read_environment()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        _read_environment()


def _read_environment() -> None:
    """Have Ray read its settings, also where it was imported before."""
    from ray._raylet import Config  # type: ignore[attr-defined]

    Config.initialize("")
