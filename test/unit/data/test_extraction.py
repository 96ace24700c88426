"""What of a generation is its prediction, and the answers that public harnesses have got wrong."""

import subprocess
import sys

import pytest
from small import ENDS_LINE, MARK

from self_ensemble.data.answers import first_line
from self_ensemble.data.extraction import FIRST_LINE, Extraction, parse_extraction
from self_ensemble.data.numbers import read_number
from self_ensemble.system.errors import UserError

THOUGHT = "Peru? I think </think> closes it.\n</think>\n\nLima.\n"

# extraction → (generation, prediction)
EXTRACTIONS = {
    "line": [
        (" Lima\nQ: more", "Lima"),
        ("\n \nLima", "Lima"),
        ("", ""),
        (" \n ", ""),
    ],
    "all": [
        ("\nLima\n\nis it. ", "Lima\n\nis it."),
        ("", ""),
    ],
    "after:</think>": [
        (THOUGHT, "Lima."),
        ("Peru? It is Lima", ""),  # cut short within the thought: huggingface/lighteval, issue 869
        ("<think>\n\n</think>\n\nLima", "Lima"),
        ("</think>", ""),
    ],
    "after:Answer: ": [
        ("Answer: 3? No.\nAnswer: 4", "4"),  # the last one
        ("Answer:4", ""),  # the text as it is
    ],
    "after:a:b": [("x a:b y", "y")],  # a colon is of the text
    "after: is": [("It is Lima", "Lima")],
    "last_number": [
        ("The answer is $1,000.5.", "1,000.5"),
        ("5 + 6 = 11", "11"),
        ("#### 72\n", "72"),
        (r"so \boxed{-3}", "-3"),
        ("It costs -$5", "-5"),
        ("about −2.50", "-2.50"),
        ("half: .5", ".5"),
        ("wait...5", "5"),  # an ellipsis is no decimal point
        ("16 - 3 - 4 = 9.", "9"),
        ("1/2", "1/2"),
        ("seven", ""),
        ("", ""),
        ("at 10:30", ""),  # two numbers, and no way to tell which
        ("The answer is 72, in total, so it earns that.", "72"),  # stanford-crfm/helm, issue 4337
        ("answer is 3 5", "5"),  # stanford-crfm/helm, pull request 4289
        (r"\boxed{$9{,}500}", "9,500"),  # open-compass/opencompass, issue 2647
        (r"\boxed{\text{The answer is 460}}", "460"),  # modelscope/evalscope, pull request 906
    ],
    r"regex:answer is (\w+)": [
        ("The answer is Lima. The answer is Cusco.", "Lima"),  # the first match
        ("No answer", ""),
    ],
    r"regex:[A-D]\b": [("It is B, not C", "B")],  # no group: all of it
    r"regex:(x)|y": [("y x", "")],  # the first match has no such group
    r"regex:is (\d+)|= (\d+)": [("x = 3", "3"), ("it is 4 = 5", "4")],
    r"regex:####\s*(-?[0-9.,]+)": [("so\n#### -1,234\nmore", "-1,234")],
    r"regex:(?s)<answer>(.*?)</answer>": [("<answer>Li\nma</answer>", "Li\nma")],
    r"regex:^(?:.*\n)*.*: (\w+)": [("a: 1\nb: 2", "2")],
    r"regex:a:(b)": [("a:b", "b")],
}


@pytest.mark.parametrize("text", EXTRACTIONS)
def test_extractions(text):
    extraction = parse_extraction(text)
    assert str(extraction) == text
    assert parse_extraction(str(extraction)) == extraction
    for generation, prediction in EXTRACTIONS[text]:
        assert extraction(generation) == prediction, generation


def test_the_default_is_the_first_line():
    assert parse_extraction("line") == FIRST_LINE == Extraction()
    for generation in ("Lima\nx", "\n\n Lima ", "", "a\x0bb", "\x1c\nLima"):
        assert FIRST_LINE(generation) == first_line(generation)


@pytest.mark.parametrize(
    "text",
    [
        *("", "lines", "Line", "line ", " all", "line:", "line:x", "all:x", "last_number:"),
        *("after", "after:", "regex", "regex:", ":x", "number", "AFTER:x"),
    ],
)
def test_what_is_none(text):
    with pytest.raises(UserError) as error:
        parse_extraction(text)
    sentence = str(error.value)
    assert repr(text) in sentence and "\n" not in sentence
    for spelling in ("line", "all", "last_number", "after:TEXT", "regex:PATTERN"):
        assert spelling in sentence


@pytest.mark.parametrize("pattern", ["(", "a**", "[", "(?P<x", "\\"])
def test_what_is_no_pattern(pattern):
    with pytest.raises(UserError) as error:
        parse_extraction(f"regex:{pattern}")
    assert repr(pattern) in str(error.value) and "\n" not in str(error.value)


def test_last_numbers_are_those_that_are_compared():
    """`score.py --match number` reads in a prediction what it would read in the generation."""
    extraction = parse_extraction("last_number")
    for generation, _ in EXTRACTIONS["last_number"]:
        assert read_number(extraction(generation)) == read_number(generation), generation
        assert extraction(extraction(generation)) == extraction(generation)


def test_a_special_token_is_in_no_generation(small):
    """Every prediction would be empty."""
    for text in (f"after:{MARK}", f"after:so {MARK}."):
        with pytest.raises(UserError) as error:
            parse_extraction(text).check_shown(small.tokenizer)
        assert f"--extract {text}" in str(error.value) and "special token" in str(error.value)
    # An added token that is not special is shown, and what else there is looks for no token.
    for text in (f"after:{ENDS_LINE}", "after:Lima", "line", "last_number", f"regex:{MARK}(.*)"):
        parse_extraction(text).check_shown(small.tokenizer)


def test_nothing_heavy_is_imported():
    """A score can be taken again from a file on any machine."""
    code = "import sys, self_ensemble.data.extraction; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"
