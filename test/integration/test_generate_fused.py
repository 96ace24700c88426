"""`model.generate` with the callable `generate_fused`: against the scripts, Ensemble and itself."""

import copy

import pytest
import torch
from small import INSTRUCTION, QUESTIONS, run_script
from tiny import tiny_model
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessorList,
    MaxLengthCriteria,
    MinLengthLogitsProcessor,
    StoppingCriteriaList,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import flex_attention_generate
import generate
from self_ensemble import (
    AttentionFusion,
    Ensemble,
    Prompt,
    UserError,
    WholePrompts,
    generate_fused,
)
from self_ensemble.data.result_files import read_results
from self_ensemble.integrations.generate import PLAIN_PROMPT
from self_ensemble.methods.prompt_by_prompt import PerPrompt

PROMPT = f"{INSTRUCTION}\n\nQ: {{paraphrase}}\nA:"
ASKED = [question["paraphrases"] for question in QUESTIONS]
LIMIT = 6


@pytest.fixture(scope="module", params=["llama", "gemma3", "gpt2"])
def other(request, small, tmp_path_factory):
    """(model, tokenizer, its folder) of an architecture."""
    folder = tmp_path_factory.mktemp(request.param) / "model"
    model = tiny_model(request.param, vocab_size=len(small.tokenizer))
    model.save_pretrained(folder)
    small.tokenizer.save_pretrained(folder)
    return model, small.tokenizer, folder


def fused(small, paraphrases=ASKED, inputs=None, **arguments):
    asked = {"prompt": PROMPT, "max_new_tokens": LIMIT} | arguments
    return small.model.generate(
        inputs,
        custom_generate=generate_fused,
        processing_class=small.tokenizer,
        paraphrases=paraphrases,
        **asked,
    )


def answers_in(rows, tokenizer, *, begin=1):
    """Each row's tokens behind the inputs, without padding (the small model pads with <eos>)."""
    return [tuple(t for t in row[begin:] if t != tokenizer.eos_token_id) for row in rows.tolist()]


def expected(small, asked=ASKED, **arguments):
    ensemble = Ensemble(small.model, small.tokenizer, prompt=Prompt(INSTRUCTION))
    return ensemble.generate(asked, **{"max_new_tokens": LIMIT} | arguments)


def token_ids(answers):
    return [answer.token_ids for answer in answers]


def state_of(model):
    """All of a model, and of what it stands in, that a call could leave changed."""
    modules = {name: set(vars(module)) for name, module in model.named_modules()}
    hooks = {
        name: [len(v) for k, v in vars(module).items() if "hooks" in k and v is not None]
        for name, module in model.named_modules()
    }
    tensors = {**model.state_dict(), **dict(model.named_buffers())}
    return (
        modules,
        hooks,
        {name: module.training for name, module in model.named_modules()},
        {name: (tensor.clone(), tensor.is_inference()) for name, tensor in tensors.items()},
        copy.deepcopy(model.config.to_dict()),
        model.config._attn_implementation,
        model.generation_config.to_dict(),
        set(ALL_ATTENTION_FUNCTIONS),
        torch.get_rng_state().tolist(),
    )


def assert_same(before, after):
    tensors, others = before[3], after[3]
    assert tensors.keys() == others.keys()
    for name, (tensor, inference) in tensors.items():
        assert torch.equal(tensor, others[name][0]) and inference == others[name][1], name
    assert before[:3] + before[4:] == after[:3] + after[4:]


# ---- the answers --------------------------------------------------------------------------------


def test_it_equals_the_script_token_for_token(other, small, tmp_path):
    model, tokenizer, folder = other
    where = ("--dataset", small.questions, "--model", folder, "--output_dir", tmp_path)
    flags = ("--instruction", INSTRUCTION, "--num_paraphrases", 4, "--max_new_tokens", LIMIT)
    assert run_script(flex_attention_generate, *where, *flags) == 0
    [file] = tmp_path.glob("capitals/model/*.feather")
    script = read_results(file)

    before = state_of(model)
    this = type(small)(folder, small.questions, model, tokenizer)
    found = fused(this, return_dict_in_generate=True)
    assert_same(before, state_of(model))

    assert list(found.generations) == script["generation"].tolist()
    assert found.logprobs.tolist() == pytest.approx(script["logprob"].tolist(), abs=1e-4)
    assert found.truncated.tolist() == script["truncated"].tolist()
    assert answers_in(found.sequences, tokenizer) == token_ids(expected(this))


def test_logit_methods_equal_their_script(small, tmp_path):
    where = ("--dataset", small.questions, "--model", small.folder, "--output_dir", tmp_path)
    flags = ("--instruction", INSTRUCTION, "--num_paraphrases", 4, "--max_new_tokens", LIMIT)
    assert run_script(generate, "--method", "avg", *where, *flags) == 0
    [file] = tmp_path.glob("capitals/*/avg-4.feather")
    found = fused(small, method="avg", return_dict_in_generate=True)
    assert list(found.generations) == read_results(file)["generation"].tolist()


@pytest.mark.parametrize(
    "settings",
    [
        {"tau": 0.0},
        {"tau": 3.0, "positions": "left"},
        {"fusion": "joint", "positions": "sequential"},
        {"weights": [0, 0, 1, 0]},
        {"weights_by": "entropy:2"},
        {"layout": "concat", "positions": "left"},
        {"method": "max"},
        {"method": "weighted_avg"},
        {"method": "vote"},
        {"method": "self_consistency", "samples": 1},
    ],
    ids=lambda settings: " ".join(map(str, settings.values())),
)
def test_dials_are_those_of_ensemble(small, settings):
    found = answers_in(fused(small, **settings), small.tokenizer)
    assert found == token_ids(expected(small, **settings))
    assert found != token_ids(expected(small)), "the dial turns nothing"


def test_a_method_object(small):
    found = answers_in(fused(small, method=AttentionFusion(tau=0.0)), small.tokenizer)
    assert found == token_ids(expected(small, tau=0.0))


def test_one_wording_alone_is_what_generate_gives(small):
    """A stock `generate` of the prompt, to its end of sequence."""
    for paraphrase in (texts[0] for texts in ASKED):
        prompt = small.tokenizer(PROMPT.format(paraphrase=paraphrase), return_tensors="pt")
        inputs = prompt.input_ids
        stock = small.model.generate(
            inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=LIMIT, do_sample=False
        )
        found = fused(small, [[paraphrase]], inputs, stop_strings=[])
        width = inputs.shape[1]
        assert found[0, :width].equal(inputs[0])
        assert answers_in(found, small.tokenizer, begin=width) == answers_in(
            stock, small.tokenizer, begin=width
        )


def test_the_plain_prompt_is_that_of_the_scripts(small):
    found = fused(small, prompt=PLAIN_PROMPT)
    answers = expected(small, prompt=Prompt())
    assert answers_in(found, small.tokenizer) == token_ids(answers)
    assert answers_in(fused(small, prompt=Prompt()), small.tokenizer) == token_ids(answers)


def test_a_prompt_with_its_own_bos_gets_no_second(small):
    found = fused(small, prompt=f"<bos>{PROMPT}")
    assert answers_in(found, small.tokenizer) == token_ids(expected(small))
    whole = [[PROMPT.format(paraphrase=text) for text in texts] for texts in ASKED]
    answers = token_ids(expected(small, whole, prompt=WholePrompts()))
    assert answers_in(fused(small, whole, prompt="{paraphrase}"), small.tokenizer) == answers
    with_bos = [["<bos>" + text for text in texts] for texts in whole]
    assert answers_in(fused(small, with_bos, prompt="{paraphrase}"), small.tokenizer) == answers
    with pytest.raises(UserError, match="some of the prompts begin with '<bos>'"):
        fused(small, [whole[0], with_bos[1]], prompt="{paraphrase}")


def test_a_prompt_without_bos_where_that_is_said(small):
    """As `apply_chat_template` tokenises a template that has none."""
    whole = [[PROMPT.format(paraphrase=text) for text in texts] for texts in ASKED]
    answers = token_ids(expected(small, whole, prompt=WholePrompts(add_special_tokens=False)))
    assert answers != token_ids(expected(small, whole, prompt=WholePrompts()))
    for asked, prompt in ((whole, "{paraphrase}"), (ASKED, PROMPT)):
        found = fused(small, asked, prompt=prompt, add_special_tokens=False)
        assert answers_in(found, small.tokenizer) == answers
    with pytest.raises(UserError, match="says it itself"):
        fused(small, prompt=Prompt(), add_special_tokens=False)


@pytest.mark.parametrize("stops", ["a", ["e", "an"], ["\n"], []])
def test_stop_strings(small, stops):
    found = fused(small, stop_strings=stops, max_new_tokens=12, return_dict_in_generate=True)
    listed = [stops] if isinstance(stops, str) else stops
    answers = expected(small, stop=listed, max_new_tokens=12)
    assert list(found.generations) == [answer.generation for answer in answers]
    assert answers_in(found.sequences, small.tokenizer) == token_ids(answers)
    assert not any(stop in text for stop in listed for text in found.generations)


def test_draws_depend_on_torchs_seed_or_on_one_given(small):
    def drawn(**arguments):
        return fused(small, do_sample=True, top_k=0, temperature=1.5, **arguments)

    torch.manual_seed(3)
    first = drawn()
    second = drawn()
    torch.manual_seed(3)
    assert drawn().equal(first) and not second.equal(first)
    answers = expected(small, temperature=1.5, top_p=0.8, sample_seed=5)
    assert answers_in(drawn(top_p=0.8, sample_seed=5), small.tokenizer) == token_ids(answers)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_callers_number_format(small, dtype):
    model = copy.deepcopy(small.model).to(dtype).train()
    before = state_of(model)
    this = type(small)(small.folder, small.questions, model, small.tokenizer)
    found = answers_in(fused(this, batch_size=2), small.tokenizer)
    assert_same(before, state_of(model))
    assert found == token_ids(expected(this, batch_size=2))


def test_under_autocast_questions_of_unlike_counts(small):
    """Its attention gives bfloat16 for float32 queries."""
    asked = [ASKED[0][:2], ASKED[1][:3]]
    assert [len(texts) for texts in asked] == [2, 3]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        together = fused(small, asked)
        alone = [fused(small, [texts]) for texts in asked]
    own = [answer for rows in alone for answer in answers_in(rows, small.tokenizer)]
    assert answers_in(together, small.tokenizer) == own


# ---- the rows -----------------------------------------------------------------------------------


def test_rows_are_inputs_answers_and_padding(small):
    answers = token_ids(expected(small))
    longest = max(map(len, answers))
    assert len({len(answer) for answer in answers}) > 1
    found = fused(small, pad_token_id=7)
    assert found.dtype == torch.long and found.shape == (len(ASKED), 1 + longest)
    for row, answer in zip(found.tolist(), answers, strict=True):
        assert row == [small.tokenizer.bos_token_id, *answer, *[7] * (longest - len(answer))]
    inputs = torch.arange(3 * len(ASKED)).reshape(-1, 3) + 2
    given = fused(small, inputs=inputs, attention_mask=torch.ones_like(inputs))
    assert given[:, :3].equal(inputs)
    assert answers_in(given, small.tokenizer, begin=3) == answers


def test_a_flat_list_is_one_question(small):
    assert fused(small, ASKED[0]).equal(fused(small, ASKED[:1]))


def test_all_at_once_is_one_by_one(small):
    found = answers_in(fused(small, batch_size=3), small.tokenizer)
    for paraphrases, answer in zip(ASKED, found, strict=True):
        assert answers_in(fused(small, [paraphrases]), small.tokenizer) == [answer]


# ---- what is refused ----------------------------------------------------------------------------

ARGUMENTS = {
    "num_beams": 2,
    "repetition_penalty": 1.2,
    "no_repeat_ngram_size": 2,
    "bad_words_ids": [[3]],
    "sequence_bias": {(3,): 1.0},
    "suppress_tokens": [3],
    "forced_eos_token_id": 1,
    "exponential_decay_length_penalty": (2, 1.1),
    "renormalize_logits": True,
    "guidance_scale": 2.0,
    "min_new_tokens": 2,
    "max_time": 3.0,
    "prompt_lookup_num_tokens": 3,
    "cache_implementation": "static",
    "output_scores": True,
    "output_attentions": True,
    "eos_token_id": 5,
    "logits_processor": LogitsProcessorList([MinLengthLogitsProcessor(3, 1)]),
    "stopping_criteria": StoppingCriteriaList([MaxLengthCriteria(3)]),
    "prefix_allowed_tokens_fn": lambda batch, ids: [1],
    "inputs_embeds": torch.zeros(len(ASKED), 3, 32),
    "max_new_token": 3,
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_what_is_not_supported_is_refused_by_name(small, name):
    with pytest.raises((UserError, ValueError), match=name) as error:
        fused(small, **{name: ARGUMENTS[name]})
    assert isinstance(error.value, UserError) or name == "max_new_token"  # transformers' own
    assert "\n" not in str(error.value) or name == "max_new_token"


@pytest.mark.parametrize("name, value", [("top_k", 50), ("min_p", 0.1), ("typical_p", 0.5)])
def test_what_draws_otherwise_is_refused_by_name(small, name, value):
    with pytest.raises(UserError, match=f"{name}={value}"):
        fused(small, do_sample=True, **{"top_k": 0} | {name: value})
    fused(small, **{name: value})  # nothing is drawn: generate leaves it aside too


def test_the_models_own_generation_config_counts(small):
    """Qwen's has a repetition penalty; others have entries of their own, which mean nothing."""
    model = copy.deepcopy(small.model)
    this = type(small)(small.folder, small.questions, model, small.tokenizer)
    model.generation_config = GenerationConfig(
        bos_token_id=0, eos_token_id=1, pad_token_id=1, repetition_penalty=1.1, own_entry="x"
    )
    with pytest.raises(UserError, match=r"repetition_penalty=1\.1: give repetition_penalty=1\.0"):
        fused(this)
    assert fused(this, repetition_penalty=1.0).equal(fused(small))
    given = GenerationConfig(max_new_tokens=2, repetition_penalty=1.0)
    found = this.model.generate(
        generation_config=given,
        custom_generate=generate_fused,
        processing_class=small.tokenizer,
        paraphrases=ASKED,
        prompt=PROMPT,
    )
    assert found.shape == (len(ASKED), 3)


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ({"paraphrases": None}, "give the wordings of each question"),
        ({"paraphrases": []}, "paraphrases is empty"),
        ({"paraphrases": [["a", ""]]}, "question 0 has no paraphrase, or one that is empty"),
        ({"paraphrases": [["a"], "b"]}, "question 1 is a text"),
        ({"paraphrases": "a"}, "question 0 is a text"),
        ({"inputs": torch.tensor([[2, 3]])}, "the inputs have 1 rows and there are 7 questions"),
        ({"prompt": "Q:"}, "must hold {paraphrase} once"),
        ({"method": "per_prompt"}, "use Ensemble.generate"),
        ({"method": PerPrompt(), "paraphrases": ASKED[:1]}, "use Ensemble.generate"),
        ({"method": AttentionFusion(), "tau": 1.0}, "a method object has its settings already"),
        ({"attention": "fast"}, "'fast' is none of auto, flex, sdpa, eager"),
        ({"method": "avg", "tau": 1.0}, "the method avg has no setting 'tau'"),
        ({"method": "average"}, "unknown method 'average'"),
        ({"weights": [1, 2]}, "2 weights for 4 paraphrases"),
        ({"sample_seed": 1}, "without do_sample=True nothing is drawn"),
        ({"stop_strings": [""]}, "is not a text of at least one character"),
        ({"stop_strings": 3}, "is no list of texts"),
        ({"batch_size": 0}, "batch_size: 0 is not a whole number above 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ",
)
def test_mistakes_are_told(small, arguments, sentence):
    with pytest.raises(UserError) as error:
        fused(small, **arguments)
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_a_tokenizer_is_asked_for_by_its_other_name(small):
    """transformers keeps an argument `tokenizer` from callables."""
    with pytest.raises(UserError, match="give the tokenizer as processing_class="):
        small.model.generate(
            custom_generate=generate_fused, tokenizer=small.tokenizer, paraphrases=ASKED
        )


def test_a_filled_cache_is_refused(small):
    cache = DynamicCache()
    small.model(torch.tensor([[2, 3]]), past_key_values=cache, use_cache=True)
    with pytest.raises(UserError, match="past_key_values"):
        fused(small, past_key_values=cache)


def test_the_model_is_given_back_after_a_mistake_too(small):
    before = state_of(small.model)
    with pytest.raises(UserError, match="more than the model's 600"):
        fused(small, [["word " * 700, "x"]])
    assert_same(before, state_of(small.model))
