"""One question looked into, stage by stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property, partial

from self_ensemble.attention.segments import split_prompts
from self_ensemble.data import PromptTemplate, Record, construct_prompts
from self_ensemble.data.cells import show_name
from self_ensemble.data.records import indexs_taken
from self_ensemble.diagnostics.config import DebugConfig
from self_ensemble.diagnostics.isolation import ANSWER_TOKENS, Isolation, check_isolation
from self_ensemble.diagnostics.mask_drawing import (
    CELLS,
    VERBOSE_CELLS,
    MaskCells,
    draw_text,
    mask_cells,
    question_parts,
)
from self_ensemble.diagnostics.tables import (
    PREFIX_TOKENS,
    attention_table,
    attention_title,
    best,
    bos_note,
    candidate_table,
    choice_line,
    isolation_lines,
    paraphrase_table,
    saving,
    settings_line,
    split_table,
    step_title,
    summary_lines,
    summary_table,
)
from self_ensemble.diagnostics.trace import (
    Step,
    Trace,
    fusion_of,
    method_of,
    positions_of,
    trace_question,
)
from self_ensemble.diagnostics.words import Words, align
from self_ensemble.generation.engine import Engine
from self_ensemble.system.console import say_if_slow, visible


class Inspection:
    """One question looked into: computed when it is first asked for, shown as lines of text.

    Args:
        engine: that answers it.
        template: what stands around a paraphrase.
        record: the question.
        config: how it is answered, and how much is shown.
    """

    def __init__(
        self, engine: Engine, template: PromptTemplate, record: Record, config: DebugConfig
    ):
        self.engine, self.template, self.record, self.config = engine, template, record, config
        method = method_of(config.method)
        self.method = replace(method, positions=positions_of(method, engine))
        indexs = config.questions.options.indexs
        taken = None if indexs is None else indexs_taken(indexs, len(record.paraphrases))
        self.words = Words(engine.tokenizer, taken)
        self.prefix, [self.question] = split_prompts(
            engine.tokenizer, template, [record.paraphrases]
        )
        self.reached: int | None = None  # the step shown last
        # What can be asked for at any time, and what only once a step was shown.
        self.quantities: dict[str, Callable[[], list[str]]] = {
            "settings": self.show_settings,
            "answers": lambda: [visible(a) for a in self.record.answers] or ["none are known"],
            "prompts": self.show_prompts,
            "segments": self.show_split,
            "mask": self.show_mask,
            "isolation": lambda: isolation_lines(self.words, self.isolation),
        }
        self.of_steps: dict[str, Callable[[Step], list[str]]] = {
            "tokens": self.show_tokens,
            "candidates": lambda step: align(candidate_table(self.words, step, self.candidates)),
            "logits": self.show_logits,
            "attention": lambda step: align(attention_table(self.words, step, by_layer=True)),
            "paraphrases": self.show_paraphrases,
        }

    @property
    def title(self) -> str:
        return f"{visible(self.record.paraphrases[0])} (uuid {show_name(self.record.uuid)})"

    @property
    def candidates(self) -> int:
        return 10 if self.config.verbose else 5

    @property
    def prompts(self) -> list[str]:
        return construct_prompts(self.record.paraphrases, self.template)

    @cached_property
    def isolation(self) -> Isolation:
        with say_if_slow("holding the question against stock forwards of its prompts"):
            return check_isolation(
                self.engine,
                self.prefix,
                self.question,
                positions_of(self.method, self.engine),
                fusion_of(self.method, self.engine),
            )

    @cached_property
    def trace(self) -> Trace:
        with say_if_slow("answering, fused, with each paraphrase alone and without it"):
            return trace_question(
                self.engine,
                self.template,
                self.record.paraphrases,
                settings=self.method,
                max_new_tokens=self.config.max_new_tokens,
            )

    def stages(self) -> Iterator[tuple[str, Callable[[], list[str]]]]:
        """What there is to see, in order: a name, and what shows it."""
        yield "prompts", self.show_split
        yield "mask", self.show_mask
        yield "isolation", lambda: isolation_lines(self.words, self.isolation)
        yield "step 1", partial(self.show_step, 0)
        for number in range(1, len(self.trace.steps)):
            yield f"step {number + 1}", partial(self.show_step, number)
        yield "summary", self.show_summary

    def show(self, name: str) -> list[str]:
        """A quantity by its name; for an unknown one, what there is."""
        if name in self.quantities:
            return self.quantities[name]()
        if name not in self.of_steps:
            there = ", ".join([*self.quantities, *self.of_steps])
            return [f"there is no {visible(name)!r}; there are {there}" if name else there]
        if self.reached is None:
            return [f"{name}: not before the first step has been shown"]
        return self.of_steps[name](self.trace.steps[self.reached])

    def show_settings(self) -> list[str]:
        encode = self.engine.wrapper.backend
        return [f"{settings_line(self.method)}; packed segments encoded through {encode}"]

    def show_prompts(self) -> list[str]:
        """Every prompt as the model would have it alone."""
        lines = []
        for i, prompt in enumerate(self.prompts):
            text = "\n".join(visible(line) for line in prompt.split("\n"))
            lines += [f"--- prompt {self.words.paraphrase(i)} ---", *text.split("\n")]
        return lines

    def show_split(self) -> list[str]:
        most = len(self.prefix) if self.config.verbose else PREFIX_TOKENS
        chat = self.config.prompt.chat_template
        return [
            *align(split_table(self.words, self.prefix, self.question, most)),
            saving(self.prefix, self.question),
            bos_note(self.words, self.prefix, self.question, self.prompts, chat=chat),
            *self.show_settings(),
        ]

    def drawing(self, most: int) -> MaskCells:
        """The measured mask in about so many cells."""
        parts = question_parts(self.words, self.prefix, self.question, ANSWER_TOKENS, most)
        return mask_cells(self.isolation.mask, parts)

    def show_mask(self) -> list[str]:
        most = VERBOSE_CELLS if self.config.verbose else CELLS
        return draw_text(self.drawing(most)) + self.mask_notes()

    def mask_notes(self) -> list[str]:
        notes = ["Drawn is what the model's layers let through, as measured with equal scores."]
        every = {scoring.window for _, scoring in self.engine.wrapper.layers.values()}
        windows = sorted(window for window in every if window is not None)
        if windows:
            sizes = " or ".join(map(str, windows))
            notes.append(
                f"Layers with a sliding window see only the last {sizes} positions of this."
                if None in every
                else f"Every layer has a sliding window, of {sizes} positions."
            )
        return notes

    def show_tokens(self, step: Step) -> list[str]:
        """Ids and texts of the prompt's parts, and of the answer up to the step shown last."""
        answer = [each.token for each in self.trace.steps[: (self.reached or 0) + 1]]
        named = [
            ("prefix", self.prefix),
            *(
                (f"segment {self.words.paraphrase(i)}", ids)
                for i, ids in enumerate(self.question.segments)
            ),
            ("tail", self.question.tail),
            ("answer", answer),
        ]
        return [
            f"{name}: " + " ".join(f"{token}={self.words.token(token)}" for token in ids)
            for name, ids in named
        ]

    def show_logits(self, step: Step) -> list[str]:
        """The fused logits' range, and those of the first candidates with every paraphrase's."""
        rows = [
            [
                "token",
                "fused",
                *(f"{self.words.paraphrase(i)} alone" for i in range(len(step.single))),
            ]
        ]
        for token, _ in best(step.logits, self.candidates):
            values = [float(logits[token]) for logits in (step.logits, *step.single)]
            rows.append([self.words.token(token), *(f"{value:.3f}" for value in values)])
        low, high = float(step.logits.min()), float(step.logits.max())
        return [f"{len(step.logits)} fused logits from {low:.3f} to {high:.3f}", *align(rows)]

    def show_paraphrases(self, step: Step) -> list[str]:
        return align(paraphrase_table(self.words, step, self.trace.weights))

    def show_step(self, number: int) -> list[str]:
        step, self.reached = self.trace.steps[number], number
        return [
            step_title(self.words, self.trace, number, self.question.tail),
            *align(candidate_table(self.words, step, self.candidates)),
            "",
            attention_title(self.words, self.trace, number, self.question.tail),
            *align(attention_table(self.words, step, by_layer=self.config.verbose)),
            "",
            *self.show_paraphrases(step),
            "",
            choice_line(self.words, self.trace, number),
        ]

    def show_summary(self) -> list[str]:
        right = self.record.answers
        return [
            *align(summary_table(self.words, self.trace, right)),
            *summary_lines(self.words, self.trace, right),
        ]
