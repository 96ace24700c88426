"""The engine's own rules: when a row stops, how questions are batched, what is too long."""

import pytest
import torch
from small import ENDS_LINE, MARK, SmallModel
from tiny import VOCABULARY, TinyTokenizer, tiny_model
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from self_ensemble.attention.fusion import Fusion
from self_ensemble.attention.patching import FlexAttentionWrapper
from self_ensemble.attention.positions import assign_positions
from self_ensemble.attention.segments import SplitQuestion
from self_ensemble.generation import legacy as engine_module
from self_ensemble.generation.legacy import (
    Engine,
    StopRule,
    Stream,
    attention_streams,
    end_of_sequence_ids,
    logit_streams,
    only_stream,
    plan_batches,
)
from self_ensemble.system.errors import UserError

# ---- the stop rule --------------------------------------------------------------------------

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
    return StopRule(fast, [PIECES.index("<eos>")], len(PIECES) + 3, "cpu")


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
    rule = StopRule(tokenizer, [1], len(tokenizer), "cpu")
    ids = tokenizer.convert_tokens_to_ids(["a", "Ċ", "Ġ", ENDS_LINE, MARK])
    before, after = (rule(torch.tensor(ids), torch.tensor([seen] * 5)) for seen in (False, True))
    assert before[0].tolist() == [False, False, False, True, False]
    assert before[2].tolist() == [True, False, False, True, False]
    assert after[0].tolist() == [False, True, False, True, False]
    assert after[1].tolist() == [True, False, True, True, True]


def test_ignoring_stops(rule, small):
    tokenizer = small.tokenizer
    never = StopRule(tokenizer, [1], len(tokenizer), "cpu", disabled=True)
    for seen in (False, True):
        stop, _, _ = never(torch.arange(len(tokenizer)), torch.full([len(tokenizer)], seen))
        assert not stop.any()


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


# ---- decoding -------------------------------------------------------------------------------


@pytest.fixture
def llama_engine():
    with FlexAttentionWrapper(tiny_model("llama"), "sdpa") as wrapper:
        yield Engine(wrapper.model, TinyTokenizer(), wrapper)


def split(*lengths, tail=(5, 6)):
    return SplitQuestion(tuple(tuple(range(2, 2 + n)) for n in lengths), tuple(tail))


def generate(engine, questions, **settings):
    given = {"fusion": Fusion(), "combine": only_stream, "max_new_tokens": 3, "batch_size": None}
    batches = engine.generate(questions, **(given | settings))
    return [(index, answer) for batch in batches for index, answer in batch]


def tokens_of(found):
    return {index: answer.token_ids for index, answer in found}


def test_ties_go_to_the_lowest_id(llama_engine):
    def tied(logits, weights):
        scores = torch.zeros_like(logits[:, 0])
        scores[:, [90, 40, 41]] = 1.0
        return scores

    questions = [
        attention_streams(split(3, 4), 0, "left"),
        attention_streams(split(1, 2), 0, "left"),
    ]
    for _, answer in generate(llama_engine, questions, combine=tied):
        assert answer.token_ids == (40, 40, 40) and answer.truncated


def test_every_question_is_told_its_own_weights(llama_engine):
    """However the batch is ordered and thinned out, a question's weights stay with it."""
    questions = [logit_streams(split(n, n), 0) for n in (9, 3, 7, 1, 5)]
    weights = torch.arange(5.0)[:, None].repeat(1, 2)
    stops_at = {0: 1, 1: 4, 2: 2, 3: 3, 4: 5}  # question → how many tokens it gets
    steps = dict.fromkeys(stops_at, 0)

    def counted(logits, given):
        scores = torch.zeros_like(logits[:, 0])
        for row, (first, second) in enumerate(given.tolist()):
            assert first == second
            steps[int(first)] += 1
            end = steps[int(first)] > stops_at[int(first)]
            scores[row, 1 if end else 50 + int(first)] = 1.0
        return scores

    found = dict(
        generate(llama_engine, questions, combine=counted, weights=weights, max_new_tokens=6)
    )
    for question, count in stops_at.items():
        assert found[question].token_ids == (50 + question,) * count
        assert len(found[question].logprobs) == count and not found[question].truncated


def test_out_of_memory_halves_the_batch_and_says_so_once(llama_engine, monkeypatch, caplog):
    questions = [attention_streams(split(n), 0, "left") for n in (3, 1, 4, 2, 5, 7, 6)]
    expected = tokens_of(generate(llama_engine, questions))
    answer, sizes = llama_engine._answer, []

    def at_most_two(groups, *settings):
        sizes.append(len(groups))
        if len(groups) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return answer(groups, *settings)

    monkeypatch.setattr(llama_engine, "_answer", at_most_two)
    assert tokens_of(generate(llama_engine, questions, batch_size=7)) == expected
    assert sizes == [7, 3, 1, 2, 4, 2, 2]
    assert [record.getMessage() for record in caplog.records] == [
        "out of memory with 7 questions at a time: halved"
    ]
    assert llama_engine.counts.out_of_memory == 3
    assert llama_engine.counts.largest_batch == 7  # of the run before


def test_out_of_memory_with_one_question_is_told(llama_engine, monkeypatch):
    def never(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(llama_engine, "_answer", never)
    with pytest.raises(UserError, match="out of memory with one question"):
        generate(llama_engine, [attention_streams(split(3), 0, "left")] * 2)


# ---- what is asked of the model -------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix, longest, limit, fits",
    [
        (0, 4, 10, True),
        (0, 4, 9, False),
        (6, 4, 16, True),
        (6, 4, 15, False),
    ],
)
def test_length_check(prefix, longest, limit, fits):
    """Prefix + the longest segment + a tail of 2 + 4 new tokens, against the model's context."""
    with FlexAttentionWrapper(
        tiny_model("gpt2", n_positions=limit, max_position_embeddings=limit), "sdpa"
    ) as wrapper:
        engine = Engine(wrapper.model, TinyTokenizer(), wrapper)
        engine.set_prefix(range(2, 2 + prefix))
        questions = [attention_streams(split(2, n), prefix, "left") for n in (1, longest)]
        if fits:
            assert len(generate(engine, questions, max_new_tokens=4)) == 2
            return
        with pytest.raises(UserError) as caught:
            generate(engine, questions, max_new_tokens=4)
        assert f"needs {limit + 1} positions" in str(caught.value)
        assert f"the model's {limit}" in str(caught.value)


@pytest.mark.parametrize("positions, needed", [("left", 9), ("exact", 9), ("sequential", 14)])
def test_length_check_counts_positions(positions, needed):
    with FlexAttentionWrapper(tiny_model("llama"), "sdpa") as wrapper:
        wrapper.model.config.max_position_embeddings = needed - 1
        engine = Engine(wrapper.model, TinyTokenizer(), wrapper)
        streams = [attention_streams(split(3, 2, 4), 0, positions)]
        with pytest.raises(UserError, match=f"needs {needed} positions with its answer,"):
            generate(engine, streams)


@pytest.mark.parametrize("place_of", ["prefix", "segment", "tail", "separator"])
def test_a_token_beyond_the_vocabulary_is_told(llama_engine, place_of):
    llama_engine.tokenizer.decode = lambda ids: f"<extra{ids[0]}>"
    odd = VOCABULARY + 3
    question = split(3, tail=(odd, 6) if place_of == "tail" else (5, 6))
    [stream] = attention_streams(question, 0, "left")
    if place_of == "segment":
        stream = Stream(((2, odd),), (5,), (), assign_positions([2], 0, "left"))
    if place_of == "separator":
        stream = Stream(((2, 3),), (), (odd,), assign_positions([2], 0, "left"))
    with pytest.raises(UserError, match=rf"'<extra{odd}>' \({odd}\), beyond .* of {VOCABULARY}:"):
        if place_of == "prefix":
            llama_engine.set_prefix([2, odd])
        generate(llama_engine, [[stream]])


# ---- the batch plan -------------------------------------------------------------------------


def costing(*costs):
    """Questions of one stream that encode so many tokens."""
    return [attention_streams(split(cost), 0, "left") for cost in costs]


@pytest.mark.parametrize(
    "costs, batch_size, tokens, expected",
    [
        ((5, 3, 4), 2, 99, [[1, 2], [0]]),
        ((5, 3, 4), 1, 99, [[1], [2], [0]]),
        ((5, 3, 4), 10, 1, [[1, 2, 0]]),
        ((3, 3, 3), 2, 99, [[0, 1], [2]]),
        ((5, 3, 4), None, 12, [[1, 2, 0]]),
        ((5, 3, 4), None, 11, [[1, 2], [0]]),
        ((5, 3, 4), None, 1, [[1], [2], [0]]),  # a question that fits nowhere is asked alone
        ((2, 9, 2, 2), None, 4, [[0, 2], [3], [1]]),
        ((), 3, 9, []),
        ((), None, 9, []),
    ],
)
def test_batch_plan(costs, batch_size, tokens, expected):
    assert plan_batches(costing(*costs), batch_size, tokens) == expected


def test_batch_plan_counts_every_stream_and_every_separator():
    fused = attention_streams(split(2, 3), 0, "left")
    apart = logit_streams(split(2, 2), 0)
    joined = attention_streams(SplitQuestion(((2, 3), (4,)), (), ((2, 9), (4, 9))), 0, "left")
    assert plan_batches([fused, apart, joined], None, 9) == [[1, 0], [2]]
    assert plan_batches([fused, joined], None, 10) == [[0, 1]]
    assert plan_batches([fused, joined], None, 9) == [[0], [1]]


def test_answers_come_with_their_question(llama_engine, monkeypatch):
    """Shortest first, in several batches, each answer with the index of its question."""
    monkeypatch.setattr(engine_module, "CPU_TOKENS_PER_BATCH", 10)
    questions = costing(6, 2, 9, 4)
    found = generate(llama_engine, questions)
    assert [index for index, _ in found] == [1, 3, 0, 2]
    for index, answer in found:
        assert tokens_of(generate(llama_engine, [questions[index]])) == {0: answer.token_ids}
    assert llama_engine.counts.largest_batch == 2
