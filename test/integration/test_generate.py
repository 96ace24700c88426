"""Logit-level fusion: each reduction by hand, each method against stock forwards."""

import math
import random

import pytest
import torch
from small import INSTRUCTION, MARK, QUESTIONS, entropy_weights, stock_answer, write_jsonl

import generate
from self_ensemble.data import prompt_template
from self_ensemble.data.result_files import read_manifest, read_results
from self_ensemble.generation.attaching import make_engine
from self_ensemble.generation.config import GenerationConfig
from self_ensemble.generation.decode import Answer
from self_ensemble.methods import logit_fusion as reductions
from self_ensemble.methods.base import Asked
from self_ensemble.methods.logit_fusion import LOGIT_METHODS, register_logit_method
from self_ensemble.methods.names import prompt_by_prompt_names
from self_ensemble.methods.prompt_by_prompt import LogitFusion
from self_ensemble.methods.votes import majority
from self_ensemble.system.errors import UserError

LIMIT = 6
TEMPLATE = prompt_template(INSTRUCTION, [])


def rows_of(small, folder, *args):
    """The result of generate.py on the small questions, as a list of dicts."""
    given = {
        "--dataset": small.questions,
        "--model": small.folder,
        "--output_dir": folder,
        "--num_paraphrases": 4,
        "--instruction": INSTRUCTION,
        "--max_new_tokens": LIMIT,
        "--batch_size": 3,
    }
    given |= dict(zip(args[::2], args[1::2], strict=True))
    if given.get("--method") == "origin" or "--indexs" in given:
        del given["--num_paraphrases"]
    argv = [str(part) for pair in given.items() for part in pair]
    stem = generate.main(generate.parse_args(argv))
    return read_results(f"{stem}.feather").to_dict("records"), read_manifest(stem)


REDUCTIONS = {name: LOGIT_METHODS.get(name).reduce for name in LOGIT_METHODS}
WEIGHTED = [name for name in LOGIT_METHODS if LOGIT_METHODS.get(name).weighted]

# ---- reductions -----------------------------------------------------------------------------

# Two paraphrases, three tokens: probabilities 1/2 1/4 1/4 and 1/8 3/4 1/8, as logits of any level.
LOGITS = torch.tensor([[[1 / 2, 1 / 4, 1 / 4], [1 / 8, 3 / 4, 1 / 8]]]).log() + torch.tensor(
    [[[5.0], [-2.0]]]
)
WEIGHTS = torch.tensor([[3.0, 1.0]])
# Worked out on paper; up to a common factor.
BY_HAND = {
    # square root of the product: 1/16, 3/16, 1/32
    "avg": [math.sqrt(2), math.sqrt(6), 1],
    "max": [2, 3, 1],
    # half the sum: 5/8, 1, 3/8
    "prob_avg": [5, 8, 3],
    # first^(3/4) * second^(1/4)
    "weighted_avg": [2 ** (-3 / 4) * 8 ** (-1 / 4), 4 ** (-3 / 4) * 0.75**0.25, 2 ** (-9 / 4)],
    # three quarters of the first and a quarter of the second: 3/8 + 1/32, ...
    "weighted_prob_avg": [13, 12, 7],
    "weighted_max": [2, 1, 1],
}


def test_every_method_is_named_once():
    assert REDUCTIONS.keys() == BY_HAND.keys()
    assert set(WEIGHTED) < set(REDUCTIONS)
    assert sorted(prompt_by_prompt_names()) == sorted(
        ["origin", "per_prompt", "self_consistency", "vote", *BY_HAND]
    )


@pytest.mark.parametrize("method", BY_HAND)
def test_reduction_by_hand(method):
    fused = REDUCTIONS[method](LOGITS, WEIGHTS).softmax(-1)
    expected = torch.tensor([BY_HAND[method]])
    torch.testing.assert_close(fused, expected / expected.sum())


def plain(method, logprobs, weights):
    """Log-probabilities [N][V], weights [N] → probabilities [V] up to a factor, one by one."""
    N, V = len(logprobs), len(logprobs[0])
    share = [u / sum(weights) for u in weights]
    surest = max(range(N), key=lambda i: (weights[i], -i))
    column = lambda v: [logprobs[i][v] for i in range(N)]  # noqa: E731
    one = {
        "avg": lambda v: math.exp(sum(column(v)) / N),
        "max": lambda v: math.exp(max(column(v))),
        "prob_avg": lambda v: sum(map(math.exp, column(v))) / N,
        "weighted_avg": lambda v: math.exp(
            sum(u * x for u, x in zip(share, column(v), strict=True))
        ),
        "weighted_prob_avg": lambda v: sum(
            u * math.exp(x) for u, x in zip(share, column(v), strict=True)
        ),
        "weighted_max": lambda v: math.exp(logprobs[surest][v]),
    }[method]
    return [one(v) for v in range(V)]


@pytest.mark.parametrize("method", BY_HAND)
def test_reduction_against_plain_arithmetic(method):
    torch.manual_seed(0)
    B, N, V = 5, 4, 11
    logits = 4 * torch.randn(B, N, V)
    weights = torch.rand(B, N)
    weights[0, 1:] = 0  # one paraphrase is all
    weights[1] = 0.5  # all alike
    got = REDUCTIONS[method](logits, weights)
    assert got.shape == (B, V)
    for b in range(B):
        logprobs = logits[b].double().log_softmax(-1).tolist()
        expected = torch.tensor(plain(method, logprobs, weights[b].tolist()))
        torch.testing.assert_close(
            got[b].softmax(-1), expected / expected.sum(), rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize("method", BY_HAND)
def test_reduction_ignores_a_paraphrases_level_and_the_order(method):
    torch.manual_seed(1)
    logits, weights = torch.randn(3, 4, 7), torch.rand(3, 4) + 0.1
    order = torch.tensor([2, 0, 3, 1])
    reduce = REDUCTIONS[method]
    distribution = reduce(logits, weights).softmax(-1)
    shifted = reduce(logits + torch.randn(3, 4, 1), weights).softmax(-1)
    permuted = reduce(logits[:, order], weights[:, order]).softmax(-1)
    torch.testing.assert_close(shifted, distribution)
    torch.testing.assert_close(permuted, distribution)


def test_most_confident_takes_the_earlier_of_two():
    logits = torch.arange(8.0).view(1, 4, 2)
    fused = reductions.most_confident(logits, torch.tensor([[0.2, 0.7, 0.7, 0.1]]))
    assert fused.tolist() == [[2.0, 3.0]]


def test_fused_distribution_stays_finite_where_a_token_is_impossible():
    logits = torch.tensor([[[0.0, -200.0, 1.0], [0.0, 1.0, -300.0]]])
    for reduce in REDUCTIONS.values():
        assert reduce(logits, torch.tensor([[0.0, 1.0]])).log_softmax(-1).isfinite().all()


# ---- confidence and vote --------------------------------------------------------------------


def an_answer(*logprobs):
    return Answer(tuple(range(len(logprobs))), logprobs, False)


@pytest.mark.parametrize(
    "logprobs, expected",
    [
        ((), 0.0),
        ((0.0,), 1.0),
        ((math.log(0.5),), 0.5),
        ((math.log(0.5), math.log(0.125)), 0.25),
        ((-1000.0,) * 3, 0.0),
    ],
)
def test_confidence(logprobs, expected):
    assert reductions.confidence(an_answer(*logprobs)) == pytest.approx(expected)


def test_own_confidences_are_equal_where_no_paraphrase_answers(small):
    """Of two questions the first gets no answer at all."""
    each = [an_answer(), an_answer(), an_answer(), an_answer(math.log(0.5))]
    asked = []

    def ask(name, request, *, batch_size, unit="questions"):
        asked.append(request)
        yield list(enumerate(each if unit == "prompts" else each[:2]))

    engine = make_engine(small.model, small.tokenizer)
    questions = [question["paraphrases"][:2] for question in QUESTIONS[:2]]
    given = Asked(
        engine=engine,
        template=TEMPLATE,
        questions=questions,
        uuids=["a", "b"],
        ask=ask,
        config=GenerationConfig(),
    )
    assert len(list(LogitFusion("weighted_avg").answer(given))) == 2
    assert asked[-1].weights.tolist() == [[1.0, 1.0], [0.0, 0.5]]


# ---- methods against stock forwards ---------------------------------------------------------

FUSE = {
    "avg": lambda x, w: x.mean(0),
    "max": lambda x, w: x.max(0).values,
    "prob_avg": lambda x, w: x.exp().mean(0).log(),
    "weighted_avg": lambda x, w: (x * (w / w.sum())[:, None]).sum(0),
    "weighted_prob_avg": lambda x, w: (x.exp() * (w / w.sum())[:, None]).sum(0).log(),
    "weighted_max": lambda x, w: x[int((w == w.max()).nonzero()[0])],
}


def fuse_by(method, weights=(1.0,)):
    w = torch.tensor(weights).double()
    return lambda x: FUSE[method](x, w)


def prompts_of(question):
    return [TEMPLATE.render(paraphrase) for paraphrase in question["paraphrases"]]


@pytest.fixture(scope="module")
def alone(small):
    """Each paraphrase's own stock answer, [questions][N]."""
    return [
        [stock_answer(small, [p], lambda x: x[0], limit=LIMIT) for p in prompts_of(question)]
        for question in QUESTIONS
    ]


def test_small_answers_end_in_every_way(small, alone):
    """The oracle is worth something: answers differ, and stop or not for every reason."""
    answers = [answer for group in alone for answer in group]
    assert len({answer.text for answer in answers}) > len(answers) / 2
    stopped = [answer for answer in answers if not answer.truncated]
    assert 0 < len(stopped) < len(answers)
    at_newline = [answer for answer in stopped if "\n" in answer.text.lstrip()]
    assert 0 < len(at_newline) < len(stopped)
    with_text = [a for a in at_newline if len(a.logprobs) == len(a.token_ids)]
    assert 0 < len(with_text) < len(at_newline)
    assert any(answer.text == "" for answer in answers)
    mark = small.tokenizer.convert_tokens_to_ids(MARK)
    assert any(mark in answer.token_ids for answer in answers)
    assert len({len(answer.token_ids) for answer in answers}) >= 5


def check_row(row, stock):
    assert row["prediction"] == stock.prediction
    assert row["generation"] == stock.text
    assert row["truncated"] == stock.truncated
    assert row["logprob"] == pytest.approx(sum(stock.logprobs), abs=1e-3)


def stock_confidences(alone):
    of = lambda a: math.exp(sum(a.logprobs) / len(a.logprobs)) if a.logprobs else 0.0  # noqa: E731
    return [[of(answer) for answer in group] for group in alone]


@pytest.mark.parametrize("method", FUSE)
def test_fused_method_against_stock_forwards(small, alone, tmp_path, method):
    rows, manifest = rows_of(small, tmp_path, "--method", method)
    for row, question, own in zip(rows, QUESTIONS, stock_confidences(alone), strict=True):
        prompts = prompts_of(question)
        check_row(row, stock_answer(small, prompts, fuse_by(method, own), limit=LIMIT))
    weighted = method in WEIGHTED
    assert manifest["identity"]["method"].get("confidence") == ("own answer" if weighted else None)
    # The paraphrases' own answers cost a pass over every prompt, which the manifest counts.
    alone_tokens = sum(len(a.token_ids) + (not a.truncated) for group in alone for a in group)
    assert (manifest["counts"]["decoded_tokens"] > alone_tokens) == weighted


@pytest.mark.parametrize("number", [4, 1])
@pytest.mark.parametrize("method", WEIGHTED)
def test_weights_by_entropy_against_stock_forwards(small, alone, tmp_path, method, number):
    """Of each paraphrase's first token, which costs no row more."""
    argv = ("--method", method, "--num_paraphrases", number)
    rows, manifest = rows_of(small, tmp_path, *argv, "--weights_by", "entropy:3.0")
    for row, question in zip(rows, QUESTIONS, strict=True):
        prompts = prompts_of(question)[:number]
        weights = entropy_weights(small, prompts, 3).tolist()
        check_row(row, stock_answer(small, prompts, fuse_by(method, weights), limit=LIMIT))
    settings = {"name": method, "weights_by": "entropy:3"}
    assert manifest["identity"]["method"] == settings
    counts = manifest["counts"]
    assert counts["decode_rows"] <= number * (counts["decoded_tokens"] + len(rows))


def test_per_prompt_against_stock_forwards(small, alone, tmp_path):
    rows, _ = rows_of(small, tmp_path, "--method", "per_prompt")
    expected = [
        (question, paraphrase, stock)
        for question, group in zip(QUESTIONS, alone, strict=True)
        for paraphrase, stock in zip(question["paraphrases"], group, strict=True)
    ]
    for row, (question, paraphrase, stock) in zip(rows, expected, strict=True):
        assert (row["uuid"], row["paraphrase"]) == (question["uuid"], paraphrase)
        assert row["paraphrases"] == question["paraphrases"]
        check_row(row, stock)


def test_vote_takes_a_paraphrases_own_row(small, alone, tmp_path):
    rows, _ = rows_of(small, tmp_path, "--method", "vote")
    for row, question, group in zip(rows, QUESTIONS, alone, strict=True):
        assert row["uuid"] == question["uuid"] and "paraphrase" not in row
        check_row(row, group[majority([answer.prediction for answer in group])])


def test_origin_asks_the_question(small, tmp_path):
    rows, _ = rows_of(small, tmp_path, "--method", "origin")
    for row, question in zip(rows, QUESTIONS, strict=True):
        assert row["paraphrases"] == [question["question"]]
        prompt = TEMPLATE.render(question["question"])
        check_row(row, stock_answer(small, [prompt], lambda x: x[0], limit=LIMIT))


def test_origin_without_a_question_asks_the_first_paraphrase(small, alone, tmp_path):
    own = [{k: v for k, v in row.items() if k != "question"} for row in QUESTIONS]
    file = write_jsonl(tmp_path / "own.jsonl", own)
    rows, _ = rows_of(small, tmp_path, "--method", "origin", "--dataset", file)
    for row, question, group in zip(rows, QUESTIONS, alone, strict=True):
        assert row["paraphrases"] == question["paraphrases"][:1]
        check_row(row, group[0])


def test_ties_go_to_the_lowest_id(small, tmp_path):
    """Logits that are equal for two tokens, whatever else they are."""
    low, high = small.tokenizer.convert_tokens_to_ids(["a", "s"])
    assert low < high

    @register_logit_method("tied")
    def tied(logits, weights):
        scores = logits.mean(1) - 1000
        scores[:, [low, high]] = 7.0
        return scores

    try:
        rows, _ = rows_of(small, tmp_path, "--method", "tied")
    finally:
        LOGIT_METHODS.remove("tied")
    assert {row["generation"] for row in rows} == {"a" * LIMIT}


def test_what_a_question_gets_does_not_depend_on_its_batch(small, tmp_path):
    for method in ("avg", "weighted_max", "per_prompt"):
        found = [
            rows_of(small, tmp_path / size, "--method", method, "--batch_size", size)[0]
            for size in ("1", "2", "auto")
        ]
        generations = [[row["generation"] for row in rows] for rows in found]
        assert generations[0] == generations[1] == generations[2]


# ---- a column of confidences ----------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet", ".feather"])
@pytest.mark.parametrize("method", WEIGHTED)
def test_confidence_column(small, tmp_path, method, suffix):
    from writing import write

    file = write(tmp_path / f"own{suffix}", QUESTIONS)
    rows, _ = rows_of(
        small, tmp_path, "--method", method, "--dataset", file, "--confidence", "trust"
    )
    for row, question in zip(rows, QUESTIONS, strict=True):
        fuse = fuse_by(method, question["trust"])
        check_row(row, stock_answer(small, prompts_of(question), fuse, limit=LIMIT))


def test_confidence_column_goes_with_indexs_and_max_samples(small, tmp_path):
    rows, manifest = rows_of(
        small,
        tmp_path,
        *("--method", "weighted_avg", "--confidence", "trust", "--indexs", "3,1"),
        *("--max_samples", "4"),
    )
    assert manifest["num_questions"] == len(rows) == 4
    for row, question in zip(rows, QUESTIONS, strict=False):
        prompts = [prompts_of(question)[i] for i in (3, 1)]
        fuse = fuse_by("weighted_avg", [question["trust"][i] for i in (3, 1)])
        check_row(row, stock_answer(small, prompts, fuse, limit=LIMIT))


def test_only_the_ratios_of_confidences_count(small, tmp_path):
    found = []
    for name, factor in [("one", 1), ("huge", 1e300), ("tiny", 1e-300)]:
        rows = [row | {"trust": [u * factor for u in row["trust"]]} for row in QUESTIONS]
        file = write_jsonl(tmp_path / f"{name}.jsonl", rows)
        args = ("--method", "weighted_avg", "--dataset", file, "--confidence", "trust")
        found.append([row["generation"] for row in rows_of(small, tmp_path, *args)[0]])
    assert found[0] == found[1] == found[2]


def test_changed_confidences_are_another_run(small, tmp_path):
    args = ("--method", "weighted_avg", "--confidence", "trust")
    file = write_jsonl(tmp_path / "own.jsonl", QUESTIONS)
    rows_of(small, tmp_path, *args, "--dataset", file)
    changed = [row | {"trust": random.Random(0).sample(row["trust"], 4)} for row in QUESTIONS]
    write_jsonl(file, changed)
    with pytest.raises(UserError, match="another run: method"):
        rows_of(small, tmp_path, *args, "--dataset", file)


@pytest.mark.parametrize(
    "cell, named",
    [
        ([0.5, 1, 1], ["no list of 4 or more numbers", "[0.5, 1, 1]"]),
        ("0.5", ["no list of 4", "0.5"]),
        ("[1, 2", ["no list of 4", "[1, 2"]),
        (0.5, ["no list of 4", "0.5"]),
        (None, ["no list of 4", "None"]),
        ([1, 1, -0.5, 1], ["0 or more", "-0.5"]),
        ([0, 0, 0, 0, 1], ["not all 0", "[0, 0, 0, 0]"]),
        ([1, 1, "much", 1], ["0 or more", "much"]),
        ([1, 1, None, 1], ["0 or more", "None"]),
        ([1, 1, math.nan, 1], ["0 or more", "nan"]),
        ([1, 1, math.inf, 1], ["0 or more", "inf"]),
    ],
)
def test_unusable_confidences(small, tmp_path, cell, named):
    rows = [dict(row) for row in QUESTIONS]
    rows[2]["trust"] = cell
    file = write_jsonl(tmp_path / "own.jsonl", rows)
    with pytest.raises(UserError, match=r"--confidence: trust of question u2 ") as caught:
        rows_of(
            small, tmp_path, "--method", "weighted_avg", "--dataset", file, "--confidence", "trust"
        )
    for part in named:
        assert part in str(caught.value), str(caught.value)
    assert [path.name for path in tmp_path.rglob("*")] == ["own.jsonl"]
