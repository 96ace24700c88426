"""What debugging shows of one question, as tables and lines.

The terminal and the page show the same. The number of a paraphrase is that of --indexs, from 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from self_ensemble.attention.segments import SplitQuestion
from self_ensemble.diagnostics.isolation import Isolation
from self_ensemble.diagnostics.split_checks import explain_bos
from self_ensemble.diagnostics.tolerances import largest
from self_ensemble.diagnostics.trace import Step, Trace
from self_ensemble.diagnostics.words import NOTHING, Table, Words, percent
from self_ensemble.evaluation.matchers import is_right
from self_ensemble.generation.decode import Answer
from self_ensemble.methods.attention_fusion import AttentionFusion
from self_ensemble.system.console import visible

# Tokens of a prefix that are listed.
PREFIX_TOKENS = 12
# A tolerance above it is one of half precision.
HALF_PRECISION = 1e-3


def split_table(
    words: Words, prefix: Sequence[int], question: SplitQuestion, most_of_prefix: int
) -> Table:
    """Where the prompts are split, token by token."""
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


def isolation_lines(words: Words, isolation: Isolation) -> list[str]:
    """The verdict, and what it rests on."""
    worst = largest(isolation.differences)
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


def paraphrase_table(words: Words, step: Step, weights: Sequence[float] | None = None) -> Table:
    """What each paraphrase's part was: its attention, itself alone, and the others without it.

    weights: the paraphrases' own, where they have some.
    """
    chosen = f"P({words.token(step.token)})"
    weighted = [] if weights is None else ["weight"]
    rows = [["paraphrase", *weighted, "attention", "alone", chosen, "left out", chosen, ""]]
    for i, share in enumerate(shares(step)[1:-1]):
        without = step.left_out[i]
        rows.append(
            [
                words.paraphrase(i),
                *([] if weights is None else [percent(weights[i])]),
                percent(share),
                *_says(words, step.single[i], step.token),
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
    return f"{line}; no single paraphrase moved it" if len(step.single) > 1 else line


def summary_table(words: Words, trace: Trace, right: Sequence[str]) -> Table:
    """The fused answer, each paraphrase's own, and the fused one without each."""

    def row(name: str, answer: Answer | None, note: str = "") -> list[str]:
        if answer is None:
            return [name, NOTHING, NOTHING, NOTHING, note]
        text = words.answer(answer)
        verdict = ("right" if is_right(text, right) else "wrong") if right else NOTHING
        if answer.truncated:
            note = "cut at the token limit" + (f"; {note}" if note else "")
        return [name, text, verdict, percent(math.exp(sum(answer.logprobs))), note]

    rows = [["", "answer", "", "probability", ""], row("attention fusion", trace.answer)]
    rows += [row(f"paraphrase {words.paraphrase(i)} alone", a) for i, a in enumerate(trace.single)]
    if len(trace.single) > 1:
        for i, answer in enumerate(trace.left_out):
            at = [str(n) for n, step in enumerate(trace.steps, start=1) if i in step.decisive]
            note = f"decisive at step {', '.join(at)}" if at else ""
            rows.append(row(f"without paraphrase {words.paraphrase(i)}", answer, note))
    return rows


def summary_lines(words: Words, trace: Trace, right: Sequence[str]) -> list[str]:
    lines = ["right answers: " + (" | ".join(map(visible, right)) or "none are known")]
    if len(trace.single) > 1:
        lines.append(f"decisive paraphrases: {words.paraphrases(trace.decisive)}")
    return lines


def settings_line(settings: AttentionFusion) -> str:
    said = [f"fusion {settings.fusion}", f"positions {settings.positions}"]
    if settings.tau_used:
        said.append(f"tau {settings.tau_used:g}")
    if settings.weights is not None:
        said.append("weights " + ", ".join(f"{u:g}" for u in settings.weights))
    if settings.weights_by is not None:
        said.append(f"weights by {settings.weights_by}")
    return ", ".join(said)
