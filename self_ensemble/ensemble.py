"""The library's face: a model that answers questions asked in several wordings.

from self_ensemble import Ensemble

ensemble = Ensemble.from_pretrained("demo")
answers = ensemble.generate(
    [["What is the capital of France?", "France's capital is which city?"]]
)
answers[0].text, answers[0].logprob, answers[0].truncated
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from self_ensemble.data.answers import first_line
from self_ensemble.data.prompts import Prompt, WholePrompts
from self_ensemble.data.records import compact_json, question_uuid
from self_ensemble.generation.config import DEFAULT_MAX_NEW_TOKENS, GenerationConfig
from self_ensemble.generation.engine import Batch
from self_ensemble.generation.loading import make_engine
from self_ensemble.generation.request import Request
from self_ensemble.methods.base import Asked, Method, Template
from self_ensemble.methods.names import make_method
from self_ensemble.models.config import ModelConfig
from self_ensemble.system.errors import UserError


@dataclass(frozen=True)
class FusedAnswer:
    """The answer to one question.

    Attributes:
        text: the answer: the first line that was generated, without space around it.
        logprob: natural log-probability of the answer's tokens under the fused distribution, the
            stop token excluded.
        truncated: the token limit came before a stop.
        generation: all that was generated, as text.
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
        self.engine = make_engine(model, tokenizer, attention=attention, capture=capture)

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
    ) -> Ensemble:
        """Load a model.

        Args:
            name: an alias (``demo`` is bundled; `constants.MODEL_PATHs` has the others), a hub id,
                or a folder. Weights are read from safetensors only, and no code of a repository is
                run.
            revision: branch, tag or commit on the hub.
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
            dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
            prompt: see `Ensemble`; by default, for the model ``demo``, the prompt it was made for.
            attention, capture: see `Ensemble`.

        Raises:
            UserError: no such model, device, dtype or attention, damaged files, too little memory,
                or an architecture that cannot work.
        """
        from self_ensemble.models.loading import find_model, load_model

        config = ModelConfig(
            name=name, revision=revision, device=device, dtype=dtype, attention=attention
        )
        model, tokenizer = load_model(find_model(config))
        if prompt is None and name == "demo":
            prompt = Prompt.of_demo()
        return cls(model, tokenizer, prompt=prompt, attention=attention, capture=capture)

    def generate(
        self,
        questions: Iterable[Sequence[str]],
        *,
        method: str | Method = "attention",
        max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
        batch_size: int | None = None,
        prompt: Prompt | WholePrompts | None = None,
        **settings: Any,
    ) -> list[FusedAnswer]:
        """Answer questions, greedily.

        Args:
            questions: the paraphrases of each question, as many for each; with `WholePrompts` the
                prompts as they are.
            method: ``attention``, a logit method (``avg``, ``prob_avg``, ``max``, ``weighted_avg``,
                ``weighted_max``), ``vote``, ``per_prompt``, ``origin`` (paraphrase 0), a name that
                you have registered, or a method object.
            max_new_tokens: the longest answer, in tokens.
            batch_size: questions at a time; None takes what fits. It changes no answer (float32; in
                half precision kernels round by shape).
            prompt: instead of the ensemble's own.
            settings: of the method. For ``attention``: ``fusion`` (``mean``, ``joint``, …),
                ``tau``, ``weights``, ``positions``, ``layout``; for weighted logit methods
                ``weights``.

        Returns:
            An answer a question, in the order asked; of ``per_prompt`` one a paraphrase.

        Raises:
            UserError: unknown method or setting, unlike numbers of paraphrases, an empty
                paraphrase, a prompt longer than the model's context, too little memory.
        """
        answers = self.stream(
            questions,
            method=method,
            max_new_tokens=max_new_tokens,
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
        batch_size: int | None = None,
        prompt: Prompt | WholePrompts | None = None,
        **settings: Any,
    ) -> Iterator[FusedAnswer]:
        """As `generate`, but answers come as they are finished: batch by batch, short ones first.

        Nothing is computed before the first answer is asked for. Several streams may be open at
        once, and be consumed in any order. ``FusedAnswer.question`` says whose an answer is.
        """
        asked = _checked(questions)
        if isinstance(method, str):
            method = make_method(method, **settings)
        elif settings:
            raise UserError("a method object has its settings already; give it no others")
        template = (self.prompt if prompt is None else prompt).template(self.tokenizer)
        config = GenerationConfig(max_new_tokens, batch_size)
        return self._stream(method, template, asked, config)

    def _stream(
        self,
        method: Method,
        template: Template,
        questions: Sequence[Sequence[str]],
        config: GenerationConfig,
    ) -> Iterator[FusedAnswer]:
        asked = Asked(
            engine=self.engine,
            template=template,
            questions=questions,
            uuids=_own_uuids(questions),
            ask=self._ask,
            config=config,
        )
        for outcome in method.answer(asked):
            of_each = len(outcome.answers) > 1
            for index, answer in enumerate(outcome.answers):
                generation = self.tokenizer.decode(answer.token_ids, skip_special_tokens=True)
                yield FusedAnswer(
                    text=first_line(generation),
                    logprob=sum(answer.logprobs),
                    truncated=answer.truncated,
                    generation=generation,
                    token_ids=answer.token_ids,
                    question=outcome.question,
                    paraphrase=index if of_each else outcome.paraphrase,
                )

    def _ask(
        self, name: str, request: Request, *, batch_size: int | None, unit: str = "questions"
    ) -> Iterable[Batch]:
        return self.engine.generate(request, batch_size=batch_size)


def _checked(questions: Iterable[Sequence[str]]) -> list[tuple[str, ...]]:
    """The questions, copied.

    Raises:
        UserError: they are not texts in lists, or not as many for each.
    """
    asked = []
    for index, paraphrases in enumerate(questions):
        if isinstance(paraphrases, Mapping | Set):
            raise UserError(
                f"question {index} is a {type(paraphrases).__name__}; give the list of its "
                "paraphrases"
            )
        if isinstance(paraphrases, str):
            raise UserError(
                f"question {index} is a text; give the list of its paraphrases, if only of one"
            )
        asked.append(tuple(paraphrases))
        if not asked[-1] or not all(isinstance(p, str) and p.strip() for p in asked[-1]):
            raise UserError(f"question {index} has no paraphrase, or one that is no text or empty")
        if len(asked[-1]) != len(asked[0]):
            raise UserError(
                f"question {index} has {len(asked[-1])} paraphrases and question 0 has "
                f"{len(asked[0])}: give as many for each"
            )
    return asked


def _own_uuids(questions: Sequence[Sequence[str]]) -> list[str]:
    """What tells questions apart that come without a uuid; of equal ones which of them it is.

    So a question's draws do not depend on what is asked beside it.
    """
    seen: Counter[tuple[str, ...]] = Counter()
    uuids = []
    for paraphrases in map(tuple, questions):
        uuids.append(question_uuid(compact_json([*paraphrases, seen[paraphrases]])))
        seen[paraphrases] += 1
    return uuids
