"""What runs in a worker: a whole model, and the passes that it has opened. Knows nothing of Ray
but how to fetch an opening."""

from __future__ import annotations

import gc
import hashlib
import logging
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from self_ensemble.attention.fusion import FUSIONS, Fusion, FusionKind
from self_ensemble.generation.attaching import make_engine
from self_ensemble.generation.batching import tokens_at_once
from self_ensemble.generation.likelihood import ScoringRequest
from self_ensemble.generation.passes import Pass
from self_ensemble.generation.request import Request
from self_ensemble.generation.stats import Stats
from self_ensemble.models.config import ModelConfig
from self_ensemble.models.loading import find_model, load_model
from self_ensemble.system.errors import UserError
from self_ensemble.workers.parts import Broken, Failed, Opening, Reply, on_device

Given = TypeVar("Given")

PACKAGE = Path(__file__).resolve().parent.parent
# Passes that are kept open: a method has one at a time, a notebook several.
OPEN_PASSES = 4


@dataclass(frozen=True)
class Assignment:
    """What a worker is to be.

    model: where it is found on the worker's host, and how it computes.
    fingerprint: that its content must have.
    code: see `code_fingerprint`.
    threads: on a CPU, and beside a GPU.
    """

    model: ModelConfig
    fingerprint: str
    code: str
    threads: int


@dataclass(frozen=True)
class Loaded:
    """A worker that has its model.

    device: see `PatchedModel.device_name`. tokens_at_once: see `batching.tokens_at_once`.
    """

    device: str
    tokens_at_once: int


@dataclass(frozen=True)
class Host:
    """Where a worker runs."""

    name: str
    process: int


class Worker:
    """A whole model on a device of its own, or on several.

    Args:
        fetch: what an opening's reference stands for.
    """

    def __init__(self, fetch: Callable[[Any], Opening]):
        self._fetch = fetch
        self._passes: dict[str, tuple[Pass[Any], FusionKind]] = {}
        self._warnings: list[str] = []
        self._has_answered = False

    def where(self) -> Host:
        return Host(socket.gethostname(), os.getpid())

    def load(self, assignment: Assignment) -> Loaded | Failed | Broken:
        """Load the model."""
        logging.getLogger("self_ensemble").addHandler(_Keeping(self._warnings))
        torch.set_num_threads(assignment.threads)  # Ray sets OMP_NUM_THREADS to what it reserved

        def load() -> Loaded:
            _check_code(assignment.code)
            source = find_model(assignment.model)
            if source.fingerprint != assignment.fingerprint:
                raise UserError(
                    f"--model: {source.path} on {socket.gethostname()} is another model than here; "
                    "put the same files there"
                )
            model, tokenizer = load_model(source)
            attention = assignment.model.attention
            self._engine = make_engine(model, tokenizer, attention=attention, keep_prefix=True)
            self._engine.wrapper.__enter__()  # until the process ends
            memory = self._engine.config, self._engine.devices, model.dtype.itemsize
            return Loaded(self._engine.device_name, tokens_at_once(*memory))

        return self._tried(load)

    def environment(
        self, fusion: Fusion, kind: FusionKind, *, asked: str, weighed: bool
    ) -> dict[str, Any] | Failed | Broken:
        """See `Engine.environment`. kind: what the driver has under the fusion's name."""

        def environment() -> dict[str, Any]:
            _register(fusion.kind, kind)
            return self._engine.environment(fusion, asked=asked, weighed=weighed)

        return self._tried(environment)

    def answer(
        self, name: str, opening: list[Any], part: Request, max_batch_size: int | None
    ) -> Reply | Failed | Broken:
        """Answer a batch.

        Args:
            name: of the pass.
            opening: a list of one reference, which is fetched where the pass is not open.
            part: the batch's questions, see `parts.part_of`.
            max_batch_size: of this worker, before it was started again.
        """

        def answer() -> Reply:
            if name not in self._passes:
                self._open(name, self._fetch(opening[0]), max_batch_size)
            opened, kind = self._passes[name]
            _register(part.fusion.kind, kind)
            opened.stats = Stats()
            answers = opened.answer_part(on_device(part, self._engine.device))
            if not self._has_answered:
                # What is loaded and compiled now stays. To look through all of it for garbage
                # takes half a second, in which the GPU waits.
                gc.freeze()
                self._has_answered = True
            found = [answer for _, answer in answers]
            warnings, self._warnings[:] = list(self._warnings), []
            return Reply(found, opened.stats, opened.max_batch_size, warnings)

        return self._tried(answer)

    def _open(self, name: str, opening: Opening, max_batch_size: int | None) -> None:
        _register(opening.request.fusion.kind, opening.fusion_kind)
        request = on_device(opening.request, self._engine.device)
        while len(self._passes) >= OPEN_PASSES:
            del self._passes[next(iter(self._passes))]
        scores = isinstance(request, ScoringRequest)
        begin: Callable[..., Pass[Any]] = self._engine.score if scores else self._engine.generate
        opened = begin(
            request,
            batch_size=opening.batch_size,
            batches=opening.batches,
            max_batch_size=max_batch_size,
        )
        self._passes[name] = opened, opening.fusion_kind

    def _tried(self, compute: Callable[[], Given]) -> Given | Failed | Broken:
        try:
            return compute()
        except UserError as error:
            return Failed(str(error))
        except torch.AcceleratorError as error:  # after one no call to the device succeeds
            return Broken(str(error).splitlines()[0])


class _Keeping(logging.Handler):
    """Keeps warnings for the user, who sees the driver only."""

    def __init__(self, kept: list[str]):
        super().__init__(logging.WARNING)
        self.kept = kept

    def emit(self, record: logging.LogRecord) -> None:
        self.kept.append(record.getMessage())


def _register(name: str, kind: FusionKind) -> None:
    """What the driver has under a fusion's name: a notebook may register another one there."""
    if name in FUSIONS:
        FUSIONS.remove(name)
    FUSIONS.add(name, kind)


def code_fingerprint() -> str:
    """sha256 of the package's code: hosts with other code may answer otherwise."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(PACKAGE)}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def _check_code(expected: str) -> None:
    if code_fingerprint() != expected:
        raise UserError(
            f"--ray_address: {socket.gethostname()} has another version of this toolkit in "
            f"{PACKAGE}; install the same one there"
        )
