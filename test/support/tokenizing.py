"""Tokenizers that differ, trained here, and two templates for them."""

from functools import cache

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from self_ensemble.data import FewShot, prompt_template

SENTENCES = [
    "Answer the question with a name.",
    "Q: Who wrote Dune? A: Frank Herbert",
    "Q: What is the capital of Peru? A: Lima",
    "Q: Which city is the capital of Japan? A: Tokyo",
    "The capital of Peru is [MASK]. A: Lima [SEP] Q: Who is the author of Emma?",
    "Is it so ? Was it so ?",
    "walked",
    "wanted",
    "The answer: Lima",
]

PROMPTED = ["Q: Who?\nA: Herbert\n\nQ: What is it?\nA: Lima\n\n", "Is it?\nA: so. [SEP] Q: Who\nA:"]


# Where the words, numbers and punctuation of recent byte-level tokenizers end: a newline goes with
# the punctuation before it.
PUNCTUATION_TAKES_NEWLINES = (
    r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

SPECIAL = ["<bos>", "<eos>", "<unk>", "<|user|>", "<|end|>", "<|assistant|>"]


def special_tokens(bos=True, eos=False):
    return processors.TemplateProcessing(
        single=("<bos> " if bos else "") + "$A" + (" <eos>" if eos else ""),
        special_tokens=[("<bos>", 0), ("<eos>", 1)],
    )


def wrapped(tokenizer):
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )


def trained(model, pre_tokenizer, sentences, trainer=trainers.BpeTrainer, **settings):
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.train_from_iterator(
        sentences * 5, trainer(**{"special_tokens": SPECIAL, "show_progress": False, **settings})
    )
    return tokenizer


def byte_level(*, bos=True, eos=False, trim_offsets=False, words=None):
    """``words``: a pattern, or "" to let any characters merge; GPT-2's pattern otherwise."""
    pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words is None)
    if words:
        split = pre_tokenizers.Split(Regex(words), "isolated")
        pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizer])
    tokenizer = trained(
        models.BPE(),
        pre_tokenizer,
        SENTENCES + PROMPTED,
        vocab_size=400,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=trim_offsets), special_tokens(bos, eos)]
    )
    return wrapped(tokenizer)


def metaspace(sentences=SENTENCES):
    tokenizer = trained(
        models.BPE(unk_token="<unk>"),
        pre_tokenizers.Metaspace(prepend_scheme="first"),
        sentences,
        vocab_size=200,
        initial_alphabet=["\n"],
    )
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    tokenizer.post_processor = special_tokens()
    return wrapped(tokenizer)


def byte_fallback():
    """A space before every text, spaces within the pieces, unknown characters as bytes."""
    tokenizer = trained(
        models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True),
        pre_tokenizers.Metaspace(),
        SENTENCES,
        special_tokens=SPECIAL + [f"<0x{byte:02X}>" for byte in range(256)],
        vocab_size=450,
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.pre_tokenizer = None
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.post_processor = special_tokens()
    return wrapped(tokenizer)


def whole_words():
    """Spaces and newlines are nobody's."""
    tokenizer = trained(
        models.WordLevel(unk_token="<unk>"),
        pre_tokenizers.Whitespace(),
        SENTENCES,
        trainer=trainers.WordLevelTrainer,
    )
    tokenizer.post_processor = special_tokens()
    return wrapped(tokenizer)


TOKENIZERS = {
    "byte-level": lambda: byte_level(bos=False),
    "byte-level, BOS": byte_level,
    "byte-level, trimmed": lambda: byte_level(trim_offsets=True),
    "question mark and newline": lambda: byte_level(words=PUNCTUATION_TAKES_NEWLINES),
    "metaspace": metaspace,
    "byte fallback": byte_fallback,
    "whole words": whole_words,
    "anything merges": lambda: byte_level(words=""),
    "anything merges, trimmed": lambda: byte_level(words="", trim_offsets=True),
}


# Their prompts cannot be cut at a fixed place: a word may hold the end of the prompt's opening.
UNCUTTABLE = {"anything merges", "anything merges, trimmed"}
CUTTABLE = [name for name in TOKENIZERS if name not in UNCUTTABLE]

CHAT = (
    "{{ bos_token }}<|user|>\n{{ messages[0].content }}<|end|>\n"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


@cache
def tokenizer_of(name):
    return TOKENIZERS[name]()


PLAIN = prompt_template(
    "Answer the question.",
    [FewShot("Who wrote Dune?", "Frank Herbert"), FewShot("What is the answer?", "Lima")],
)
