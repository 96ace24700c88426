"""The engine's own rules: ties, weights, memory, limits, and requests that are open at once."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from fused import StopAt, small_memory
from tiny import VOCABULARY, TinyTokenizer, tiny_model

from self_ensemble.attention.fusion import Fusion
from self_ensemble.attention.patching import FlexAttentionWrapper
from self_ensemble.attention.positions import assign_positions
from self_ensemble.attention.segments import SplitQuestion
from self_ensemble.generation import batching
from self_ensemble.generation.decode import Answer
from self_ensemble.generation.engine import Engine
from self_ensemble.generation.request import Request
from self_ensemble.generation.sampling import Sampling
from self_ensemble.generation.stats import Stats
from self_ensemble.generation.stopping import Cut, NeverStop
from self_ensemble.generation.streams import Stream, attention_streams, logit_streams
from self_ensemble.system.errors import UserError

# ---- decoding -------------------------------------------------------------------------------


@pytest.fixture
def llama_engine():
    with FlexAttentionWrapper(tiny_model("llama"), "sdpa") as wrapper:
        yield Engine(wrapper.model, TinyTokenizer(), wrapper)


def split(*lengths, tail=(5, 6)):
    return SplitQuestion(tuple(tuple(range(2, 2 + n)) for n in lengths), tuple(tail))


def ask(questions, prefix=(), max_new_tokens=3, **settings):
    return Request(tuple(prefix), questions, max_new_tokens=max_new_tokens, **settings)


def generate(engine, questions, batch_size=None, **settings):
    batches = engine.generate(ask(questions, **settings), batch_size=batch_size)
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
    for _, answer in generate(llama_engine, questions, reduce=tied):
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
        generate(llama_engine, questions, reduce=counted, weights=weights, max_new_tokens=6)
    )
    for question, count in stops_at.items():
        assert found[question].token_ids == (50 + question,) * count
        assert len(found[question].logprobs) == count and not found[question].truncated


def test_out_of_memory_halves_the_batch_and_says_so_once(llama_engine, monkeypatch, caplog):
    questions = [attention_streams(split(n), 0, "left") for n in (3, 1, 4, 2, 5, 7, 6)]
    expected = tokens_of(generate(llama_engine, questions))
    encode, sizes = small_memory(2), []

    def counted(forward, streams, *args, **settings):
        sizes.append(len(streams))
        return encode(forward, streams, *args, **settings)

    monkeypatch.setattr("self_ensemble.generation.passes.encode_streams", counted)
    generation = llama_engine.generate(ask(questions), batch_size=7)
    assert tokens_of(pair for batch in generation for pair in batch) == expected
    assert sizes == [7, 4, 2, 2, 2, 1]  # two at a time fit
    assert [record.getMessage() for record in caplog.records] == [
        "out of memory with 7 questions at a time: halved"
    ]
    assert generation.stats.out_of_memory == 2 and generation.stats.largest_batch == 2
    assert generation.max_batch_size == 2
    # A later request that is told begins with what fitted.
    sizes.clear()
    later = llama_engine.generate(ask(questions), batch_size=7, max_batch_size=2)
    assert tokens_of(pair for batch in later for pair in batch) == expected
    assert max(sizes) == 2 and later.stats.out_of_memory == 0


def test_out_of_memory_with_one_question_is_told(llama_engine, monkeypatch):
    monkeypatch.setattr("self_ensemble.generation.passes.encode_streams", small_memory(0))
    with pytest.raises(UserError, match="out of memory with one question"):
        generate(llama_engine, [attention_streams(split(3), 0, "left")] * 2)


def test_a_stop_string_ends_text_and_log_probabilities(llama_engine):
    """The tokens that complete it are kept, since the text is cut by characters."""

    class CutAfterFive(NeverStop):
        def cut(self, token_ids):
            return Cut(text_end=3, tokens=2) if len(token_ids) == 5 else None

    question = [attention_streams(split(3), 0, "left")]
    [(_, whole)] = generate(llama_engine, question, max_new_tokens=8, stop=NeverStop())
    [(_, cut)] = generate(llama_engine, question, max_new_tokens=8, stop=CutAfterFive())
    assert cut == Answer(whole.token_ids[:5], whole.logprobs[:2], truncated=False, text_end=3)


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
        asked = {"prefix": range(2, 2 + prefix), "max_new_tokens": 4}
        questions = [attention_streams(split(2, n), prefix, "left") for n in (1, longest)]
        if fits:
            assert len(generate(engine, questions, **asked)) == 2
            return
        with pytest.raises(UserError) as caught:
            generate(engine, questions, **asked)
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
        generate(llama_engine, [[stream]], prefix=(2, odd) if place_of == "prefix" else ())


def test_answers_come_with_their_question(llama_engine, monkeypatch):
    """Shortest first, in several batches, each answer with the index of its question."""
    monkeypatch.setattr(batching, "FILLINGS", 1)
    monkeypatch.setattr(batching, "CPU_TOKENS_AT_ONCE", 20)
    questions = [attention_streams(split(cost), 0, "left") for cost in (6, 2, 9, 4)]
    generation = llama_engine.generate(ask(questions))
    found = [pair for batch in generation for pair in batch]
    assert [index for index, _ in found] == [1, 3, 0, 2]
    for index, answer in found:
        assert tokens_of(generate(llama_engine, [questions[index]])) == {0: answer.token_ids}
    assert generation.stats.largest_batch == 2


# ---- requests ---------------------------------------------------------------------------------


def requests():
    """Two requests with different prefixes, lengths, limits, fusions and stop rules."""
    first = [attention_streams(split(*lengths), 5, "exact") for lengths in ((3, 9), (2, 2), (7, 4))]
    second = [attention_streams(split(*lengths), 2, "left") for lengths in ((4, 1), (12, 3))]
    return (
        ask(first, prefix=(9, 8, 7, 6, 5), max_new_tokens=4, stop=NeverStop()),
        ask(second, prefix=(44, 45), max_new_tokens=6, fusion=Fusion("joint"), stop=StopAt([3])),
    )


def singly(request):
    return [[index] for index in range(len(request.questions))]


def alone(engine, request):
    return [pair for batch in engine.generate(request, batch_size=1) for pair in batch]


@pytest.mark.parametrize("order", ["0 0 0 1 1", "1 1 0 0 0", "0 1 0 1 0", "1 0 0 1 0"])
def test_two_open_requests_are_consumed_in_any_order(order):
    """Each is answered as if it were the only one: behind its own prefix, at its own positions."""
    expected = []
    for request in requests():
        with FlexAttentionWrapper(tiny_model("llama"), "sdpa") as wrapper:
            one = Engine(wrapper.model, TinyTokenizer(), wrapper)
            batches = one.generate(request, batches=singly(request))
            expected.append([pair for batch in batches for pair in batch])
    with FlexAttentionWrapper(tiny_model("llama"), "sdpa") as wrapper:
        engine = Engine(wrapper.model, TinyTokenizer(), wrapper)
        open_ones = [engine.generate(each, batches=singly(each)) for each in requests()]
        found = [[], []]
        for which in map(int, order.split()):
            found[which] += next(open_ones[which])
    assert found == expected
    assert found[0] != found[1][:3]


def test_a_request_that_is_consumed_late_is_answered_as_if_at_once(llama_engine):
    first, second = requests()
    expected = alone(llama_engine, first)
    late = llama_engine.generate(first, batch_size=1)
    alone(llama_engine, second)
    llama_engine.release()
    assert [pair for batch in late for pair in batch] == expected


@pytest.mark.parametrize(("keep", "times"), [(True, 1), (False, 3)])
def test_a_kept_prefix_is_encoded_once_for_requests_that_share_it(keep, times):
    wrapper, calls = FlexAttentionWrapper(tiny_model("llama"), "sdpa"), []
    wrapper.model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    engine = Engine(wrapper.model, TinyTokenizer(), wrapper, keep_prefix=keep)
    first, _ = requests()
    for _ in range(3):
        alone(engine, first)
    assert calls.count(5) == times  # no batch packs five tokens


def test_weights_that_change_between_requests_are_those_that_answer():
    """Fine-tuning, say, that looks at some answers now and then."""
    wrapper = FlexAttentionWrapper(tiny_model("llama"), "sdpa")
    engine = Engine(wrapper.model, TinyTokenizer(), wrapper)
    first, _ = requests()
    before = alone(engine, first)
    for parameter in wrapper.model.parameters():
        parameter.data.mul_(0.7)
    fresh = Engine(wrapper.model, TinyTokenizer(), FlexAttentionWrapper(wrapper.model, "sdpa"))
    assert alone(engine, first) == alone(fresh, first) != before


def test_engines_around_one_model_wait_for_each_other():
    model = tiny_model("llama")
    engines = [Engine(model, TinyTokenizer(), FlexAttentionWrapper(model, "sdpa")) for _ in "ab"]
    expected = [alone(engines[0], request) for request in requests()]
    with ThreadPoolExecutor(4) as pool:
        asked = [(e, which) for e in engines for which in (0, 1) for _ in range(5)]
        found = list(pool.map(lambda case: alone(case[0], requests()[case[1]]), asked))
    assert found == [expected[which] for _, which in asked]
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("wrong", [lambda x, w: x.mean(0), lambda x, w: x.mean(1)[:, :9]])
def test_a_reduction_of_the_wrong_shape_is_told(llama_engine, wrong):
    questions = [logit_streams(split(3, 4, 2), 0)]
    with pytest.raises(UserError, match=r"must return scores of the shape"):
        generate(llama_engine, questions, reduce=wrong)


def test_several_threads_may_ask_at_once():
    """What attends is a setting of the model: a batch would run under another one's mask."""
    wrapper = FlexAttentionWrapper(tiny_model("llama"), "sdpa")
    engine = Engine(wrapper.model, TinyTokenizer(), wrapper)
    expected = [alone(engine, request) for request in requests()]
    with ThreadPoolExecutor(4) as pool:
        asked = [request for request in requests() for _ in range(6)]
        found = list(pool.map(lambda request: alone(engine, request), asked))
    assert found == [answers for answers in expected for _ in range(6)]


def test_nothing_is_left_on_the_model_between_batches():
    model = tiny_model("llama")
    model.train()
    model.model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    implementation = model.config._attn_implementation
    engine = Engine(model, TinyTokenizer(), FlexAttentionWrapper(model, "sdpa"))
    request = ask([attention_streams(split(n, 3), 0, "left") for n in (3, 1, 4)])
    for _ in engine.generate(request, batch_size=1):
        assert model.config._attn_implementation == implementation
        assert [module.training for module in model.modules()] == modes


def test_an_exception_gives_the_model_back():
    model = tiny_model("llama").train()
    sequence = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        before = model(sequence).logits

    def fails(logits, weights):
        raise ZeroDivisionError

    engine = Engine(model, TinyTokenizer(), FlexAttentionWrapper(model, "sdpa"))
    generation = engine.generate(ask([attention_streams(split(3, 2), 0, "exact")], reduce=fails))
    with pytest.raises(ZeroDivisionError):
        next(generation)
    assert model.training and model.config._attn_implementation == "eager"
    with torch.no_grad():
        assert torch.equal(model(sequence).logits, before)
    good = engine.generate(ask([attention_streams(split(3, 2), 0, "exact")]))
    assert len(next(good)) == 1


@pytest.mark.parametrize("sampling", [None, Sampling(1.0, 0.9, 0, [("u", 0)])])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_logits_that_are_not_numbers_are_an_error(sampling, value):
    """A table of empty answers would be worse."""
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.norm.weight[3] = value
    engine = Engine(model, TinyTokenizer(), FlexAttentionWrapper(model, "sdpa"))
    request = ask([attention_streams(split(3, 2), 0, "left")], sampling=sampling)
    with pytest.raises(UserError, match="not numbers"):
        list(engine.generate(request))


def test_stats_add_up():
    one, two = Stats(1, 2, 3, 4, 5, 6), Stats(10, 20, 30, 40, 4, 60)
    assert one + two == Stats(11, 22, 33, 44, 5, 66)
