"""What compiling needs of torch is set while it compiles, and for nobody else."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from self_ensemble.attention.backends import RECOMPILE_LIMIT, compile_once, dynamo_settings


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def settings() -> dict:
    return torch._dynamo.config.get_config_copy()


def test_every_number_is_compiled_in_and_the_settings_stay_the_callers():
    before, counter = settings(), CompileCounter()
    numbers = [1.5 + n for n in range(20)]
    assert torch._dynamo.config.recompile_limit < len(numbers) < RECOMPILE_LIMIT

    def scaled(x, number):
        return x * number

    function = compile_once(scaled, backend=counter, dynamic=True, fullgraph=True)
    for number in numbers:  # past the caller's limit ``fullgraph`` makes an error of it
        assert function(torch.ones(3), number).tolist() == [number] * 3
        assert settings() == before
    assert counter.frame_count == len(numbers)


def test_an_exception_leaves_the_settings_too():
    before = settings()

    def broken(x):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        compile_once(broken, backend="eager")(torch.ones(3))
    with pytest.raises(ZeroDivisionError), dynamo_settings(), dynamo_settings():
        assert torch._dynamo.config.specialize_float
        raise ZeroDivisionError
    assert settings() == before


def test_a_caller_that_allows_more_keeps_it():
    with torch._dynamo.config.patch(recompile_limit=1000):
        with dynamo_settings():
            assert torch._dynamo.config.recompile_limit == 1000
        assert not torch._dynamo.config.specialize_float
