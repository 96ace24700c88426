"""Entries by name: looked up, listed, refused twice."""

import pytest

from self_ensemble.system.errors import UserError
from self_ensemble.system.registry import Registry


@pytest.fixture
def votes():
    registry = Registry("unknown vote {name!r}: there are {names}")
    registry.add("majority", max)
    return registry


def test_a_decorated_function_is_found_and_stays_what_it_was(votes):
    def longest(answers):
        return max(answers, key=len)

    assert votes.register("longest")(longest) is longest
    assert votes.get("longest") is longest and votes.get("majority") is max
    assert votes.names() == tuple(votes) == ("majority", "longest")
    assert "longest" in votes and "shortest" not in votes


def test_an_unknown_name_lists_what_there_is(votes):
    votes.add("longest", len)
    with pytest.raises(UserError) as error:
        votes.get("shortest")
    assert str(error.value) == "unknown vote 'shortest': there are majority, longest"
    with pytest.raises(UserError, match="'shortest'"):
        votes.remove("shortest")


def test_a_name_is_taken_once(votes):
    with pytest.raises(ValueError, match="'majority' is registered already"):
        votes.add("majority", min)
    assert votes.get("majority") is max
    votes.remove("majority")
    votes.add("majority", min)
    assert votes.get("majority") is min
