"""What the quality filter found, as a table for the terminal and as a CSV."""

import csv
import io
from collections.abc import Sequence

from self_ensemble.paraphrasing.quality_filter import CHECKS
from self_ensemble.paraphrasing.rejections import Rejection

# uuid, text, and what is wrong with it.
Filtered = tuple[str, str, Sequence[Rejection]]

CELL_WIDTH = 56


def report_lines(filtered: Sequence[Filtered], *, have_answers: bool = True) -> list[str]:
    """A table: how many paraphrases each check rejects, their fraction, and one of them.

    have_answers: whether the questions do; without them no leaked answer is looked for, and the
    table says so.
    """
    total = max(len(filtered), 1)
    lines = [f"{'check':19} {'count':>7} {'share':>7}  example"]
    for check in CHECKS:
        if check == "answer_leaked" and not have_answers:
            told = "not looked for: the questions have no answers"
            lines.append(f"{check:19} {'-':>7} {'-':>7}  {told}")
            continue
        found = [text for _, text, wrong in filtered if check in {each.check for each in wrong}]
        example = f"  {_cell(found[0])}" if found else ""
        lines.append(f"{check:19} {len(found):7} {len(found) / total:7.4f}{example}")
    wrong = sum(1 for *_, found in filtered if found)
    lines.append(
        f"{'any of these':19} {wrong:7} {wrong / total:7.4f}  of {len(filtered)} paraphrases"
    )
    return lines


def _cell(text: str) -> str:
    shown = text if text.isprintable() else ascii(text)
    return shown if len(shown) <= CELL_WIDTH else f"{shown[: CELL_WIDTH - 3]}..."


def report_csv(filtered: Sequence[Filtered]) -> str:
    """A row a rejection: uuid, paraphrase, check, what it failed by, and at which value."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    writer.writerow(("uuid", "paraphrase", "check", "what", "value"))
    for uuid, paraphrase, wrong in filtered:
        for each in wrong:
            value = "" if each.value is None else each.value
            writer.writerow((uuid, paraphrase, each.check, each.what, value))
    return buffer.getvalue()
