"""The likelihoods of given choices, through the library's face."""

import math

import pytest
import torch
from transformers import AutoTokenizer

from self_ensemble import ChoiceLikelihoods, Ensemble, Prompt, UserError, WholePrompts
from self_ensemble.data import load_dataset
from self_ensemble.data.choices import NORMS, choose, is_tied, normalized
from self_ensemble.generation.likelihood import Likelihood
from self_ensemble.methods.base import AskedChoices, asking_likelihood
from self_ensemble.methods.config import DEFAULT_TAU
from self_ensemble.methods.logit_fusion import choice_confidence
from self_ensemble.methods.names import make_method, method_names
from self_ensemble.methods.registries import VOTES
from self_ensemble.system.bundled import DEMO_MODEL


@pytest.fixture(scope="module")
def demo():
    return Ensemble.from_pretrained("demo", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def records():
    return load_dataset("demo_choices", max_samples=12).records


@pytest.fixture(scope="module")
def asked(records):
    """Questions and their choices; some have choices of other lengths, and another number."""
    choices = [[*record.choices] for record in records]
    choices[2] = choices[2][:2]
    choices[5] = ["a very long answer that nobody gives, 12345", "é的", "x"]
    return [record.paraphrases[:3] for record in records], choices


@torch.no_grad()
def stock_likelihood(model, tokenizer, prompt, text, **how):
    """Of what `text` adds to `prompt`: a plain forward over the whole, split by offsets."""
    encoded = tokenizer(prompt + text, return_offsets_mapping=True, **how)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    first = next(i for i, (_, end) in enumerate(offsets) if end > len(prompt))
    logits = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    values = [float(logits[i - 1, ids[i]]) for i in range(first, len(ids))]
    greedy = all(int(logits[i - 1].argmax()) == ids[i] for i in range(first, len(ids)))
    return values, greedy


def same(found, expected):
    assert (found.choices, found.question, found.paraphrase) == (
        expected.choices,
        expected.question,
        expected.paraphrase,
    )
    assert found.greedy == expected.greedy
    for values, wanted in zip(found.logprobs, expected.logprobs, strict=True):
        assert values == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize(
    "method", ["attention", "avg", "prob_avg", "vote", "origin", "weighted_max"]
)
def test_of_one_paraphrase_it_is_a_plain_forwards_sum(demo, asked, method):
    questions, choices = asked
    template = demo.prompt.template(demo.tokenizer)
    found = demo.loglikelihood([q[:1] for q in questions], choices, method=method)
    for paraphrases, own, each in zip(questions, choices, found, strict=True):
        for choice, values, greedy in zip(own, each.logprobs, each.greedy, strict=True):
            expected, all_greedy = stock_likelihood(
                demo.model, demo.tokenizer, template.render(paraphrases[0]), f" {choice}"
            )
            assert values == pytest.approx(expected, abs=1e-4) and greedy == all_greedy


def test_what_the_model_answers_is_greedy(demo, asked):
    questions, _ = asked
    for method in ("attention", "avg", "max"):
        answers = demo.generate(questions, method=method)
        choices = [[answer.text, "Lima"] for answer in answers]
        for answer, found in zip(
            answers, demo.loglikelihood(questions, choices, method=method), strict=True
        ):
            assert found.greedy[0] and found.sum[0] == pytest.approx(answer.logprob, abs=1e-3)


@pytest.mark.parametrize("method", [name for name in method_names() if name != "self_consistency"])
def test_every_method_scores_in_the_order_asked(demo, asked, method):
    questions, choices = asked
    found = demo.loglikelihood(questions, choices, method=method)
    each = 3 if method == "per_prompt" else 1
    assert [f.question for f in found] == [i for i in range(len(questions)) for _ in range(each)]
    for f in found:
        assert f.choices == tuple(choices[f.question])
    small = demo.loglikelihood(questions, choices, method=method, batch_size=2)
    backwards = demo.loglikelihood(questions[::-1], choices[::-1], method=method)
    backwards = [backwards[i : i + each] for i in range(0, len(backwards), each)][::-1]
    for f, s, b in zip(found, small, [f for group in backwards for f in group], strict=True):
        same(s, f)
        assert [sum(v) for v in b.logprobs] == pytest.approx(f.sum, abs=1e-4)


@pytest.mark.parametrize("method", ["attention", "avg", "max", "prob_avg", "weighted_avg", "vote"])
def test_five_copies_are_one_and_their_order_is_none(demo, asked, method):
    questions, choices = asked
    alone = demo.loglikelihood([q[:1] for q in questions], choices, method=method)
    copies = demo.loglikelihood([q[:1] * 5 for q in questions], choices, method=method)
    for one, five in zip(alone, copies, strict=True):
        assert [sum(v) for v in five.logprobs] == pytest.approx(one.sum, abs=1e-4)
    if method == "vote":  # it gives the likelihoods of one paraphrase
        return
    found = demo.loglikelihood(questions, choices, method=method)
    turned = demo.loglikelihood([q[::-1] for q in questions], choices, method=method)
    for one, other in zip(found, turned, strict=True):
        same(other, one)


def test_settings_reach_the_method(demo, asked):
    questions, choices = asked

    def sums(**settings):
        return [f.sum for f in demo.loglikelihood(questions, choices, **settings)]

    plain = sums()
    for settings in (
        {"tau": DEFAULT_TAU["mean"] + 1},
        {"tau": 0.5, "weights_by": "entropy:1"},
        {"weights": (1, 0, 0)},
        {"fusion": "joint"},
        {"positions": "left"},
        {"layout": "concat"},
        {"prompt": Prompt("Say it.")},
    ):
        assert sums(**settings) != plain, settings
    origin = sums(method="origin")
    for found, expected in zip(sums(weights=(1, 0, 0)), origin, strict=True):
        assert found == pytest.approx(expected, abs=1e-4)
    second = [f.sum for f in demo.loglikelihood([q[1:2] for q in questions], choices)]
    weighted = sums(method="weighted_avg", weights=[(0, 1, 0)] * len(questions))
    for found, expected in zip(weighted, second, strict=True):
        assert found == pytest.approx(expected, abs=1e-4)


def test_a_weighted_method_weighs_by_the_probability_of_the_likeliest_choice(demo, asked):
    questions, choices = asked
    each = demo.loglikelihood(questions, choices, method="per_prompt")
    weights = [[0.0] * 3 for _ in questions]
    for f in each:
        highest = max(f.sum)
        weights[f.question][f.paraphrase] = 1 / sum(math.exp(v - highest) for v in f.sum)
    for method in ("weighted_avg", "weighted_max"):
        own = demo.loglikelihood(questions, choices, method=method)
        given = demo.loglikelihood(questions, choices, method=method, weights=weights)
        for found, expected in zip(own, given, strict=True):
            assert found.sum == pytest.approx(expected.sum, abs=1e-4)
    likelihoods = [Likelihood((-1.0, -1.0), (False, False)), Likelihood((-3.0,), (True,))]
    assert choice_confidence(likelihoods) == pytest.approx(1 / (1 + math.exp(-1)))
    impossible = [Likelihood((-math.inf,), (False,))] * 4
    assert choice_confidence(impossible) == 0.25


@pytest.mark.parametrize("norm", NORMS)
def test_a_vote_is_of_what_each_paraphrase_chooses_under_the_norm(demo, asked, norm):
    questions, choices = asked
    each = demo.loglikelihood(questions, choices, method="per_prompt")
    voted = demo.loglikelihood(questions, choices, method="vote", choice_norm=norm)
    for f in voted:
        own = [e for e in each if e.question == f.question]
        chosen = [e.best(norm) for e in own]
        expected = max(range(3), key=lambda k: (chosen.count(chosen[k]), -k))
        assert f.paraphrase == expected
        same(f, own[expected])


def test_choices_that_normalise_to_nothing_have_a_vote(demo, asked):
    """An A and a B: as SQuAD normalises answers, the first is an article."""
    questions, _ = asked
    choices = [["B", "A", "the"]] * len(questions)
    each = demo.loglikelihood(questions, choices, method="per_prompt")
    voted = demo.loglikelihood(questions, choices, method="vote")
    for f in voted:
        chosen = [e.best() for e in each if e.question == f.question]
        assert f.best() == max(
            chosen, key=lambda index: (chosen.count(index), -chosen.index(index))
        )


def test_a_vote_of_ones_own_is_told_the_choices_numbers(demo, asked):
    questions, choices = asked
    seen = []

    @VOTES.register("last")
    def last(predictions):
        seen.append(list(predictions))
        return len(predictions) - 1

    try:
        found = demo.loglikelihood(questions, choices, method="last")
    finally:
        VOTES.remove("last")
    assert all(f.paraphrase == 2 for f in found)
    assert {text for texts in seen for text in texts} <= {"0", "1", "2", "3"}


@pytest.mark.parametrize("method", ["attention", "avg", "weighted_avg", "vote", "per_prompt"])
def test_unlike_numbers_of_paraphrases(demo, asked, method):
    """As each question has them, together as alone."""
    questions, choices = asked
    questions = [q[: 1 + index % 3] for index, q in enumerate(questions)]

    def ask(questions, choices):
        asked = AskedChoices(
            engine=demo.engine,
            template=demo.prompt.template(demo.tokenizer),
            questions=questions,
            choices=choices,
            ask=asking_likelihood(demo.engine),
        )
        found = sorted(make_method(method).score(asked), key=lambda each: each.question)
        return [outcome.likelihoods for outcome in found]

    together = ask(questions, choices)
    for index, likelihoods in enumerate(together):
        [alone] = ask(questions[index : index + 1], choices[index : index + 1])
        assert len(alone) == len(likelihoods)
        for each, expected in zip(likelihoods, alone, strict=True):
            for one, other in zip(each, expected, strict=True):
                assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
                assert one.greedy == other.greedy


# ---- norms and ties -------------------------------------------------------------------------


def test_norms():
    """By the bytes of the choice as it is given: not by characters, as acc_norm has it elsewhere,
    and without the space before it."""
    logprobs, choice = (-1.0, -2.0, -3.0), "é的"
    assert normalized(logprobs, choice, "sum") == -6.0
    assert normalized(logprobs, choice, "mean") == -2.0
    assert normalized(logprobs, choice, "bytes") == -6.0 / 5
    with pytest.raises(UserError, match="unknown norm 'chars': there is sum, mean, bytes"):
        normalized(logprobs, choice, "chars")
    found = ChoiceLikelihoods((choice, "abc"), (logprobs, (-4.0,)), (False, True), 0)
    assert (found.sum, found.mean, found.bytes) == ((-6.0, -4.0), (-2.0, -4.0), (-1.2, -4 / 3))
    assert [found.best(norm) for norm in NORMS] == [1, 0, 0] and found.best() == 1
    with pytest.raises(UserError, match="unknown norm"):
        found.best("characters")


def test_ties_go_to_the_earlier_choice():
    assert choose([-2.0, -1.0, -1.0]) == 1 and is_tied([-2.0, -1.0, -1.0])
    assert choose([-1.0, -2.0]) == 0 and not is_tied([-1.0, -2.0, -2.0])
    assert choose([-math.inf, -math.inf]) == 0 and is_tied([-math.inf, -math.inf])


def test_equal_choices_tie(demo, asked):
    questions, _ = asked
    found = demo.loglikelihood(questions, [["Lima", "Paris", "Lima"]] * len(questions))
    for f in found:
        assert f.logprobs[0] == f.logprobs[2] and f.best() in (0, 1)
        assert is_tied(f.sum) == (f.sum[0] > f.sum[1])


# ---- what stands before a choice ------------------------------------------------------------


def test_the_separator_is_a_space_or_nothing(demo, asked):
    """A prompt that ends in a space, or a choice that begins with one, gets no second one."""
    prompts = [["Q: What is the capital of Peru?\nA:"], ["Q: What is the capital of Peru?\nA: "]]
    plain = Ensemble(demo.model, demo.tokenizer, prompt=WholePrompts())
    [bare], [spaced] = (
        plain.loglikelihood([prompt], [["Lima", " Lima", "Cusco"]]) for prompt in prompts
    )
    assert bare.logprobs[0] == bare.logprobs[1]
    assert spaced.logprobs[0] == pytest.approx(bare.logprobs[0], abs=1e-4)
    assert spaced.logprobs[2] == pytest.approx(bare.logprobs[2], abs=1e-4)
    assert spaced.logprobs[1] != pytest.approx(bare.logprobs[0], abs=1e-2)  # two spaces, as asked


def test_nothing_stands_behind_a_chat_template(demo, asked):
    questions, choices = asked
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}Q: {{ m.content }}{% endfor %}{{ '\nA:' }}"
    )
    chatting = Ensemble(demo.model, tokenizer, prompt=Prompt("Say.", chat_template=True))
    template = chatting.prompt.template(tokenizer)
    found = chatting.loglikelihood([q[:1] for q in questions[:3]], choices[:3])
    for paraphrases, own, each in zip(questions, choices, found, strict=False):
        for choice, values in zip(own, each.logprobs, strict=True):
            expected, _ = stock_likelihood(
                demo.model,
                tokenizer,
                template.render(paraphrases[0]),
                choice,
                add_special_tokens=False,
            )
            assert values == pytest.approx(expected, abs=1e-4)


def test_whole_prompts(small):
    ensemble = Ensemble(small.model, small.tokenizer, prompt=WholePrompts())
    prompts = [f"{text}\nA:" for text in ("Q: what capital city of is the", "Q: a word", "seven 7")]
    choices = [["word", "7 words", "L"]] * 3
    for copies in (1, 5):
        found = ensemble.loglikelihood([[p] * copies for p in prompts], choices)
        for prompt, own, each in zip(prompts, choices, found, strict=True):
            for choice, values in zip(own, each.logprobs, strict=True):
                expected, _ = stock_likelihood(small.model, small.tokenizer, prompt, f" {choice}")
                assert values == pytest.approx(expected, abs=1e-4)
    with pytest.raises(UserError, match="merges"):
        ensemble.loglikelihood([["Q: a word\nA:", "Q: a word"]], [["x"]])


# ---- mistakes -------------------------------------------------------------------------------

BAD = {
    "a text for choices": ([["a?"]], ["yes"], {}, "the choices of question 0 are a str"),
    "no choices": ([["a?"]], [[]], {}, "question 0 has no choice"),
    "an empty choice": ([["a?"], ["b?"]], [["a"], ["a", " "]], {}, "question 1 has no choice, or"),
    "no text": ([["a?"]], [["a", 7]], {}, "no text"),
    "too few": ([["a?"], ["b?"]], [["a"]], {}, "choices for 1 questions and 2 questions"),
    "a set of choices": ([["a?"]], [{"a", "b"}], {}, "are a set"),
    "no such norm": ([["a?"]], [["a"]], {"choice_norm": "chars"}, "unknown norm 'chars'"),
    "no such method": ([["a?"]], [["a"]], {"method": "mean"}, "unknown method"),
    "no such setting": ([["a?"]], [["a"]], {"method": "avg", "tau": 1.0}, "no setting 'tau'"),
    "no batch": ([["a?"]], [["a"]], {"batch_size": 0}, "batch_size"),
    "a long choice": ([["a?"]], [["word " * 5000]], {}, "positions"),
    "weights": ([["a?"]], [["a"]], {"weights": (1, 2)}, "2 weights for 1 paraphrases"),
    "no weights": ([["a?"]], [["a"]], {"method": "avg", "weights": [(1,)]}, "uses no weights"),
}


@pytest.mark.parametrize("name", BAD)
def test_mistakes_are_told_in_one_sentence(demo, name):
    questions, choices, settings, said = BAD[name]
    with pytest.raises(UserError) as caught:
        demo.loglikelihood(questions, choices, **settings)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_method_that_cannot_score_is_told(demo):
    class Mine:
        def answer(self, asked):
            return iter(())

    with pytest.raises(UserError, match="the method Mine cannot score choices"):
        demo.loglikelihood([["a?"]], [["a"]], method=Mine())


def test_no_questions_get_no_likelihoods(demo):
    for method in ("attention", "avg", "vote", "weighted_max"):
        assert demo.loglikelihood([], [], method=method) == []


def test_the_model_is_given_back(demo, asked):
    questions, choices = asked
    implementation = demo.model.config._attn_implementation
    demo.loglikelihood(questions[:1], choices[:1])
    assert demo.model.config._attn_implementation == implementation
