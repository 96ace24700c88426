"""A small random Llama saved with a tokenizer of its own, questions for it, and stock answers."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from self_ensemble.cli import parser as cli
from self_ensemble.methods.config import DEFAULT_TAU

# Attention fusion's default tau, and how it stands in a file's name.
TAU = DEFAULT_TAU["mean"]
NAMED_TAU = f"-tau{TAU:g}" if TAU else ""

INSTRUCTION = "Say what is asked."
TEXTS = [
    INSTRUCTION,
    "what capital city of is the\n\nQ: a word\nA: Word\n\nQ: seven 7\nA: 's\n\n",
    'abcdefghijklmnopqrstuvwxyz ACLMPQSTWY é?.\'[]-x $1 "x" (x) <x> 的',
]
# Added behind the trained vocabulary: one whose text goes on before its newline, and a special one
# that is no end of sequence.
ENDS_LINE, MARK = "z\n", "<mark>"
# Made likely, so that answers end in every way there is: (token, factor of its logit).
FAVOURED = {"Ċ": 2.0, "<eos>": 2.2, ENDS_LINE: 2.2, MARK: 2.0}

QUESTIONS = [
    {
        "uuid": f"u{i}",
        "question": f"{land}: its capital?",
        "relation": "capital",
        "answers": [city, city.upper()],
        "paraphrases": [
            f"What is the capital city of {land}, please?",
            f"{land}’s capital is [MASK].",
            f"The {adjective} city of [MASK] is the capital of {land}.",
            f"[MASK] is it, for {land}.",
        ],
        "trust": [0.5, 2 + i, 1, 0.25],
    }
    for i, (land, city, adjective) in enumerate(
        [
            ("Peru", "Lima", "very large and old"),
            ("Mali", "Bamako", "old"),
            ("Côte d’Ivoire", "Yamoussoukro", "inland"),
            ("Chad", "N'Djamena", "great, hot and dusty"),
            ("Cuba", "La Habana", "fine"),
            ("Laos", "Vientiane", ""),
            ("Yemen", "Sanaa", "high"),
        ]
    )
]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE that puts <bos> in front."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = [*TEXTS, *(text for row in QUESTIONS for text in row["paraphrases"])]
    trainer = trainers.BpeTrainer(
        vocab_size=150, special_tokens=["<bos>", "<eos>"], show_progress=False
    )
    tokenizer.train_from_iterator(texts * 2, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 0)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        additional_special_tokens=[MARK],
    )
    fast.add_tokens([ENDS_LINE])
    return fast


def write_jsonl(path: Path, rows) -> Path:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")
    return path


@dataclass(frozen=True)
class SmallModel:
    folder: Path
    questions: Path
    model: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerFast

    @classmethod
    def saved(cls, base: Path) -> "SmallModel":
        tokenizer = make_tokenizer()
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=600,
            initializer_range=0.3,
            bos_token_id=0,
            eos_token_id=1,
        )
        torch.manual_seed(9)
        model = LlamaForCausalLM(config).eval()
        with torch.no_grad():
            for token, factor in FAVOURED.items():
                model.lm_head.weight[tokenizer.convert_tokens_to_ids(token)] *= factor
        model.save_pretrained(base / "tiny-llama")
        tokenizer.save_pretrained(base / "tiny-llama")
        questions = write_jsonl(base / "capitals.jsonl", QUESTIONS)
        return cls(base / "tiny-llama", questions, model, tokenizer)


@dataclass(frozen=True)
class StockAnswer:
    """What a method gives with stock forwards of whole prompts: no cache, no batch, no table."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]  # of the answer's tokens
    truncated: bool
    text: str

    @property
    def prediction(self) -> str:
        return (self.text.strip().split("\n") or [""])[0].strip()


@torch.no_grad()
def stock_answer(
    small, prompts, fuse, *, limit: int, special_tokens: bool = True, logits_after=None
) -> StockAnswer:
    """Greedy decoding of all prompts side by side; ``fuse`` makes one distribution of theirs.

    fuse: log-probabilities [N, V] float64 → scores [V], whose log-softmax is the distribution.
    logits_after: the tokens generated so far → logits [V], in place of prompts and ``fuse``.
    """
    model, tokenizer = small.model, small.tokenizer
    encoded = [tokenizer(p, add_special_tokens=special_tokens)["input_ids"] for p in prompts]

    def scores_after(tokens):
        if logits_after is not None:
            return logits_after(tokens).double()
        logits = [model(torch.tensor([ids + tokens])).logits[0, -1] for ids in encoded]
        return fuse(torch.stack(logits).double().log_softmax(-1))

    tokens, logprobs, stopped, text = [], [], False, ""
    while len(tokens) < limit and not stopped:
        scores = scores_after(tokens).log_softmax(-1)
        token = int((scores == scores.max()).nonzero()[0])
        if token == tokenizer.eos_token_id:
            return StockAnswer(tuple(tokens), tuple(logprobs), False, text)
        before, text = text, tokenizer.decode([*tokens, token], skip_special_tokens=True)
        tokens.append(token)
        stopped = "\n" in text.lstrip()
        if not stopped or text.lstrip().split("\n")[0].strip() != before.strip():
            logprobs.append(float(scores[token]))
    return StockAnswer(tuple(tokens), tuple(logprobs), not stopped, text)


def entropy_weights(small, prompts, strength: float) -> torch.Tensor:
    """[N], summing to one: exp(-strength * H), H the entropy of each prompt's own next token."""
    entropies = []
    for prompt in prompts:
        ids = small.tokenizer(prompt)["input_ids"]
        with torch.no_grad():
            logprobs = small.model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)
        entropies.append(-(logprobs.exp() * logprobs).sum())
    return (-strength * torch.stack(entropies)).softmax(-1)


def run_script(script, *argv) -> int:
    """A script's command line, as its __main__ runs it, in this process. Its exit status."""
    try:
        cli.run(script.main, script.parse_args([str(arg) for arg in argv]))
    except SystemExit as end:
        return end.code
    return 0
