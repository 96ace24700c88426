"""The model type ``self-ensemble`` of lm-evaluation-harness: a request in several wordings, fused.

    python -m self_ensemble.lm_eval --model self-ensemble --model_args pretrained=demo ...

A context that holds no separator is answered by the model type ``hf``, which this one is a subclass
of; one that does is taken apart (`contexts.read_context`) and answered by a method of ours. The
harness is an optional dependency: importing this needs the package ``lm_eval``.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook
from lm_eval.api.registry import model_registry
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import (
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from tqdm import tqdm

from self_ensemble.data.choices import NORMS
from self_ensemble.data.extraction import parse_extraction
from self_ensemble.data.templates import PromptTemplate
from self_ensemble.data.records import compact_json, question_uuid
from self_ensemble.generation.config import GenerationConfig, SamplingConfig
from self_ensemble.generation.decode import answer_text
from self_ensemble.generation.engine import Batch
from self_ensemble.generation.likelihood import ScoredBatch, ScoringRequest
from self_ensemble.generation.attaching import make_engine
from self_ensemble.generation.request import Request
from self_ensemble.integrations import LM_EVAL_NAME
from self_ensemble.integrations.contexts import SEPARATOR, MarkedContext, read_context
from self_ensemble.methods.base import Asked, AskedChoices, ScoringMethod
from self_ensemble.methods.names import is_weighted, make_method
from self_ensemble.methods.registries import VOTES
from self_ensemble.models.config import ModelConfig
from self_ensemble.models.loading import find_model, load_model
from self_ensemble.system.errors import UserError

# Arguments of the model type hf that mean here what they mean there.
HF_ARGUMENTS = (
    "add_bos_token",
    "chat_template_args",
    "enable_thinking",
    "logits_cache",
    "max_batch_size",
    "max_length",
    "prefix_token_id",
    "softmax_dtype",
    "think_end_token",
    "truncation",
)
# What a task may say of generation beside what is read, where it changes nothing.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_return_sequences": (1,),
    "repetition_penalty": (1.0,),
    "top_k": (0, -1, None),
    "use_cache": (True,),
}
# The entry of a response cache that says whose answers it holds.
IDENTITY_KEY = "self-ensemble"

T = TypeVar("T")


@dataclass(frozen=True)
class Question:
    """A marked context, and what the tokenizer is called with."""

    context: MarkedContext
    add_special_tokens: bool

    @property
    def whole(self) -> tuple[str, ...]:
        """The prompts up to the tail."""
        return tuple(self.context.head + each for each in self.context.paraphrases)


class SelfEnsembleLM(HFLM):
    """A model whose marked contexts are answered by fusing their paraphrases.

    Args:
        pretrained: what ``--model`` of the scripts takes: an alias, a hub id, a folder, a .gguf
            file.
        method: see `Ensemble.generate`; not ``per_prompt``, which has several answers.
        layout, positions, fusion, fusion_tau, weights, weights_by: of the method, see
            `methods.config.AttentionFusionConfig`.
        samples: of ``self_consistency``.
        extract: what of a generation votes compare, see `data.extraction`; what is returned is all
            of it.
        choice_norm: how a paraphrase chooses where a method votes: ``sum``, ``mean``, ``bytes``.
        sample_seed: what draws depend on, with the context.
        num_paraphrases: of a context, the first ones; None: all.
        separator: see `contexts.read_context`.
        revision, device, dtype, attention: see `models.config.ModelConfig`.
        batch_size: questions at a time, of contexts without separator requests; ``auto``: what
            fits.
        others: those of `HF_ARGUMENTS`.

    Raises:
        UserError: an argument is unknown or cannot be had, or several processes were started.
    """

    def __init__(
        self,
        pretrained: str = ModelConfig.name,
        *,
        method: str = "attention",
        layout: str | None = None,
        positions: str | None = None,
        fusion: str | None = None,
        fusion_tau: float | None = None,
        weights: Sequence[float] | None = None,
        weights_by: str | None = None,
        samples: int | None = None,
        extract: str = "line",
        choice_norm: str = "sum",
        sample_seed: int = SamplingConfig.seed,
        num_paraphrases: int | None = None,
        separator: str = SEPARATOR,
        revision: str | None = ModelConfig.revision,
        device: str | None = ModelConfig.device,
        dtype: str = ModelConfig.dtype,
        attention: str = ModelConfig.attention,
        batch_size: int | str = 1,
        **others: Any,
    ):
        with model_args_named():
            _check_arguments(method, choice_norm, num_paraphrases, separator, others)
            settings = {
                "layout": layout,
                "positions": positions,
                "fusion": fusion,
                "tau": fusion_tau,
                "weights": weights,
                "weights_by": weights_by,
                "samples": samples,
            }
            self._method = make_method(method, **settings)
            self._extract = parse_extraction(extract)
            SamplingConfig(seed=sample_seed)
            source = find_model(
                ModelConfig(
                    name=pretrained,
                    revision=None if revision is None else str(revision),
                    device=_device_there(device),
                    dtype=dtype,
                    attention=attention,
                )
            )
            model, tokenizer = load_model(source)
            self._engine = make_engine(model, tokenizer, attention=attention)
            self._extract.check_shown(tokenizer)
        with _without_warnings():
            super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, **others)
        self._method_name = method
        self._choice_norm = choice_norm
        self._sample_seed = sample_seed
        self._num_paraphrases = num_paraphrases
        self._separator = separator
        given = {name: value for name, value in settings.items() if value is not None}
        self._identity: dict[str, Any] = json.loads(
            json.dumps(
                {
                    "model": source.fingerprint,
                    "dtype": str(source.dtype).removeprefix("torch."),
                    "method": {"name": method, **given},
                    "extract": str(self._extract),
                    "choice_norm": choice_norm,
                    "sample_seed": sample_seed,
                    "num_paraphrases": num_paraphrases,
                    "separator": separator,
                    "hf": {name: others[name] for name in sorted(others)},
                },
                default=str,
            )
        )

    # ---- what the harness asks ------------------------------------------------------------------

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """(log-likelihood, whether it is greedy) of each continuation behind its context."""
        for request in requests:
            if self._separator in request.args[1]:
                raise UserError(
                    f"the continuation {request.args[1]!r} holds the separator "
                    f"{self._separator!r}: paraphrases stand in the context alone"
                )

        def fused(marked: list[tuple[int, Instance, Question]]) -> Iterator[tuple[int, Any]]:
            return self._score(marked, disable_tqdm)

        return self._answers(requests, super().loglikelihood, fused, disable_tqdm)

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """The log-likelihood of each text: there is one wording of it, and nothing to fuse."""
        for request in requests:
            if self._separator in request.args[0]:
                raise UserError(
                    f"the text {request.args[0][:40]!r} … holds the separator "
                    f"{self._separator!r}, and rolling log-likelihoods know one wording only"
                )
        found: list[float] = super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)
        return found

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """What is generated behind each context, up to a stop."""

        def fused(marked: list[tuple[int, Instance, Question]]) -> Iterator[tuple[int, Any]]:
            return self._generate(marked, disable_tqdm)

        return self._answers(requests, super().generate_until, fused, disable_tqdm)

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Take part in ``--use_cache``, whose entries are keyed by the request alone.

        Raises:
            UserError: the cache holds answers of another model or of other arguments.
        """
        entries = cache_hook.dbdict
        if entries is not None:
            known = entries.get(IDENTITY_KEY)
            if known is None and len(entries):
                raise UserError(
                    "--use_cache: this file holds answers of another model type, which would be "
                    "taken for this one's; name another file"
                )
            differing = sorted(
                name
                for name in {**(known or {}), **self._identity}
                if known is not None and known.get(name) != self._identity.get(name)
            )
            if differing:
                raise UserError(
                    "--use_cache: this file holds answers that were made with another "
                    f"{', '.join(differing)}; name another file"
                )
            entries[IDENTITY_KEY] = self._identity
        super().set_cache_hook(cache_hook)

    def get_model_info(self) -> dict[str, Any]:
        """What stands in the results beside the arguments, so that a run can be repeated."""
        return {
            "model_num_parameters": self.model.num_parameters(),
            "model_dtype": self.model.dtype,
            "model_revision": self._identity["model"],
            "self_ensemble": self._identity,
        }

    # ---- how it is answered ---------------------------------------------------------------------

    def _answers(
        self,
        requests: list[Instance],
        plain: Callable[..., list[T]],
        fused: Callable[[list[tuple[int, Instance, Question]]], Iterator[tuple[int, T]]],
        disable_tqdm: bool,
    ) -> list[T]:
        """The answer to each request: by the model type hf, or fused."""
        marked, unmarked = [], []
        with model_args_named():
            for index, request in enumerate(requests):
                question = self._question(request.args[0])
                if question is None:
                    unmarked.append(index)
                else:
                    marked.append((index, request, question))
            found: dict[int, T] = {}
            if unmarked:
                answers = plain([requests[i] for i in unmarked], disable_tqdm=disable_tqdm)
                found.update(zip(unmarked, answers, strict=True))
            if marked:
                found.update(fused(marked))
        return [found[index] for index in range(len(requests))]

    def _question(self, context: str) -> Question | None:
        marked = read_context(context, self._separator)
        if marked is None:
            return None
        count = self._num_paraphrases
        if count is not None:
            if len(marked.paraphrases) < count:
                raise UserError(
                    f"num_paraphrases: {count} are asked for, and the context of "
                    f"{marked.paraphrases[0]!r} has {len(marked.paraphrases)}"
                )
            marked = MarkedContext(marked.head, marked.paraphrases[:count], marked.tail)
        if self.add_bos_token is not None:
            special = bool(self.add_bos_token)
        else:  # as hf has it: a chat template's rendering brings its own
            special = not has_bos_prefix(context, self.tokenizer.decode(self.prefix_token_id))
        return Question(marked, special)

    def _generate(
        self, marked: list[tuple[int, Instance, Question]], disable_tqdm: bool
    ) -> Iterator[tuple[int, str]]:
        groups = _grouped(marked, lambda each: _key(each[1].args[1]))
        with tqdm(total=len(marked), disable=disable_tqdm, desc="Fusing paraphrases") as bar:
            uuids = _uuids(request.args[0] for _, request, _ in marked)
            uuid_of = {index: uuid for (index, _, _), uuid in zip(marked, uuids, strict=True)}
            for group in groups:
                config = self._generation_config(group[0][1].args[1])
                for template, members, texts in _batches(group, lambda each: each[2]):
                    asked = Asked(
                        engine=self._engine,
                        template=template,
                        questions=texts,
                        uuids=[uuid_of[index] for index, _, _ in members],
                        ask=self._ask,
                        config=config,
                        extract=self._extract,
                    )
                    for outcome in self._method.answer(asked):
                        index, request, _ = members[outcome.question]
                        text = answer_text(self.tokenizer, outcome.answers[0])
                        text = postprocess_generated_text(text, None, self.think_end_token)
                        self.cache_hook.add_partial("generate_until", request.args, text)
                        bar.update()
                        yield index, text

    def _generation_config(self, given: Mapping[str, Any]) -> GenerationConfig:
        """What a task says of generation, in our words.

        Raises:
            UserError: it says something that is not done here.
        """
        told: dict[str, Any] = dict(normalize_gen_kwargs(dict(given), self.max_gen_toks))
        until = told.pop("until")
        limit, drawn = told.pop("max_gen_toks"), told.pop("do_sample", False)
        temperature, top_p = told.pop("temperature", 0.0), told.pop("top_p", None)
        for name, value in told.items():
            if value not in NEUTRAL.get(name, ()):
                raise UserError(
                    f"generation argument {name}={value!r}: contexts with paraphrases take until, "
                    "max_gen_toks, do_sample, temperature and top_p"
                )
        sampling = None
        if drawn:
            sampling = SamplingConfig(
                temperature=temperature,
                top_p=SamplingConfig.top_p if top_p is None else top_p,
                seed=self._sample_seed,
            )
        return GenerationConfig(
            max_new_tokens=limit,
            batch_size=self._questions_at_once,
            stop=tuple(text for text in until if text is not None),
            sampling=sampling,
        )

    def _score(
        self, marked: list[tuple[int, Instance, Question]], disable_tqdm: bool
    ) -> Iterator[tuple[int, tuple[float, bool]]]:
        if self.enable_thinking:
            raise UserError("enable_thinking: a continuation is not what follows a thought")
        if not isinstance(self._method, ScoringMethod):
            raise UserError(f"method: {self._method_name} generates, and scores no continuations")
        # The choices of one question, which a vote is among, whatever else is asked.
        groups = _grouped(marked, lambda each: (each[1].task_name, each[1].doc_id, each[1].args[0]))
        questions = [_moved_space(group[0][2]) for group in groups]
        if _looks_at_all_choices(self._method_name, self._method):
            for group in groups:
                _check_all_there([request for _, request, _ in group], self._method_name)
        with tqdm(total=len(marked), disable=disable_tqdm, desc="Fusing paraphrases") as bar:
            paired = list(zip(groups, questions, strict=True))
            for template, members, texts in _batches(paired, lambda each: each[1][0]):
                asked = AskedChoices(
                    engine=self._engine,
                    template=template,
                    questions=texts,
                    choices=[
                        [space + request.args[1] for _, request, _ in group]
                        for group, (_, space) in members
                    ],
                    ask=self._ask_likelihood,
                    batch_size=self._questions_at_once,
                    norm=self._choice_norm,
                )
                for choices in asked.choices:
                    if not all(choices):
                        raise UserError("a continuation is empty: there is nothing to score")
                for outcome in self._method.score(asked):
                    group, _ = members[outcome.question]
                    for (index, request, _), each in zip(
                        group, outcome.likelihoods[0], strict=True
                    ):
                        answer = sum(each.logprobs), all(each.greedy)
                        self.cache_hook.add_partial("loglikelihood", request.args, answer)
                        bar.update()
                        yield index, answer

    @property
    def _questions_at_once(self) -> int | None:
        return None if self.batch_size == "auto" else self.batch_size

    def _ask(
        self, name: str, request: Request, *, batch_size: int | None, unit: str = "questions"
    ) -> Iterable[Batch]:
        return self._engine.generate(request, batch_size=batch_size)

    def _ask_likelihood(
        self, name: str, request: ScoringRequest, *, batch_size: int | None, unit: str = "questions"
    ) -> Iterable[ScoredBatch]:
        return self._engine.score(request, batch_size=batch_size)


# A version that reads entry points has it from ours.
if LM_EVAL_NAME not in model_registry:
    model_registry.register(LM_EVAL_NAME)(SelfEnsembleLM)


def _batches(
    members: Sequence[T], question_of: Callable[[T], Question]
) -> Iterator[tuple[PromptTemplate, list[T], list[tuple[str, ...]]]]:
    """(template, members, their texts) of what can be asked at once.

    A head that several have, such as an instruction with demonstrations, is the template's, and is
    encoded once. Where every question has demonstrations of its own, heads are part of the texts.
    """
    by_prompt = _grouped(
        members, lambda each: (question_of(each).context.head, *_ending(question_of(each)))
    )
    shared = [group for group in by_prompt if len(group) > 1]
    alone = [group[0] for group in by_prompt if len(group) == 1]
    for group in shared:
        context = question_of(group[0]).context
        template = _template(context.head, question_of(group[0]))
        yield template, group, [question_of(each).context.paraphrases for each in group]
    for group in _grouped(alone, lambda each: _ending(question_of(each))):
        template = _template("", question_of(group[0]))
        yield template, group, [question_of(each).whole for each in group]


def _ending(question: Question) -> tuple[str, bool]:
    return question.context.tail, question.add_special_tokens


def _template(head: str, question: Question) -> PromptTemplate:
    return PromptTemplate(head, question.context.tail, question.add_special_tokens, False)


def _moved_space(question: Question) -> tuple[Question, str]:
    """Whitespace that a context ends with belongs to what follows it, as hf has it."""
    context = question.context
    tail = context.tail.rstrip()
    moved = MarkedContext(context.head, context.paraphrases, tail)
    return Question(moved, question.add_special_tokens), context.tail[len(tail) :]


def _grouped(members: Iterable[T], key: Callable[[T], Hashable]) -> list[list[T]]:
    """Members with equal keys together, in the order of the first of each."""
    groups: dict[Hashable, list[T]] = defaultdict(list)
    for member in members:
        groups[key(member)].append(member)
    return list(groups.values())


def _key(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _uuids(contexts: Iterable[str]) -> list[str]:
    """What draws depend on: the context, and which of several that are the same it is."""
    seen: Counter[str] = Counter()
    uuids = []
    for context in contexts:
        uuids.append(question_uuid(compact_json([context, seen[context]])))
        seen[context] += 1
    return uuids


def _looks_at_all_choices(name: str, method: Any) -> bool:
    """Whether what it says of one choice depends on the others."""
    if name in VOTES:
        return True
    return is_weighted(name) and method.weights_by is None


def _check_all_there(requests: Sequence[Instance], method: str) -> None:
    """Raises UserError where a question has one choice, or some are in a cache already."""
    if len(requests) == 1:
        raise UserError(
            f"method: {method} looks at all choices of a question, and this task asks for one "
            "continuation behind a context; take another method"
        )
    known = requests[0].doc_id is not None
    if known and [request.idx for request in requests] != list(range(len(requests))):
        raise UserError(
            f"--use_cache: the file holds some of a question's choices, and {method} looks at all "
            "of them; name another file"
        )


def _check_arguments(
    method: str,
    choice_norm: str,
    num_paraphrases: int | None,
    separator: str,
    others: Mapping[str, Any],
) -> None:
    for name in sorted(others.keys() - set(HF_ARGUMENTS)):
        if name == "trust_remote_code":
            raise UserError(
                "trust_remote_code: code of a model's repository is never run; leave it out"
            )
        own = inspect.signature(SelfEnsembleLM).parameters.keys() - {"others"}
        known = ", ".join(sorted({*HF_ARGUMENTS, *own}))
        raise UserError(f"unknown argument {name!r} of {LM_EVAL_NAME}: there is {known}")
    if method == "per_prompt":
        raise UserError("method: per_prompt answers every paraphrase; take origin for the first")
    if choice_norm not in NORMS:
        raise UserError(f"choice_norm: {choice_norm!r} is none of {', '.join(NORMS)}")
    whole = isinstance(num_paraphrases, int) and not isinstance(num_paraphrases, bool)
    if num_paraphrases is not None and not (whole and num_paraphrases > 0):
        raise UserError(f"num_paraphrases: {num_paraphrases!r} is not a whole number above 0")
    if not isinstance(separator, str) or not separator.strip():
        raise UserError(f"separator: {separator!r} is not a text that can be seen")
    if isinstance(others.get("think_end_token"), int):
        raise UserError("think_end_token: give its text, not its number")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            f"{LM_EVAL_NAME} runs in one process: start it without accelerate or torchrun, a task a process"
        )


def _device_there(device: str | None) -> str:
    """The device; a GPU that the harness names by itself, where there is none, is no wish."""
    import torch

    if device is None or (device in ("cuda", "cuda:0") and not torch.cuda.is_available()):
        return ModelConfig.device
    return device


@contextmanager
def model_args_named() -> Iterator[None]:
    """Inside, a sentence that names a flag of the scripts names the harness's argument instead."""
    try:
        yield
    except UserError as error:
        raise UserError(_renamed(str(error))) from error


def _renamed(text: str) -> str:
    for flag, name in (
        ("--model:", "pretrained:"),
        ("--max_new_tokens", "max_gen_toks"),
        ("--chat_template", "--apply_chat_template"),
    ):
        text = text.replace(flag, name)
    names = "revision|device|dtype|attention|layout|positions|weights|extract"
    return re.sub(rf"--({names})\b", r"\1", text)


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Inside, hf does not warn of a model that is loaded already: it was loaded for it."""
    log = logging.getLogger("lm_eval.models.huggingface")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before
