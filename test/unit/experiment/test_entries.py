"""What stands in a journal is read back as it was, through JSON."""

import json

import pytest

from self_ensemble.experiment.entries import ANSWERS, LIKELIHOODS
from self_ensemble.generation.decode import Answer
from self_ensemble.generation.likelihood import Likelihood


@pytest.mark.parametrize(
    ("answer", "entry"),
    [
        (Answer((3, 4), (-0.5, -1.25), False), [[3, 4], [-0.5, -1.25], False]),
        (Answer((), (), True), [[], [], True]),
        (Answer((3, 4, 5), (-0.5,), False, 2), [[3, 4, 5], [-0.5], False, 2]),
        (Answer((3,), (), False, 0), [[3], [], False, 0]),  # a stop at the very beginning
    ],
)
def test_answers(answer, entry):
    written = json.loads(json.dumps(ANSWERS.write(7, answer)))
    assert written == entry
    assert ANSWERS.read(7, written) == answer


def test_likelihoods():
    each = (Likelihood((-0.1, -2e-9), (True, False)), Likelihood((-30.0,), (False,)))
    written = json.loads(json.dumps(LIKELIHOODS.write(7, each)))
    assert LIKELIHOODS.read(7, written) == each
