"""What a run asks where questions have unlike numbers of paraphrases; no model is needed."""

import pytest
from writing import error_of, write

from self_ensemble.data import DatasetOptions
from self_ensemble.experiment.confidences import read_confidences
from self_ensemble.experiment.config import PromptConfig, QuestionConfig
from self_ensemble.experiment.questions import read_questions
from self_ensemble.methods.config import AttentionFusionConfig

COUNTS = (3, 1, 0, 3, 2)


@pytest.fixture
def read(tmp_path):
    """Reads a file whose questions have COUNTS paraphrases, with options."""
    rows = [
        {
            "uuid": f"u{i}",
            "question": f"{i}?",
            "answers": ["x"],
            "paraphrases": [f"{i}.{j}" for j in range(count)],
            "trust": [i + j / 10 for j in range(3)],
        }
        for i, count in enumerate(COUNTS)
    ]
    path = write(tmp_path / "own.jsonl", rows)

    def read(original=False, **options):
        config = QuestionConfig(dataset=str(path), options=DatasetOptions(**options))
        return config, read_questions(config, PromptConfig(), model="demo", original=original)

    return read


@pytest.mark.parametrize(
    "options, uuids, with_fewer, left_out",
    [
        ({"num_paraphrases": 3, "fewer": "use"}, "u0 u1 u3 u4", "u1 u4", 1),
        ({"num_paraphrases": 3, "fewer": "skip"}, "u0 u3", "", 3),
        ({"indexs": (2, 1), "fewer": "use"}, "u0 u3 u4", "u4", 2),
        ({"num_paraphrases": 3, "fewer": "use", "max_samples": 3}, "u0 u1", "u1", 1),
        ({"num_paraphrases": 3, "max_samples": 1}, "u0", "", 0),
    ],
)
def test_which_questions_are_asked(read, options, uuids, with_fewer, left_out):
    _, questions = read(**options)
    assert [r.uuid for r in questions.records] == uuids.split()
    assert [r.uuid for r in questions.with_fewer] == with_fewer.split()
    assert questions.left_out == left_out
    assert questions.num_paraphrases == (2 if "indexs" in options else 3)


def test_the_default_refuses(read, tmp_path):
    sentence = error_of(read, num_paraphrases=3)
    assert f"line 2 of {tmp_path}/own.jsonl (uuid u1) has 1 (3 questions have" in sentence


def test_the_original_wording_needs_no_paraphrases(read):
    _, questions = read(original=True, num_paraphrases=3)
    assert [r.paraphrases for r in questions.records] == [(f"{i}?",) for i in range(5)]
    assert questions.num_paraphrases == 1 and questions.with_fewer == []


def test_questions_without_answers_are_told_of(tmp_path, capsys):
    """A misspelt column is the likelier reason."""
    for name, is_told in (("answers", False), ("anwsers", True)):
        path = write(tmp_path / "own.jsonl", [{"question": "q?", name: ["x"]}])
        config = QuestionConfig(dataset=str(path), options=DatasetOptions(num_paraphrases=1))
        assert read_questions(config, PromptConfig(), model="demo").records
        assert ("the questions of own come without answers" in capsys.readouterr().err) == is_told


def test_weights_where_questions_have_fewer_paraphrases(read):
    method = AttentionFusionConfig(weights=(1, 2, 3))
    read(num_paraphrases=3, fewer="skip")[1].check_weights(method)
    _, questions = read(num_paraphrases=3, fewer="use")
    questions.check_weights(AttentionFusionConfig())
    sentence = error_of(questions.check_weights, method)
    assert "--weights: 3 weights for 3 paraphrases, but line 2 of" in sentence
    assert "(uuid u1) has 1 of them; --fewer skip" in sentence
    assert "3 weights for 2" in error_of(
        read(num_paraphrases=2, fewer="skip")[1].check_weights, method
    )


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"num_paraphrases": 3, "fewer": "use"}, {0: (0, 1, 2), 1: (0,), 3: (0, 1, 2), 4: (0, 1)}),
        ({"num_paraphrases": 3, "fewer": "skip"}, {0: (0, 1, 2), 3: (0, 1, 2)}),
        ({"indexs": (2, 1), "fewer": "use"}, {0: (2, 1), 3: (2, 1), 4: (1,)}),
    ],
)
def test_confidences_go_with_the_paraphrases_that_are_there(read, options, expected):
    """Also behind a question that is left out: they are of the row, not of the place."""
    config, questions = read(**options)
    found, _ = read_confidences(config, "trust", questions)
    wanted = [[i + j / 10 for j in places] for i, places in expected.items()]
    assert found == [[u / max(row) for u in row] for row in wanted]
