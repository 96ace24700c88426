"""Which model is asked, and how it computes."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What `find_model` and `loaded_engine` are asked for; the defaults stand here alone.

    name: an alias, a hub id or a folder, see `aliases.resolve_model`.
    revision: branch, tag or commit on the hub; None: its newest state.
    device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    dtype: number format of the weights: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
    attention: what computes attention: ``auto``, ``flex``, ``sdpa`` or ``eager``.
    """

    name: str = "demo"
    revision: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    attention: str = "auto"
