"""`model.generate` of transformers, asked in several wordings and fused.

    answers = model.generate(
        custom_generate=generate_fused,
        processing_class=tokenizer,
        paraphrases=[["What is the capital of France?", "France's capital is which city?"]],
    )
    tokenizer.batch_decode(answers, skip_special_tokens=True)

`generate_fused` is handed to `generate` as a callable. `generate` here is the same for a folder or
a repository that transformers loads by itself, see `custom_generate.write_folder`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.utils.generic import ModelOutput

from self_ensemble.data.names import DEFAULT_INSTRUCTION
from self_ensemble.data.templates import PromptTemplate, WholePrompts, prompt_template
from self_ensemble.generation.attaching import make_engine
from self_ensemble.generation.config import GenerationConfig, SamplingConfig
from self_ensemble.generation.decode import Answer, answer_text
from self_ensemble.methods.base import Asked, Method, Template, asking
from self_ensemble.methods.names import make_method
from self_ensemble.methods.questions import checked_questions, own_uuids
from self_ensemble.models.config import ModelConfig
from self_ensemble.system.errors import UserError

GAP = "{paraphrase}"
# The scripts' own, without few-shot demonstrations.
PLAIN_PROMPT = prompt_template(DEFAULT_INSTRUCTION, ()).render(GAP)

# Arguments of `generate` that change the answer, or what is returned, and that nothing here does;
# each with the value that asks for nothing, where that is not false. Others are refused as logits
# processors or stopping criteria, which is what they become.
UNSUPPORTED: dict[str, Any] = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "guidance_scale": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "diversity_penalty": 0.0,
    "penalty_alpha": 0.0,
    "min_new_tokens": 0,
    "min_length": 0,  # generate sets it where the former is given
    "max_time": None,
    "bad_words_ids": None,
    "force_words_ids": None,
    "constraints": None,
    "sequence_bias": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "exponential_decay_length_penalty": None,
    "watermarking_config": None,
    "renormalize_logits": False,
    "remove_invalid_values": False,
    "token_healing": False,
    "dola_layers": None,
    "prompt_lookup_num_tokens": None,
    "assistant_early_exit": None,
    "use_mtp": False,
    "cache_implementation": None,
    "output_attentions": False,
    "output_hidden_states": False,
    "output_scores": False,
    "output_logits": False,
}
# The same where tokens are drawn; without do_sample `generate` leaves them aside too.
UNSUPPORTED_DRAWING: dict[str, Any] = {
    "top_k": 0,
    "min_p": 0.0,
    "top_h": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}
# What `generate` makes of what is supported.
PROCESSORS = {"TemperatureLogitsWarper", "TopPLogitsWarper"}
CRITERIA = {"MaxLengthCriteria", "EosTokenCriteria"}
# What `generate` itself hands on beside the inputs, which are not read.
MODEL_ARGUMENTS = {"attention_mask", "position_ids", "use_cache", "logits_to_keep"}


@dataclass
class FusedOutput(ModelOutput):
    """What is returned under ``return_dict_in_generate=True``. ``Q`` questions.

    sequences: as is returned without it, [Q, length].
    generations: what was generated up to a stop, as text, without special tokens.
    logprobs: natural log-probabilities of the answers under the fused distribution, [Q] float32,
        the stop token excluded.
    truncated: whether the token limit came before a stop, [Q] bool.
    """

    sequences: torch.Tensor | None = None
    generations: tuple[str, ...] | None = None
    logprobs: torch.Tensor | None = None
    truncated: torch.Tensor | None = None


def generate_fused(
    model: Any,
    input_ids: torch.Tensor,
    *,
    generation_config: Any,
    logits_processor: Iterable[Any] = (),
    stopping_criteria: Iterable[Any] = (),
    processing_class: Any = None,
    paraphrases: Sequence[str] | Iterable[Sequence[str]] | None = None,
    prompt: Any = PLAIN_PROMPT,
    add_special_tokens: bool | None = None,
    stop_strings: str | Sequence[str] | None = None,
    method: str | Method = "attention",
    sample_seed: int | None = None,
    batch_size: int | None = None,
    attention: str = ModelConfig.attention,
    layout: str | None = None,
    positions: str | None = None,
    fusion: str | None = None,
    tau: float | None = None,
    weights: Sequence[float] | None = None,
    weights_by: str | None = None,
    samples: int | None = None,
    **model_kwargs: Any,
) -> torch.Tensor | FusedOutput:
    """For ``model.generate(custom_generate=generate_fused, …)``, which calls it.

    The model is used as it is and given back as it was. An engine is made for every call; where
    many are made, `Ensemble` makes it once.

    Args:
        model, input_ids, generation_config, logits_processor, stopping_criteria, model_kwargs:
            what `generate` makes of its own arguments. The inputs are not read: their rows, one a
            question, come back in front of the answers, as from `generate`. Where none are given
            that is the BOS token. Of the configuration ``max_new_tokens`` (``max_length``),
            ``do_sample`` with ``temperature`` and ``top_p``, ``pad_token_id`` and
            ``return_dict_in_generate`` count.
        processing_class: the model's own fast tokenizer: transformers keeps an argument
            ``tokenizer`` from callables.
        paraphrases: the wordings of each question; a flat list of texts is one question.
        prompt: a text in which ``{paraphrase}`` stands for the wording; ``"{paraphrase}"`` alone
            takes wordings for whole prompts. Also a `Prompt` or `WholePrompts`.
        add_special_tokens: what the tokenizer is called with where the prompt is a text; None: not
            where it begins with the BOS token's text, as most chat templates' renderings do.
        stop_strings: texts that end an answer and are no part of it; []: only end-of-sequence and
            the limit end it; None: the newline after its first visible character.
        method: see `Ensemble.generate`; not ``per_prompt``.
        sample_seed: what draws depend on, with the question's texts; None: a number from torch's
            random state, so that ``torch.manual_seed`` decides.
        batch_size: questions at a time; None takes what fits.
        attention: see `Ensemble`.
        layout, positions, fusion, tau, weights, weights_by, samples: settings of the method, see
            `Ensemble.generate`.

    Returns:
        Token ids [questions, length] on the inputs' device: the inputs, the answer without an
        end-of-sequence token, then padding. `FusedOutput` under ``return_dict_in_generate``.

    Raises:
        UserError: an argument of `generate` that is not supported, no tokenizer, no paraphrases,
            not a row of inputs for each question, and what `Ensemble.generate` raises.
    """
    if processing_class is None:
        raise UserError(
            "give the tokenizer as processing_class=: transformers hands no callable its argument "
            "tokenizer"
        )
    _check_arguments(model, generation_config, logits_processor, stopping_criteria, model_kwargs)
    questions = _questions(paraphrases)
    rows = _input_rows(input_ids, len(questions))
    settings = {
        "layout": layout,
        "positions": positions,
        "fusion": fusion,
        "tau": tau,
        "weights": weights,
        "weights_by": weights_by,
        "samples": samples,
    }
    stops: Any = [stop_strings] if isinstance(stop_strings, str) else stop_strings
    config = GenerationConfig(
        generation_config.max_length - input_ids.shape[1],
        batch_size,
        stops,
        _sampling(generation_config, sample_seed),
    )
    template = _template(prompt, processing_class, questions, add_special_tokens)
    chosen = _method(method, settings)
    engine = make_engine(model, processing_class, attention=attention, capture=False)

    asked = Asked(
        engine=engine,
        template=template,
        questions=questions,
        uuids=own_uuids(questions),
        ask=asking(engine),
        config=config,
    )
    found: dict[int, Answer] = {}
    for outcome in chosen.answer(asked):
        if len(outcome.answers) > 1:
            raise UserError(
                "generate returns one answer for each question, and this method gives one for each "
                "paraphrase: use Ensemble.generate"
            )
        found[outcome.question] = outcome.answers[0]
    answers = [found[index] for index in range(len(questions))]
    pad = _pad_token(generation_config, processing_class)
    sequences = torch.cat([rows, _padded(answers, pad, rows)], dim=1)
    if not generation_config.return_dict_in_generate:
        return sequences
    return FusedOutput(
        sequences=sequences,
        generations=tuple(answer_text(processing_class, answer) for answer in answers),
        logprobs=torch.tensor([sum(a.logprobs) for a in answers], device=rows.device),
        truncated=torch.tensor([a.truncated for a in answers], device=rows.device),
    )


def generate(
    inputs: torch.Tensor | None = None,
    *,
    model: Any,
    generation_config: Any = None,
    tokenizer: Any = None,
    processing_class: Any = None,
    stop_strings: str | Sequence[str] | None = None,
    **arguments: Any,
) -> torch.Tensor | FusedOutput:
    """What transformers calls for ``custom_generate=FOLDER``: `generate_fused` on its arguments.

    Args:
        tokenizer: the model's own; ``processing_class`` is another name for it.
        inputs, model, generation_config, stop_strings, arguments: those of `model.generate`, and
            of `generate_fused`.

    Raises:
        UserError: what `generate_fused` raises.
    """
    tokenizer = processing_class if tokenizer is None else tokenizer
    if tokenizer is None:
        raise UserError("give the model's tokenizer: tokenizer=…")
    # Callables are never told of these.
    for name in ("streamer", "assistant_model", "assistant_tokenizer", "negative_prompt_ids"):
        if arguments.get(name) is not None:
            raise UserError(_refusal(name))
    if generation_config is not None and generation_config.stop_strings is not None:
        generation_config = copy.deepcopy(generation_config)
        stop_strings = generation_config.stop_strings if stop_strings is None else stop_strings
        generation_config.stop_strings = None
    # Not model.generate: a model whose own repository holds this folder has this function there.
    return type(model).generate(
        model,
        inputs,
        generation_config=generation_config,
        custom_generate=generate_fused,
        processing_class=tokenizer,
        stop_strings=stop_strings,
        **arguments,
    )


def _check_arguments(
    model: Any,
    config: Any,
    processors: Iterable[Any],
    criteria: Iterable[Any],
    model_kwargs: dict[str, Any],
) -> None:
    """Raises UserError where something is asked for that would be left out."""
    names = UNSUPPORTED | UNSUPPORTED_DRAWING if config.do_sample else UNSUPPORTED
    for name, neutral in names.items():
        value = getattr(config, name, None)
        if value and value != neutral:
            raise UserError(
                f"fused generation has no {name}={value!r}: give {name}={neutral!r} (it may be a "
                "default, or stand in the model's generation_config)"
            )
    if _ids(config.eos_token_id) != _ids(model.generation_config.eos_token_id):
        raise UserError(
            f"fused generation has no eos_token_id={config.eos_token_id}: leave it out, and set it "
            "in model.generation_config"
        )
    for processor in processors:
        name = type(processor).__name__
        if name == "PrefixConstrainedLogitsProcessor":
            raise UserError(_refusal("prefix_allowed_tokens_fn"))
        if not (config.do_sample and name in PROCESSORS):
            raise UserError(_refusal(f"logits_processor ({name})"))
    for criterion in criteria:
        name = type(criterion).__name__
        limit = getattr(criterion, "max_length", config.max_length)
        if name not in CRITERIA or limit != config.max_length:
            raise UserError(_refusal(f"stopping_criteria ({name})"))
    cache = model_kwargs.pop("past_key_values", None)
    if cache is not None and cache.get_seq_length() > 0:
        raise UserError(_refusal("past_key_values"))
    for name in sorted(model_kwargs.keys() - MODEL_ARGUMENTS):
        if model_kwargs[name] is not None:
            raise UserError(_refusal(name))


def _refusal(what: str) -> str:
    return f"fused generation has no {what}: leave it out"


def _ids(token_ids: int | Iterable[int] | None) -> set[int]:
    if token_ids is None:
        return set()
    return {token_ids} if isinstance(token_ids, int) else set(token_ids)


def _questions(paraphrases: Any) -> list[tuple[str, ...]]:
    if paraphrases is None:
        raise UserError("give the wordings of each question: paraphrases=[[…], …]")
    given = list(paraphrases) if isinstance(paraphrases, list | tuple) else paraphrases
    if isinstance(given, list) and given and all(isinstance(each, str) for each in given):
        given = [given]
    questions = checked_questions(given)
    if not questions:
        raise UserError("paraphrases is empty: give the wordings of at least one question")
    return questions


def _input_rows(input_ids: torch.Tensor, count: int) -> torch.Tensor:
    """[count, length]; a single token alone, as the BOS is, stands in front of every answer."""
    if input_ids.shape == (1, 1):
        return input_ids.expand(count, 1)
    if len(input_ids) != count:
        raise UserError(
            f"the inputs have {len(input_ids)} rows and there are {count} questions: give a row "
            "for each question, or leave the inputs out"
        )
    return input_ids


def _sampling(config: Any, seed: int | None) -> SamplingConfig | None:
    if not config.do_sample:
        if seed is not None:
            raise UserError("sample_seed: without do_sample=True nothing is drawn")
        return None
    if seed is None:
        seed = int(torch.randint(2**31, ()))
    return SamplingConfig(temperature=config.temperature, top_p=config.top_p, seed=seed)


def _template(
    prompt: Any, tokenizer: Any, questions: Sequence[Sequence[str]], special_tokens: bool | None
) -> Template:
    if not isinstance(prompt, str):
        if special_tokens is not None:
            raise UserError(
                "add_special_tokens goes with a prompt that is a text: a Prompt or WholePrompts "
                "says it itself"
            )
        template: Template = prompt.template(tokenizer)
        return template
    if prompt.count(GAP) != 1:
        raise UserError(f"the prompt must hold {GAP} once, where the wording stands: {prompt!r}")
    head, _, tail = prompt.partition(GAP)
    if special_tokens is None:
        texts = [prompt] if head else [text for texts in questions for text in texts]
        bos = tokenizer.bos_token
        begins = {bool(bos) and text.startswith(bos) for text in texts}
        if len(begins) > 1:
            raise UserError(f"some of the prompts begin with {bos!r} and others do not")
        special_tokens = not begins.pop()
    if head or tail:
        return PromptTemplate(head, tail, add_special_tokens=special_tokens)
    return WholePrompts(add_special_tokens=special_tokens)


def _method(method: str | Method, settings: dict[str, Any]) -> Method:
    given = {name: value for name, value in settings.items() if value is not None}
    if isinstance(method, str):
        return make_method(method, **given)
    if given:
        raise UserError("a method object has its settings already; give it no others")
    return method


def _pad_token(config: Any, tokenizer: Any) -> int | None:
    """As `generate` pads; a tokenizer's where the configuration has neither padding nor an end."""
    if config.pad_token_id is not None:
        return int(config.pad_token_id)
    ends = config.eos_token_id
    if ends is not None:
        return int(ends if isinstance(ends, int) else ends[0])
    found: int | None = tokenizer.pad_token_id
    return found


def _padded(answers: Sequence[Answer], pad: int | None, like: torch.Tensor) -> torch.Tensor:
    """[Q, longest]."""
    longest = max(len(answer.token_ids) for answer in answers)
    if pad is None and any(len(answer.token_ids) < longest for answer in answers):
        raise UserError("the answers differ in length: give pad_token_id=, which fills them up")
    filled = [[*a.token_ids, *[pad] * (longest - len(a.token_ids))] for a in answers]
    return torch.tensor(filled, dtype=like.dtype, device=like.device).reshape(len(answers), longest)
