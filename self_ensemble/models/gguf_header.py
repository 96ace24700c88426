"""What a GGUF file says of itself: its metadata, and a table of its tensors.

    magic | version | counts | metadata: key, type, value … | tensors: name, shape, type, offset …
    | padding | the tensors' data

It is read here before anything is loaded, so that a file which is cut short, damaged or no GGUF is
told of in one sentence, and so that what transformers makes of the file can be held against the
file. The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from self_ensemble.models.aliases import one_of_several
from self_ensemble.system.errors import UserError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
STRING, ARRAY = 8, 9
# Type of a metadata value -> how it is packed, little-endian.
PACKED = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
DEFAULT_ALIGNMENT = 32


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor lies, and how it is stored.

    shape: as torch has it, the fastest dimension last.
    kind: number of its ggml type.
    offset: bytes from the beginning of the data.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclass(frozen=True)
class GgufHeader:
    """All of a file but its tensors' data.

    path: absolute. data_start: where the data begins, in bytes. size: of the file, in bytes.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: tuple[GgufTensor, ...]
    data_start: int
    size: int

    @property
    def architecture(self) -> str:
        return self.metadata["general.architecture"]

    def stated(self, key: str) -> Any:
        """What the file says of its architecture's `key`; None where it says nothing."""
        return self.metadata.get(f"{self.architecture}.{key}")

    def tokenizer(self, key: str) -> Any:
        """What the file says of its tokenizer's `key`; None where it says nothing."""
        return self.metadata.get(f"tokenizer.ggml.{key}")

    def tensor(self, name: str) -> GgufTensor | None:
        return next((tensor for tensor in self.tensors if tensor.name == name), None)


def read_header(path: Path) -> GgufHeader:
    """The header of a file.

    Raises:
        UserError: it cannot be read, is no GGUF, of an unknown version, damaged, or one part of
            several.
    """
    try:
        with path.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise UserError(f"--model: {path} is no GGUF file: it does not begin with GGUF")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                header = _Reader(path, content).header()
    except OSError as error:
        raise UserError(f"--model: cannot read {path}: {error.strerror or error}") from error
    except (struct.error, UnicodeDecodeError, _OutOfFile) as error:
        raise UserError(
            f"--model: {path} is cut short or damaged: its header cannot be read to its end; "
            "fetch the file again"
        ) from error
    parts = header.metadata.get("split.count", 0)
    if isinstance(parts, int) and parts > 1:
        raise UserError(one_of_several(str(path), parts))
    if not isinstance(header.metadata.get("general.architecture"), str):
        raise UserError(f"--model: {path} does not say which architecture it holds")
    return header


def check_whole(header: GgufHeader, block_sizes: Mapping[int, tuple[int, int]]) -> None:
    """Refuses a file whose data ends before its last tensor does.

    block_sizes: of a ggml type the weights of a block, and its bytes.

    Raises:
        UserError: with both sizes; or a tensor cannot have the type it claims.
    """
    end = header.data_start
    for tensor in header.tensors:
        weights, size = block_sizes[tensor.kind]
        if not tensor.shape or tensor.shape[-1] % weights:
            raise UserError(
                f"--model: {header.path} is damaged: the rows of {tensor.name} are no multiple of "
                f"{weights} weights; fetch the file again"
            )
        stored = prod(tensor.shape) // weights * size
        end = max(end, header.data_start + tensor.offset + stored)
    if end > header.size:
        raise UserError(
            f"--model: {header.path} is cut short: it has {header.size:,} bytes and its tensors "
            f"need {end:,}; fetch the file again"
        )


class _OutOfFile(Exception):
    """A length points behind the end of the file."""


class _Reader:
    """Goes through the bytes of a file from its beginning."""

    def __init__(self, path: Path, content: mmap.mmap):
        self.path, self.content = path, content
        self.at = len(MAGIC)

    def header(self) -> GgufHeader:
        (version,) = self.unpack("I")
        if version not in VERSIONS:
            raise UserError(
                f"--model: {self.path} is of GGUF version {version}, and only version "
                f"{' and '.join(map(str, VERSIONS))} can be read (little-endian)"
            )
        tensor_count, value_count = self.unpack("QQ")
        metadata = {}
        for _ in range(value_count):
            key = self.string()
            metadata[key] = self.value(*self.unpack("I"))
        tensors = tuple(self.tensor() for _ in range(tensor_count))
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1:
            raise _OutOfFile
        data_start = -(-self.at // alignment) * alignment
        size = len(self.content)
        return GgufHeader(self.path.resolve(), metadata, tensors, data_start, size)

    def unpack(self, packed: str) -> tuple[Any, ...]:
        packed = f"<{packed}"
        values = struct.unpack_from(packed, self.content, self.at)
        self.at += struct.calcsize(packed)
        return values

    def string(self) -> str:
        (length,) = self.unpack("Q")
        begin, self.at = self.at, self.at + length
        if self.at > len(self.content):
            raise _OutOfFile
        return self.content[begin : self.at].decode()

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            of, count = self.unpack("IQ")
            if count > len(self.content):  # every element takes a byte or more
                raise _OutOfFile
            if of in PACKED:
                return list(self.unpack(f"{count}{PACKED[of]}"))
            return [self.value(of) for _ in range(count)]
        if kind not in PACKED:
            raise _OutOfFile
        return self.unpack(PACKED[kind])[0]

    def tensor(self) -> GgufTensor:
        name = self.string()
        (dimensions,) = self.unpack("I")
        if dimensions > len(self.content):
            raise _OutOfFile
        shape = self.unpack(f"{dimensions}Q")
        kind, offset = self.unpack("IQ")
        return GgufTensor(name, shape[::-1], kind, offset)
