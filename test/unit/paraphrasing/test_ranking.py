"""The order of accepted paraphrases, and when no more of a question are drawn."""

from self_ensemble.data import Record
from self_ensemble.paraphrasing import candidates
from self_ensemble.paraphrasing.candidates import Candidates
from self_ensemble.paraphrasing.ranking import overlap, ranked
from self_ensemble.paraphrasing.rejections import Judgement


def test_likely_ones_come_first_and_each_is_unlike_those_before():
    asked = "who runs peru?"
    texts = ["who leads peru now?", "who leads peru today?", "peru's head is whom?", "who runs it"]
    assert overlap(texts[0], texts[1]) == 3 / 5 and overlap("a the", "") == 0
    # The second is nearly as good as the first, and says nearly the same.
    assert ranked(asked, texts, [0.9, 0.85, 0.7, 0.1]) == [0, 2, 1, 3]
    assert ranked(asked, ["b", "b"], [1, 1]) == [0, 1]
    assert ranked(asked, [], []) == []


def test_the_order_is_that_of_the_judgement_where_there_is_one(monkeypatch):
    monkeypatch.setattr(candidates, "rejections", lambda text, **_: ())
    asked = Candidates(Record("u", ("who runs peru?",)))
    for text, explained in (("one", 0.3), ("two", 0.8)):
        asked.add(text, truncated=False, judgement=Judgement(explained))
    assert asked.paraphrases(drop=True) == ["two", "one"]
    assert asked.paraphrases(drop=False) == ["one", "two"]
    asked.add("three", truncated=False)
    assert asked.paraphrases(drop=True) == ["one", "two", "three"]


def test_a_question_is_hopeless_once_so_many_draws_have_failed():
    asked = Candidates(Record("u", ("who runs peru?",)))
    for _ in range(candidates.HOPELESS_DRAWS - 1):
        asked.add("", truncated=False)
    assert not asked.is_hopeless
    asked.add("", truncated=False)
    assert asked.is_hopeless
    asked.add("who is peru run by?", truncated=False)
    assert asked.texts[-1][1] == () and not asked.is_hopeless
