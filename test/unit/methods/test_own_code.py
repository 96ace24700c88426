"""A user's own functions, of every kind that can be registered, in a run's identity."""

from functools import partial

import torch

from self_ensemble.methods.logit_fusion import LOGIT_METHODS
from self_ensemble.methods.own_code import source_of


def scaled(factor, logits, weights):
    return logits.mean(1) * factor


class Trimmed:
    def __call__(self, logits, weights):
        return logits.amax(1)


def test_every_kind_of_callable_has_a_source():
    kinds = [scaled, partial(scaled, 1.0), partial(scaled, 2.0), Trimmed(), torch.mean]
    found = [source_of(kind)["source"] for kind in kinds]
    assert len(set(found)) == len(kinds)
    assert [source_of(kind)["source"] for kind in kinds] == found


def test_the_same_object_made_anew_has_the_same_source():
    """A `repr` with an address would refuse every second run."""
    assert source_of(Trimmed()) == source_of(Trimmed())
    assert source_of(partial(scaled, 2.0)) == source_of(partial(scaled, 2.0))


def test_the_packages_own_have_none():
    """Their names are enough, and results of earlier releases go on."""
    for name in LOGIT_METHODS:
        assert source_of(LOGIT_METHODS.get(name).reduce) == {}
