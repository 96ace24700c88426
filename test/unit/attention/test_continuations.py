"""Prompts with choices: what is scored, by the tokenizers trained here."""

import re
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizing import CHAT, CUTTABLE, PLAIN, byte_level, tokenizer_of, whole_words

from self_ensemble.attention.continuations import (
    QUESTIONS_AT_ONCE,
    Continuation,
    concatenate_choices,
    split_choices,
)
from self_ensemble.attention.segments import concatenate_prompts, split_prompts, split_whole_prompts
from self_ensemble.data import PromptTemplate, WholePrompts, chat_prompt_template
from self_ensemble.data.names import SEPARATOR
from self_ensemble.data.templates import choice_separator
from self_ensemble.system.errors import UserError

QUESTIONS = [["Who wrote Emma?", "The author of Emma?", "Emma?"], ["7 is what?", "What is 7?", "7"]]
CHOICES = [["Lima", "Frank Herbert", "the", "a", "的", "é", "Lima"], ["so", "7", " Lima", "\nso"]]

CASES = [pytest.param(name, False, id=name) for name in CUTTABLE] + [
    pytest.param(name, True, id=f"chat, {name}")
    for name in ("byte-level, BOS", "byte-level, trimmed", "question mark and newline")
]
each_tokenizer = pytest.mark.parametrize("name, chat", CASES)


def with_template(name, chat):
    tokenizer = tokenizer_of(name)
    if not chat:
        return tokenizer, PLAIN
    tokenizer.chat_template = CHAT
    return tokenizer, chat_prompt_template(tokenizer, PLAIN)


def ids_of(tokenizer, template, paraphrase, choice):
    prompt = template.render(paraphrase)
    text = prompt + choice_separator(template, prompt, choice) + choice
    return tokenizer(text, add_special_tokens=template.add_special_tokens)["input_ids"]


def check_split(tokenizer, template, paraphrases, choices, prefix, split):
    """Token for token what the tokenizer makes of the whole text; scored is what is behind it."""
    assert split.question.separators == () and split.question.tail
    assert len(split.continuations) == len(choices)
    for paraphrase, segment in zip(paraphrases, split.question.segments, strict=True):
        assert segment
        for choice, continuation in zip(choices, split.continuations, strict=True):
            whole = ids_of(tokenizer, template, paraphrase, choice)
            head = [*prefix, *segment, *split.question.tail]
            assert [*head, *continuation.token_ids] == whole
            unscored = tokenizer.decode(
                whole[: len(whole) - continuation.scored], clean_up_tokenization_spaces=False
            )
            with_first = tokenizer.decode(
                whole[: len(whole) - continuation.scored + 1], clean_up_tokenization_spaces=False
            )
            yield template.render(paraphrase), choice, unscored, with_first


@each_tokenizer
def test_what_reaches_beyond_the_prompt_is_scored(name, chat):
    tokenizer, template = with_template(name, chat)
    prefix, splits = split_choices(tokenizer, template, QUESTIONS, CHOICES)
    assert prefix == split_prompts(tokenizer, template, [])[0]
    for paraphrases, choices, split in zip(QUESTIONS, CHOICES, splits, strict=True):
        for prompt, choice, unscored, with_first in check_split(
            tokenizer, template, paraphrases, choices, prefix, split
        ):
            if name == "whole words" or "<unk>" in with_first:  # nothing left to count
                continue
            text = prompt + choice_separator(template, prompt, choice) + choice
            for part in (unscored, with_first):  # less what the tokenizer puts in front
                part = part.removeprefix("" if chat else "<bos>").removeprefix(" ")
                assert text.removeprefix(" ").startswith(part.rstrip("�"))
            start = unscored.removeprefix("" if chat else "<bos>").removeprefix(" ")
            assert len(start) <= len(prompt.removeprefix(" ")), (prompt, choice)
            end = with_first.removeprefix("" if chat else "<bos>").removeprefix(" ")
            assert len(end) > len(prompt.removeprefix(" ")), (prompt, choice)


@each_tokenizer
def test_segments_are_those_that_answers_are_generated_from(name, chat):
    tokenizer, template = with_template(name, chat)
    choices = [[text for text in texts if text != "\nso"] for texts in CHOICES]
    prefix, splits = split_choices(tokenizer, template, QUESTIONS, choices)
    expected = split_prompts(tokenizer, template, QUESTIONS)
    assert (prefix, [split.question for split in splits]) == expected


@settings(max_examples=80, deadline=None, derandomize=True, database=None)
@given(
    st.sampled_from(CASES),
    st.lists(st.text(string.ascii_letters + " ?7", min_size=1, max_size=9), min_size=1, max_size=3),
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9),
        min_size=1,
        max_size=4,
    ),
)
def test_any_choice_behind_a_cue_can_be_scored(case, paraphrases, choices):
    tokenizer, template = with_template(*case.values)
    paraphrases = ["W" + text for text in paraphrases]
    choices = [choice for choice in choices if choice.strip()] or ["so"]
    try:
        prefix, [split] = split_choices(tokenizer, template, [paraphrases], [choices])
    except UserError as error:
        # Characters that are whitespace or nothing to a tokenizer, and what melts into a cue.
        assert "no token for the choice" in str(error) or "merges" in str(error)
        return
    list(check_split(tokenizer, template, paraphrases, choices, prefix, split))


def test_the_separator_is_one_space_or_none():
    plain, chat = PromptTemplate("Q: ", "\nA:"), PromptTemplate("<u>", "<a>", False)
    assert choice_separator(plain, plain.render("Who?"), "Lima") == " "
    assert choice_separator(plain, plain.render("Who?"), " Lima") == ""
    assert choice_separator(chat, chat.render("Who?"), "Lima") == ""
    for told in ("", "  ", "\n"):
        says = PromptTemplate("Q: ", "\nA:", before_choice=told)
        assert choice_separator(says, says.render("Who?"), "Lima") == told
    for tail in ("\n", " ", "\t"):
        ends = PromptTemplate("Q: ", f"\nA:{tail}")
        assert choice_separator(ends, ends.render("Who?"), "Lima") == ""
    assert choice_separator(WholePrompts(), "Q: Who?\nA:", "Lima") == " "
    assert choice_separator(WholePrompts(), "Q: Who?\nA: ", "Lima") == ""
    assert choice_separator(WholePrompts(add_special_tokens=False), "<a>", "Lima") == ""


def test_a_prompts_last_space_goes_with_the_choice():
    """As lm-evaluation-harness moves it: its token begins the choice, and is scored."""
    tokenizer = tokenizer_of("byte-level, BOS")
    assert tokenizer.tokenize(" Lima") == ["ĠLima"]
    template = PromptTemplate("Q: ", "\nA: ")
    _, [split] = split_choices(tokenizer, template, [["Who?", "What is it?"]], [["Lima", "7"]])
    [lima] = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(" Lima"))
    assert split.continuations[0] == Continuation((lima,), 1)
    assert split.question.tail == tuple(tokenizer.convert_tokens_to_ids(["Ċ", "A", ":"]))
    # Another tokenizer keeps the space with the prompt: then it is not scored.
    digits = byte_level(words=r"\p{N}|\p{L}+|\s|[^\s\p{L}\p{N}]")
    _, [split] = split_choices(digits, template, [["Who?", "What is it?"]], [["Lima"]])
    assert split.continuations[0].token_ids == tuple(digits("Lima")["input_ids"][1:])
    assert digits.decode([split.question.tail[-1]]) == " "


def test_what_the_tokenizer_splits_otherwise_before_another_choice():
    """The rendering's last newline is a token, but for a choice that takes it in."""
    tokenizer, template = with_template("question mark and newline", chat=True)
    newline, two, so = tokenizer.convert_tokens_to_ids(["Ċ", "ĊĊ", "so"])
    _, [alone] = split_choices(tokenizer, template, [["Who?", "What?"]], [["so"]])
    _, [split] = split_choices(tokenizer, template, [["Who?", "What?"]], [["so", "\nso"]])
    assert alone.question.tail == (*split.question.tail, newline)
    assert alone.question.segments == split.question.segments
    assert alone.continuations == (Continuation((so,), 1),)
    expected = (Continuation((newline, so), 1), Continuation((two, so), 2))
    assert split.continuations == expected
    [joined] = concatenate_choices(tokenizer, template, [["Who?", "What?"]], [["so", "\nso"]])
    assert joined.continuations == expected
    assert joined.question.segments[1][-1] == split.question.tail[-1]


def test_choices_that_melt_into_all_that_paraphrases_share_are_refused():
    tokenizer = byte_level(words="")  # any characters may merge
    template = PromptTemplate("Q:\n", "A:", False)
    with pytest.raises(UserError, match="merges") as caught:
        split_choices(tokenizer, template, [["so ", "it "]], [[" Lima", "x"]])
    assert "\n" not in str(caught.value)


class LooksAhead:
    """Words as tokens; the word Who is another one where the text ends with an exclamation mark."""

    is_fast = True

    def __call__(self, texts, **_):
        found = {"input_ids": [], "offset_mapping": [], "special_tokens_mask": []}
        for text in texts:
            pieces = list(re.finditer(r"\w+|\W", text))
            words = [p[0] + "!" * (p[0] == "Who" and text.endswith("!")) for p in pieces]
            found["input_ids"].append([hash(word) for word in words])
            found["offset_mapping"].append([piece.span() for piece in pieces])
            found["special_tokens_mask"].append([0] * len(pieces))
        return found


def test_segments_that_depend_on_the_choice_are_refused():
    """A question is encoded once, so each choice must be behind the same tokens."""
    template, paraphrases = PromptTemplate("Q:", "\nA:"), ["Who wrote it?", "Its author?"]
    split_choices(LooksAhead(), template, [paraphrases], [["Lima", "Cusco"]])
    for attempt in (split_choices, concatenate_choices):
        with pytest.raises(UserError, match="merges the choices 'Lima', 'Cusco!' with the end"):
            attempt(LooksAhead(), template, [paraphrases], [["Lima", "Cusco!"]])


def test_a_thought_that_is_left_open_is_refused():
    """What a reasoning model thinks first is not among the choices."""
    tokenizer = tokenizer_of("byte-level, BOS")
    closed = PromptTemplate("Q: ", "\nA:<think>\n\n</think>\n\n", False)
    split_choices(tokenizer, closed, [["Who?"]], [["Lima"]])
    for attempt in (split_choices, concatenate_choices):
        with pytest.raises(UserError, match=r"<think>.*without --chat_template"):
            attempt(tokenizer, PromptTemplate("Q: ", "\nA:<think>\n", False), [["Who?"]], [["L"]])


def test_a_choice_without_a_token_is_refused():
    tokenizer = whole_words()
    with pytest.raises(UserError, match=r"no token for the choice '\\u200a'"):
        split_choices(tokenizer, PLAIN, [["Who?"]], [["Lima", "\u200a"]])


@pytest.mark.parametrize("count", [1, 3])
def test_whole_prompts(count):
    tokenizer = tokenizer_of("byte-level, BOS")
    prompts = [f"Q: {text}\nA:" for text in ("Who?", "What is it?", "7")][:count]
    prefix, [split] = split_choices(tokenizer, WholePrompts(), [prompts], [["Lima", "so 7"]])
    assert prefix == (tokenizer.bos_token_id,)
    expected = split_whole_prompts(tokenizer, [prompts])[1][0]
    assert split.question == expected
    list(check_split(tokenizer, WholePrompts(), prompts, ["Lima", "so 7"], prefix, split))


def test_one_whole_prompt_whose_end_some_choice_takes():
    tokenizer = tokenizer_of("byte-level, BOS")
    prompts, choices = ["Q: Who? A: "], ["Lima", "\nso", "7"]
    prefix, [split] = split_choices(tokenizer, WholePrompts(), [prompts], [choices])
    list(check_split(tokenizer, WholePrompts(), prompts, choices, prefix, split))
    assert {len(c.token_ids) - c.scored for c in split.continuations} == {0, 1}


@each_tokenizer
def test_layout_concat(name, chat):
    tokenizer, template = with_template(name, chat)
    options = [[text for text in texts if text != "\nso"] for texts in CHOICES]
    splits = concatenate_choices(tokenizer, template, QUESTIONS, options)
    for paraphrases, choices, split in zip(QUESTIONS, options, splits, strict=True):
        expected = concatenate_prompts(tokenizer, template, paraphrases, SEPARATOR)
        assert split.question == expected and split.question.tail == ()
        joined = SEPARATOR.join(template.render(paraphrase) for paraphrase in paraphrases)
        for choice, continuation in zip(choices, split.continuations, strict=True):
            text = joined + choice_separator(template, joined, choice) + choice
            whole = tokenizer(text, add_special_tokens=template.add_special_tokens)["input_ids"]
            assert whole[len(whole) - len(continuation.token_ids) :] == [*continuation.token_ids]
            before = sum(expected.lengths) + len(expected.separators)
            assert len(whole) == before + len(continuation.token_ids)


def test_many_questions_are_tokenised_some_at_a_time():
    tokenizer = tokenizer_of("byte-level, BOS")
    count = QUESTIONS_AT_ONCE * 2 + 3
    questions = [[f"Who is {i}?", f"{i} is who?"] for i in range(count)]
    choices = [["Lima", str(i)][: 1 + i % 2] for i in range(count)]
    _, together = split_choices(tokenizer, PLAIN, questions, choices)
    alone = [
        split_choices(tokenizer, PLAIN, [question], [own])[1][0]
        for question, own in zip(questions, choices, strict=True)
    ]
    assert together == alone
