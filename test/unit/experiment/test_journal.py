"""The journal keeps answers on the disk, and gives them back batch by batch."""

import pytest

from self_ensemble.experiment.journal import Journal
from self_ensemble.system.errors import UserError

IDENTITY = {"data": "x"}
BATCHES = [[2, 0], [1], [4, 3]]


def answer(index: int) -> list:
    return [[index, 7], [-0.1 * index, -0.2], False]


def write(stem, batches=BATCHES, *, name="pass"):
    journal = Journal(stem, IDENTITY)
    journal.begin({"device": "cpu"})
    assert journal.batches(name, 5, None, lambda fresh: BATCHES, questions=5) == BATCHES
    for batch in batches:
        journal.add(name, batch, [answer(index) for index in batch], {"seconds": len(batch)})
    return journal


def test_what_was_added_comes_back_in_its_order(tmp_path):
    written = write(tmp_path / "a", BATCHES[:2])
    read = Journal.read(tmp_path / "a")
    for journal in (written, read):
        batches = list(journal.kept("pass"))
        assert batches == [[(i, answer(i)) for i in batch] for batch in BATCHES[:2]]
        answered = journal.answered["pass"]
        assert len(answered) == 3 and [i in answered for i in range(5)] == [True] * 3 + [False] * 2
        assert list(journal.kept("another")) == []
        assert journal.state == {"seconds": 1} and journal.questions == 5
        left = journal.batches("pass", 5, None, lambda fresh: pytest.fail("planned"), questions=5)
        assert left == BATCHES[2:]
    assert read.size == written.size == (tmp_path / "a.journal").stat().st_size


def test_batches_that_are_added_later_come_back_too(tmp_path):
    write(tmp_path / "a", BATCHES[:1])
    journal = Journal.read(tmp_path / "a")
    journal.begin({"device": "another"})
    for batch in BATCHES[1:]:
        journal.add("pass", batch, [answer(index) for index in batch], {})
    again = Journal.read(tmp_path / "a")
    found = [pair for batch in again.kept("pass") for pair in batch]
    assert found == [(i, answer(i)) for batch in BATCHES for i in batch]
    assert list(journal.kept("pass")) == list(again.kept("pass"))
    assert [each["device"] for each in again.environments] == ["cpu", "another"]


def test_a_journal_that_changes_while_it_is_read(tmp_path):
    journal = write(tmp_path / "a")
    path = tmp_path / "a.journal"
    path.write_bytes(path.read_bytes().replace(b'"answers"', b'"anSwers"'))
    with pytest.raises(UserError, match="was changed while it was read"):
        list(journal.kept("pass"))
    path.unlink()
    with pytest.raises(UserError, match="cannot read"):
        list(journal.kept("pass"))
