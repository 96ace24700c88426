"""Cases for the kernels of attention/kernels/, held against plain math by test_gpu_kernels.py.

TRITON_INTERPRET=1 python test/kernel_cases.py

runs them in Triton's interpreter; the exit status is 1 where one is off.
"""

import random
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import pytest
import torch

from self_ensemble.attention.buffers import BufferPool
from self_ensemble.attention.cuda_graphs import CapturedDecodeState
from self_ensemble.attention.fusion import Fusion
from self_ensemble.attention.kv_state import DecodeState
from self_ensemble.attention.rotary import RotaryTables
from self_ensemble.attention.scoring import KeyValues, Scoring

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
U = (1.0, 0.0, 2.0, 1.0, 1.0)


@dataclass(frozen=True)
class Case:
    name: str
    rows: int = 2
    lengths: tuple[int, int] = (1, 9)  # of segments, from and to
    partitions: int = 3
    kv_heads: int = 1
    group: int = 2
    size: int = 16
    prefix: int = 21
    steps: tuple[int, ...] = (3, 1)
    kind: str = "mean"
    tau: float = 0.0
    weights: tuple | None = None
    turned: int = 0  # numbers of a head that turn
    interleaved: bool = False
    softcap: float | None = None
    window: int | None = None
    apart: bool = False  # the prefix has a kernel of its own, however short it is
    filling: int | None = 1  # programs that a GPU is taken to want; None: as many as it does
    tile: int | None = None  # keys of a segment at a time


# With one program to fill a GPU, as where rows are many, each has all of a row's segments.
CASES = (
    Case("plain", kv_heads=2, steps=(3, 1, 1)),
    Case("one partition", partitions=1, rows=3),
    Case("joint", kv_heads=2, kind="joint"),
    Case("joint, weights", kind="joint", partitions=5, weights=U),
    Case("weights", partitions=5, weights=U),
    Case("tau", tau=0.7),
    Case("tau and weights", partitions=5, tau=1.5, weights=U),
    Case("tau, turned", tau=0.7, turned=16),
    Case("no prefix", prefix=0),
    Case("no prefix, turned", prefix=0, turned=16),
    Case("turned", kv_heads=2, turned=16),
    Case("half turned, neighbours", turned=8, interleaved=True),
    Case("odd head", size=24, turned=24, group=1),
    Case("soft cap", softcap=1.5),
    Case("soft cap, prefix apart", rows=1, softcap=1.5, apart=True),
    Case("window", window=7),
    Case("window, turned", window=7, turned=16),
    Case("window, layer that does not turn", window=9, turned=-1),
    Case("window, joint", window=7, kind="joint"),
    Case("window, tau", window=7, tau=0.5),
    Case("window, prefix apart", rows=1, window=7, apart=True),
    Case("segments in tiles", lengths=(10, 50), tile=16),
    Case("segments in tiles, turned", lengths=(10, 50), tile=16, turned=16, partitions=2),
    Case("segments in tiles, joint", lengths=(1, 50), tile=16, kind="joint", partitions=2),
    Case("segments in tiles, tau, window", lengths=(1, 50), tile=16, tau=0.7, window=30),
    Case("long prefix", kv_heads=2, prefix=700, partitions=2, filling=None),
    Case("long prefix, turned", prefix=700, turned=16, partitions=2, filling=None),
    Case("long tail, wide group", rows=1, steps=(20, 1), group=5),
    Case("many rows", rows=34, partitions=1, steps=(2,), prefix=30, apart=True),
    Case("two segments a program", partitions=5, weights=U, filling=5),
    Case("few rows", kv_heads=2, partitions=5, weights=U, filling=None),
    Case("few rows, joint", rows=1, partitions=4, kind="joint", filling=None),
    Case("few rows, tau, turned", rows=1, partitions=4, tau=0.5, turned=16, filling=None),
)


def distance(case: Case, dtype=torch.float32) -> float:
    """Relative distance of what the kernels and plain math make of some forwards; rows leave."""
    from self_ensemble.attention.kernels import launch

    with pytest.MonkeyPatch.context() as patch:
        if case.filling is not None:
            patch.setattr(launch, "FILLING", case.filling)
        if case.tile is not None:
            patch.setattr(launch, "SEGMENT_KEYS", case.tile)
        if case.apart:
            patch.setattr(launch, "INLINE_PREFIX", 0)
        return _distance(case, dtype)


def _distance(case, dtype):
    generator = torch.Generator().manual_seed(len(case.name))
    rng = random.Random(case.name)
    J, D, K, R = case.kv_heads, case.size, case.partitions, case.rows
    H = J * case.group

    def draw(*shape):
        return torch.randn(*shape, generator=generator).to(DEVICE, dtype)

    prefix = {}
    if case.prefix:
        prefix = {0: KeyValues(draw(J, case.prefix, D), draw(J, case.prefix, D))}
    lengths = torch.tensor([[rng.randint(*case.lengths) for _ in range(K)] for _ in range(R)])
    total = int(lengths.sum())
    packed = KeyValues(draw(total + 5, J, D).transpose(0, 1), draw(total + 5, J, D).transpose(0, 1))
    starts = (lengths.flatten().cumsum(0) - lengths.flatten()).view(R, K)
    longest = int(lengths.max())
    index = (starts[:, :, None] + torch.arange(longest)).clamp(max=total - 1).to(DEVICE)
    padded = {0: KeyValues(packed.keys[:, index], packed.values[:, index])}
    mask = torch.arange(longest) < lengths[:, :, None]
    first = torch.full((R, K), case.prefix)
    turns = longest - lengths if case.turned else None
    rotary = None
    if case.turned:
        angle = -torch.arange(longest + 1)[:, None] * torch.rand(
            max(case.turned, 2) // 2, generator=generator
        )
        wide = angle.repeat_interleave(2, 1) if case.interleaved else angle.repeat(1, 2)
        tables = {0: (wide.cos().to(DEVICE), wide.sin().to(DEVICE))} if case.turned > 0 else {}
        rotary = RotaryTables(tables, {0: case.interleaved})
    fusion = Fusion.of(case.kind, case.tau, case.weights, DEVICE)
    common = {
        "prefix": prefix,
        "rope_offsets": None if turns is None else turns.to(DEVICE),
        "rotary": rotary,
        "slots": sum(case.steps),
        "fusion": fusion,
    }
    positions = first[:, :, None] + torch.arange(longest)
    plain = DecodeState(
        segments=padded,
        segment_mask=mask.to(DEVICE),
        segment_positions=positions.to(DEVICE),
        **common,
    )
    fast = CapturedDecodeState(
        segments={0: packed},
        starts=starts.to(DEVICE),
        lengths=lengths.to(DEVICE),
        segment_positions=first.to(DEVICE),
        buffers=BufferPool(),
        **common,
    )
    scoring = Scoring(D**-0.5, case.softcap, case.window)
    furthest, begun = 0.0, case.prefix + longest
    for number, S in enumerate(case.steps):
        query, key, value = draw(R, H, S, D), draw(R, J, S, D), draw(R, J, S, D)
        at = (begun + torch.arange(S)).repeat(R, 1).to(DEVICE)
        real = torch.ones(R, S, dtype=torch.bool, device=DEVICE)
        if number == 0 and S > 1:
            real[0, : S - 1] = False  # a shorter tail
        for plan in (plain, fast):
            plan.append(at, real)
        expected = plain.attend(0, query, key, value, scoring)
        packs = [x.transpose(0, 1).flatten(1, 2)[None] for x in (query, key, value)]
        found = fast.attend(0, *packs, scoring)[0].unflatten(1, (R, S)).transpose(0, 1)
        keep = real[:, None, :, None]
        difference = ((found.float() - expected.float()) * keep).norm() / (expected * keep).norm()
        furthest = max(furthest, difference.item() if difference == difference else float("inf"))
        begun += S
        if R > 1:  # the first row leaves
            rows = torch.arange(1, R, device=DEVICE)
            plain.keep_rows(rows)
            fast.keep_rows(rows)
            R -= 1
    return furthest


def main() -> int:
    off = 0
    for case in CASES:
        found = distance(case)
        off += found > 1e-5
        print(f"{case.name}: {found:.1e}{'' if found <= 1e-5 else ' OFF'}")
    print(f"{len(CASES) - off} of {len(CASES)} cases are as plain math has them")
    return 1 if off else 0


if __name__ == "__main__":
    sys.exit(main())
