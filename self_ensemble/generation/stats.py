"""What was computed, for the manifest and for benchmarks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Stats:
    """Counts of one generation; those of several add up.

    encoded_tokens: of segments and separators. The prefix, which several generations may share, is
        counted by whoever knows how often it was needed.
    decoded_tokens: of answers, however many streams each has.
    decode_rows: summed over the forwards.
    largest_batch: in questions.
    out_of_memory: how often a batch was halved.
    """

    encoded_tokens: int = 0
    decoded_tokens: int = 0
    decode_forwards: int = 0
    decode_rows: int = 0
    largest_batch: int = 0
    out_of_memory: int = 0

    def __add__(self, other: Stats) -> Stats:
        return Stats(
            self.encoded_tokens + other.encoded_tokens,
            self.decoded_tokens + other.decoded_tokens,
            self.decode_forwards + other.decode_forwards,
            self.decode_rows + other.decode_rows,
            max(self.largest_batch, other.largest_batch),
            self.out_of_memory + other.out_of_memory,
        )

    def count_forward(self, rows: int) -> None:
        self.decode_forwards += 1
        self.decode_rows += rows
