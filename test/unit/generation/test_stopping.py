"""When an answer ends: by token id, for texts of every kind."""

import gc
import weakref

import pytest
import torch
from small import ENDS_LINE, MARK, SmallModel, make_tokenizer
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from self_ensemble.generation.stopping import LineStop, NeverStop, end_of_sequence_ids

# A vocabulary with a text of every kind; with byte fallback, as SentencePiece models have it.
PIECES = [
    "<bos>",
    "<eos>",
    "<mark>",
    "▁Lima",
    "a",
    "▁",
    "\n",
    "\n\n",
    ".\n",
    "▁\n",
    "\nQ",
    "\nQ\n",
    "<0x0A>",
    "<0xC3>",
    "<0xA9>",
]
SPECIAL = ("<bos>", "<eos>", "<mark>")


@pytest.fixture(scope="module")
def rule():
    vocabulary = {piece: index for index, piece in enumerate(PIECES)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        additional_special_tokens=["<mark>"],
    )
    # Rows behind the tokenizer's last token, as padded embeddings have them.
    return LineStop(fast, [PIECES.index("<eos>")], len(PIECES) + 3, "cpu")


# What is generated, a token a step → how many of them are taken, which belong to the answer.
STOPS = {
    "end of sequence": (["▁Lima", "<eos>", "a"], 2, [True, False]),
    "nothing but end of sequence": (["<eos>"], 1, [False]),
    "newline": (["▁Lima", "\n", "a"], 2, [True, False]),
    "two newlines in one token": (["▁Lima", "\n\n", "a"], 2, [True, False]),
    "space before the newline": (["▁Lima", "▁\n", "a"], 2, [True, False]),
    "leading newline": (["\n", "▁Lima", "\n", "a"], 3, [True, True, False]),
    "leading newlines and spaces": (["▁", "\n\n", "▁\n", "a", "\n"], 5, [True] * 4 + [False]),
    "text before the newline of its token": (["▁Lima", ".\n", "a"], 2, [True, True]),
    "that token first": ([".\n", "a"], 1, [True]),
    "text behind a leading newline": (["\nQ", "a", "\n"], 3, [True, True, False]),
    "text between two newlines": (["\nQ\n", "a"], 1, [True]),
    "text behind the newline that ends the line": (["a", "\nQ", "a"], 2, [True, False]),
    "byte fallback newline": (["▁Lima", "<0x0A>", "a"], 2, [True, False]),
    "leading byte fallback newline": (["<0x0A>", "a", "<0x0A>"], 3, [True, True, False]),
    "half a character is visible": (["<0xC3>", "\n"], 2, [True, False]),
    "special tokens are not": (["<mark>", "\n", "a", "\n"], 4, [True, True, True, False]),
    "spaces are not": (["▁", "\n", "a", "\n"], 4, [True, True, True, False]),
    "special tokens do not stop": (["a", "<bos>", "<mark>", "\n"], 4, [True] * 3 + [False]),
    "never": (["a", "▁", "a"], 3, [True, True, True]),
}


@pytest.mark.parametrize("name", STOPS)
def test_stop_rule(rule, name):
    pieces, taken, answers = STOPS[name]
    tokens = [PIECES.index(piece) for piece in pieces]
    seen = torch.tensor([False])
    found = []
    for token in tokens:
        stop, is_answer, seen = rule(torch.tensor([token]), seen)
        found.append(is_answer.item())
        if stop.item():
            break
    assert (len(found), found) == (taken, answers)
    assert stop.item() == (name != "never")


def test_stop_rule_rows_are_apart(rule):
    """All first steps of the table at once, then all second ones: a row never moves another."""
    rows = [[PIECES.index(piece) for piece in pieces[:2]] * 2 for pieces, _, _ in STOPS.values()]
    steps = torch.tensor([row[:2] for row in rows]).T
    seen = torch.zeros(len(rows), dtype=torch.bool)
    alone = torch.zeros(len(rows), 1, dtype=torch.bool)
    for step in steps:
        stop, is_answer, seen = rule(step, seen)
        for row, token in enumerate(step):
            one_stop, one_is_answer, one_seen = rule(token[None], alone[row])
            assert (stop[row], is_answer[row]) == (one_stop[0], one_is_answer[0])
            alone[row] = one_seen
        assert torch.equal(seen, alone[:, 0])


def test_stop_rule_knows_ids_beyond_the_tokenizer(rule):
    stop, is_answer, seen = rule(torch.tensor([len(PIECES) + 2]), torch.tensor([True]))
    assert (stop.item(), is_answer.item(), seen.item()) == (False, True, True)


def test_stop_rule_of_a_byte_level_tokenizer(small: SmallModel):
    tokenizer = small.tokenizer
    rule = LineStop(tokenizer, [1], len(tokenizer), "cpu")
    ids = tokenizer.convert_tokens_to_ids(["a", "Ċ", "Ġ", ENDS_LINE, MARK])
    before, after = (rule(torch.tensor(ids), torch.tensor([seen] * 5)) for seen in (False, True))
    assert before[0].tolist() == [False, False, False, True, False]
    assert before[2].tolist() == [True, False, False, True, False]
    assert after[0].tolist() == [False, True, False, True, False]
    assert after[1].tolist() == [True, False, True, True, True]


def test_texts_are_decoded_once_for_a_tokenizer_as_it_is(monkeypatch):
    """Until it has other tokens or a model has another vocabulary."""
    tokenizer, calls = make_tokenizer(), []
    batch_decode = type(tokenizer).batch_decode

    def counted(self, *args, **settings):
        calls.append(args)
        return batch_decode(self, *args, **settings)

    monkeypatch.setattr(type(tokenizer), "batch_decode", counted)

    def ends_line(vocabulary):
        rule = LineStop(tokenizer, [1], vocabulary, "cpu")
        return len(rule.newline), rule.newline[vocabulary - 1].item()

    size = len(tokenizer)
    assert ends_line(size) == ends_line(size) == (size, True) and len(calls) == 1  # ENDS_LINE
    assert ends_line(size - 1) == (size - 1, False) and len(calls) == 2
    assert ends_line(size + 1) == (size + 1, False) and len(calls) == 3
    tokenizer.add_tokens(["y\n"])
    assert ends_line(size + 1) == (size + 1, True) and len(calls) == 4
    tokenizer.add_tokens(["y\n"], special_tokens=True)
    assert ends_line(size + 1) == (size + 1, False) and len(calls) == 5
    tokenizer.add_special_tokens({"pad_token": "z\n"})
    assert ends_line(size + 2) == (size + 2, False) and len(calls) == 6


def test_the_texts_of_its_tokens_keep_no_tokenizer():
    tokenizer = make_tokenizer()
    LineStop(tokenizer, [1], len(tokenizer), "cpu")
    known = weakref.ref(tokenizer)
    del tokenizer
    gc.collect()
    assert known() is None


def test_never_stopping():
    tokens = torch.arange(5)
    for seen in (torch.zeros(5, dtype=torch.bool), torch.ones(5, dtype=torch.bool)):
        stop, is_answer, after = NeverStop()(tokens, seen)
        assert not stop.any() and is_answer.all() and torch.equal(after, seen)


@pytest.mark.parametrize(
    "of_model, of_tokenizer, expected",
    [
        (1, None, {1}),
        ([1, 5], None, {1, 5}),
        ([1, 5], 7, {1, 5, 7}),
        (None, None, set()),
        (None, 7, {7}),
        ([1, 10], -1, {1}),  # what is no token cannot come
    ],
)
def test_end_of_sequence_ids(of_model, of_tokenizer, expected):
    class Any:
        eos_token_id = of_tokenizer

    class Model:
        class generation_config:
            eos_token_id = of_model

    assert end_of_sequence_ids(Model, Any, 10) == expected
