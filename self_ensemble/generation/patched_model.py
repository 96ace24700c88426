"""A model under our attention, and what all passes over it share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from threading import Lock, RLock
from typing import Any
from weakref import WeakKeyDictionary

import torch

from self_ensemble.attention.patching import FlexAttentionWrapper
from self_ensemble.generation.captured import CapturedSteps
from self_ensemble.generation.stopping import (
    LineStop,
    StopRule,
    end_of_sequence_ids,
    make_stop_rule,
)
from self_ensemble.models.devices import describe_layers, devices_of
from self_ensemble.models.environment import describe_device
from self_ensemble.system.console import say_if_slow

STARTING = (
    "compiling for this GPU: up to a minute the first time, sooner in later runs, since the result "
    "is kept on disk (--attention sdpa starts at once, and is slower after that)"
)

# What attends is a setting of the model, and so of all threads and all engines around it.
_LOCKS: WeakKeyDictionary[Any, RLock] = WeakKeyDictionary()
_LOCKS_LOCK = Lock()


def _lock_of(model: Any) -> RLock:
    with _LOCKS_LOCK:
        return _LOCKS.setdefault(model, RLock())


class PatchedModel:
    """A model that is patched while it computes and given back in between.

    It stays patched where the wrapper is patched already.

    Args:
        model: a causal language model on its device.
        tokenizer: the model's own.
        wrapper: a `FlexAttentionWrapper` around the model.
        capture: decode steps are captured, see `engine.Engine`.
    """

    def __init__(self, model: Any, tokenizer: Any, wrapper: FlexAttentionWrapper, *, capture: bool):
        assert not capture or wrapper.backend == "flex", wrapper.backend
        self.model = model
        self.tokenizer = tokenizer
        self.wrapper = wrapper
        self.device: torch.device = model.device
        self.devices = devices_of(model)
        assert not capture or len(self.devices) == 1, "a captured step is of one device"
        self.config = model.config.get_text_config()
        vocabulary = self.config.vocab_size
        self.eos_ids = end_of_sequence_ids(model, tokenizer, vocabulary)
        self.line_stop: StopRule = LineStop(tokenizer, self.eos_ids, vocabulary, self.device)
        self.captured_steps = CapturedSteps() if capture else None
        self._stop_rules: dict[tuple[str, ...], StopRule] = {}
        self._started = not capture
        self._lock = _lock_of(model)

    @property
    def captures(self) -> bool:
        """Whether decode steps are captured, for the fusions that a kernel knows."""
        return self.captured_steps is not None

    @property
    def device_name(self) -> str:
        """What computes, for a manifest: the device, or which ones have which layers."""
        if len(self.devices) == 1:
            return describe_device(self.device)
        self.wrapper.meet_layers()
        layers = {
            index: next(module.parameters()).device
            for index, (module, _) in self.wrapper.layers.items()
        }
        return describe_layers(layers, {each: describe_device(each) for each in self.devices})

    def stop_rule(self, stop: tuple[str, ...] | None) -> StopRule:
        """What `GenerationConfig.stop` asks for."""
        if stop is None:
            return self.line_stop
        if stop not in self._stop_rules:
            self._stop_rules[stop] = make_stop_rule(
                stop, self.tokenizer, self.eos_ids, self.config.vocab_size, self.device
            )
        return self._stop_rules[stop]

    def release(self) -> None:
        """Give back what memory is kept from batch to batch."""
        if self.captured_steps is not None:
            self.captured_steps.clear()
        torch.cuda.empty_cache()

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Within, the model is patched and in eval mode; then it is as it was."""
        with self._lock, ExitStack() as stack:
            training = [module for module in self.model.modules() if module.training]
            stack.enter_context(self.wrapper)
            for module in training:
                module.training = False
                stack.callback(setattr, module, "training", True)
            yield

    def telling(self, captured: bool) -> AbstractContextManager[Any]:
        """Within what is first where layers are compiled, what takes so long is said."""
        if self._started or not captured:
            return nullcontext()
        return say_if_slow(STARTING, once=True)

    def has_started(self) -> None:
        self._started = True
