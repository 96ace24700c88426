"""From a source to an engine: here, or in workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from self_ensemble.generation import loading
from self_ensemble.generation.answering import AnyEngine
from self_ensemble.models.config import ModelConfig
from self_ensemble.models.loading import ModelSource, gpus_each, load_tokenizer
from self_ensemble.system.console import say
from self_ensemble.system.errors import UserError
from self_ensemble.workers.cluster import connected
from self_ensemble.workers.config import WorkersConfig
from self_ensemble.workers.pool import Place, WorkerPool
from self_ensemble.workers.worker import Assignment, code_fingerprint


@contextmanager
def answering_engine(
    source: ModelSource, model: ModelConfig, workers: WorkersConfig, *, verbose: bool = False
) -> Iterator[AnyEngine]:
    """An engine of a source's model: of this process, or one that has workers.

    Args:
        source: of `model`, from `models.loading.find_model`.
        verbose: what workers write is shown.

    Raises:
        UserError: what `loaded_engine` raises; Ray is not installed or not to be reached, or has
            not as many GPUs.
    """
    workers.check_installed()
    if workers.needs_ray(source.device, lambda: gpus_each(source)):
        with worker_pool(source, model, workers, verbose=verbose) as pool:
            yield pool
    else:
        if workers.number == "auto":
            say("--workers auto: there are no GPUs for more, so one worker, in this process")
        with loading.loaded_engine(source, attention=model.attention) as engine:
            yield engine


@contextmanager
def worker_pool(
    source: ModelSource, model: ModelConfig, workers: WorkersConfig, *, verbose: bool = False
) -> Iterator[WorkerPool]:
    """An engine that has workers; arguments and errors are those of `answering_engine`."""
    if ":" in model.device:
        raise UserError(
            f"--device {model.device} is one GPU; with --workers say cuda, and choose among GPUs "
            "with CUDA_VISIBLE_DEVICES"
        )
    threads = torch.get_num_threads()
    with connected(workers.address, verbose=verbose) as cluster:
        on_gpu = source.device.type == "cuda"
        gpus = gpus_each(source) if on_gpu else 0
        all_gpus, all_cpus = map(sum, zip(*cluster.hosts, strict=True))
        room = sum(on_host // gpus for on_host, _ in cluster.hosts) if on_gpu else 0
        number = room if workers.number == "auto" else workers.number
        if on_gpu and not 0 < number <= room:
            each = "" if gpus == 1 else f", and each worker takes {gpus} of a host's"
            raise UserError(
                f"--workers {workers.number}: there are {all_gpus} GPUs{each}; take "
                f"{room} workers at most, or --device cpu"
            )
        if not on_gpu and workers.number == "auto":
            raise UserError("--workers auto counts GPUs; on CPUs say how many")
        if number > all_cpus:
            raise UserError(f"--workers {number}: each takes a CPU, and there are {all_cpus}")
        cpus = [min(threads, each) if cluster.is_local else each for _, each in cluster.hosts]
        share = equal_share(cpus, number)
        # Beside a GPU threads do little: they are no reason to find no place on a host.
        place = Place(gpus=gpus, cpus=1) if on_gpu else Place(gpus=0, cpus=share)
        assignment = Assignment(
            model=replace(
                model,
                name=_name_elsewhere(source),
                device=source.device.type,
                dtype=str(source.dtype).removeprefix("torch."),
                gpus_per_worker=gpus if on_gpu else None,
            ),
            fingerprint=source.fingerprint,
            code=code_fingerprint(),
            threads=share,
        )
        tokenizer = load_tokenizer(source)
        config = source.config.get_text_config()
        pool = WorkerPool(tokenizer, config, number, assignment, place)
        try:
            yield pool
        finally:
            pool.end()


def equal_share(cpus: Sequence[int], number: int) -> int:
    """The most CPUs that each of so many workers can have, none of them on two hosts; at least one.

    cpus: of each host.
    """
    shares = range(1, max(cpus) + 1)
    return max((s for s in shares if sum(each // s for each in cpus) >= number), default=1)


def _name_elsewhere(source: ModelSource) -> str:
    """What a process in another folder, or on another host, finds the model by."""
    if source.name == "demo":
        return source.name  # it lies beside the package, wherever that is
    return str(Path(source.path).absolute()) if Path(source.path).exists() else source.path
