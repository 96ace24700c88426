"""Contexts that carry paraphrases: what is head, paraphrase and tail, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from self_ensemble.integrations.contexts import (
    SEPARATOR,
    MarkedContext,
    batches,
    grouped,
    read_context,
)
from self_ensemble.system.errors import UserError

SHOTS = "Answer.\n\nQ: Capital of Mali?\nA: Bamako\n\n"
TEXT = st.text(st.characters(exclude_characters=SEPARATOR, exclude_categories=["Cs"]))
VISIBLE = TEXT.filter(str.strip)


def read(context, separator=SEPARATOR):
    found = read_context(context, separator)
    return found.head, found.paraphrases, found.tail


def test_a_context_without_a_separator_holds_no_paraphrases():
    assert read_context("Q: Capital of Peru?\nA:", SEPARATOR) is None
    assert read_context("", SEPARATOR) is None


def test_the_own_prompt_needs_separators_between_paraphrases_alone():
    expected = SHOTS + "Q: ", ("Capital of Peru?", "Peru’s capital: it is", "Peru?"), "\nA:"
    assert read(SHOTS + "Q: Capital of Peru?␞Peru’s capital: it is␞Peru?\nA:") == expected


def test_what_a_chat_template_puts_around_the_own_prompt_is_head_and_tail():
    head, tail = "<|user|> [INST] Q: ", "\nA:[/INST]<|end|>\n<|assistant|>\n"
    assert read(f"{head}a␞b{tail}") == (head, ("a", "b"), tail)


def test_other_prompts_double_the_separator_at_both_ends():
    context = "Frage:\n␞␞Hauptstadt\nvon Peru?␞Q: Perus Hauptstadt?␞␞ Antwort: A:\n"
    paraphrases = "Hauptstadt\nvon Peru?", "Q: Perus Hauptstadt?"
    assert read(context) == ("Frage:\n", paraphrases, " Antwort: A:\n")
    assert read("␞␞only␞␞\nA:") == ("", ("only",), "\nA:")


@given(TEXT, st.lists(VISIBLE, min_size=1), TEXT)
def test_doubled_separators_mark_any_texts(head, paraphrases, tail):
    context = f"{head}␞␞{'␞'.join(paraphrases)}␞␞{tail}"
    assert read(context) == (head, tuple(paraphrases), tail)


@given(st.lists(VISIBLE.filter(lambda t: "\n" not in t and "Q: " not in t), min_size=2))
def test_the_own_prompt_holds_any_lines(paraphrases):
    if paraphrases[0].startswith(("Q: ", ": ")):
        return
    assert read(f"{SHOTS}Q: {'␞'.join(paraphrases)}\nA:")[1] == tuple(paraphrases)


def test_a_separator_may_have_several_characters():
    assert read("Q: a<or>b\nA:", "<or>") == ("Q: ", ("a", "b"), "\nA:")
    assert read("x<or><or>a<or>b<or><or>y", "<or>") == ("x", ("a", "b"), "y")


@pytest.mark.parametrize(
    "context",
    [
        "Frage: a␞b\nAntwort:",  # another cue
        "Q: a␞b",  # nothing behind
        "Q: a␞b\nAntwort:",
        "Q: FAQ: a␞b\nA:",  # which of the two begins it?
        "Q: a\nb␞c\nA:",  # a line of a paraphrase looks like the cue's own
        "Q: a␞b\nc␞d\nA:",
        "Q: a␞b\nA: x\n\nQ: c␞d\nA:",  # paraphrases in a demonstration
    ],
)
def test_unclear_borders_are_refused(context):
    with pytest.raises(UserError, match="does not say where its paraphrases begin and end"):
        read_context(context, SEPARATOR)


@pytest.mark.parametrize(
    "context",
    [
        "Q: ␞␞a␞b\nA:",
        "Q: a␞␞b\nA:",
        "␞␞a␞␞ ␞␞b␞␞",
        "␞␞a␞b␞␞ and ␞ again",
        "␞␞␞␞\nA:␞",
        "␞␞a␞␞␞",
    ],
)
def test_wrong_marks_are_refused(context):
    with pytest.raises(UserError, match="are marked wrongly"):
        read_context(context, SEPARATOR)


@pytest.mark.parametrize("context", ["Q: a␞ \nA:", "Q: ␞b\nA:", "␞␞ ␞␞x", "␞␞␞␞x", "␞␞␞a␞␞x"])
def test_an_empty_paraphrase_is_refused(context):
    with pytest.raises(UserError, match="holds an empty paraphrase"):
        read_context(context, SEPARATOR)


def test_errors_are_one_line():
    for context in ("Q: a␞b\n\nB:", "␞␞a\n", "␞␞a␞ \n␞␞"):
        with pytest.raises(UserError) as error:
            read_context(context, SEPARATOR)
        assert "\n" not in str(error.value) and len(str(error.value)) < 500


# ---- what is asked at once ----------------------------------------------------------------------

CONTEXTS = [
    MarkedContext("one ", ("a", "b"), " end"),
    MarkedContext("two ", ("c",), " end"),
    MarkedContext("one ", ("d", "e"), " end"),
    MarkedContext("three ", ("f",), " end"),
    MarkedContext("one ", ("g",), " other"),
    MarkedContext("one ", ("h",), " end", add_special_tokens=False),
]


def test_batches_render_the_prompts_and_share_a_head_that_several_have():
    rendered, heads = {}, []
    for template, members, texts in batches(CONTEXTS, lambda context: context):
        heads.append((template.head, len(members)))
        assert template.before_choice == ""
        for member, own in zip(members, texts, strict=True):
            assert template.add_special_tokens == member.add_special_tokens
            rendered[member] = [template.render(text) for text in own]
    assert heads == [("one ", 2), ("", 2), ("", 1), ("", 1)]
    assert rendered == {c: [c.head + p + c.tail for p in c.paraphrases] for c in CONTEXTS}


def test_grouped_keeps_the_order():
    assert grouped("banana", lambda letter: letter) == [["b"], ["a", "a", "a"], ["n", "n"]]


@pytest.mark.parametrize(
    ("tail", "continuations", "expected"),
    [
        ("\nA:", [" yes", " no"], ("\nA:", " ", ["yes", "no"])),
        ("\nA: \n", ["yes", "no"], ("\nA:", " \n", ["yes", "no"])),
        ("\nA: ", [" yes", " no"], ("\nA:", "  ", ["yes", "no"])),
        ("\nA:", ["yes", "no"], ("\nA:", "", ["yes", "no"])),
        ("\nA:", ["yes", " no"], ("\nA:", "", ["yes", " no"])),
        ("\nA: ", ["yes", " no"], ("\nA:", "", [" yes", "  no"])),
        ("\nA:", [" ", " no"], ("\nA:", "", [" ", " no"])),
        ("\nA:", [""], ("\nA:", "", [""])),
    ],
)
def test_whitespace_between_prompt_and_choices(tail, continuations, expected):
    context, choices = MarkedContext("h", ("p",), tail).with_choices(continuations)
    assert (context.tail, context.before_choice, choices) == expected
    rendered = [context.tail + context.before_choice + choice for choice in choices]
    assert rendered == [tail + continuation for continuation in continuations]
