"""Our attention in the layers of a model, through transformers' attention interface."""

from __future__ import annotations

import itertools
from contextlib import contextmanager

import torch
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from self_ensemble.attention.backends import (
    BACKENDS,
    attend_under_mask,
    compile_with_room,
    make_mask,
)
from self_ensemble.attention.scoring import Scoring
from self_ensemble.system.errors import UserError

# What the layers of the supported architectures hand to an attention function beside the tensors.
_HARMLESS = {"dropout", "position_ids", "use_cache", "is_causal", "output_attentions"}


class MaskedState:
    """The whole sequence in one forward, under a mask: a ``mask_mod``, or plain causal attention.

    Rows have no padding; a row's indices are its positions.
    """

    def __init__(self, mask_mod=None, *, backend: str, compiled: bool = True):
        self.mask_mod = mask_mod or (lambda b, h, q_idx, kv_idx: q_idx >= kv_idx)
        self.backend = backend
        self.compiled = compiled
        self._masks = {}

    def attend(self, layer, query, key, value, scoring):
        S = query.shape[2]
        if key.shape[2] != S:
            raise ValueError(
                f"{key.shape[2]} keys for {S} queries: under a mask a patched model takes the "
                "whole sequence at once; call it with use_cache=False"
            )

        def windowed(b, h, q_idx, kv_idx):
            visible = self.mask_mod(b, h, q_idx, kv_idx)
            return visible & (q_idx - kv_idx < scoring.window) if scoring.window else visible

        cached = (S, scoring.window)
        if cached not in self._masks:
            self._masks[cached] = make_mask(windowed, S, S, query.device, self.backend)
        return attend_under_mask(
            query, key, value, self._masks[cached], scoring, self.backend, self.compiled
        )


class FlexAttentionWrapper:
    """Puts our attention into every attention layer of a model, and takes it out again.

    >>> with FlexAttentionWrapper(model).patch_model(mask_mod):
    ...     model(input_ids)  # every layer attends under mask_mod

    Args:
        model: a causal language model of transformers.
        backend: ``flex``, ``sdpa`` or ``eager``.
        compiled: compile FlexAttention; eager FlexAttention is exact and slow.
    """

    _serial = itertools.count()

    def __init__(self, model, backend: str = "sdpa", *, compiled: bool = True):
        assert backend in BACKENDS, backend
        self.model = model
        self.backend = backend
        self.compiled = compiled
        self.fallback = None  # why ``auto`` did not take FlexAttention where it tried to
        self.state = None
        self.layers = {}  # index → (attention module, its scoring), as the last forwards met them
        self._name = None
        self._before = None
        self._hook = None
        self._untraced = None
        self._compiled = {}  # for one token alone or not → layers and their compiled forwards

    def patch_model(self, mask_mod=None) -> FlexAttentionWrapper:
        """Every forward from now on attends under ``mask_mod`` (plain causal attention if None).

        Raises:
            UserError: the model's layers do not go through transformers' attention interface.
        """
        assert self._name is None, "the model is patched already"
        self.state = MaskedState(mask_mod, backend=self.backend, compiled=self.compiled)
        self._before = self.model.config._attn_implementation
        self._name = f"self_ensemble_{next(self._serial)}"
        ALL_ATTENTION_FUNCTIONS[self._name] = self._attention
        ALL_MASK_ATTENTION_FUNCTIONS[self._name] = _no_mask
        self._hook = self.model.base_model.register_forward_pre_hook(_refuse_mask, with_kwargs=True)
        try:
            self.model.set_attn_implementation(self._name)
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
        if self._name is None:
            return
        if self.model.config._attn_implementation == self._name:
            self.model.set_attn_implementation(self._before)
        del ALL_ATTENTION_FUNCTIONS[self._name]
        del ALL_MASK_ATTENTION_FUNCTIONS[self._name]
        self._hook.remove()
        self.state = self._name = self._before = self._hook = None

    @contextmanager
    def using(self, state):
        """Within, every forward's layers attend as this state does."""
        before, self.state = self.state, state
        try:
            yield
        finally:
            self.state = before

    @contextmanager
    def taken_out(self):
        """Within, the model is as it was before it was patched."""
        self.model.set_attn_implementation(self._before)
        self._hook.remove()
        try:
            yield
        finally:
            self._hook = self.model.base_model.register_forward_pre_hook(
                _refuse_mask, with_kwargs=True
            )
            self.model.set_attn_implementation(self._name)

    @contextmanager
    def compiled_layers(self, *, one_token: bool = False):
        """Within, the model's layers run compiled, all but the attention, which stays ours.

        Their small passes are then fused into few kernels, with the roundings that they have one by
        one. For one token alone the products are compiled too, since they only read weights then.
        Compiled once for all lengths; kept on disk between runs.
        """
        if self._untraced is None:  # one object: another one would be compiled for again
            self._untraced = torch.compiler.disable(self._attention)
        if one_token not in self._compiled:
            kind = "coordinate_descent_tuning" if one_token else "emulate_precision_casts"
            self._compiled[one_token] = [
                (
                    layer,
                    compile_with_room(layer.forward, dynamic=not one_token, options={kind: True}),
                )
                for layer in self._decoder_layers()
            ]
        ALL_ATTENTION_FUNCTIONS[self._name] = self._untraced
        for layer, forward in self._compiled[one_token]:
            layer.forward = forward
        try:
            yield
        finally:
            for layer, _ in self._compiled[one_token]:
                del layer.forward
            ALL_ATTENTION_FUNCTIONS[self._name] = self._attention

    @torch.inference_mode()
    def meet_layers(self) -> None:
        """Fill ``layers`` with a forward of one token, where no forward has yet."""
        if not self.layers:
            ids = torch.zeros(1, 1, dtype=torch.long, device=self.model.device)
            with self.using(MaskedState(backend="eager")):
                self.model.base_model(input_ids=ids, use_cache=False)

    def _decoder_layers(self):
        """The modules that hold the attention modules."""
        self.meet_layers()
        names = {module: name for name, module in self.model.named_modules()}
        parents = [names[module].rpartition(".")[0] for module, _ in self.layers.values()]
        return [self.model.get_submodule(parent) for parent in parents]

    def __enter__(self) -> FlexAttentionWrapper:
        return self if self._name else self.patch_model()

    def __exit__(self, *exception) -> None:
        self.unpatch_model()

    def _attention(self, module, query, key, value, attention_mask=None, **options):
        scoring = read_scoring(self.model.config, query, options)
        if attention_mask is not None:
            raise ValueError("a patched model takes its mask from the wrapper, not attention_mask")
        self.layers[module.layer_idx] = (module, scoring)
        out = self.state.attend(module.layer_idx, query, key, value, scoring)
        return out.transpose(1, 2).contiguous(), None  # [B, S, H, D]; some layers view it


def read_scoring(config, query, options: dict) -> Scoring:
    """What a layer says of its scores. Anything we would have to ignore is refused."""
    scaling = options.pop("scaling", None)
    softcap = options.pop("softcap", None)
    window = options.pop("sliding_window", None)
    for name, value in options.items():
        if name not in _HARMLESS and value is not None and value is not False:
            raise UserError(unsupported(config, f"its attention uses {name!r}"))
    return Scoring(query.shape[-1] ** -0.5 if scaling is None else scaling, softcap, window)


def _no_mask(*args, **kwargs):
    """In transformers' mask interface: the state brings the mask."""


def _refuse_mask(module, args, kwargs):
    """Before a patched model's forward: a mask that hides something would be ignored."""
    mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
    if torch.is_tensor(mask) and not mask.all():
        raise ValueError("a patched model takes its mask from the wrapper, not attention_mask")


def unsupported(config, reason: str) -> str:
    return f"the architecture {config.model_type!r} is not supported: {reason}"
