"""What debugging shows, as tables and lines of text: the terminal and the page show the same.

A table is a list of rows of cells, the header first. Paraphrases are counted from 1.
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch

from answers import first_line, is_right
from dataset import PromptTemplate, Record, construct_prompts
from debug_trace import (
    TOLERANCE,
    Isolation,
    Settings,
    Step,
    Trace,
    check_isolation,
    cut,
    trace_question,
)
from engine import Answer, Engine
from progress import say_if_slow
from segments import SplitQuestion, create_segment_isolation_mask, dense_mask

Table = list[list[str]]

NOTHING = "-"
# The drawing of the mask: its marks, and how many tokens of the answer it shows.
SEES, SEES_SOME, SEES_NONE = "#", "\\", "."
PREFIX, TAIL, ANSWER = "P", "T", "A"
SEGMENT_MARKS = string.digits[1:] + string.ascii_lowercase
ANSWER_TOKENS = 2
# Tokens of a prefix that are drawn one by one at its ends, and tokens that are listed.
PREFIX_CELLS, PREFIX_TOKENS = 4, 12
# Most rows and columns of the drawing, and characters of a row's label.
CELLS, VERBOSE_CELLS, LABEL_WIDTH = 44, 120, 14


def visible(text: str) -> str:
    """The text on one line: what cannot be printed is escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class Words:
    """The texts of token ids."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def token(self, token: int) -> str:
        """In quotes, for a leading space matters."""
        return f"'{visible(self.tokenizer.decode([token]))}'"

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


def numbered(paraphrases: Sequence[int]) -> str:
    """`2, 3` of [1, 2]; they are counted from 1."""
    return ", ".join(str(i + 1) for i in paraphrases) or "none"


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
    for i, segment in enumerate(question.segments, start=1):
        rows.append([f"segment {i}", str(len(segment)), words.tokens(segment)])
    rows.append(["tail", str(len(question.tail)), words.tokens(question.tail)])
    return rows


def saving(prefix: Sequence[int], question: SplitQuestion) -> str:
    count, own = len(question.segments), sum(question.lengths)
    once = len(prefix) + len(question.tail)
    return f"{once + own} tokens, where {count} whole prompts have {count * once + own}."


def bos_note(words: Words, prefix: Sequence[int], segment: Sequence[int], *, chat: bool) -> str:
    """How many beginning-of-sequence tokens a prompt has, and who put them there."""
    bos = words.tokenizer.bos_token_id
    count = [*prefix, *segment].count(bos) if bos is not None else 0
    if count == 0:
        return "BOS: none; this tokenizer puts nothing in front."
    source = "the chat template" if chat else "the tokenizer"
    return f"BOS: {count} ({words.token(bos)}), from {source}."


# ---- the mask -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """A row, and a column, of the drawing: some tokens of one part, under one label."""

    mark: str
    label: str
    tokens: range


def question_mask(prefix_length: int, question: SplitQuestion) -> torch.Tensor:
    """The isolation mask of prefix, segments, tail and some of the answer, [S, S] bool."""
    ends = torch.tensor(question.lengths).cumsum(0) + prefix_length
    ranges = [(int(end) - n, int(end)) for end, n in zip(ends, question.lengths, strict=True)]
    original = ranges[-1][1]
    mask_mod = create_segment_isolation_mask(ranges, original, prefix_length=prefix_length)
    total = original + len(question.tail) + ANSWER_TOKENS
    return dense_mask(mask_mod, total, total)


def mask_cells(
    words: Words, prefix: Sequence[int], question: SplitQuestion, most: int
) -> list[Cell]:
    """At most about ``most`` cells: a token each, but for what is left out of long parts."""
    segments = [(_mark(i), segment) for i, segment in enumerate(question.segments)]
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


def _mark(segment: int) -> str:
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


def draw_mask(mask: torch.Tensor, cells: Sequence[Cell], width: int) -> list[str]:
    """Plain characters, a row a cell; labels are cut to ``width``."""
    signs = {1.0: SEES, 0.5: SEES_SOME, 0.0: SEES_NONE}
    lines = [" " * (width + 4) + "".join(cell.mark for cell in cells)]
    for row, shares_seen in zip(cells, seen(mask, cells), strict=True):
        label = row.label if len(row.label) <= width else row.label[: width - 2] + ".."
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


def isolation_lines(isolation: Isolation) -> list[str]:
    """The verdict, and what it rests on."""
    worst = max(isolation.differences, key=lambda d: math.inf if math.isnan(d) else d)
    verdict = "passed" if isolation.passed else "FAILED"
    lines = [
        f"isolation check: {verdict}. Keys and values of the packed segments differ from those of "
        "separate",
        f"runs by at most {worst:.1e} of the largest; allowed are {isolation.tolerance:.0e}.",
    ]
    if isolation.unmasked is not None:
        lines.append(f"Without the mask they would differ by {isolation.unmasked:.1e}.")
    if isolation.passed and isolation.tolerance > TOLERANCE:
        lines.append(
            "Rounding in half precision could hide a small leak; --dtype float32 would not."
        )
    if not isolation.passed:
        each = ", ".join(f"{i}: {d:.1e}" for i, d in enumerate(isolation.differences, start=1))
        lines += [
            f"By paraphrase: {each}.",
            "ISOLATION FAILED: paraphrases see each other, or are encoded otherwise than alone.",
            "What follows is not the method, and no answer of this model here can be trusted.",
        ]
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


def attention_table(step: Step, *, by_layer: bool) -> Table:
    count = step.attention.shape[-1] - 2
    rows = [["layer", "prefix", *(str(i + 1) for i in range(count)), "own text"]]
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
                str(i + 1),
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
        return f"{line}; without {which}paraphrase {numbered(step.decisive)} it would be another"
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
    rows += [row(f"paraphrase {i} alone", a) for i, a in enumerate(trace.alone, start=1)]
    if len(trace.alone) > 1:
        for i, answer in enumerate(trace.left_out):
            at = [number for number, step in enumerate(trace.steps) if i in step.decisive]
            note = f"decisive at step {numbered(at)}" if at else ""
            rows.append(row(f"without paraphrase {i + 1}", answer, note))
    return rows


def summary_lines(trace: Trace, right: Sequence[str]) -> list[str]:
    lines = ["right answers: " + " | ".join(map(visible, right))]
    if len(trace.alone) > 1:
        lines.append(f"decisive paraphrases: {numbered(trace.decisive)}")
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
    ):
        self.engine, self.template, self.record = engine, template, record
        self.settings, self.max_new_tokens = settings, max_new_tokens
        self.verbose, self.chat = verbose, chat
        self.words = Words(engine.tokenizer)
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
            "isolation": lambda: isolation_lines(self.isolation),
        }
        self.of_steps: dict[str, Callable[[Step], list[str]]] = {
            "tokens": self.show_tokens,
            "candidates": lambda step: align(candidate_table(self.words, step, self.candidates)),
            "logits": self.show_logits,
            "attention": lambda step: align(attention_table(step, by_layer=True)),
            "paraphrases": lambda step: align(paraphrase_table(self.words, step)),
        }

    @property
    def title(self) -> str:
        return visible(self.record.paraphrases[0])

    @property
    def candidates(self) -> int:
        return 10 if self.verbose else 5

    @cached_property
    def isolation(self) -> Isolation:
        return check_isolation(self.engine, self.question)

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
        yield "isolation", lambda: isolation_lines(self.isolation)
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
        for number, prompt in enumerate(
            construct_prompts(self.record.paraphrases, self.template), start=1
        ):
            text = "\n".join(visible(line) for line in prompt.split("\n"))
            lines += [f"--- prompt {number} ---", *text.split("\n")]
        return lines

    def show_cuts(self) -> list[str]:
        most = len(self.prefix) if self.verbose else PREFIX_TOKENS
        return [
            *align(cut_table(self.words, self.prefix, self.question, most)),
            saving(self.prefix, self.question),
            bos_note(self.words, self.prefix, self.question.segments[0], chat=self.chat),
            *self.show_settings(),
        ]

    def show_mask(self) -> list[str]:
        most = VERBOSE_CELLS if self.verbose else CELLS
        cells = mask_cells(self.words, self.prefix, self.question, most)
        lines = draw_mask(question_mask(len(self.prefix), self.question), cells, LABEL_WIDTH)
        return lines + self.window_note()

    def window_note(self) -> list[str]:
        scorings = (scoring for _, scoring in self.engine.wrapper.layers.values())
        windows = sorted({s.window for s in scorings if s.window is not None})
        if not windows:
            return []
        sizes = " or ".join(map(str, windows))
        return [f"Layers with a sliding window see only the last {sizes} positions of this."]

    def show_tokens(self, step: Step) -> list[str]:
        """Ids and texts of the prompt's parts, and of the answer up to the step shown last."""
        answer = [each.token for each in self.trace.steps[: self.reached + 1]]
        named = [
            ("prefix", self.prefix),
            *((f"segment {i}", ids) for i, ids in enumerate(self.question.segments, start=1)),
            ("tail", self.question.tail),
            ("answer", answer),
        ]
        return [
            f"{name}: " + " ".join(f"{token}={self.words.token(token)}" for token in ids)
            for name, ids in named
        ]

    def show_logits(self, step: Step) -> list[str]:
        """The fused logits' range, and those of the first candidates with every paraphrase's."""
        rows = [["token", "fused", *(f"{i + 1} alone" for i in range(len(step.alone)))]]
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
            *align(attention_table(step, by_layer=self.verbose)),
            "",
            *align(paraphrase_table(self.words, step)),
            "",
            choice_line(self.words, self.trace, number),
        ]

    def show_summary(self) -> list[str]:
        right = self.record.answers
        return [
            *align(summary_table(self.words, self.trace, right)),
            *summary_lines(self.trace, right),
        ]
