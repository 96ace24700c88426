"""The majority of N answers."""

import pytest

from self_ensemble.methods.votes import majority, majority_of_lines


@pytest.mark.parametrize(
    "predictions, taken",
    [
        (["Lima"], 0),
        (["Lima", "Cusco"], 0),
        (["Lima", "Cusco", "Cusco"], 1),
        (["Cusco", "Lima", "Lima", "Cusco"], 0),  # ties to the earlier one
        (["Ica", "Lima", "Cusco", "Lima", "Cusco"], 1),
        (["The Lima!", "Cusco", "lima"], 0),  # normalised
        (["", "", "Lima"], 2),  # an empty answer has no vote
        (["", "", "Lima", "Cusco", "Cusco"], 3),
        (["?", "the", "Lima"], 2),  # nor has one that is empty when it is normalised
        (["", "", ""], 0),
        (["", "?", ""], 0),
        (["5", "-5", "-5"], 1),  # numbers by their value
        (["314", "3.14", "3.14"], 1),
        (["12", "1/2", "0.5"], 1),
        (["4", "3", "3.0", "$3.00"], 1),
        (["2", "1,000", "1000"], 1),
        (["1", "0", "0"], 1),  # nought is an answer
        (["3 apples", "3", "4", "4"], 2),  # a text with a number in it is a text
    ],
)
def test_majority(predictions, taken):
    assert majority(predictions) == taken


def test_first_lines_are_compared_as_the_last_release_did():
    """A finished file that is extended has one rule."""
    assert majority(["314", "3.14", "3.140"]) == 1
    assert majority_of_lines(["3.0", "314", "3.14", "3"]) == 1
    assert majority_of_lines(["", "The Lima", "lima"]) == 1
