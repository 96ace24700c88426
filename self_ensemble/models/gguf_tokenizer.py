"""The tokenizer that transformers makes of a GGUF file, held against the file.

Versions of transformers differ in it: 5.17 cuts the words of Gemma's file into letters, leaves out
its BOS, and takes one special token for another. The model then answers, and nonsense.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import version
from itertools import islice
from typing import Any

from transformers import AutoTokenizer

from self_ensemble.models.gguf_config import empty_folder
from self_ensemble.models.gguf_header import GgufHeader
from self_ensemble.system.errors import UserError

# The oldest version that reads the tokenizers of the files that were tried.
READS_TOKENIZERS = "5.23.0"
# So many words of the vocabulary are looked at: its first, which are its most frequent.
CHECKED_WORDS = 300
# Not every token of a vocabulary is what its own text is cut into, but of words nearly all are.
WORDS_THAT_MAY_FAIL = 0.1
# A word with the space before it, as byte-level and sentencepiece vocabularies write it.
WORD = re.compile("[Ġ▁][a-z]{3,}")
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
TEXT = "Based on it, what is\n\nQ: the 2 cities of Côte d'Ivoire (in 1983)?  Two.\nA: Abidjan 北京"
DIGITS = "1234567"
# The longest run of digits that may be one token, by the file's pre-tokenizer (llama.cpp's names).
RUNS_OF_DIGITS = {
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "gpt-4o", "llama4", "dbrx"), 3),
    **dict.fromkeys(("smaug-bpe", "minimax-m2"), 3),
    **dict.fromkeys(("qwen2", "qwen35", "deepseek-r1-qwen", "tekken", "smollm", "starcoder"), 1),
    **dict.fromkeys(("refact", "command-r"), 1),
}
# Pre-tokenizers under which llama.cpp puts BOS in front where a file does not say.
BOS_UNLESS_SAID = ("llama3", "llama-v3", "llama-bpe")


def read_tokenizer(header: GgufHeader, name: str) -> Any:
    """A file's tokenizer.

    Raises:
        UserError: transformers makes something else of the file than it says.
        Exception: whatever else transformers says of it.
    """
    with empty_folder() as folder:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, gguf_file=str(header.path), trust_remote_code=False
        )
    for fault in _faults(header, tokenizer):
        raise UserError(_wrongly_read(name, fault))
    return tokenizer


def _wrongly_read(name: str, fault: str) -> str:
    installed = version("transformers")
    said = f"--model: transformers {installed} reads the tokenizer of {name} wrongly: {fault}; "
    if is_older(installed, READS_TOKENIZERS):
        return f"{said}{READS_TOKENIZERS} reads it: pip install transformers=={READS_TOKENIZERS}"
    return f"{said}take the model as a folder of safetensors, with its tokenizer.json"


def is_older(version: str, other: str) -> bool:
    def numbers(text: str) -> list[int]:
        return [int(number) for number in re.findall(r"\d+", text)[:3]]

    return numbers(version) < numbers(other)


def _faults(header: GgufHeader, tokenizer: Any) -> Iterator[str]:
    """What the tokenizer does otherwise than the file says; the first thing found is the worst."""
    yield from _cut_words(header, tokenizer)
    yield from _special_tokens(header, tokenizer)
    yield from _digits(header, tokenizer)
    yield from _chat_template(header, tokenizer)
    ids = tokenizer(TEXT)["input_ids"]
    decoded = tokenizer.decode(ids, skip_special_tokens=True)
    if tokenizer.unk_token_id not in ids and decoded.strip() != TEXT:
        yield f"{TEXT!r} comes back as {decoded!r}"


def _pieces(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _cut_words(header: GgufHeader, tokenizer: Any) -> Iterator[str]:
    """Words that are tokens of the vocabulary and come out in pieces."""
    tokens = header.tokenizer("tokens") or ()
    kinds = header.tokenizer("token_type") or [NORMAL] * len(tokens)
    words = islice(
        (
            (index, token)
            for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
            if kind == NORMAL and WORD.fullmatch(token)
        ),
        CHECKED_WORDS,
    )
    checked, cut = 0, []
    for index, token in words:
        checked += 1
        ids = _pieces(tokenizer, f"A {token[1:]}")
        if ids[-1:] != [index]:
            cut.append((token[1:], tokenizer.convert_ids_to_tokens(ids)[1:]))
    if len(cut) > WORDS_THAT_MAY_FAIL * checked:
        word, pieces = max(cut, key=lambda each: len(each[1]))
        yield (
            f"{len(cut)} of {checked} words that are tokens come out in pieces, "
            f"such as {word!r} as {' '.join(pieces)}"
        )


def _special_tokens(header: GgufHeader, tokenizer: Any) -> Iterator[str]:
    for key, taken in (("bos", tokenizer.bos_token_id), ("eos", tokenizer.eos_token_id)):
        stated = header.tokenizer(f"{key}_token_id")
        if stated is not None and stated != taken:
            yield f"its {key.upper()} is token {stated} and is taken for {taken}"
    bos = header.tokenizer("bos_token_id")
    if bos is None:
        return
    adds = header.tokenizer("add_bos_token")
    if adds is None:
        sentencepiece = header.tokenizer("model") == "llama"
        adds = sentencepiece or header.tokenizer("pre") in BOS_UNLESS_SAID
    begins = tokenizer(TEXT)["input_ids"][:1] == [bos]
    if begins != adds:
        yield f"BOS is {'to be' if adds else 'not to be'} put in front, and is{' not' * adds}"


def _digits(header: GgufHeader, tokenizer: Any) -> Iterator[str]:
    """Numbers that are cut otherwise than the vocabulary's merges were learned on."""
    longest = RUNS_OF_DIGITS.get(header.tokenizer("pre"))
    if longest is None:
        return
    pieces = [tokenizer.decode([token]) for token in _pieces(tokenizer, DIGITS)]
    ends = {sum(map(len, pieces[: i + 1])) for i in range(len(pieces))}
    if not ends.issuperset(range(longest, len(DIGITS), longest)):
        yield f"{DIGITS} is cut into {' '.join(pieces)}, and not after every {longest} digits"


def _chat_template(header: GgufHeader, tokenizer: Any) -> Iterator[str]:
    template = header.metadata.get("tokenizer.chat_template")
    if template is None:
        return
    if tokenizer.chat_template != template:
        yield "its chat template is not kept"
        return
    tokens = header.tokenizer("tokens") or ()
    kinds = header.tokenizer("token_type") or ()
    for index, (token, kind) in enumerate(zip(tokens, kinds, strict=False)):
        if kind in (CONTROL, USER_DEFINED) and len(token) > 2 and token in template:
            ids = _pieces(tokenizer, token)
            if ids != [index]:
                pieces = " ".join(tokenizer.convert_ids_to_tokens(ids))
                yield f"{token} of its chat template comes out as {pieces}"


def end_ids(header: GgufHeader) -> list[int]:
    """The tokens that end a text or a turn of a chat."""
    stated = (header.tokenizer(f"{key}_token_id") for key in ("eos", "eot", "eom"))
    return list(dict.fromkeys(token for token in stated if token is not None))
