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
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any, TypeVar

from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook
from lm_eval.api.registry import model_registry
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import has_bos_prefix, postprocess_generated_text
from tqdm import tqdm

from self_ensemble.data.extraction import parse_extraction
from self_ensemble.generation.attaching import make_engine
from self_ensemble.generation.config import SamplingConfig
from self_ensemble.generation.decode import answer_text
from self_ensemble.integrations import LM_EVAL_NAME
from self_ensemble.integrations.contexts import (
    SEPARATOR,
    MarkedContext,
    batches,
    grouped,
    read_context,
)
from self_ensemble.integrations.lm_eval_arguments import (
    check_arguments,
    check_batch_size,
    check_hf_arguments,
    device_there,
    generation_config,
    model_args_named,
)
from self_ensemble.methods.attention_fusion import AttentionFusion
from self_ensemble.methods.base import (
    Asked,
    AskedChoices,
    Method,
    ScoringMethod,
    asking,
    asking_likelihood,
)
from self_ensemble.methods.names import make_method
from self_ensemble.methods.prompt_by_prompt import LogitFusion, Vote
from self_ensemble.methods.questions import own_uuids
from self_ensemble.methods.registries import LOGIT_METHODS
from self_ensemble.models.config import ModelConfig
from self_ensemble.models.loading import find_model, load_model
from self_ensemble.system.errors import UserError

logger = logging.getLogger(__name__)

# The entry of a response cache that says whose answers it holds.
IDENTITY_KEY = "self-ensemble"

T = TypeVar("T")
# (index among the requests, request, its context)
Marked = tuple[int, Instance, MarkedContext]


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
        others: those of `lm_eval_arguments.HF_ARGUMENTS`.

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
            check_hf_arguments(others, inspect.signature(type(self)).parameters.keys())
            check_arguments(
                method=method,
                choice_norm=choice_norm,
                num_paraphrases=num_paraphrases,
                separator=separator,
                weights=weights,
            )
            check_batch_size(batch_size)
            SamplingConfig(seed=sample_seed)
            self._method = make_method(
                method,
                layout=layout,
                positions=positions,
                fusion=fusion,
                tau=fusion_tau,
                weights=weights,
                weights_by=weights_by,
                samples=samples,
            )
            self._extract = parse_extraction(extract)
            source = find_model(
                ModelConfig(
                    name=pretrained,
                    revision=None if revision is None else str(revision),
                    device=device_there(device),
                    dtype=dtype,
                    attention=attention,
                )
            )
            model, tokenizer = load_model(source)
            self._extract.check_shown(tokenizer)
            self._engine = make_engine(model, tokenizer, attention=attention)
        with _without_warnings():
            super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, **others)
        self._choice_norm = choice_norm
        self._sample_seed = sample_seed
        self._num_paraphrases = num_paraphrases
        self._separator = separator
        # How many were answered by the method, and how many as hf answers them.
        self._requests = Counter(fused=0, plain=0)
        identity = {
            "model": source.fingerprint,
            "dtype": str(source.dtype).removeprefix("torch."),
            "method": {"name": method, **self._settings()},
            "extract": str(self._extract),
            "choice_norm": choice_norm,
            "sample_seed": sample_seed,
            "num_paraphrases": num_paraphrases,
            "separator": separator,
            **{name: others[name] for name in sorted(others.keys() - {"max_batch_size"})},
        }
        self._identity: dict[str, Any] = json.loads(json.dumps(identity, default=str))

    # ---- what the harness asks ------------------------------------------------------------------

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """(log-likelihood, whether it is greedy) of each continuation behind its context.

        Raises:
            UserError: a context or continuation is marked wrongly, or what the method raises.
        """
        for request in requests:
            if self._separator in request.args[1]:
                raise UserError(
                    f"the continuation {request.args[1]!r} holds the separator "
                    f"{self._separator!r}: paraphrases stand in the context alone"
                )
        return self._answers(requests, super().loglikelihood, self._score, disable_tqdm)

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """The log-likelihood of each text: there is one wording of it, and nothing to fuse.

        Raises:
            UserError: a text holds the separator.
        """
        for request in requests:
            if self._separator in request.args[0]:
                raise UserError(
                    f"the text {request.args[0][:40]!r} … holds the separator "
                    f"{self._separator!r}, and rolling log-likelihoods know one wording only"
                )
        found: list[float] = super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)
        return found

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """What is generated behind each context, up to a stop.

        Raises:
            UserError: a context is marked wrongly, generation arguments are not known here, or what
                the method raises.
        """
        return self._answers(requests, super().generate_until, self._generate, disable_tqdm)

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
                    "--use_cache: the file holds answers of another model type, which would be "
                    "taken for this one's; name another file"
                )
            names = {*(known or self._identity), *self._identity}
            differing = [
                n for n in sorted(names) if known and known.get(n) != self._identity.get(n)
            ]
            if differing:
                raise UserError(
                    "--use_cache: the file holds answers that were made with another "
                    f"{', '.join(differing)}; name another file"
                )
            entries[IDENTITY_KEY] = self._identity
        super().set_cache_hook(cache_hook)

    def get_model_info(self) -> dict[str, Any]:
        """What stands in the results beside the arguments, so that a run can be repeated."""
        return {
            "model_num_parameters": self.model.num_parameters(),
            "model_dtype": self.model.dtype,
            "model_sha": self._identity["model"],
            "self_ensemble": self._identity,
            "self_ensemble_requests": dict(self._requests),
        }

    # ---- how it is answered ---------------------------------------------------------------------

    def _settings(self) -> dict[str, Any]:
        """The method's, as they are on this model."""
        settings: dict[str, Any] = asdict(self._method)  # type: ignore[call-overload]
        if isinstance(self._method, AttentionFusion):
            settings["tau"] = self._method.tau_used
            settings["positions"] = self._method.positions_on(self.model.config)
        return settings

    def _answers(
        self,
        requests: list[Instance],
        plain: Callable[..., list[T]],
        fused: Callable[[list[Marked], tqdm[Any]], Iterator[tuple[int, T]]],
        disable_tqdm: bool,
    ) -> list[T]:
        """The answer to each request: by the model type hf, or fused."""
        marked: list[Marked] = []
        unmarked: list[int] = []
        found: dict[int, T] = {}
        with model_args_named():
            for index, request in enumerate(requests):
                context = self._read(request.args[0])
                if context is None:
                    unmarked.append(index)
                else:
                    marked.append((index, request, context))
            self._requests.update(fused=len(marked), plain=len(unmarked))
            if not self._requests["fused"]:
                logger.warning(
                    "no context so far holds the separator %r: all are answered as the model type "
                    "hf answers them, without a method",
                    self._separator,
                )
            if unmarked:
                answers = plain([requests[i] for i in unmarked], disable_tqdm=disable_tqdm)
                found.update(zip(unmarked, answers, strict=True))
            if marked:
                with tqdm(
                    total=len(marked), disable=disable_tqdm, desc="Fusing paraphrases"
                ) as bar:
                    found.update(fused(marked, bar))
        return [found[index] for index in range(len(requests))]

    def _read(self, context: str) -> MarkedContext | None:
        marked = read_context(context, self._separator)
        if marked is None:
            return None
        count, there = self._num_paraphrases, len(marked.paraphrases)
        if count is not None and there < count:
            raise UserError(
                f"num_paraphrases: {count} are asked for, and the context of "
                f"{marked.paraphrases[0]!r} has {there}"
            )
        if self.add_bos_token is not None:
            special = bool(self.add_bos_token)
        else:  # as hf has it: a chat template's rendering brings its own
            special = not has_bos_prefix(context, self.tokenizer.decode(self.prefix_token_id))
        paraphrases = marked.paraphrases[:count]
        return replace(marked, paraphrases=paraphrases, add_special_tokens=special)

    def _generate(self, marked: list[Marked], bar: tqdm[Any]) -> Iterator[tuple[int, str]]:
        """(index, text) of each request, as they are answered."""
        contexts = {index: request.args[0] for index, request, _ in marked}
        uuids = own_uuids([(context,) for context in contexts.values()])  # what draws depend on
        uuid_of = dict(zip(contexts, uuids, strict=True))
        for group in grouped(marked, lambda each: _key(each[1].args[1])):
            config = generation_config(
                group[0][1].args[1],
                max_gen_toks=self.max_gen_toks,
                batch_size=self._questions_at_once,
                seed=self._sample_seed,
            )
            for template, members, texts in batches(group, lambda each: each[2]):
                asked = Asked(
                    engine=self._engine,
                    template=template,
                    questions=texts,
                    uuids=[uuid_of[index] for index, _, _ in members],
                    ask=asking(self._engine),
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

    def _score(
        self, marked: list[Marked], bar: tqdm[Any]
    ) -> Iterator[tuple[int, tuple[float, bool]]]:
        """(index, answer) of each request, as they are answered; a question's all at once."""
        if self.enable_thinking:
            raise UserError("enable_thinking: a continuation is not what follows a thought")
        method = self._method
        if not isinstance(method, ScoringMethod):
            raise UserError(
                f"the method {self._identity['method']['name']} scores no continuations"
            )
        # A question's choices go together, and with no others: a vote is among them.
        groups = grouped(marked, lambda each: (each[1].task_name, each[1].doc_id, each[1].args[0]))
        if _looks_at_all_choices(method):
            for group in groups:
                _check_all_there([request for _, request, _ in group])
        split = []
        for group in groups:
            continuations = [request.args[1] for _, request, _ in group]
            split.append((group, *group[0][2].with_choices(continuations)))
        for template, members, texts in batches(split, lambda each: each[1]):
            choices = [own for _, _, own in members]
            if not all(all(each) for each in choices):
                raise UserError("a continuation is empty: there is nothing to score")
            asked = AskedChoices(
                engine=self._engine,
                template=template,
                questions=texts,
                choices=choices,
                ask=asking_likelihood(self._engine),
                batch_size=self._questions_at_once,
                norm=self._choice_norm,
            )
            for outcome in method.score(asked):
                pairs = zip(members[outcome.question][0], outcome.likelihoods[0], strict=True)
                for (index, request, _), likelihood in pairs:
                    answer = sum(likelihood.logprobs), all(likelihood.greedy)
                    self.cache_hook.add_partial("loglikelihood", request.args, answer)
                    bar.update()
                    yield index, answer

    @property
    def _questions_at_once(self) -> int | None:
        return None if self.batch_size == "auto" else self.batch_size


# A version that reads entry points has it from ours.
if LM_EVAL_NAME not in model_registry:
    model_registry.register(LM_EVAL_NAME)(SelfEnsembleLM)


def _key(arguments: dict[str, Any]) -> str:
    return json.dumps(arguments, sort_keys=True, default=str)


def _looks_at_all_choices(method: Method) -> bool:
    """Whether what it says of one choice depends on the others."""
    if isinstance(method, LogitFusion):
        return LOGIT_METHODS.get(method.name).weighted and method.weights_by is None
    return isinstance(method, Vote)


def _check_all_there(requests: Sequence[Instance]) -> None:
    """Raises UserError where these are not all choices of a question, as far as can be seen."""
    if len(requests) == 1:
        raise UserError(
            "this method looks at all choices of a question, and here a single continuation "
            "follows a context (or the file of --use_cache holds the others): take another method "
            "(or another file)"
        )
    known = requests[0].doc_id is not None
    if known and [request.idx for request in requests] != list(range(len(requests))):
        raise UserError(
            "this method looks at all choices of a question, and the file of --use_cache holds "
            "some of them: name another file"
        )


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Inside, hf does not warn of a model that is loaded already: it was loaded for it."""
    log = logging.getLogger("lm_eval.models.huggingface")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before
