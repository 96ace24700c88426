"""Draw docs/flow.svg, the picture of how data flows through the project.

python docs/draw_flow.py
"""

from dataclasses import dataclass
from pathlib import Path

from draw_method import BOLD, FAINT, GENERATED, PREFIX, SEGMENTS, box, write

PICTURE = Path(__file__).resolve().parent / "flow.svg"
WIDTH, HEIGHT = 900, 300
STEP_WIDTH, STEP_HEIGHT = 178, 96


@dataclass(frozen=True)
class Step:
    """A box: the room, what it does, and where its left upper corner is."""

    room: str
    lines: tuple[str, ...]
    x: float
    y: float
    colour: str
    tint: str

    @property
    def middle(self) -> float:
        return self.y + STEP_HEIGHT / 2


LEFT, GAP, ABOVE, BELOW = 20, 49, 40, 190
COLUMNS = [LEFT + number * (STEP_WIDTH + GAP) for number in range(4)]
DATA, TEXT, TOKENS, ANSWERS = PREFIX, SEGMENTS[2], SEGMENTS[1], GENERATED
STEPS = {
    room: Step(f"{room}/", lines, COLUMNS[column], y, part.colour, part.tint)
    for room, lines, column, y, part in (
        ("data", ("demo, your file, the hub’s:", "records and prompts"), 0, ABOVE, DATA),
        (
            "methods",
            ("prompts to prefix, N", "segments and tail;", "what is fused, and how"),
            1,
            ABOVE,
            TEXT,
        ),
        (
            "generation",
            ("encode: once, isolated", "decode: fused, one loop", "stops each row by itself"),
            2,
            ABOVE,
            TOKENS,
        ),
        (
            "attention",
            ("in every layer:", "mask for segments,", "fusion for fused tokens"),
            3,
            ABOVE,
            TOKENS,
        ),
        (
            "experiment",
            ("one run: identity, lock,", "journal, order;", "feather, csv, manifest"),
            1,
            BELOW,
            ANSWERS,
        ),
        (
            "evaluation",
            ("accuracy, intervals,", "paired comparison,", "pictures, one page"),
            0,
            BELOW,
            DATA,
        ),
    )
}


def draw_step(step: Step) -> list[str]:
    shapes = [
        box(step.x, step.y, STEP_WIDTH, STEP_HEIGHT, step.tint, r=8, line=step.colour),
        write(step.x + 12, step.y + 24, step.room, size=13, more=BOLD),
    ]
    for number, line in enumerate(step.lines):
        shapes.append(write(step.x + 12, step.y + 46 + 18 * number, line))
    return shapes


def arrow(start: tuple[float, float], end: tuple[float, float], text: str, side: int) -> list[str]:
    """A straight arrow with words beside it; ``side`` moves them up (-) or to the right (+)."""
    (x, y), (to_x, to_y) = start, end
    along_x, along_y = (to_x > x) - (to_x < x), (to_y > y) - (to_y < y)
    tip_x, tip_y = to_x - 7 * along_x, to_y - 7 * along_y
    wing_x, wing_y = 4 * along_y, 4 * along_x
    shapes = [
        f'<path d="M{x:g} {y:g}L{tip_x:g} {tip_y:g}" stroke="{FAINT}" stroke-width="1.5"/>',
        f'<path d="M{to_x:g} {to_y:g}L{tip_x + wing_x:g} {tip_y + wing_y:g}'
        f'L{tip_x - wing_x:g} {tip_y - wing_y:g}z" fill="{FAINT}"/>',
    ]
    if along_x:
        words = write((x + to_x) / 2, y + side, text, size=11, colour=FAINT, anchor="middle")
    else:
        words = write(x + side, (y + to_y) / 2 + 4, text, size=11, colour=FAINT)
    return [*shapes, words]


def between(first: str, second: str, text: str) -> list[str]:
    """From box to box of a row, or from a box to the one under it."""
    a, b = STEPS[first], STEPS[second]
    if a.x == b.x:
        x = a.x + STEP_WIDTH / 2
        return arrow((x, a.y + STEP_HEIGHT), (x, b.y), text, 10)
    if a.x < b.x:
        return arrow((a.x + STEP_WIDTH, a.middle), (b.x, b.middle), text, -8)
    return arrow((a.x, a.middle), (b.x + STEP_WIDTH, b.middle), text, -8)


def draw() -> str:
    """The whole picture as the text of an SVG file."""
    shapes = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'height="{HEIGHT}" font-family="Helvetica, Arial, sans-serif" role="img">',
        "<title>How data flows</title>",
        "<desc>From records to prompts, token ids, answers, files and scores.</desc>",
        box(0.5, 0.5, WIDTH - 1, HEIGHT - 1, "#ffffff", r=14, line="#d0d7de"),
    ]
    for step in STEPS.values():
        shapes += draw_step(step)
    for first, second, text in (
        ("data", "methods", "text"),
        ("methods", "generation", "ids"),
        ("generation", "attention", "state"),
        ("methods", "experiment", "answers"),
        ("experiment", "evaluation", "files"),
    ):
        shapes += between(first, second, text)
    x, y = STEPS["methods"].x + STEP_WIDTH / 2, STEPS["methods"].y
    end = STEPS["attention"].x + STEP_WIDTH / 2
    shapes.append(f'<path d="M{x:g} {y}V22H{end:g}V{y - 7}" stroke="{FAINT}" fill="none"/>')
    shapes.append(f'<path d="M{end:g} {y}l-4 -7h8z" fill="{FAINT}"/>')
    shapes.append(write((x + end) / 2, 16, "the mask", size=11, colour=FAINT, anchor="middle"))
    x = STEPS["attention"].x
    for number, line in enumerate(
        (
            "flex_attention_generate.py:",
            "one stream a question, N segments",
            "generate.py:",
            "N streams, one token of N logits",
        )
    ):
        bold = BOLD if number % 2 == 0 else ""
        shapes.append(write(x - 22, BELOW + 24 + 20 * number, line, size=11, more=bold))
    return "\n".join([*shapes, "</svg>"]) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
