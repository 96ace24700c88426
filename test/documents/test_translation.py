"""The README in Chinese is held against the English one: a change of one alone turns red here.

The text itself nobody can compare by machine; what is compared is all that a translation keeps:
headings, paragraphs, tables, code, numbers, and where the links lead.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ORIGINAL = "README.md"
TRANSLATION = "docs/README.zh-CN.md"


def blocks(page: str) -> list[str]:
    """The page's fenced blocks whole, and its headings, tables and paragraphs, in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"^```(?:[^\n]*\n)+?```$|(?:^[^\n]+\n?)+", text, re.M)


def kind(block: str) -> str:
    lines = block.splitlines()
    heading = re.match(r"#+ |```\w*|\|", block)
    mark = heading[0] if heading else "paragraph"
    return f"{mark} of {len(lines)} rows" if mark == "|" else mark


def kept(text: str) -> tuple[list[str], list[str]]:
    """What no translation changes: code, and numbers with their signs."""
    code = re.findall(r"`[^`]*`", text)
    prose = re.sub(r"`[^`]*`|\]\([^)]*\)", "", text)
    return sorted(code), sorted(re.findall(r"[−+<]?\.?\d+(?:[.,]\d+)*", prose))


def anchors(page: Path) -> list[str]:
    """The names GitHub gives to the page's headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    headings = re.findall(r"^#+ (.*)", text, re.M)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


def links(page: str) -> list[tuple[str, int | None]]:
    """Where the page's links inside the project lead: a file, and the number of its heading."""
    found = []
    for target in re.findall(r"\]\((?!\w+:)([^)]+)\)", (ROOT / page).read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        file = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        assert file.exists(), f"{page}: {target}"
        assert not anchor or anchor in anchors(file), f"{page}: {target}"
        found.append((str(file.relative_to(ROOT)), anchors(file).index(anchor) if anchor else None))
    return found


@pytest.mark.parametrize("page", [ORIGINAL, TRANSLATION])
def test_links_lead_somewhere(page):
    links(page)


def test_the_translation_has_the_readmes_paragraphs():
    assert [kind(block) for block in blocks(TRANSLATION)] == [kind(b) for b in blocks(ORIGINAL)]


def test_the_translation_has_the_readmes_code_and_numbers():
    for ours, theirs in zip(blocks(ORIGINAL), blocks(TRANSLATION), strict=True):
        if ours.startswith("```"):
            assert theirs == ours
        elif ours.startswith("|"):
            for row, translated in zip(ours.splitlines(), theirs.splitlines(), strict=True):
                cells = [kept(cell) for cell in row.split("|")]
                assert [kept(cell) for cell in translated.split("|")] == cells, row
        else:
            assert kept(theirs) == kept(ours), ours


def test_the_translation_links_what_the_readme_links():
    same = {TRANSLATION: ORIGINAL}  # each page links the other, and headings of its own
    found = sorted((same.get(file, file), heading or 0) for file, heading in links(TRANSLATION))
    assert found == sorted((same.get(file, file), n or 0) for file, n in links(ORIGINAL))
