"""What an absent entry of an identity means, and how a difference is told."""

import pytest

from self_ensemble.data import identities
from self_ensemble.data.identities import ABSENT_MEANS, as_written, identity_differences

OLD = {"data": "d", "method": {"name": "avg"}, "max_new_tokens": 20}
CHANGED = {
    "task": ("choices", 'task is "generate" there and "choices" here'),
    "stop": (["\n\n"], r'stop is the first line there and ["\n\n"] here'),
    "sampling": (
        {"temperature": 0.7, "top_p": 1.0, "seed": 0},
        'sampling is the likeliest token there and {"seed":0,"temperature":0.7,"top_p":1.0} here',
    ),
    "extract": ("all", 'extract is "line" there and "all" here'),
    "choice_norm": ("mean", 'choice_norm is "sum" there and "mean" here'),
    "fewer": ("skip", 'fewer is "error" there and "skip" here'),
    "method.weights_by": (
        "entropy:1",
        'method.weights_by is nothing there and "entropy:1" here',
    ),
}


def old_with(**entries):
    """OLD and these entries, of which one within another has a dot."""
    found = OLD | {"method": {**OLD["method"]}}
    for path, value in entries.items():
        within, _, name = path.rpartition(".")
        (found[within] if within else found)[name] = value
    return found


def test_every_entry_is_tried():
    assert CHANGED.keys() == ABSENT_MEANS.keys()


def test_what_absence_means_is_not_written():
    assert as_written(old_with(**ABSENT_MEANS)) == OLD
    assert list(as_written({"stop": None, **OLD, "extract": "line"})) == list(OLD)
    changed = old_with(**{name: value for name, (value, _) in CHANGED.items()})
    assert as_written(changed) == changed


@pytest.mark.parametrize("name", CHANGED)
def test_an_absent_entry_is_compared_as_what_it_means(name):
    value, phrase = CHANGED[name]
    explicit = old_with(**{name: ABSENT_MEANS[name]})
    assert identity_differences(OLD, explicit) == identity_differences(explicit, OLD) == []
    for old in (OLD, explicit):
        assert identity_differences(old, old_with(**{name: value})) == [phrase]
        # The other way round the same two values change places.
        _, there, here = _parts(phrase)
        assert identity_differences(old_with(**{name: value}), old) == [
            f"{name} is {here} there and {there} here"
        ]


def _parts(phrase: str) -> tuple[str, str, str]:
    name, rest = phrase.split(" is ", 1)
    there, here = rest.removesuffix(" here").split(" there and ")
    return name, there, here


def test_no_stop_but_the_end_of_sequence_is_not_the_first_line():
    phrase = "stop is the first line there and [] here"
    assert identity_differences(OLD, OLD | {"stop": []}) == [phrase]
    assert as_written({"stop": []}) == {"stop": []}


def test_entries_within_entries(monkeypatch):
    monkeypatch.setitem(identities.ABSENT_MEANS, "method.tau", 0.0)
    deep = OLD | {"method": {"name": "avg", "tau": 0.0}}
    assert as_written(deep) == OLD
    assert identity_differences(OLD, deep) == []
    deep["method"]["tau"] = 0.5
    assert as_written(deep) == deep
    assert identity_differences(OLD, deep) == ["method.tau is 0.0 there and 0.5 here"]
    # Of another entry the same name means nothing.
    assert as_written({"other": {"tau": 0.0}}) == {"other": {"tau": 0.0}}
    assert identity_differences({"other": {}}, {"other": {"tau": 0.0}}) == [
        "other.tau is absent there and 0.0 here"
    ]


def test_every_difference_is_named_by_where_it_stands():
    there = {"prompt": {"head": "a", "tail": "\nA:"}, "method": "avg", "old": 1, "null": None}
    here = {"prompt": {"head": "b", "tail": "\nA:"}, "method": {"name": "avg"}, "new": None}
    assert identity_differences(there, here) == [
        'method is "avg" there and {"name":"avg"} here',
        "new is absent there and null here",
        "null is null there and absent here",
        "old is 1 there and absent here",
        'prompt.head is "a" there and "b" here',
    ]
