"""Decode steps that are recorded once and replayed, and the plan that lets them be.

A decode step is some thousand small kernels, which take longer to launch than to run. A CUDA graph
launches them all at once, and they read and write where they did when it was recorded: so all plans
of a run keep their tensors in one `Room`.

Legend as in attention.py.
"""

from __future__ import annotations

import math

import torch

from self_ensemble.attention.attention import Fresh, FusedTokens, KeyValues


class Room(Fresh):
    """Memory that plans take turns in: the next one of the same shape finds the same addresses.

    version: changes when memory was moved, after which no recorded forward may be replayed.
    """

    def __init__(self):
        self.version = 0
        self._flat = {}

    def take(self, name, shape, like: torch.Tensor) -> torch.Tensor:
        """Uninitialised, contiguous; whatever had this name before is overwritten."""
        self.reserve(name, math.prod(shape), like)
        return self._flat[name][: math.prod(shape)].view(shape)

    def reserve(self, name, size: int, like: torch.Tensor) -> None:
        """Room for so many numbers, so that none of what is taken up to this size moves."""
        if name not in self._flat or self._flat[name].numel() < size:
            self._flat[name] = None  # before the larger one is asked for
            self._flat[name] = torch.empty(size, dtype=like.dtype, device=like.device)
            self.version += 1

    def keep(self, name, tensor: torch.Tensor) -> torch.Tensor:
        return self.take(name, tensor.shape, tensor).copy_(tensor)


class RecordedFusePlan(FusedTokens):
    """What `attention.FusePlan` does, in the kernels of gpu_kernels.py, so that it can be recorded.

    The rows of a forward come as one packed sequence, as in encoding, so that the model's layers
    are compiled once for both. Segments stay packed as the encoding left them.

    Args:
        segments: layer → [J, T, D], packed, in the room; a view whose strides do not depend on T.
        starts, lengths: [R, K], where in T each row's segments are, and how long they are.
        segment_positions: [R, K], the positions of the segments' first tokens.
        others: see `FusedTokens`.
    """

    def __init__(self, *, starts, lengths, segment_positions, room: Room, **others):
        super().__init__(rows=starts.shape[0], room=room, **others)
        device = self.at.device
        self.starts = room.keep("starts", starts.int().to(device))
        self.lengths = room.keep("lengths", lengths.int().to(device))
        self.segment_positions = room.keep("segment positions", segment_positions.to(device))
        # The kernel's tiles are of 16, 32, ... keys.
        self.longest = max(16, 1 << (int(lengths.max()) - 1).bit_length())

    @property
    def shape(self) -> tuple:
        """What two plans of one room must share for one's recorded forward to be the other's."""
        weights = None if self.fusion.weights is None else id(self.fusion.weights)
        turned = self.turns is not None
        sizes = *self.starts.shape, self.longest, self.own_mask.shape[1]
        return *sizes, turned, self.fusion.kind, self.fusion.tau, weights, self.room.version

    def keep_rows(self, rows):
        super().keep_rows(rows)
        self.starts = self.room.keep("starts", self.starts[rows])
        self.lengths = self.room.keep("lengths", self.lengths[rows])
        self.segment_positions = self.room.keep("segment positions", self.segment_positions[rows])

    def attend(self, layer, query, key, value, scoring):
        """query, key, value: [1, heads, R * S, D] → [1, H, R * S, D]."""
        from self_ensemble.attention import triton_kernels as gpu_kernels

        by_row = self.own_mask.shape[0], self.queries
        query, key, value = (x[0].unflatten(1, by_row).transpose(0, 1) for x in (query, key, value))
        out = gpu_kernels.fuse(
            query,
            self.prefix.get(layer),
            self.segments[layer],
            self.starts,
            self.lengths,
            self.longest,
            self.segment_positions,
            self.own[layer],
            self.own_mask,
            self.own_positions,
            KeyValues(key, value),
            self.at,
            self.turns,
            self.angles(layer),
            scoring,
            self.fusion,
        )  # [R, H, S, D]
        return out.transpose(1, 2).flatten(0, 1).transpose(0, 1)[None]


class RecordedStep:
    """A decode step as a CUDA graph. It can be replayed under any plan of the same room and shape.

    Args:
        forward: (ids [R, 1], positions [R, 1]) → logits [R, V], under ``plan``.
        others: steps whose graphs' memory this one may use too, since replays never overlap.
    """

    def __init__(self, plan: RecordedFusePlan, forward, ids, positions, others):
        self.ids, self.positions = ids.clone(), positions.clone()
        self.fusion = plan.fusion  # its weights are read at their address
        pool = others[0].graph.pool() if others else None  # it goes with the last of them
        self.graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(self.graph, pool=pool):
                plan.mark(self.positions, torch.ones_like(self.positions, dtype=torch.bool))
                self.logits = forward(self.ids, self.positions)
        except RuntimeError as error:  # ending a recording that failed fails too, and hides why
            if isinstance(error.__context__, torch.OutOfMemoryError):
                raise error.__context__ from None
            raise

    def __call__(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """ids, positions: [R, 1]. Returns logits [R, V], valid until the next step."""
        self.ids.copy_(ids)
        self.positions.copy_(positions)
        self.graph.replay()
        return self.logits
