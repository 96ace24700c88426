"""A model's forwards under our attention: packed segments, and steps of fused tokens.

Legend: ``T`` packed tokens, ``R`` rows, ``S`` tokens of a row, ``V`` vocabulary.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from self_ensemble.attention.kv_state import EncodeState
from self_ensemble.attention.patching import FlexAttentionWrapper


class Forward:
    """The forwards of one patched model.

    Args:
        model: a causal language model.
        wrapper: around it.
        compiled: run the model's layers compiled. Fused tokens then come as one packed sequence, as
            segments do, so that the layers are compiled once for both.
    """

    def __init__(self, model: Any, wrapper: FlexAttentionWrapper, *, compiled: bool):
        self.model = model
        self.wrapper = wrapper
        self.compiled = compiled

    def encode(
        self,
        state: EncodeState,
        ids: torch.Tensor,
        position_ids: torch.Tensor,
        last: torch.Tensor | None = None,
    ) -> torch.Tensor | None:
        """One packed forward, which fills ``state``.

        Args:
            ids, position_ids: [T].
            last: indices into T whose logits are wanted, [R]; None for none.

        Returns:
            Logits [R, V] float32, or None.
        """
        inputs = {"input_ids": ids[None], "position_ids": position_ids[None], "use_cache": False}
        with self.wrapper.using(state), self._layers():
            if last is None:
                self.model.base_model(**inputs)
                return None
            logits = self.model(**inputs, logits_to_keep=last).logits
            return logits[0].float()

    def fused_tokens(self, ids: torch.Tensor, positions: torch.Tensor, wanted: int) -> torch.Tensor:
        """As `fused`, but of each row's last ``wanted`` tokens, and in the model's dtype.

        ids, positions [R, S] → logits [R, wanted, V].
        """
        assert not self.compiled, "not known where layers are compiled"
        logits: torch.Tensor = self.model(
            input_ids=ids, position_ids=positions, use_cache=False, logits_to_keep=wanted
        ).logits
        return logits[:, -wanted:]

    def fused(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """One forward of fused tokens, under the decode state in use.

        ids, positions [R, S] → logits of each row's last token [R, V] float32.
        """
        R, S = ids.shape
        last: int | torch.Tensor = 1
        if self.compiled:
            ids, positions = ids.reshape(1, -1), positions.reshape(1, -1)
            last = torch.arange(1, R + 1, device=ids.device) * S - 1 if S > 1 else 0
        with self._layers(tokens=R * S):
            logits = self.model(
                input_ids=ids, position_ids=positions, use_cache=False, logits_to_keep=last
            ).logits
        return (logits[0] if self.compiled else logits[:, -1]).float()

    def _layers(self, tokens: int | None = None) -> AbstractContextManager[Any]:
        if not self.compiled:
            return nullcontext()
        return self.wrapper.compiled_layers(one_token=tokens == 1)
