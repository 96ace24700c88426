"""What debugging shows, as tables and lines of text: the terminal and the page show the same.

A table is a list of rows of cells, the header first. Paraphrases are counted from 1, and where
they were chosen by an index, it stands behind.
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch

from self_ensemble.attention.segments import SplitQuestion
from self_ensemble.data.dataset import PromptTemplate, Record, construct_prompts
from self_ensemble.diagnostics.certificate import explain_bos, size
from self_ensemble.diagnostics.trace import (
    ANSWER_TOKENS,
    Isolation,
    Settings,
    Step,
    Trace,
    check_isolation,
    cut,
    trace_question,
)
from self_ensemble.evaluation.matchers import first_line, is_right
from self_ensemble.generation.engine import Answer, Engine
from self_ensemble.system.console import quoted, say_if_slow, visible

Table = list[list[str]]

NOTHING = "-"
# The drawing of the mask: its marks.
SEES, SEES_SOME, SEES_NONE = "#", "\\", "."
PREFIX, TAIL, ANSWER = "P", "T", "A"
SEGMENT_MARKS = string.digits[1:] + string.ascii_lowercase
# Tokens of a prefix that are drawn one by one at its ends, and tokens that are listed.
PREFIX_CELLS, PREFIX_TOKENS = 4, 12
# A tolerance above it is one of half precision.
HALF_PRECISION = 1e-3
# Most rows and columns of the drawing, and characters of a row's label.
CELLS, VERBOSE_CELLS, LABEL_WIDTH = 44, 120, 14


class Words:
    """The texts of token ids, and the names of paraphrases.

    indexs: of the question's paraphrases where they were chosen by index, counted from 0.
    """

    def __init__(self, tokenizer, indexs: Sequence[int] | None = None):
        self.tokenizer, self.indexs = tokenizer, indexs

    def paraphrase(self, place: int) -> str:
        """`2`, or `2 (index 4)`, of place 1."""
        name = str(place + 1)
        return name if self.indexs is None else f"{name} (index {self.indexs[place]})"

    def paraphrases(self, places: Sequence[int]) -> str:
        return ", ".join(map(self.paraphrase, places)) or "none"

    def token(self, token: int) -> str:
        return quoted(self.tokenizer.decode([token]))

    def tokens(self, ids: Sequence[int]) -> str:
        """With a bar at every border."""
        return "|".join(visible(self.tokenizer.decode([token])) for token in ids)

    def abbreviated(self, ids: Sequence[int], most: int) -> str:
        """`tokens`, those in the middle counted where there are more than ``most``."""
        if len(ids) <= most:
            return self.tokens(ids)
        half = most // 2
        between = f" ... {len(ids) - 2 * half} more ... "
        return f"{self.tokens(ids[:half])}|{between}|{self.tokens(ids[-half:])}"

    def answer(self, answer: Answer) -> str:
        text = self.tokenizer.decode(answer.token_ids, skip_special_tokens=True)
        return visible(first_line(text))


def percent(share: float) -> str:
    return f"{share:.1%}"


def align(rows: Table) -> list[str]:
    """The cells of a table under each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


# ---- cuts ---------------------------------------------------------------------------------------


def cut_table(
    words: Words, prefix: Sequence[int], question: SplitQuestion, most_of_prefix: int
) -> Table:
    """Where the prompts are cut, token by token."""
    rows = [["part", "tokens", "text"]]
    rows.append(["prefix", str(len(prefix)), words.abbreviated(prefix, most_of_prefix)])
    for i, segment in enumerate(question.segments):
        rows.append([f"segment {words.paraphrase(i)}", str(len(segment)), words.tokens(segment)])
    rows.append(["tail", str(len(question.tail)), words.tokens(question.tail)])
    return rows


def saving(prefix: Sequence[int], question: SplitQuestion) -> str:
    count, own = len(question.segments), sum(question.lengths)
    once = len(prefix) + len(question.tail)
    return f"{once + own} tokens, where {count} whole prompts have {count * once + own}."


def bos_note(
    words: Words,
    prefix: Sequence[int],
    question: SplitQuestion,
    prompts: Sequence[str],
    *,
    chat: bool,
) -> str:
    """How many beginning-of-sequence tokens a prompt has, and who put them there."""
    bos = words.tokenizer.bos_token_id
    count = max([*prefix, *s, *question.tail].count(bos) for s in question.segments)
    puts, why = explain_bos(words.tokenizer, prompts, chat=chat)
    wrong = f": {puts} should be there" if count != puts else ""
    return f"BOS: {count} in a prompt ({why}){wrong}."


# ---- the mask -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """A row, and a column, of the drawing: some tokens of one part, under one label."""

    mark: str
    label: str
    tokens: range


def mask_cells(
    words: Words, prefix: Sequence[int], question: SplitQuestion, most: int
) -> list[Cell]:
    """At most about ``most`` cells: a token each, but for what is left out of long parts."""
    segments = [(segment_mark(i), segment) for i, segment in enumerate(question.segments)]
    fixed = min(len(prefix), PREFIX_CELLS) + len(question.tail) + ANSWER_TOKENS
    longest = max(question.lengths)
    while longest > 1 and fixed + sum(min(n, longest) for n in question.lengths) > most:
        longest -= 1
    cells, start = [], 0
    for mark, ids, limit in (
        (PREFIX, prefix, PREFIX_CELLS),
        *((mark, segment, longest) for mark, segment in segments),
        (TAIL, question.tail, len(question.tail)),
    ):
        for own in _cut(range(len(ids)), limit):
            label = words.token(ids[own[0]]) if len(own) == 1 else f"... {len(own)} tokens"
            cells.append(Cell(mark, label, range(start + own.start, start + own.stop)))
        start += len(ids)
    for number in range(ANSWER_TOKENS):
        token = range(start + number, start + number + 1)
        cells.append(Cell(ANSWER, f"answer {number + 1}", token))
    return cells


def segment_mark(segment: int) -> str:
    return SEGMENT_MARKS[segment % len(SEGMENT_MARKS)]


def _cut(tokens: range, most: int) -> list[range]:
    """One range a token; a longer one in the middle where there are more than ``most``."""
    if len(tokens) <= most:
        return [range(t, t + 1) for t in tokens]
    first, last = most // 2, (most - 1) // 2
    ends = [range(t, t + 1) for t in tokens]
    middle = range(tokens[first], tokens[len(tokens) - last - 1] + 1)
    return [*ends[:first], middle, *ends[len(ends) - last :]]


def seen(mask: torch.Tensor, cells: Sequence[Cell]) -> list[list[float]]:
    """Row by column: 1 where all of the row's tokens see all of the column's, 0 where none does."""
    own = torch.zeros(len(cells), mask.shape[0], dtype=torch.float64)
    for number, cell in enumerate(cells):
        own[number, cell.tokens.start : cell.tokens.stop] = 1
    pairs = own.sum(1)[:, None] * own.sum(1)[None, :]
    count = own @ mask.double() @ own.T
    return ((count > 0).double() / 2 + (count == pairs).double() / 2).tolist()


def shortened(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 2] + ".."


def draw_mask(mask: torch.Tensor, cells: Sequence[Cell], width: int) -> list[str]:
    """Plain characters, a row a cell; labels are cut to ``width``."""
    signs = {1.0: SEES, 0.5: SEES_SOME, 0.0: SEES_NONE}
    lines = [" " * (width + 4) + "".join(cell.mark for cell in cells)]
    for row, shares_seen in zip(cells, seen(mask, cells), strict=True):
        label = shortened(row.label, width)
        drawn = "".join(signs[share] for share in shares_seen)
        lines.append(f"{row.mark}  {label:<{width}} {drawn}")
    return [
        *lines,
        f"{SEES} attends to   {SEES_SOME} to some of them   {SEES_NONE} does not;   "
        "columns are the tokens of the rows, in the same order",
        f"{PREFIX} prefix   {SEGMENT_MARKS[0]}, {SEGMENT_MARKS[1]}, ... segments   {TAIL} tail   "
        f"{ANSWER} answer: tail and answer are fused tokens",
    ]


# ---- isolation ----------------------------------------------------------------------------------


def isolation_lines(words: Words, isolation: Isolation) -> list[str]:
    """The verdict, and what it rests on."""
    worst = max(isolation.differences, key=size)
    verdict = "passed" if isolation.passed else "FAILED"
    lines = [
        f"isolation check: {verdict}. Keys, values and hidden states of the packed segments differ",
        f"from those of separate runs by at most {worst:.1e} of their norm; rounding: up to "
        f"{isolation.tolerance:.1e}.",
    ]
    if isolation.unmasked is not None:
        lines.append(f"Without the mask hidden states would differ by {isolation.unmasked:.1e}.")
    lines += [
        "With one paraphrase alone listened to, the logits of fused tokens differ from those of "
        "its prompt",
        f"by at most {isolation.fused:.1e} of their spread; rounding: up to "
        f"{isolation.fused_tolerance:.1e}.",
    ]
    if isolation.passed and isolation.tolerance > HALF_PRECISION:
        lines.append(
            "Rounding in half precision could hide a small leak; --dtype float32 would not."
        )
    if not isolation.apart:
        each = ", ".join(
            f"{words.paraphrase(i)}: {d:.1e}" for i, d in enumerate(isolation.differences)
        )
        lines += [
            f"By paraphrase: {each}.",
            "ISOLATION FAILED: paraphrases see each other, or are encoded otherwise than alone.",
        ]
    if not isolation.decodes:
        lines.append("DECODE FAILED: fused tokens do not go on as the prompt alone would.")
    if not isolation.passed:
        lines.append(
            "What follows is not the method, and no answer of this model here can be trusted."
        )
    return lines


# ---- steps --------------------------------------------------------------------------------------


def best(logits: torch.Tensor, count: int) -> list[tuple[int, float]]:
    """The most probable tokens and their probabilities; ties to the lowest id."""
    probabilities = logits.float().softmax(-1)
    order = probabilities.sort(descending=True, stable=True).indices[:count].tolist()
    first = int(logits.argmax())  # what the engine takes, also where probabilities round to a tie
    order = [first, *(token for token in order if token != first)][:count]
    return [(token, float(probabilities[token])) for token in order]


def candidate_table(words: Words, step: Step, count: int) -> Table:
    rows = [["candidate", "token", "logit", "probability"]]
    for token, probability in best(step.logits, count):
        logit = f"{float(step.logits[token]):.2f}"
        rows.append([words.token(token), str(token), logit, percent(probability)])
    return rows


def shares(step: Step) -> list[float]:
    """Of prefix, paraphrases and own text in the attention; the mean over layers and heads."""
    return step.attention.double().mean((0, 1)).tolist()


def attention_table(words: Words, step: Step, *, by_layer: bool) -> Table:
    count = step.attention.shape[-1] - 2
    rows = [["layer", "prefix", *map(words.paraphrase, range(count)), "own text"]]
    if by_layer:
        for layer, each in enumerate(step.attention.double().mean(1).tolist()):
            rows.append([str(layer), *map(percent, each)])
    rows.append(["all", *map(percent, shares(step))])
    return rows


def paraphrase_table(words: Words, step: Step) -> Table:
    """What each paraphrase's part was: its attention, itself alone, and the others without it."""
    chosen = f"P({words.token(step.token)})"
    rows = [["paraphrase", "attention", "alone", chosen, "left out", chosen, ""]]
    for i, share in enumerate(shares(step)[1:-1]):
        without = step.left_out[i]
        rows.append(
            [
                words.paraphrase(i),
                percent(share),
                *_says(words, step.alone[i], step.token),
                *((NOTHING, NOTHING) if without is None else _says(words, without, step.token)),
                "<- moved the choice" if i in step.decisive else "",
            ]
        )
    return rows


def _says(words: Words, logits: torch.Tensor, chosen: int) -> tuple[str, str]:
    """Its first choice with its probability, and the probability of what was chosen."""
    [(token, probability)] = best(logits, 1)
    given = float(logits.float().softmax(-1)[chosen])
    return f"{words.token(token)} {percent(probability)}", percent(given)


def step_title(words: Words, trace: Trace, number: int, tail: Sequence[int]) -> str:
    before = [step.token for step in trace.steps[:number]]
    return f'after "{words.tokens([*tail, *before])}"'


def attention_title(words: Words, trace: Trace, number: int, tail: Sequence[int]) -> str:
    newest = [*tail, *(step.token for step in trace.steps[:number])][-1]
    return f"attention of {words.token(newest)}, the token before; mean over heads"


def choice_line(words: Words, trace: Trace, number: int) -> str:
    step = trace.steps[number]
    [(_, probability)] = best(step.logits, 1)
    line = f"chosen: {words.token(step.token)} ({percent(probability)})"
    if number + 1 == len(trace.steps):
        line += ", and the token limit is reached" if trace.answer.truncated else ", which ends it"
    if step.decisive:
        which = "any one of " if len(step.decisive) > 1 else ""
        named = f"{which}paraphrase {words.paraphrases(step.decisive)}"
        return f"{line}; without {named} it would be another"
    return f"{line}; no single paraphrase moved it" if len(step.alone) > 1 else line


# ---- the summary --------------------------------------------------------------------------------


def summary_table(words: Words, trace: Trace, right: Sequence[str]) -> Table:
    """The fused answer, each paraphrase's own, and the fused one without each."""

    def row(name: str, answer: Answer | None, note: str = "") -> list[str]:
        if answer is None:
            return [name, NOTHING, NOTHING, NOTHING, note]
        text = words.answer(answer)
        verdict = "right" if is_right(text, right) else "wrong"
        if answer.truncated:
            note = "cut at the token limit" + (f"; {note}" if note else "")
        return [name, text, verdict, percent(math.exp(sum(answer.logprobs))), note]

    rows = [["", "answer", "", "probability", ""], row("attention fusion", trace.answer)]
    rows += [row(f"paraphrase {words.paraphrase(i)} alone", a) for i, a in enumerate(trace.alone)]
    if len(trace.alone) > 1:
        for i, answer in enumerate(trace.left_out):
            at = [str(n) for n, step in enumerate(trace.steps, start=1) if i in step.decisive]
            note = f"decisive at step {', '.join(at)}" if at else ""
            rows.append(row(f"without paraphrase {words.paraphrase(i)}", answer, note))
    return rows


def summary_lines(words: Words, trace: Trace, right: Sequence[str]) -> list[str]:
    lines = ["right answers: " + " | ".join(map(visible, right))]
    if len(trace.alone) > 1:
        lines.append(f"decisive paraphrases: {words.paraphrases(trace.decisive)}")
    return lines


def settings_line(settings: Settings) -> str:
    said = [f"fusion {settings.fusion}", f"positions {settings.positions}"]
    if settings.tau:
        said.append(f"tau {settings.tau:g}")
    if settings.weights is not None:
        said.append("weights " + ", ".join(f"{u:g}" for u in settings.weights))
    return ", ".join(said)


# ---- one question -------------------------------------------------------------------------------


class Inspection:
    """One question looked into: computed when it is first asked for, shown as lines of text.

    Args:
        engine, template, record, settings, max_new_tokens: what is asked, and how.
        verbose: whole prefixes, a larger mask, attention by layer, more candidates.
        chat: the prompt is a chat template's.
        indexs: what the paraphrases were chosen by, if they were.
    """

    def __init__(
        self,
        engine: Engine,
        template: PromptTemplate,
        record: Record,
        settings: Settings,
        *,
        max_new_tokens: int,
        verbose: bool,
        chat: bool,
        indexs: Sequence[int] | None = None,
    ):
        self.engine, self.template, self.record = engine, template, record
        self.settings, self.max_new_tokens = settings, max_new_tokens
        self.verbose, self.chat = verbose, chat
        self.words = Words(engine.tokenizer, indexs)
        self.question = cut(engine, template, record.paraphrases)
        self.prefix = engine.prefix_ids
        self.reached: int | None = None  # the step shown last
        # What can be asked for at any time, and what only once a step was shown.
        self.quantities: dict[str, Callable[[], list[str]]] = {
            "settings": self.show_settings,
            "answers": lambda: [visible(answer) for answer in self.record.answers],
            "prompts": self.show_prompts,
            "segments": self.show_cuts,
            "mask": self.show_mask,
            "isolation": lambda: isolation_lines(self.words, self.isolation),
        }
        self.of_steps: dict[str, Callable[[Step], list[str]]] = {
            "tokens": self.show_tokens,
            "candidates": lambda step: align(candidate_table(self.words, step, self.candidates)),
            "logits": self.show_logits,
            "attention": lambda step: align(attention_table(self.words, step, by_layer=True)),
            "paraphrases": lambda step: align(paraphrase_table(self.words, step)),
        }

    @property
    def title(self) -> str:
        return visible(self.record.paraphrases[0])

    @property
    def candidates(self) -> int:
        return 10 if self.verbose else 5

    @property
    def prompts(self) -> list[str]:
        return construct_prompts(self.record.paraphrases, self.template)

    @cached_property
    def isolation(self) -> Isolation:
        with say_if_slow("holding the question against stock forwards of its prompts"):
            return check_isolation(self.engine, self.question, self.settings.positions)

    @cached_property
    def trace(self) -> Trace:
        with say_if_slow("answering, fused, with each paraphrase alone and without it"):
            return trace_question(
                self.engine,
                self.template,
                self.record.paraphrases,
                settings=self.settings,
                max_new_tokens=self.max_new_tokens,
            )

    def stages(self) -> Iterator[tuple[str, Callable[[], list[str]]]]:
        """What there is to see, in order: a name, and what shows it."""
        yield "prompts", self.show_cuts
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
        return [f"{settings_line(self.settings)}; packed segments encoded through {encode}"]

    def show_prompts(self) -> list[str]:
        """Every prompt as the model would have it alone."""
        lines = []
        for i, prompt in enumerate(self.prompts):
            text = "\n".join(visible(line) for line in prompt.split("\n"))
            lines += [f"--- prompt {self.words.paraphrase(i)} ---", *text.split("\n")]
        return lines

    def show_cuts(self) -> list[str]:
        most = len(self.prefix) if self.verbose else PREFIX_TOKENS
        return [
            *align(cut_table(self.words, self.prefix, self.question, most)),
            saving(self.prefix, self.question),
            bos_note(self.words, self.prefix, self.question, self.prompts, chat=self.chat),
            *self.show_settings(),
        ]

    def show_mask(self) -> list[str]:
        most = VERBOSE_CELLS if self.verbose else CELLS
        cells = mask_cells(self.words, self.prefix, self.question, most)
        return draw_mask(self.isolation.mask, cells, LABEL_WIDTH) + self.mask_notes()

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
        answer = [each.token for each in self.trace.steps[: self.reached + 1]]
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
                *(f"{self.words.paraphrase(i)} alone" for i in range(len(step.alone))),
            ]
        ]
        for token, _ in best(step.logits, self.candidates):
            values = [float(logits[token]) for logits in (step.logits, *step.alone)]
            rows.append([self.words.token(token), *(f"{value:.3f}" for value in values)])
        low, high = float(step.logits.min()), float(step.logits.max())
        return [f"{len(step.logits)} fused logits from {low:.3f} to {high:.3f}", *align(rows)]

    def show_step(self, number: int) -> list[str]:
        step, self.reached = self.trace.steps[number], number
        return [
            step_title(self.words, self.trace, number, self.question.tail),
            *align(candidate_table(self.words, step, self.candidates)),
            "",
            attention_title(self.words, self.trace, number, self.question.tail),
            *align(attention_table(self.words, step, by_layer=self.verbose)),
            "",
            *align(paraphrase_table(self.words, step)),
            "",
            choice_line(self.words, self.trace, number),
        ]

    def show_summary(self) -> list[str]:
        right = self.record.answers
        return [
            *align(summary_table(self.words, self.trace, right)),
            *summary_lines(self.words, self.trace, right),
        ]
