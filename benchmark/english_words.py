"""Make the filter's list of English words from the package spacy-lookups-data (MIT licence).

    python benchmark/english_words.py en_lexeme_prob.json.gz english_words.txt.gz

The package's table has the log-probabilities of words as they are written. The list keeps the
words of ASCII letters that are common in lower case, and writes those with a capital that are
more often written so (King, Genesis); what is nearly always a name (Paris, Jesus) is left out.
Line k holds the words of ranks 2^k to 2^(k+1) - 1, the commonest first.
"""

import argparse
import gzip
import json
import math
from pathlib import Path

LEAST = -17.0  # log-probability: about once in 24 million words
# How much likelier a word may be with a capital, as a difference of logarithms: 4.5 times.
MOST_CAPITAL = 1.5


def common_words(table: dict[str, float]) -> list[str]:
    """The words of the list, the commonest first."""
    never = float("-inf")
    found = []
    for word, value in table.items():
        if not (word.isascii() and word.isalpha() and word.islower() and value >= LEAST):
            continue
        more = max(table.get(word.capitalize(), never), table.get(word.upper(), never)) - value
        if more <= MOST_CAPITAL:
            found.append((-value, word.capitalize() if more > 0 else word))
    return [word for _, word in sorted(found)]


def main(source: Path, target: Path) -> None:
    with gzip.open(source, "rt", encoding="utf-8") as file:
        words = common_words(json.load(file))
    lines: list[list[str]] = [[] for _ in range(int(math.log2(len(words))) + 1)]
    for rank, word in enumerate(words, 1):
        lines[int(math.log2(rank))].append(word)
    text = "".join(" ".join(sorted(line)) + "\n" for line in lines)
    target.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    print(f"{len(words)} words in {target}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="en_lexeme_prob.json.gz of the package")
    parser.add_argument("target", type=Path, help="the list to write")
    args = parser.parse_args()
    main(args.source, args.target)
