"""Differences, and that NaN passes as none of rounding."""

import math

import pytest
import torch

from self_ensemble.diagnostics.items import FAILED, PASSED, checked
from self_ensemble.diagnostics.tolerances import (
    fused_rounding,
    largest,
    logit_difference,
    rounding,
    state_difference,
    where_largest,
    within,
)

NAN = math.nan


@pytest.mark.parametrize(
    "difference, passes", [(0.0, True), (1.0, True), (1.1, False), (math.inf, False), (NAN, False)]
)
def test_what_is_within(difference, passes):
    assert within(difference, 1.0) is passes
    item = checked("first_token_fused", within(difference, 1.0), difference, "")
    assert item.status == (PASSED if passes else FAILED)
    assert item.figure == (difference if math.isfinite(difference) else None)


@pytest.mark.parametrize(
    "numbers, at", [([1.0, 3.0, 2.0], 1), ([1.0, NAN, 5.0], 1), ([NAN, 5.0], 0)]
)
def test_nan_is_the_largest(numbers, at):
    assert where_largest(numbers) == at
    assert str(largest(numbers)) == str(numbers[at])


@pytest.mark.parametrize("difference", [logit_difference, lambda a, b: state_difference(a, b)[0]])
def test_nan_anywhere_is_a_difference_of_nan(difference):
    reference = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    assert difference(reference, reference) == 0
    for broken in ((reference.clone(), reference), (reference, reference.clone())):
        broken[0][1, 2] = NAN
        assert not within(difference(*broken), 1e9)
        reference = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))


def test_half_precision_is_given_more_than_float32():
    single, half = (rounding(dtype, 30) for dtype in (torch.float32, torch.bfloat16))
    assert 1e-5 < single < 1e-3 < half < 0.5
    for dtype in (torch.float32, torch.bfloat16):
        left, exact = (fused_rounding(dtype, 30, exact=exact) for exact in (False, True))
        assert rounding(dtype, 30) < left < exact
