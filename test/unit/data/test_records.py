"""Records, and which of their paraphrases are taken."""

from dataclasses import replace

import pytest
from writing import error_of

from self_ensemble.data import Record, select_paraphrases


def records_of(*counts):
    return [
        Record(f"u{i}", tuple(f"{i}.{j}" for j in range(count)), ("a",), "q", "r")
        for i, count in enumerate(counts)
    ]


@pytest.mark.parametrize(
    "num_paraphrases, indexs, expected",
    [
        (1, None, ("0.0",)),
        (3, None, ("0.0", "0.1", "0.2")),
        (5, (2, 0), ("0.2", "0.0")),
        (1, [3], ("0.3",)),
    ],
)
def test_select_paraphrases(num_paraphrases, indexs, expected):
    records = records_of(4, 5)
    chosen = select_paraphrases(records, num_paraphrases=num_paraphrases, indexs=indexs)
    assert chosen[0] == replace(records[0], paraphrases=expected)
    assert [record.uuid for record in chosen] == ["u0", "u1"]
    assert records == records_of(4, 5)


@pytest.mark.parametrize(
    "num_paraphrases, indexs, named",
    [
        (5, None, ["5 paraphrases", "question u1 has 3"]),
        (1, (0, 3), ["paraphrase 3", "question u1 has 3"]),
        (1, (0, -1), ["-1", "negative"]),
        (1, (2, 0, 2), ["2", "twice"]),
    ],
)
def test_select_paraphrases_refuses(num_paraphrases, indexs, named):
    sentence = error_of(
        select_paraphrases,
        records_of(5, 3, 2),
        num_paraphrases=num_paraphrases,
        indexs=indexs,
    )
    for part in named:
        assert part in sentence, sentence


def test_lists_become_tuples_and_one_text_is_no_list_of_them():
    record = Record("u", ["a", "b"], ["c"])
    assert record == Record("u", ("a", "b"), ("c",))
    with pytest.raises(AssertionError, match="paraphrases is one text"):
        Record("u", "a", ["c"])
