"""Texts that end an answer: against a plain search after every token, and `model.generate`."""

import random
from functools import cache

import pytest
import torch
from stand_in import StandIn, stand_in
from tiny import ARCHITECTURES, shallow_model
from tokenizers import Tokenizer, decoders, models, normalizers
from tokenizing import TOKENIZERS, tokenizer_of
from transformers import PreTrainedTokenizerFast

from self_ensemble.attention.patching import FlexAttentionWrapper
from self_ensemble.attention.segments import SplitQuestion
from self_ensemble.generation.decode import answer_text
from self_ensemble.generation.engine import Engine
from self_ensemble.generation.request import Request
from self_ensemble.generation.stopping import EndStop, StopStrings, make_stop_rule
from self_ensemble.generation.streams import attention_streams

EOS = 1


@cache
def rule_of(tokenizer_name, stops):
    tokenizer = tokenizer_of(tokenizer_name)
    return StopStrings(stops, tokenizer, [EOS], len(tokenizer) + 2, "cpu")


def in_the_middle(tokenizer, ids):
    """The text of tokens behind others, with special tokens."""
    word = tokenizer("is", add_special_tokens=False)["input_ids"]
    alone, text = (
        tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        for tokens in (word, [*word, *ids])
    )
    assert text.startswith(alone)
    return text[len(alone) :]


def searched(tokenizer, stops, ids):
    """After how many tokens a stop is there, and where it begins: decode after each, and look."""
    for count in range(1, len(ids) + 1):
        text = in_the_middle(tokenizer, ids[:count])
        for end in range(len(text) + 1):
            starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
            if starts:
                return count, min(starts), text
    return None


def taken(rule, ids):
    """After how many tokens the rule ends an answer, and where."""
    for count in range(1, len(ids) + 1):
        cut = rule.cut(ids[:count])
        if cut is not None:
            return count, cut
    return None


def some_stops(chance, text):
    """Pieces of a text, and now and then what is nowhere."""
    stops = []
    for _ in range(chance.choice([1, 1, 2, 3])):
        start, length = chance.randrange(len(text)), chance.choice([1, 1, 2, 3, 5, 9, 20])
        stops.append(text[start : start + length])
    stops += ["never"] * chance.randrange(2)
    return tuple(dict.fromkeys(stop for stop in stops if "\ufffd" not in stop)) or ("never",)


def is_special(tokenizer, token):
    added = tokenizer.added_tokens_decoder.get(token)
    return added is not None and added.special


def without_special(tokenizer, ids, end):
    """What of the text before a position is not of a special token; None: nobody can say."""
    if not any(is_special(tokenizer, token) for token in ids):
        return in_the_middle(tokenizer, ids)[:end]
    kept, before = "", ""
    for count, token in enumerate(ids, 1):
        text = in_the_middle(tokenizer, ids[:count])
        if "\ufffd" in text:
            return None
        if not is_special(tokenizer, token):
            kept += text[len(before) : end]
        before = text
    return kept


@pytest.mark.parametrize("name", TOKENIZERS)
def test_against_a_search_after_every_token(name):
    """Random tokens, half of them special or parts of characters at times, and pieces of their text
    as stops: the same tokens, and the same text in front."""
    tokenizer = tokenizer_of(name)
    chance, stopped = random.Random(name), 0
    for _ in range(300):
        ids = [chance.randrange(2, len(tokenizer)) for _ in range(chance.randrange(1, 14))]
        if chance.random() < 0.3:
            ids[chance.randrange(len(ids))] = chance.randrange(2, 6)
        text = in_the_middle(tokenizer, ids)
        stops = some_stops(chance, text)
        expected = searched(tokenizer, stops, ids)
        rule = StopStrings(stops, tokenizer, [EOS], len(tokenizer), "cpu")
        found = taken(rule, ids)
        if expected is None:
            assert found is None, (ids, stops)
            continue
        stopped += 1
        count, start, text = expected
        assert found is not None and found[0] == count, (ids, stops)
        shown = tokenizer.decode(ids[:count], skip_special_tokens=True)[: found[1].text_end]
        kept = without_special(tokenizer, ids[:count], start)
        assert kept is None or shown in (kept, kept[1:]), (ids, stops)
        before = found[1].tokens
        assert in_the_middle(tokenizer, ids[:before])[:start] == text[:start]
        if before > 0:
            fewer = in_the_middle(tokenizer, ids[: before - 1])
            assert not fewer.startswith(text[:start]), (ids, stops)
    assert stopped > 100


# ---- by hand ---------------------------------------------------------------------------------

PIECES = [
    "<bos>",
    "<eos>",
    "<|end|>",
    "▁Lima",
    "▁",
    "L",
    "ima",
    "a",
    "b",
    "ab",
    "aab",
    "\n",
    "\n\n",
]
PIECES += [
    "\nQ:",
    "Q",
    ":",
    ".\n",
    "</",
    "think",
    ">",
    "</think>",
    "<0xC3>",
    "<0xA9>",
    "é",
    "?",
    "▁?",
]


@cache
def by_hand():
    """A SentencePiece vocabulary, with bytes; a text begins without its space."""
    vocabulary = {piece: index for index, piece in enumerate(PIECES)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        additional_special_tokens=["<|end|>"],
    )
    fast.add_tokens(["</think>"])
    return fast


# tokens that come, stops → how many are taken, what is kept, how many tokens there are until there
CASES = {
    "a token": (["▁Lima", "\n", "a"], ["\n"], 2, "Lima", 1),
    # vllm-project/vllm, issue 3572
    "within a token": (["▁Lima", ".\n", "a"], ["\n"], 2, "Lima.", 2),
    "within the first token": (["▁Lima", "a"], ["im"], 1, "L", 1),
    "the first token": (["▁Lima", "a"], ["Lima"], 1, "", 1),  # its space is before the stop
    "the first token with its space": (["▁Lima", "a"], [" Lima"], 1, "", 0),
    "across borders": (["▁Lima", "\n", "Q", ":", "a"], ["\nQ:"], 4, "Lima", 1),
    "across borders, from within a token": (["▁Lima", ".\n", "Q", "a"], ["a.\nQ"], 3, "Lim", 1),
    "into the middle of a token": (["▁Lima", "\n", "\nQ:", "a"], ["\n\nQ"], 3, "Lima", 1),
    "more newlines than asked for": (["▁Lima", "\n\n", "a"], ["\n"], 2, "Lima", 1),
    "two newlines of three": (["a", "\n", "\n\n", "a"], ["\n\n"], 3, "a", 1),
    # deepset-ai/haystack, issue 5502
    "its tokens in another order": (
        ["L", "ima", "ab", "L", "a"],
        ["Lab", "abima"],
        None,
        None,
        None,
    ),
    # huggingface/transformers raises ValueError where no token can end a stop.
    "what no token has": (["▁Lima", "a"], ["😀", "a\t"], None, None, None),
    "a false start": (["a", "\n", "a", "\n", "Q", ":"], ["\nQ"], 5, "a\na", 3),
    "a start within a false start": (["a", "ab", "a"], ["ab"], 2, "a", 1),
    "overlapping with itself": (["a", "aab", "a"], ["aab"], 2, "a", 1),
    "the first that is complete": (["a", "L", "ima", "b"], ["imab", "Li"], 3, "a", 1),
    "the first to end, within one token": (["▁Lima", "b"], ["Lima", "im"], 1, "L", 1),
    "the longest that ends there": (["▁Lima", "b"], ["ma", "ima", "a"], 1, "L", 1),
    "a stop begun and another complete": (["<|end|>", "L", "\n"], ["L\nQ", "\n"], 3, "L", 2),
    "none": (["a", "b", "▁Lima"], ["\n", "ba"], None, None, None),
    "text that begins as the prompt ends": ([":", "a", "Q"], ["A:", "Q:"], None, None, None),
    "end of a thought": (["a", "</think>", "b"], ["</think>"], 2, "a", 1),
    "end of a thought, in pieces": (["a", "</", "think", ">", "b"], ["</think>"], 4, "a", 1),
    "a special token": (["▁Lima", "<|end|>", "a"], ["<|end|>"], 2, "Lima", 1),
    "part of a special token": (["▁Lima", "<|end|>", "a"], ["end"], 2, "Lima", 2),
    "a special token, and what follows": (["a", "<|end|>", "\n", "b"], ["<|end|>\n"], 3, "a", 1),
    "behind a special token": (["<|end|>", "▁Lima", "\n"], ["\n"], 3, "Lima", 2),
    "over a special token": (["a", "<|end|>", "b"], ["ab"], None, None, None),
    "a character in two bytes": (["a", "<0xC3>", "<0xA9>", "b"], ["é"], 3, "a", 1),
    "a character whole": (["a", "é", "b"], ["é"], 2, "a", 1),
    "behind half a character": (["<0xC3>", "a", "b"], ["a"], 2, "\ufffd", 1),
    "behind a character in two bytes": (["<0xC3>", "<0xA9>", "\n"], ["\n"], 3, "é", 2),
    "a stop with such a character within": (["a", "<0xC3>", "<0xA9>", "b"], ["aéb"], 4, "", 0),
    "a stop of such characters": (["a", *["<0xC3>", "<0xA9>"] * 3, "b"], ["éééb"], 8, "a", 1),
    "a space": (["▁Lima", "a", "▁", "a"], [" a"], 4, "Limaa", 2),
    "spaces before punctuation": (["▁Lima", "▁?", "\n"], ["\n"], 3, "Lima ?", 2),
}


@pytest.mark.parametrize("name", CASES)
def test_by_hand(name):
    pieces, stops, count, kept, tokens = CASES[name]
    tokenizer = by_hand()
    rule = StopStrings(stops, tokenizer, [EOS], len(PIECES) + 3, "cpu")
    ids = tokenizer.convert_tokens_to_ids(pieces)
    found = taken(rule, ids)
    if count is None:
        assert found is None
        return
    text = tokenizer.decode(ids[:count], skip_special_tokens=True)
    assert found is not None and (found[0], text[: found[1].text_end]) == (count, kept)
    assert found[1].tokens == tokens


def test_spaces_that_the_tokenizer_takes_out():
    """Some take out those before punctuation: what is kept is of the text that is shown."""
    tokenizer = by_hand()
    tokenizer.clean_up_tokenization_spaces = True
    ids = tokenizer.convert_tokens_to_ids(["▁Lima", "▁?", "a", "▁?", "b", "\n"])
    with pytest.MonkeyPatch.context() as patch:
        # BPE tokenizers, as this one is, are spared by some releases of transformers.
        decode = tokenizer.decode

        def cleaned(token_ids, clean_up_tokenization_spaces=True, **settings):
            text = decode(token_ids, clean_up_tokenization_spaces=False, **settings)
            return text.replace(" ?", "?") if clean_up_tokenization_spaces else text

        patch.setattr(tokenizer, "decode", cleaned)
        for stop, kept, tokens in (
            ("b", "Lima?a?", 4),
            (" ?b", "Lima?a", 3),
            ("\n", "Lima?a?b", 5),
        ):
            count, cut = taken(StopStrings([stop], tokenizer, [EOS], len(PIECES), "cpu"), ids)
            text = tokenizer.decode(ids[:count], skip_special_tokens=True)
            assert (text[: cut.text_end], cut.tokens) == (kept, tokens)


def test_rows_end_at_end_of_sequence_too():
    tokenizer = by_hand()
    made = [make_stop_rule(stops, tokenizer, [EOS], len(PIECES), "cpu") for stops in (["b"], [])]
    assert [type(rule) for rule in made] == [StopStrings, EndStop]
    for rule in made:
        stop, is_answer, _ = rule(torch.tensor([EOS, 11]), torch.tensor([True, True]))
        assert (stop.tolist(), is_answer.tolist()) == ([True, False], [False, True])


def test_a_long_answer_is_not_read_again_for_every_token(monkeypatch):
    """Nearly all tokens cost nothing, and those that could end a stop a few tokens' text."""
    tokenizer = by_hand()
    rule = StopStrings(["</think>", "\n\nQ"], tokenizer, [EOS], len(PIECES), "cpu")
    read, decode = [], tokenizer.decode
    monkeypatch.setattr(
        tokenizer,
        "decode",
        lambda ids, **settings: read.append(len(ids)) or decode(ids, **settings),
    )
    ids = tokenizer.convert_tokens_to_ids(["a", "b", "L", "ima", "Q"] * 200)
    assert taken(rule, ids) is None
    assert len(read) == 200 and max(read) < 12  # Q alone can end one


# ---- model.generate --------------------------------------------------------------------------

PROMPT = "Q: What is the capital of Peru?\nA:"
LIMIT = 24


def stop_lists(tokenizer, ids, chance):
    """Stops in what a model generates, with where they are: of 1 to 6 tokens, from the first, to
    the last, and from and to the middle of one; alone, and several that overlap."""
    text = in_the_middle(tokenizer, ids)
    edges = [len(in_the_middle(tokenizer, ids[:count])) for count in range(len(ids) + 1)]
    for tokens in range(1, 7):
        first = chance.randrange(1, len(ids) - tokens)
        for at in (0, first, len(ids) - tokens):
            start, end = edges[at], edges[at + tokens]
            yield [text[start:end]]
            yield [text[max(start - 1, 0) : end + 1], text[start : end + 2]]
    yield [text[: edges[1]][-1]]
    yield ["never", text[-1], text[edges[2] : edges[5]]]


def talkative_model(architecture, tokenizer):
    """A random model that never ends by itself, and whose text is made of whole characters."""
    model = shallow_model(architecture, vocab_size=len(tokenizer))
    silent = [
        token
        for token in range(len(tokenizer))
        if "\ufffd" in tokenizer.decode([token])
        or tokenizer.convert_ids_to_tokens(token).startswith("<0x")
    ]
    with torch.no_grad():
        model.lm_head.weight[[EOS, *silent]] = 0.0
    return model


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        *[("byte-level", architecture) for architecture in ARCHITECTURES],
        *[("byte fallback", architecture) for architecture in ("llama", "gemma3", "mistral")],
    ],
)
def test_against_generate(architecture, name):
    """The text up to the stop, and after how many tokens it is there."""
    tokenizer = tokenizer_of(name)
    model = talkative_model(architecture, tokenizer)
    prompt = tuple(tokenizer(PROMPT)["input_ids"])
    chance, compared = random.Random(architecture), 0
    engine = Engine(model, tokenizer, FlexAttentionWrapper(model, "eager"))
    question = SplitQuestion((prompt[:-1],), prompt[-1:])

    def answer(stops):
        request = Request(
            (),
            [attention_streams(question, 0, "left")],
            max_new_tokens=LIMIT,
            stop=engine.stop_rule(stops),
        )
        [[(_, found)]] = list(engine.generate(request))
        return found

    unstopped = answer(())
    assert len(unstopped.token_ids) == LIMIT and unstopped.text_end is None
    lists = list(stop_lists(tokenizer, list(unstopped.token_ids), chance))
    if architecture != "llama":  # what stops is text: others take every third, and the last
        lists = lists[::-3]
    for stops in lists:
        if matches_prompt(tokenizer, stops, unstopped.token_ids):
            continue
        compared += 1
        stock = model.generate(
            torch.tensor([prompt]),
            max_new_tokens=LIMIT,
            do_sample=False,
            stop_strings=stops,
            tokenizer=tokenizer,
            pad_token_id=EOS,
        )[0, len(prompt) :].tolist()
        found = answer(tuple(stops))
        assert list(found.token_ids) == stock, stops
        raw = in_the_middle(tokenizer, stock)
        whole = tokenizer.decode(stock, skip_special_tokens=True)
        ends = [(raw.find(stop) + len(stop), raw.find(stop)) for stop in stops if stop in raw]
        start = min(ends)[1]
        kept = without_special(tokenizer, stock, start)
        assert kept is None or answer_text(tokenizer, found) in (kept, kept[1:]), stops
        assert whole.startswith(answer_text(tokenizer, found))
        assert not found.truncated and len(found.logprobs) <= len(stock)
        assert found.logprobs == unstopped.logprobs[: len(found.logprobs)]
    assert compared >= (20 if architecture == "llama" else 8)


@pytest.mark.parametrize("captured", [False, True])
def test_neither_batch_nor_order_changes_where_answers_stop(captured, monkeypatch):
    """EleutherAI/lm-evaluation-harness, issue 873: a stop of one question ended another.

    Where steps are captured, a stop is seen when the next step has been begun.
    """
    tokenizer = tokenizer_of("byte-level")
    model = talkative_model("llama", tokenizer)
    if captured:
        stand_in(monkeypatch)
        StandIn.replays = 0
        wrapper = FlexAttentionWrapper(model, "flex", compiled=False)
        engine = Engine(model, tokenizer, wrapper, capture=True)
        engine.capture_problem = lambda fusion: None
    else:
        engine = Engine(model, tokenizer, FlexAttentionWrapper(model, "eager"))
    chance = random.Random(3)
    questions = [
        attention_streams(
            SplitQuestion(tuple(random_ids(chance, tokenizer, n) for n in lengths), (7, 8)),
            0,
            "left",
        )
        for lengths in [(3, 5), (1, 1), (9, 2), (4, 4), (2, 7), (6, 6), (5, 1)]
    ]

    def answers(asked, stops, batch_size):
        request = Request((), asked, max_new_tokens=LIMIT, stop=engine.stop_rule(stops))
        batches = engine.generate(request, batch_size=batch_size)
        return dict(pair for batch in batches for pair in batch)

    unstopped = answers(questions, (), None)
    texts = [in_the_middle(tokenizer, unstopped[k].token_ids) for k in range(len(questions))]
    stops = tuple(text[at : at + 3] for text, at in zip(texts, (2, 5, 9, 12, 15, 18), strict=False))
    alone = [answers([question], stops, None)[0] for question in questions]
    assert len({len(answer.token_ids) for answer in alone}) > 3
    for batch_size in (1, 2, 3, 7, None):
        together = answers(questions, stops, batch_size)
        for index, expected in enumerate(alone):
            found = together[index]
            assert (found.token_ids, found.text_end) == (expected.token_ids, expected.text_end)
            assert found.logprobs == pytest.approx(expected.logprobs, abs=1e-4)
    assert not captured or StandIn.replays > 20


def random_ids(chance, tokenizer, count):
    return tuple(chance.randrange(6, len(tokenizer)) for _ in range(count))


def matches_prompt(tokenizer, stops, ids):
    """Whether a stop would begin in the prompt."""
    text = in_the_middle(tokenizer, ids)
    return any(
        stop in PROMPT[-len(stop) + 1 :] + text[: len(stop) - 1] for stop in stops if len(stop) > 1
    )
