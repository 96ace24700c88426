"""The segment mask through compiled FlexAttention, on the CPU and on every GPU."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch

from self_ensemble.attention.kv_state import EncodeState
from self_ensemble.attention.scoring import KeyValues, Scoring
from self_ensemble.diagnostics.checks import FAILED, OK, Check, one_line
from self_ensemble.diagnostics.tolerances import within
from self_ensemble.generation.encode import pad_packed
from self_ensemble.models.loading import choose_dtype
from self_ensemble.system.console import say
from self_ensemble.system.errors import UserError

# The question that FlexAttention is tried on: segments behind a prefix, several heads to a key.
PREFIX, LENGTHS = 37, (12, 7, 1, 19, 9)
HEADS, KV_HEADS, SIZE = 4, 2, 64


def check_flex_attention() -> Iterator[Check]:
    """A check for each device. What does not run, or runs wrong, has failed."""
    devices = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    for device in devices:
        name = f"flex on {device}"
        if device == "cpu":
            say("compiling FlexAttention for the CPU: half a minute, once")
        try:
            trial = try_flex(torch.device(device))
        except UserError as error:
            todo = (
                "install a C++ compiler (g++); the CPU's default is sdpa, which needs none"
                if device == "cpu"
                else "update the driver and torch; --attention sdpa runs without FlexAttention"
            )
            yield Check(name, FAILED, f"does not run: {error}", todo)
            continue
        yield Check(
            name,
            OK if trial.right else FAILED,
            f"{trial.dtype}, differs from the dense oracle by {trial.difference:.1e} "
            f"(rounding: up to {trial.tolerance:.1e}); first run {trial.first_seconds:.1f} "
            f"s, then {trial.seconds * 1000:.1f} ms",
            "" if trial.right else "use --attention sdpa, and report it with the versions above",
            asdict(trial),
        )


@dataclass(frozen=True)
class FlexTrial:
    """What came of trying: how far the result is off, and how long both runs took."""

    dtype: str
    difference: float
    tolerance: float
    first_seconds: float
    seconds: float

    @property
    def right(self) -> bool:
        return within(self.difference, self.tolerance)


@dataclass(frozen=True)
class FlexInputs:
    """One layer's tensors for segments packed behind a prefix, padded as the engine pads them.

    Legend: ``H`` query heads, ``J`` key/value heads, ``P`` prefix tokens, ``T`` packed tokens with
    padding, ``D`` head size.

    query: [1, H, T, D]; key, value: [1, J, T, D]; prefix: [J, P, D] each.
    owner, positions: whose each packed token is, and where it stands, [T].
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    prefix: KeyValues
    owner: torch.Tensor
    positions: torch.Tensor

    @classmethod
    def random(cls, device: torch.device, dtype: torch.dtype) -> FlexInputs:
        """On the CPU; the same every time. device: that they are padded for."""
        lengths = torch.tensor(LENGTHS)
        owner = torch.arange(len(lengths)).repeat_interleave(lengths)
        positions = torch.cat([torch.arange(PREFIX, PREFIX + length) for length in LENGTHS])
        ids, owner, positions = pad_packed(torch.zeros_like(owner), owner, positions, device)
        T = len(ids)
        generator = torch.Generator().manual_seed(0)
        query, key, value, prefix_key, prefix_value = (
            torch.randn(*shape, generator=generator).to(dtype)
            for shape in (
                (1, HEADS, T, SIZE),
                (1, KV_HEADS, T, SIZE),
                (1, KV_HEADS, T, SIZE),
                (KV_HEADS, PREFIX, SIZE),
                (KV_HEADS, PREFIX, SIZE),
            )
        )
        return cls(query, key, value, KeyValues(prefix_key, prefix_value), owner, positions)


def try_flex(device: torch.device, *, compiled: bool = True) -> FlexTrial:
    """The packed segment mask as the engine uses it, against softmax in float64.

    What may be off: probabilities and result are rounded to the dtype, each by half of ``eps`` of
    the largest value; in float32 sums over a head's 64 products have room for as many roundings.

    Raises:
        UserError: it does not run on this device.
    """
    dtype = choose_dtype("auto", device)
    inputs = FlexInputs.random(device, dtype)
    try:
        got, seconds = _attend_twice(inputs, device, compiled)
    except Exception as error:  # the compiler's own faults come in every kind
        raise UserError(one_line(error)) from error
    wanted, largest_value = dense_oracle(inputs)
    roundings = SIZE if dtype == torch.float32 else 1
    return FlexTrial(
        dtype=str(dtype).removeprefix("torch."),
        difference=(got - wanted).abs().max().item(),
        tolerance=roundings * torch.finfo(dtype).eps * largest_value,
        first_seconds=seconds[0],
        seconds=seconds[1],
    )


def _attend_twice(
    inputs: FlexInputs, device: torch.device, compiled: bool
) -> tuple[torch.Tensor, list[float]]:
    """The result without padding, [H, T, D] float64 on the CPU, and the seconds of both runs."""
    prefix = KeyValues(inputs.prefix.keys.to(device), inputs.prefix.values.to(device))
    state = EncodeState(
        LENGTHS,
        inputs.owner.to(device),
        inputs.positions.to(device),
        {0: prefix},
        backend="flex",
        compiled=compiled,
    )
    query, key, value = (x.to(device) for x in (inputs.query, inputs.key, inputs.value))
    seconds = []
    for _ in range(2):
        begun = time.monotonic()
        with torch.inference_mode():
            out = state.attend(0, query, key, value, Scoring(SIZE**-0.5))
            got = out[0, :, : sum(LENGTHS)].double().cpu()
        seconds.append(time.monotonic() - begun)
    return got, seconds


def dense_oracle(inputs: FlexInputs) -> tuple[torch.Tensor, float]:
    """What should come out, by knowing only which token is whose: [H, T, D] without padding; and
    the largest value that went in."""
    real, total = sum(LENGTHS), PREFIX + inputs.key.shape[2]
    keys, values = (
        torch.cat([before[None], own], dim=2)[0].double().repeat_interleave(HEADS // KV_HEADS, 0)
        for before, own in (
            (inputs.prefix.keys, inputs.key),
            (inputs.prefix.values, inputs.value),
        )
    )
    visible = torch.zeros(real, total, dtype=torch.bool)
    for q in range(real):
        for kv in range(PREFIX + q + 1):
            visible[q, kv] = kv < PREFIX or inputs.owner[kv - PREFIX] == inputs.owner[q]
    scores = inputs.query[0, :, :real].double() @ keys.transpose(1, 2) * SIZE**-0.5
    wanted = scores.masked_fill(~visible, -torch.inf).softmax(-1) @ values
    return wanted, values.abs().max().item()
