"""Make docs/quick_reference.md, and the tables of modules in docs/architecture.md, from the code.

    python docs/make_reference.py

Flags, defaults and what they do are those of the scripts' own parsers; columns are those of
results.py. What words the code does not hold are in docs/reference_texts.py. A test says when the
pages are out of date.
"""

import argparse
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from itertools import groupby
from pathlib import Path
from unittest.mock import patch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
# As a script, Python looks for modules in this folder and not in the project's.
sys.path.insert(0, str(ROOT))

from reference_texts import (
    COLUMNS,
    COMMANDS,
    FILES,
    FURTHER_SCORE_COLUMNS,
    IDENTITY,
    MANIFEST,
    PARAPHRASE_IDENTITY,
    PARAPHRASE_MANIFEST,
    ROOMS,
    SCORE_COLUMNS,
    SETTINGS,
    STATUSES,
    VARIABLES,
)

from self_ensemble.cli.parser import Parser
from self_ensemble.data.result_files import REQUIRED_COLUMNS
from self_ensemble.data.result_tables import LIST_DEPTHS, NUMBER_COLUMNS, TEXT_COLUMNS
from self_ensemble.models.aliases import MODEL_PATHs

REFERENCE = HERE / "quick_reference.md"
ARCHITECTURE = HERE / "architecture.md"
BEGIN, END = "<!-- made by docs/make_reference.py -->", "<!-- end of what is made -->"

# Module → the command a user types.
SCRIPTS = {
    **{name: f"{name}.py" for name in COMMANDS},
    "self_ensemble.cli.download": "download_resources.sh",
}
GENERATING = ("flex_attention_generate", "generate")

Row = tuple[str, ...]


# ---- flags --------------------------------------------------------------------------------------


def parser_of(module: str) -> argparse.ArgumentParser:
    """The parser that a script's `parse_args` fills, caught as it begins to parse."""

    class Caught(Exception):
        pass

    def catch(parser, *_):
        raise Caught(parser)

    with patch.object(Parser, "parse_args", catch):
        try:
            import_module(module).parse_args([])
        except Caught as caught:
            return caught.args[0]
    raise AssertionError(f"{module}.parse_args does not parse with a cli.Parser")


def flags_of(module: str) -> list[tuple[str, Row]]:
    """(group, row) of each flag but --help, in the order of --help."""
    parser = parser_of(module)
    return [
        (group.title or "", flag_row(action, parser.prog))
        for group in parser._action_groups
        for action in group._group_actions
        if not isinstance(action, argparse._HelpAction)
    ]


def flag_row(action: argparse.Action, prog: str) -> Row:
    """Names, what it takes, default, and what it does."""
    names = ", ".join(f"`{name}`" for name in action.option_strings) or f"`{action.metavar}`"
    text = action.help % (vars(action) | {"prog": prog})
    default, text = split_default(text)
    if default is None and action.option_strings and action.nargs == 0:
        default = "off"
    elif default is None and not action.option_strings:
        default = "needed"
    # A page would take <dataset> for a tag.
    return names, taken(action), default or "", text.replace("<", "&lt;")


def taken(action: argparse.Action) -> str:
    if action.nargs == 0:
        return ""
    if action.metavar is None and action.choices is None:
        return f"`{action.dest.upper()}`" if action.option_strings else ""
    if isinstance(action.metavar, tuple):
        return f"`{' '.join(action.metavar)}`"
    return f"`{action.metavar}`" if action.choices is None else code_list(action.choices)


def split_default(text: str) -> tuple[str | None, str]:
    """`what it does (default: 5)` → (`5`, `what it does`); a default may say more than a value."""
    found = re.search(r"\s*\(default: (.*)\)$", text)
    return (found[1], text[: found.start()]) if found else (None, text)


def code_list(values: Iterable[str]) -> str:
    return ", ".join(f"`{value}`" for value in values)


def shared_flags() -> list[tuple[str, Row]]:
    """Those that both generating scripts have, alike in every word."""
    first, second = map(flags_of, GENERATING)
    return [each for each in first if each in second]


# ---- tables -------------------------------------------------------------------------------------


def table(head: Row, rows: Iterable[Row]) -> Iterator[str]:
    yield from (line_of(row) for row in (head, ("---",) * len(head), *rows))
    yield ""


def line_of(cells: Row) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def flag_tables(flags: Sequence[tuple[str, Row]]) -> Iterator[str]:
    """A table a group; argparse's own name of the first one says nothing."""
    for group, members in groupby(flags, key=lambda each: each[0]):
        if group != "options":
            yield from (f"{group.capitalize()}:", "")
        yield from table(("flag", "takes", "default", "what"), (row for _, row in members))


def meanings(names: Iterable[str], texts: dict[str, str], what: str) -> list[Row]:
    """A row a name, in the order of the texts; names and texts must be the same."""
    names = set(names)
    assert names == texts.keys(), f"{what}: {sorted(names ^ texts.keys())} of one side only"
    return [(f"`{name}`", text) for name, text in texts.items()]


def described(texts: dict[str, str]) -> list[Row]:
    return [(f"`{name}`", text) for name, text in texts.items()]


# ---- the reference ------------------------------------------------------------------------------


def reference() -> str:
    """The whole page."""
    lines = [
        "# Quick reference",
        "",
        BEGIN,
        "",
        "Every flag, file, column and status, as the code has them. For what to do with them see",
        "the [README](../README.md) and the [quick start](quick_start.md).",
        "",
        "Flags may be written with `_` or `-`. None may be cut short. `--help` prints the same.",
        "",
        "## Flags",
        "",
        *flag_sections(),
        "## Models",
        "",
        "`--model` takes these aliases, any hub id (`organisation/name`), or a folder.",
        "",
        *table(("alias", "what is loaded"), model_rows()),
        "## Files written",
        "",
        *table(("file", "written by", "what"), FILES),
        "While a file is written it is called `.NAME.PROCESS.tmp`, in the same folder. What a",
        "killed run leaves of that is removed by the next run of the same command.",
        "",
        "## Columns of a result",
        "",
        "The same in `.feather` and `.csv`. In CSV lists are JSON, and text is always quoted.",
        "",
        *table(("column", "type", "what"), column_rows()),
        "## Keys of a result's manifest",
        "",
        *table(("key", "what"), described(MANIFEST)),
        "Keys of `identity`. Two runs whose identities differ never share a file.",
        "",
        *table(("key", "what"), described(IDENTITY)),
        "Keys of `identity.method`. Each method has those that are its own.",
        "",
        *table(("key", "what"), described(SETTINGS)),
        "## Keys of a paraphrase file's manifest",
        "",
        *table(("key", "what"), described(PARAPHRASE_MANIFEST)),
        "Keys of its `identity`:",
        "",
        *table(("key", "what"), described(PARAPHRASE_IDENTITY)),
        "With `--check … --drop` the manifest has only `identity` (`data`, `drop`),",
        "`num_questions`, `dataset` and `short`.",
        "",
        "## Columns of `score.py --csv`",
        "",
        "A row a file; with `--by` also a row a value. Shares are from 0 to 1, and a cell is empty",
        "where the figure does not exist. `--json` holds the same, nested, and more.",
        "",
        *table(("column", "what"), described(SCORE_COLUMNS)),
        "Behind these, where one of the files has them:",
        "",
        *table(("column", "what"), described(FURTHER_SCORE_COLUMNS)),
        "## Exit statuses",
        "",
        *table(("status", "what"), STATUSES),
        "## Environment variables",
        "",
        *table(("variable", "honoured by", "what"), VARIABLES),
        END,
    ]
    return "\n".join(lines) + "\n"


def flag_sections() -> Iterator[str]:
    shared = shared_flags()
    yield from ("### Of both generating scripts", "")
    yield "`flex_attention_generate.py` and `generate.py` both take these."
    yield ""
    yield from flag_tables(shared)
    rows = {row for _, row in shared}
    for module, command in SCRIPTS.items():
        flags = flags_of(module)
        own = [each for each in flags if each[1] not in rows]
        yield from (f"### {command}", "")
        yield from (first_paragraph(ROOT / f"{module.replace('.', '/')}.py"), "")
        yield from flag_tables(own)
        taken_too = [row[0] for _, row in flags if row in rows]
        if module in GENERATING:
            yield from ("And all of those above.", "")
        elif taken_too:
            yield from (f"As above: {', '.join(taken_too)}.", "")


def model_rows() -> Iterator[Row]:
    for alias, path in MODEL_PATHs.items():
        folder = Path(path)
        is_bundled = folder.is_absolute()
        yield f"`{alias}`", f"`{folder.relative_to(ROOT)}`, bundled" if is_bundled else f"`{path}`"


def column_rows() -> list[Row]:
    """Type and meaning of every column that results.py knows."""
    kinds = dict.fromkeys(TEXT_COLUMNS, "text") | {"logprob": "number", "truncated": "boolean"}
    kinds |= {name: ("list of texts", "list of lists")[d - 1] for name, d in LIST_DEPTHS.items()}
    kinds |= dict.fromkeys(NUMBER_COLUMNS, "list of numbers")
    rows = meanings({*kinds, *REQUIRED_COLUMNS}, COLUMNS, "columns")
    return [(name, kinds[name.strip("`")], text) for name, text in rows]


# ---- the tables of modules ----------------------------------------------------------------------


def first_paragraph(path: Path) -> str:
    """Of the docstring that a file begins with."""
    found = re.match(r'"""(.+?)(?:\n\n|""")', path.read_text(encoding="utf-8"), re.S)
    assert found, f"{path.name} has no docstring"
    return " ".join(found[1].split())


def modules() -> str:
    """The tables of architecture.md: the scripts, then every room of the package with its files."""
    lines = [BEGIN, ""]
    folders = {"Scripts and doors": ROOT}
    for room in ROOMS:
        folders[f"`self_ensemble/{room}/`"] = ROOT / "self_ensemble" / room
    there = {path.parent.name for path in (ROOT / "self_ensemble").glob("*/__init__.py")}
    odd = there.symmetric_difference(ROOMS)
    assert not odd, f"ROOMS of docs/reference_texts.py: {odd}"
    folders |= {f"`{name}/`": ROOT / name for name in ("benchmark", "demo", "docs")}
    for title, folder in folders.items():
        about = folder / "__init__.py"
        said = f": {first_paragraph(about)}" if about.is_file() else ""
        files = [path for path in sorted(folder.glob("*.py")) if path != about]
        rows = [(f"`{path.name}`", first_paragraph(path)) for path in files]
        lines += [f"**{title}**{said}", "", *table(("file", "what it is for"), rows)]
    return "\n".join([*lines, END])


def architecture(text: str) -> str:
    """architecture.md with its tables made anew."""
    before, rest = text.split(BEGIN)
    return before + modules() + rest.split(END)[1]


def main() -> None:
    REFERENCE.write_text(reference(), encoding="utf-8")
    ARCHITECTURE.write_text(architecture(ARCHITECTURE.read_text(encoding="utf-8")), "utf-8")


if __name__ == "__main__":
    main()
