"""What the environment's checks and certificates found, as text and as JSON."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from self_ensemble.diagnostics.checks import FAILED, OK, Check, failed
from self_ensemble.system.console import quoted

if TYPE_CHECKING:  # it imports torch, which may be what is missing
    from self_ensemble.diagnostics.certificate import Certificate

SHOWN_TOKENS = 10  # of a part, without --verbose


def as_text(checks: Sequence[Check], certificates: Sequence[Certificate], *, verbose: bool) -> str:
    """The table, the certificates, and the verdict."""
    wrong = failed(checks)
    lines = table((check.name, check.status, check.found, check.todo) for check in checks)
    for each in certificates:
        lines += ["", *certificate_lines(each, verbose)]
    verdict = f"would not run: {', '.join(wrong)}" if wrong else "would run"
    return "\n".join([*lines, "", f"The main job {verdict}."])


def as_json(checks: Sequence[Check], certificates: Sequence[Certificate]) -> str:
    """All of it for programs."""
    wrong = failed(checks)
    report = {
        "verdict": FAILED if wrong else OK,
        "failed": wrong,
        "checks": [asdict(check) for check in checks],
        "certificates": [each.report() for each in certificates],
    }
    return json.dumps(report, indent=2)


def table(rows: Iterable[tuple[str, str, str, str]]) -> list[str]:
    """Aligned lines of (name, status, sentence, what to do)."""
    rows = list(rows)
    names = max(len(name) for name, *_ in rows)
    states = max(len(status) for _, status, *_ in rows)
    width = max(72, min(shutil.get_terminal_size((100, 24)).columns, 120))
    indent = " " * (names + states + 4)
    lines = []
    for name, status, sentence, todo in rows:
        begin = f"{name:<{names}}  {status:<{states}}  "
        lines += textwrap.wrap(
            f"{begin}{sentence}", width, subsequent_indent=indent, break_on_hyphens=False
        )
        if todo:
            lines += textwrap.wrap(
                f"to do: {todo}",
                width,
                initial_indent=indent,
                subsequent_indent=indent + " " * 7,
                break_on_hyphens=False,
            )
    return lines


def certificate_lines(certificate: Certificate, verbose: bool) -> Iterator[str]:
    yield (
        f"Certificate, {certificate.template} prompt ({certificate.backend}, {certificate.dtype}, "
        f"positions {certificate.positions})"
    )
    splits = certificate.splits
    for number, split in enumerate(splits if verbose else splits[:1], start=1):
        parts = [
            ("prefix", split.prefix),
            *((f"segment {i}", tokens) for i, tokens in enumerate(split.segments)),
            ("tail", split.tail),
        ]
        yield f"  question {number} of {len(splits)} is cut so:"
        for name, tokens in parts:
            yield f"    {name:<10} {len(tokens):>4} tokens  {shown_tokens(tokens, verbose)}"
        if split.straddling:
            shown = shown_tokens(split.straddling, verbose)
            yield f"    over a border, and so the segment's: {shown}"
    rows = ((item.name, item.status, item.reason, "") for item in certificate.items)
    yield from (f"  {line}" for line in table(rows))


def shown_tokens(tokens: Sequence[str], verbose: bool) -> str:
    """Of many tokens the two ends."""
    texts = [quoted(token) for token in tokens]
    if not verbose and len(texts) > SHOWN_TOKENS:
        half = SHOWN_TOKENS // 2
        texts = [*texts[:half], "...", *texts[-half:]]
    return " ".join(texts)
