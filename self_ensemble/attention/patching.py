"""Our attention in the layers of a model, through transformers' attention interface."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol
from zlib import crc32

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PretrainedConfig, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from self_ensemble.attention.backends import (
    BACKENDS,
    Mask,
    attend_under_mask,
    dynamo_settings,
    make_mask,
)
from self_ensemble.attention.masks import MaskMod
from self_ensemble.attention.scoring import Scoring
from self_ensemble.system.errors import UserError

# What the layers of the supported architectures hand to an attention function beside the tensors.
_HARMLESS = {"dropout", "position_ids", "use_cache", "is_causal", "output_attentions"}

# This code may be in a process twice: as the package, and as a folder of `custom_generate`. Names
# that both register with transformers must differ.
_COPY = crc32(__name__.encode())


class AttentionState(Protocol):
    """What a patched model's layers attend by, one after the other."""

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scoring: Scoring,
    ) -> torch.Tensor:
        """query [B, H, S, D], key, value [B, J, S, D] of this forward's tokens → [B, H, S, D]."""
        ...


class MaskedState:
    """The whole sequence in one forward, under a mask: a ``mask_mod``, or plain causal attention.

    Rows have no padding; a row's indices are its positions.
    """

    def __init__(
        self, mask_mod: MaskMod | None = None, *, backend: str, compiled: bool = True
    ) -> None:
        self.mask_mod = mask_mod or (lambda b, h, q_idx, kv_idx: q_idx >= kv_idx)
        self.backend = backend
        self.compiled = compiled
        self._masks: dict[tuple[int, int | None, torch.device], Mask] = {}

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scoring: Scoring,
    ) -> torch.Tensor:
        S = query.shape[2]
        if key.shape[2] != S:
            raise ValueError(
                f"{key.shape[2]} keys for {S} queries: under a mask a patched model takes the "
                "whole sequence at once; call it with use_cache=False"
            )

        def windowed(
            b: torch.Tensor, h: torch.Tensor, q_idx: torch.Tensor, kv_idx: torch.Tensor
        ) -> torch.Tensor:
            visible = self.mask_mod(b, h, q_idx, kv_idx)
            return visible & (q_idx - kv_idx < scoring.window) if scoring.window else visible

        cached = (S, scoring.window, query.device)
        if cached not in self._masks:
            self._masks[cached] = make_mask(windowed, S, S, query.device, self.backend)
        return attend_under_mask(
            query, key, value, self._masks[cached], scoring, self.backend, self.compiled
        )


class FlexAttentionWrapper:
    """Puts our attention into every attention layer of a model, and takes it out again.

    >>> with FlexAttentionWrapper(model).patch_model(mask_mod):
    ...     model(input_ids)  # every layer attends under mask_mod

    At the end of the outermost ``with`` block, also after an exception, the model is what it was:
    its attention implementations, those of its sub-configurations, its hooks and its layers'
    forwards. A block inside a block changes nothing.

    Args:
        model: a causal language model of transformers.
        backend: ``flex``, ``sdpa`` or ``eager``.
        compiled: compile FlexAttention; eager FlexAttention is exact and slow.

    Attributes:
        state: what the layers attend by; see `AttentionState`.
        layers: index → (attention module, its scoring), as the last forwards met them.
        fallback: why ``auto`` did not take FlexAttention where it tried to.
    """

    _serial = itertools.count()

    def __init__(self, model: PreTrainedModel, backend: str = "sdpa", *, compiled: bool = True):
        assert backend in BACKENDS, backend
        self.model = model
        self.backend = backend
        self.compiled = compiled
        self.fallback: str | None = None
        self.state: AttentionState | None = None
        self.layers: dict[int, tuple[nn.Module, Scoring]] = {}
        # Compiled layers hold for one name and one function: another would be compiled for again.
        self._name = f"self_ensemble_{_COPY:08x}_{next(self._serial)}"
        self._function = self._attention
        self._untraced: Callable[..., Any] | None = None  # the same, where dynamo may not look
        self._before: list[tuple[PretrainedConfig, str | None]] | None = None  # None: not patched
        self._hook: RemovableHandle | None = None
        self._blocks = 0  # open ``with`` blocks
        self._compiled: dict[bool, list[tuple[nn.Module, Callable[..., Any]]]] = {}

    @property
    def patched(self) -> bool:
        """Whether our attention is in the model's layers."""
        return self._before is not None

    def patch_model(self, mask_mod: MaskMod | None = None) -> FlexAttentionWrapper:
        """Every forward from now on attends under ``mask_mod`` (plain causal attention if None).

        Raises:
            UserError: the model's layers do not go through transformers' attention interface.
        """
        assert not self.patched, "the model is patched already"
        self.state = MaskedState(mask_mod, backend=self.backend, compiled=self.compiled)
        self._before = [(config, config._attn_implementation) for config in configs_of(self.model)]
        try:
            ALL_ATTENTION_FUNCTIONS[self._name] = self._function
            ALL_MASK_ATTENTION_FUNCTIONS[self._name] = _no_mask
            self._put_in()
            if self.model.config._attn_implementation != self._name:
                raise UserError(
                    unsupported(self.model.config, "its layers do not use the attention interface")
                )
        except BaseException:
            self.unpatch_model()
            raise
        return self

    def unpatch_model(self) -> None:
        """Put back what was there. Harmless on a model that is not patched."""
        if not self.patched:
            return
        self._take_out()
        for functions in (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS):
            functions.pop(self._name, None)
        self.state = self._before = None

    def __enter__(self) -> FlexAttentionWrapper:
        if not self.patched:
            self.patch_model()
        self._blocks += 1
        return self

    def __exit__(self, *exception: object) -> None:
        self._blocks -= 1
        if self._blocks == 0:
            self.unpatch_model()

    @contextmanager
    def using(self, state: AttentionState) -> Iterator[None]:
        """Within, every forward's layers attend as this state does."""
        before, self.state = self.state, state
        try:
            yield
        finally:
            self.state = before

    @contextmanager
    def taken_out(self) -> Iterator[None]:
        """Within, the model is as it was before it was patched."""
        self._take_out()
        try:
            yield
        finally:
            self._put_in()

    def _put_in(self) -> None:
        self._hook = self.model.base_model.register_forward_pre_hook(_refuse_mask, with_kwargs=True)
        self.model.set_attn_implementation(self._name)

    def _take_out(self) -> None:
        """Whoever has set another implementation in the meantime keeps it."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        after = [
            (config, before if (now := config._attn_implementation) == self._name else now)
            for config, before in self._before or []
        ]
        for config, implementation in after:  # those above first: setting one sets those below it
            config._attn_implementation = implementation

    @contextmanager
    def compiled_layers(self, *, one_token: bool = False) -> Iterator[None]:
        """Within, the model's layers run compiled, all but the attention, which stays ours.

        Their small passes are then fused into few kernels, with the roundings that they have one by
        one. For one token alone the products are compiled too, since they only read weights then.
        Compiled once for all lengths; kept on disk between runs.
        """
        if self._untraced is None:
            self._untraced = torch.compiler.disable(self._function)
        if one_token not in self._compiled:
            kind = "coordinate_descent_tuning" if one_token else "emulate_precision_casts"
            self._compiled[one_token] = [
                (layer, torch.compile(layer.forward, dynamic=not one_token, options={kind: True}))
                for layer in self._decoder_layers()
            ]
        before: list[tuple[nn.Module, Any]] = [
            (layer, vars(layer).get("forward")) for layer, _ in self._compiled[one_token]
        ]
        ALL_ATTENTION_FUNCTIONS[self._name] = self._untraced
        try:
            for layer, forward in self._compiled[one_token]:
                layer.forward = forward
            with dynamo_settings():
                yield
        finally:
            for layer, own in before:
                if own is not None:
                    layer.forward = own
                else:
                    vars(layer).pop("forward", None)
            ALL_ATTENTION_FUNCTIONS[self._name] = self._function

    @torch.inference_mode()
    def meet_layers(self) -> None:
        """Fill ``layers`` with a forward of one token, where no forward has yet."""
        if not self.layers:
            ids = torch.zeros(1, 1, dtype=torch.long, device=self.model.device)
            with self.using(MaskedState(backend="eager")):
                self.model.base_model(input_ids=ids, use_cache=False)

    def _decoder_layers(self) -> list[nn.Module]:
        """The modules that hold the attention modules."""
        self.meet_layers()
        names = {module: name for name, module in self.model.named_modules()}
        parents = [names[module].rpartition(".")[0] for module, _ in self.layers.values()]
        return [self.model.get_submodule(parent) for parent in parents]

    def _attention(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **options: Any,
    ) -> tuple[torch.Tensor, None]:
        scoring = read_scoring(self.model.config, query, options)
        if attention_mask is not None:
            raise ValueError("a patched model takes its mask from the wrapper, not attention_mask")
        assert self.state is not None and isinstance(module.layer_idx, int)
        self.layers[module.layer_idx] = (module, scoring)
        out = self.state.attend(module.layer_idx, query, key, value, scoring)
        return out.transpose(1, 2).contiguous(), None  # [B, S, H, D]; some layers view it


def configs_of(model: PreTrainedModel) -> list[PretrainedConfig]:
    """Each configuration that says how some layers attend, those above before those below."""
    found: dict[int, PretrainedConfig] = {}
    waiting = deque(m.config for m in model.modules() if isinstance(m, PreTrainedModel))
    while waiting:
        config = waiting.popleft()
        if id(config) not in found:
            found[id(config)] = config
            below = (getattr(config, name, None) for name in config.sub_configs)
            waiting.extend(sub for sub in below if sub is not None)
    return list(found.values())


def read_scoring(config: PretrainedConfig, query: torch.Tensor, options: dict[str, Any]) -> Scoring:
    """What a layer says of its scores. Anything we would have to ignore is refused."""
    scaling = options.pop("scaling", None)
    softcap = options.pop("softcap", None)
    window = options.pop("sliding_window", None)
    for name, value in options.items():
        if name not in _HARMLESS and value is not None and value is not False:
            raise UserError(unsupported(config, f"its attention uses {name!r}"))
    return Scoring(query.shape[-1] ** -0.5 if scaling is None else scaling, softcap, window)


def _no_mask(*args: object, **kwargs: object) -> None:
    """In transformers' mask interface: the state brings the mask."""


def _refuse_mask(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Before a patched model's forward: a mask that hides something would be ignored."""
    mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
    if torch.is_tensor(mask) and not mask.all():
        raise ValueError("a patched model takes its mask from the wrapper, not attention_mask")


def unsupported(config: PretrainedConfig, reason: str) -> str:
    """The sentence about an architecture."""
    return f"the architecture {config.model_type!r} is not supported: {reason}"


def not_numbers(model: PreTrainedModel) -> str:
    """The sentence about a model whose values are NaN, which no comparison would catch."""
    dtype = str(model.dtype).removeprefix("torch.")
    todo = "take --dtype float32" if dtype != "float32" else "its weights are damaged"
    return f"this model computes values that are not numbers in {dtype}: {todo}"
