"""The library's face: a model that answers questions asked in several wordings.

from self_ensemble import Ensemble

ensemble = Ensemble.from_pretrained("demo")
answers = ensemble.generate(
    [["What is the capital of France?", "France's capital is which city?"]]
)
answers[0].text, answers[0].logprob, answers[0].truncated
[scored] = ensemble.loglikelihood([["Capital of France?"]], [["Lyon", "Paris"]])
scored.choices[scored.best()], scored.sum, scored.greedy
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

from self_ensemble.data.choices import NORMS, choose, normalized
from self_ensemble.data.extraction import parse_extraction
from self_ensemble.data.prompts import Prompt
from self_ensemble.data.templates import WholePrompts
from self_ensemble.generation.answering import AnyEngine
from self_ensemble.generation.attaching import make_engine
from self_ensemble.generation.config import (
    DEFAULT_MAX_NEW_TOKENS,
    GenerationConfig,
    make_sampling,
)
from self_ensemble.generation.decode import answer_text
from self_ensemble.methods.base import (
    Asked,
    AskedChoices,
    Method,
    ScoringMethod,
    asking,
    asking_likelihood,
)
from self_ensemble.methods.config import SELF_CONSISTENCY_SAMPLING
from self_ensemble.methods.names import make_method
from self_ensemble.methods.questions import checked_questions, is_text, own_uuids
from self_ensemble.methods.self_consistency import SelfConsistency
from self_ensemble.models.config import ModelConfig
from self_ensemble.system.errors import UserError
from self_ensemble.workers.config import WorkersConfig


@dataclass(frozen=True)
class FusedAnswer:
    """The answer to one question.

    Attributes:
        text: the answer: what ``extract`` takes of the generation, by default its first line,
            without space around it.
        logprob: natural log-probability of the answer's tokens under the fused distribution, the
            stop token excluded.
        truncated: the token limit came before a stop.
        generation: all that was generated up to a stop, as text.
        token_ids: the same as token ids, without an end-of-sequence token.
        question: the index of the question that it answers.
        paraphrase: the index of the paraphrase that it is the answer to, where a method answers
            every paraphrase by itself (``per_prompt``, ``vote``); else None.
    """

    text: str
    logprob: float
    truncated: bool
    generation: str
    token_ids: tuple[int, ...]
    question: int
    paraphrase: int | None = None


@dataclass(frozen=True)
class ChoiceLikelihoods:
    """How likely a question's choices are, under the fused distribution.

    Attributes:
        choices: the choices, in the order given.
        logprobs: of each choice the natural log-probabilities of its tokens.
        greedy: of each choice whether all its tokens are the likeliest ones: greedy decoding would
            begin with it.
        question: the index of the question.
        paraphrase: the index of the paraphrase that says so, where a method looks at every
            paraphrase by itself (``per_prompt``, ``vote``); else None.
    """

    choices: tuple[str, ...]
    logprobs: tuple[tuple[float, ...], ...]
    greedy: tuple[bool, ...]
    question: int
    paraphrase: int | None = None

    @property
    def sum(self) -> tuple[float, ...]:
        """The log-likelihood of each choice."""
        return self.scores("sum")

    @property
    def mean(self) -> tuple[float, ...]:
        """The log-likelihood of each choice per token."""
        return self.scores("mean")

    @property
    def bytes(self) -> tuple[float, ...]:
        """The log-likelihood of each choice per byte of its text in UTF-8."""
        return self.scores("bytes")

    def scores(self, norm: str) -> tuple[float, ...]:
        """The log-likelihood of each choice under a norm: ``sum``, ``mean`` or ``bytes``.

        Raises:
            UserError: there is no such norm.
        """
        pairs = zip(self.logprobs, self.choices, strict=True)
        return tuple(normalized(logprobs, choice, norm) for logprobs, choice in pairs)

    def best(self, norm: str = "sum") -> int:
        """The index of the likeliest choice under a norm; ties go to the earlier one."""
        return choose(self.scores(norm))


class Ensemble:
    """A causal language model with its tokenizer, and the methods that fuse paraphrases.

    The model is used as it is: patched while it computes and given back after every batch, also
    after an exception, so that it can be used between two calls, and even between two answers of
    `stream`. Several threads may ask at once; none may use the model itself meanwhile.

    Args:
        model: a causal language model of transformers, on its device, in its number format.
        tokenizer: the model's own fast tokenizer.
        prompt: how a paraphrase becomes a prompt; by default the plain instruction of the scripts.
        attention: ``auto``, ``flex``, ``sdpa`` or ``eager``: what computes the attention of
            paraphrases. Only ``auto`` falls back.
        capture: on a GPU, run decode steps as CUDA graphs where that can be had. Compiles for up to
            a minute the first time.

    One that has workers (see `from_pretrained`) has no model of its own: ``model`` is None. It ends
    its workers with `close`, or as a context manager.

    Raises:
        UserError: the model's architecture cannot work, or the attention is not to be had.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        prompt: Prompt | WholePrompts | None = None,
        attention: str = ModelConfig.attention,
        capture: bool = True,
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.prompt = Prompt() if prompt is None else prompt
        self.engine: AnyEngine = make_engine(model, tokenizer, attention=attention, capture=capture)
        self._open = ExitStack()

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        *,
        revision: str | None = None,
        device: str = ModelConfig.device,
        dtype: str = ModelConfig.dtype,
        prompt: Prompt | WholePrompts | None = None,
        attention: str = ModelConfig.attention,
        capture: bool = True,
        gpus_per_worker: int | None = ModelConfig.gpus_per_worker,
        workers: int | Literal["auto"] = WorkersConfig.number,
        ray_address: str | None = WorkersConfig.address,
    ) -> Ensemble:
        """Load a model.

        Args:
            name: an alias (``demo`` is bundled; `constants.MODEL_PATHs` has the others), a hub id,
                a folder, or a .gguf file. Weights are read from safetensors or GGUF only, and no
                code of a repository is run.
            revision: branch, tag or commit on the hub.
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
            dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
            prompt: see `Ensemble`; by default, for the model ``demo``, the prompt it was made for.
            attention, capture: see `Ensemble`.
            gpus_per_worker: over how many GPUs the model's layers are spread; None: over as few as
                hold them, where the device is ``auto``.
            workers: more than one: processes on Ray that hold the model each, and share the
                questions; ``auto``: as many as there are GPUs for. docs/scale.md tells what
                of it is as with one.
            ray_address: of a Ray cluster that is running; None: one of the ensemble's own. Where
                this process is connected to one already, that.

        Raises:
            UserError: no such model, device, dtype or attention, damaged files, too little memory,
                an architecture that cannot work, or workers that are not to be had.
        """
        from self_ensemble.models.loading import find_model, gpus_each, load_model
        from self_ensemble.workers.loading import worker_pool

        config = ModelConfig(
            name=name,
            revision=revision,
            device=device,
            dtype=dtype,
            attention=attention,
            gpus_per_worker=gpus_per_worker,
        )
        if prompt is None and name == "demo":
            prompt = Prompt.of_demo()
        asked = WorkersConfig(number=workers, address=ray_address)
        asked.check_installed()
        source = find_model(config)
        if not asked.needs_ray(source.device, lambda: gpus_each(source)):
            model, tokenizer = load_model(source)
            return cls(model, tokenizer, prompt=prompt, attention=attention, capture=capture)
        ensemble = cls.__new__(cls)
        with ExitStack() as stack:  # workers that cannot begin end here, not with the traceback
            pool = stack.enter_context(worker_pool(source, config, asked))
            pool.wait()
            ensemble._open = stack.pop_all()
        ensemble.engine, ensemble.model, ensemble.tokenizer = pool, None, pool.tokenizer
        ensemble.prompt = Prompt() if prompt is None else prompt
        return ensemble

    def close(self) -> None:
        """End the workers, where there are some."""
        self._open.close()

    def __enter__(self) -> Ensemble:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def generate(
        self,
        questions: Iterable[Sequence[str]],
        *,
        method: str | Method = "attention",
        max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
        stop: Sequence[str] | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        sample_seed: int | None = None,
        extract: str = "line",
        batch_size: int | None = None,
        prompt: Prompt | WholePrompts | None = None,
        **settings: Any,
    ) -> list[FusedAnswer]:
        """Answer questions: greedily, or where a temperature is given by drawing.

        Args:
            questions: the paraphrases of each question; with `WholePrompts` the prompts as they
                are.
            method: ``attention``, a logit method (``avg``, ``prob_avg``, ``max``, ``weighted_avg``,
                ``weighted_prob_avg``, ``weighted_max``), ``vote``, ``per_prompt``, ``origin``
                (paraphrase 0), ``self_consistency`` (of paraphrase 0), a name that you have
                registered, or a method object.
            max_new_tokens: the longest answer, in tokens.
            stop: texts that end an answer and are no part of it; []: only end-of-sequence and the
                limit end it; None: the newline after its first visible character.
            temperature: draw tokens, after fusion, from the logits divided by it; None takes the
                likeliest one (``self_consistency`` draws at 0.7 then).
            top_p: draw from the likeliest tokens that together have this probability; None: from
                all of them.
            sample_seed: what the draws depend on, with the question's texts; None: 0.
            extract: what of a generation is the answer, and is compared by votes: ``line``,
                ``all``, ``after:TEXT``, ``last_number`` or ``regex:PATTERN``, see
                `data.extraction`.
            batch_size: questions at a time; None takes what fits. It changes no answer (float32; in
                half precision kernels round by shape).
            prompt: instead of the ensemble's own.
            settings: of the method. For ``attention``: ``fusion`` (``mean``, ``joint``, …),
                ``tau``, ``weights``, ``weights_by``, ``positions``, ``layout``, see
                `methods.config.AttentionFusionConfig`; for weighted logit methods ``weights`` or
                ``weights_by``; for ``self_consistency`` ``samples``. ``weights_by="entropy:1"``
                weighs the paraphrases of each question by how sure each of them is alone.

        Returns:
            An answer a question, in the order asked; of ``per_prompt`` one a paraphrase.

        Raises:
            UserError: unknown method, setting or extraction, an empty paraphrase or stop, not a
                weight for each paraphrase, a prompt longer than the model's context, too little
                memory.
        """
        answers = self.stream(
            questions,
            method=method,
            max_new_tokens=max_new_tokens,
            stop=stop,
            temperature=temperature,
            top_p=top_p,
            sample_seed=sample_seed,
            extract=extract,
            batch_size=batch_size,
            prompt=prompt,
            **settings,
        )
        return sorted(answers, key=lambda answer: (answer.question, answer.paraphrase or 0))

    def stream(
        self,
        questions: Iterable[Sequence[str]],
        *,
        method: str | Method = "attention",
        max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
        stop: Sequence[str] | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        sample_seed: int | None = None,
        extract: str = "line",
        batch_size: int | None = None,
        prompt: Prompt | WholePrompts | None = None,
        **settings: Any,
    ) -> Iterator[FusedAnswer]:
        """As `generate`, but answers come as they are finished: batch by batch, short ones first.

        Nothing is computed before the first answer is asked for. Several streams may be open at
        once, and be consumed in any order. ``FusedAnswer.question`` says whose an answer is.
        """
        asked = checked_questions(questions)
        method = _method_of(method, settings)
        taken = parse_extraction(extract)
        taken.check_shown(self.tokenizer)
        template = (self.prompt if prompt is None else prompt).template(self.tokenizer, taken)
        stops: Any = stop  # any sequence: the configuration makes a tuple of it
        usual = SELF_CONSISTENCY_SAMPLING if isinstance(method, SelfConsistency) else None
        sampling = make_sampling(
            temperature=temperature, top_p=top_p, seed=sample_seed, usual=usual
        )
        given = Asked(
            engine=self.engine,
            template=template,
            questions=asked,
            uuids=own_uuids(asked),
            ask=asking(self.engine),
            config=GenerationConfig(max_new_tokens, batch_size, stops, sampling),
            extract=taken,
        )
        return self._stream(method, given)

    def loglikelihood(
        self,
        questions: Iterable[Sequence[str]],
        choices: Iterable[Sequence[str]],
        *,
        method: str | Method = "attention",
        choice_norm: str = "sum",
        batch_size: int | None = None,
        prompt: Prompt | WholePrompts | None = None,
        **settings: Any,
    ) -> list[ChoiceLikelihoods]:
        """Say how likely given answers are: of each question, the log-likelihood of its choices.

        A question's paraphrases are encoded once, and a choice's tokens are fused as generated ones
        are. Of one paraphrase the log-likelihood is that of a plain forward over the prompt, a
        space and the choice (no space behind a chat template's rendering, where the prompt ends in
        whitespace or the choice begins with some).

        Args:
            questions: see `generate`.
            choices: the choices of each question, as texts; as many as there are.
            method: see `generate`. Weighted logit methods that are given no weights weigh a
                paraphrase by the probability of its likeliest choice among the choices. ``vote``
                gives the likelihoods of the first paraphrase that chooses what most of them do.
            choice_norm: how a paraphrase chooses where a method votes: ``sum``, ``mean`` (by
                token) or ``bytes`` (by byte of the choice). The result has all of them.
            batch_size: questions at a time; None takes what fits.
            prompt: instead of the ensemble's own.
            settings: of the method, see `generate`.

        Returns:
            The choices' likelihoods a question, in the order asked; of ``per_prompt`` one a
            paraphrase.

        Raises:
            UserError: what `generate` raises; or there are not choices for each question, one is
                empty, a method cannot score choices, there is no such norm, or the tokenizer merges
                a choice with its prompt so that the paraphrases' tokens depend on it.
        """
        asked = checked_questions(questions)
        given = _checked_choices(choices, len(asked))
        if choice_norm not in NORMS:
            raise UserError(f"unknown norm {choice_norm!r}: there is {', '.join(NORMS)}")
        method = _method_of(method, settings)
        if not isinstance(method, ScoringMethod):
            raise UserError(f"the method {type(method).__name__} cannot score choices")
        scored = method.score(
            AskedChoices(
                engine=self.engine,
                template=(self.prompt if prompt is None else prompt).template(self.tokenizer),
                questions=asked,
                choices=given,
                ask=asking_likelihood(self.engine),
                batch_size=GenerationConfig(batch_size=batch_size).batch_size,
                norm=choice_norm,
            )
        )
        found = []
        for outcome in scored:
            of_each = len(outcome.likelihoods) > 1
            for index, likelihoods in enumerate(outcome.likelihoods):
                found.append(
                    ChoiceLikelihoods(
                        choices=given[outcome.question],
                        logprobs=tuple(each.logprobs for each in likelihoods),
                        greedy=tuple(all(each.greedy) for each in likelihoods),
                        question=outcome.question,
                        paraphrase=index if of_each else outcome.paraphrase,
                    )
                )
        return sorted(found, key=lambda each: (each.question, each.paraphrase or 0))

    def _stream(self, method: Method, asked: Asked) -> Iterator[FusedAnswer]:
        for outcome in method.answer(asked):
            of_each = len(outcome.answers) > 1
            for index, answer in enumerate(outcome.answers):
                generation = answer_text(self.tokenizer, answer)
                yield FusedAnswer(
                    text=asked.extract(generation),
                    logprob=sum(answer.logprobs),
                    truncated=answer.truncated,
                    generation=generation,
                    token_ids=answer.token_ids,
                    question=outcome.question,
                    paraphrase=index if of_each else outcome.paraphrase,
                )


def _method_of(method: str | Method, settings: dict[str, Any]) -> Method:
    if isinstance(method, str):
        return make_method(method, **settings)
    if settings:
        raise UserError("a method object has its settings already; give it no others")
    return method


def _checked_choices(choices: Iterable[Sequence[str]], count: int) -> list[tuple[str, ...]]:
    """The choices of so many questions, copied.

    Raises:
        UserError: they are not texts in lists, or not a list for each question.
    """
    given: list[tuple[str, ...]] = []
    if not isinstance(choices, Iterable):
        raise UserError(f"the choices are {choices!r}; give a list of texts for each question")
    for index, texts in enumerate(choices):
        if isinstance(texts, str | Mapping | Set) or not isinstance(texts, Iterable):
            raise UserError(
                f"the choices of question {index} are a {type(texts).__name__}; give a list of "
                "texts"
            )
        given.append(tuple(texts))
        if not given[-1] or not all(map(is_text, given[-1])):
            raise UserError(
                f"question {index} has no choice, or one that is empty, no text, or holds half a "
                "character"
            )
    if len(given) != count:
        raise UserError(f"there are choices for {len(given)} questions and {count} questions")
    return given
