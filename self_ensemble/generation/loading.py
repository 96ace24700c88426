"""From a source to an engine: the model loaded, with our attention in its layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from self_ensemble.generation.attaching import make_engine
from self_ensemble.generation.engine import Engine
from self_ensemble.models.loading import ModelSource, load_model


@contextmanager
def loaded_engine(source: ModelSource, *, attention: str, capture: bool = True) -> Iterator[Engine]:
    """The model of a source with our attention in its layers until the end.

    Args:
        source: from `models.loading.find_model`.
        attention, capture: see `make_engine`.

    Raises:
        UserError: damaged files, and what `make_engine` raises.
    """
    model, tokenizer = load_model(source)
    engine = make_engine(model, tokenizer, attention=attention, capture=capture, keep_prefix=True)
    with engine.wrapper:
        yield engine
