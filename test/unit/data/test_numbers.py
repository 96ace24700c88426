"""Numbers: what is read, what is not, and the answers that public scripts have got wrong."""

import random
from fractions import Fraction

import pytest

from self_ensemble.data.numbers import is_number, read_number
from self_ensemble.evaluation.matchers import number_is_right

# Each is one number and nothing else.
NUMBERS = {
    "1000": "1000|1,000|1000.0|1,000.00|1e3|1E+3|10e2|$1,000|€1000|1000€|+1000|1000.|1'000"
    "|１０００|１，０００|1\u00a0000|1\u202f000|1 × 10^3|1*10³"
    "|1{,}000|1,\\!000|1\\,000|\\$1000|1 \\times 10^{3}",
    "3.14": "3.14|3.140|$3.14|3.14%|314e-2|3．14",
    "5": "5|5%|$5|5.|5.0|٥|５|５％",
    "-3": "-3|−3|–3|－3|-3.0|-$3|$-3|-3e0",
    "1/2": "1/2|2/4|½|0.5|.5|$.50|5e-1|\\frac{1}{2}|\\dfrac{1}{2}",
    "5/2": "5/2|2.5|2½|2 ½|2 1/2|2\\frac{1}{2}",
    "-5/2": "-5/2|-2.5|-2½|-2 1/2",
    "1/3": "1/3|2/6|⅓",
    "0": "0|0.0|-0|0%",
}


@pytest.mark.parametrize("value", NUMBERS)
def test_a_number_is_read_whatever_way_it_is_written(value):
    for text in NUMBERS[value].split("|"):
        assert read_number(text) == Fraction(value), text
        assert is_number(text), text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5 + 6 = 11", 11),  # the last one counts
        ("5+6=11", 11),
        ("She pays $29.00.", 29),
        ("The total is 72 clips, altogether.", 72),  # jundot/omlx, pull request 3484
        ("#### 72", 72),
        ("10\n\nPassage: …", 10),  # EleutherAI/lm-evaluation-harness, issue 978
        (r"\boxed{-3}", -3),
        ("**72**", 72),
        ("x=-3", -3),
        ("(-3)", -3),
        ("5 - 3", 3),
        ("(a)-3", 3),  # behind a bracket or a letter it is no sign
        ("COVID-19", 19),
        ("5 kg", 5),
        ("5m²", 5),
        ("No.5", 5),
        ("3 million", 3),  # words are not read
        ("in 2020 150 came", 150),
    ],
)
def test_the_last_number_of_a_text(text, value):
    assert read_number(text) == value
    assert not is_number(text)


@pytest.mark.parametrize(
    "text",
    [
        *("", "seven", ",", ".", "$", "-"),
        *("3,14", "1.000,5", "1,00,000", "1,000,00", "0,500", "1 000", "1 500", "1_000", "007"),
        *("10-20", "10–20", "2020-05-06", "5-3", "5+6", "2*3", "10^3", "10³", "10:30", "5'11"),
        *("5/6/2020", "5/0", "5 3/2", "1/2.5", "192.168.1.1", "1.2.3", "1e1000"),
        "It is 42, or 3,14",  # the last decides: nothing is looked for before it
    ],
)
def test_what_could_be_read_in_two_ways_is_not_read(text):
    assert read_number(text) is None
    assert not is_number(text)


def test_numbers_are_exact():
    assert read_number("0.1") + read_number("0.2") == read_number("0.3")
    assert read_number("9007199254740993") != read_number("9007199254740992")  # 2^53 + 1
    assert read_number("1" * 5000 + ".5") == read_number("1" * 5000 + ".50")
    assert read_number("1/" + "3" * 5000) != read_number("1/" + "3" * 4999 + "4")


def test_python_writes_numbers_that_are_read_back():
    rng = random.Random(0)
    for _ in range(2000):
        value = Fraction(rng.randrange(-(10**9), 10**9), 10 ** rng.randrange(6))
        decimal = f"{float(value):,.6f}" if rng.random() < 0.5 else f"{float(value):.6f}"
        exact = Fraction(decimal.replace(",", ""))
        text = rng.choice(["{}", "It is {}.", "so {}, then", "= {}", "${}", "{} km"]).format(
            decimal
        )
        assert read_number(text) == exact, text


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("$1,000.00", ["1000"], True),
        ("3.14", ["314"], False),
        ("314", ["3.14"], False),
        ("1/2", ["2"], False),
        ("0.5", ["1/2"], True),
        ("-3", ["3"], False),
        ("5%", ["5"], True),
        ("0.05", ["5%"], False),
        ("I do not know", ["7"], False),
        ("", ["0"], False),
        ("7", ["seven", "7"], True),
        ("seven", ["seven"], False),  # no number is never right, even where the texts are equal
        ("72", ["He has 80 - 8 = 72.\n#### 72"], True),
    ],
)
def test_a_prediction_is_right_by_its_last_number(prediction, answers, expected):
    assert number_is_right(prediction, answers) is expected


def test_long_texts_take_no_time():
    """A model that repeats itself; quadratic patterns would take minutes."""
    for text in (" " * 200_000, "1 " * 100_000, "1,000," * 30_000, "^{" * 100_000, "-" * 200_000):
        read_number(text)
