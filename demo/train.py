"""Train the bundled demo model, and write the questions that it is asked.

    python demo/train.py                        # the committed model again: minutes on one GPU
    python demo/train.py --output try --steps 200 --dropout 0.1
    python demo/train.py --evaluate             # no training: what the model there answers

A small Llama learns the facts of `facts.csv` in the form in which they are asked later: the
instruction, few-shot demonstrations, `Q: …`, `A: …`. Each fact is trained through a few wordings of
its relation and asked through others, which the model knows from other facts. `README.md` beside
this file says what is held out.

Legend of shapes: `B` questions, `N` paraphrases of each, `R` rows, `S` tokens, `V` vocabulary.
"""

import argparse
import csv
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
# As a script, Python looks for modules in this folder and not in the project's.
sys.path.insert(0, str(HERE.parent))

from self_ensemble.data import FewShot, prompt_template
from self_ensemble.data.datasets.demo import INSTRUCTION as DEMO_INSTRUCTION

NUM_PARAPHRASES = 10
NUM_FEW_SHOT = 5
# Lengths of the documents that are trained on, in tokens. The demo's prompts have 100 to 150;
# whole prompts joined to one, as in the layout `concat`, have several times that.
DOCUMENT_TOKENS = (128, 192, 320, 1024)
BOS, EOS = "<bos>", "<eos>"
IGNORED = -100  # what torch's cross entropy leaves out


@dataclass(frozen=True)
class Fact:
    relation: str
    subject: str
    answer: str
    aliases: tuple[str, ...]


@dataclass(frozen=True)
class Template:
    relation: str
    text: str

    def ask(self, subject: str) -> str:
        return self.text.replace("{subject}", subject)


@dataclass(frozen=True)
class Question:
    """A fact and wordings of it that were not trained."""

    fact: Fact
    paraphrases: tuple[str, ...]

    @property
    def answers(self) -> tuple[str, ...]:
        return (self.fact.answer, *self.fact.aliases)


@dataclass(frozen=True)
class Plan:
    """Who is trained through what, and what is asked.

    trained: every fact with its wordings. few_shot: demonstrations, on facts and in templates
    that no test question uses. test: what `questions.parquet` holds. tuning: questions about other
    facts, to choose the settings with.
    """

    trained: dict[Fact, tuple[Template, ...]]
    few_shot: tuple[FewShot, ...]
    test: tuple[Question, ...]
    tuning: tuple[Question, ...]


# ---- the data -----------------------------------------------------------------------------------


def read_facts(path: Path) -> list[Fact]:
    with path.open(encoding="utf-8", newline="") as file:
        return [
            Fact(
                relation=row["relation"],
                subject=row["subject"],
                answer=row["answer"],
                aliases=tuple(alias for alias in (row["aliases"] or "").split("|") if alias),
            )
            for row in csv.DictReader(file)
        ]


def read_templates(path: Path) -> list[Template]:
    with path.open(encoding="utf-8", newline="") as file:
        return [Template(row["relation"], row["template"]) for row in csv.DictReader(file)]


def make_plan(
    facts: Sequence[Fact],
    templates: Sequence[Template],
    *,
    wordings_per_fact: float,
    num_questions: int,
    num_tuning: int,
    seed: int,
) -> Plan:
    """Divide wordings between training and test.

    With 1.4 wordings a fact, four facts of ten have two and the others one. Every template of a
    relation is trained on as many facts as any other, but for one. One template of each few-shot
    relation is kept for the demonstration: it is trained, and no question uses it.
    """
    by_relation: dict[str, list[Template]] = {}
    for template in templates:
        by_relation.setdefault(template.relation, []).append(template)
    shuffled = random.Random(seed).sample(facts, len(facts))
    shown: dict[str, Fact] = {}  # a few-shot fact of each of the first relations that come
    for fact in shuffled:
        if len(shown) < NUM_FEW_SHOT:
            shown.setdefault(fact.relation, fact)

    decks = {relation: Deck(items, seed=seed) for relation, items in by_relation.items()}
    reserved = {relation: decks[relation].shuffled()[0] for relation in shown}
    draw = random.Random(f"{seed}/wordings")
    trained, questions = {}, []
    for fact in shuffled:
        trained[fact] = decks[fact.relation].deal(int(wordings_per_fact + draw.random()))
        if shown.get(fact.relation) == fact:
            continue
        seen = {template.ask(fact.subject) for template in trained[fact]}
        texts = {
            template.ask(fact.subject): None
            for template in decks[fact.relation].shuffled()
            if template != reserved.get(fact.relation)
        }
        asked = [text for text in texts if text not in seen][:NUM_PARAPHRASES]
        assert len(asked) == NUM_PARAPHRASES, f"{fact.relation}: too few templates"
        questions.append(Question(fact, tuple(asked)))
    return Plan(
        trained=trained,
        few_shot=tuple(
            FewShot(reserved[relation].ask(fact.subject), fact.answer)
            for relation, fact in shown.items()
        ),
        test=tuple(questions[:num_questions]),
        tuning=tuple(questions[num_questions : num_questions + num_tuning]),
    )


class Deck:
    """A relation's templates, dealt in random order; all are dealt before one comes again."""

    def __init__(self, templates: Sequence[Template], *, seed: int):
        self.templates = tuple(templates)
        self.random = random.Random(f"{seed}/{templates[0].relation}")
        self.stack: list[Template] = []

    def shuffled(self) -> list[Template]:
        return self.random.sample(self.templates, len(self.templates))

    def deal(self, count: int) -> tuple[Template, ...]:
        """`count` different templates."""
        hand: list[Template] = []
        while len(hand) < count:
            free = [template for template in self.stack if template not in hand]
            if free:
                hand.append(free[0])
                self.stack.remove(free[0])
            else:
                self.stack += self.shuffled()
        return tuple(hand)


def write_plan(plan: Plan, folder: Path) -> None:
    """questions.parquet, few_shot.jsonl, trained.csv."""
    import pyarrow as pa
    import pyarrow.parquet

    columns = {
        "uuid": [f"demo-{index:04d}" for index in range(len(plan.test))],
        "relation": [question.fact.relation for question in plan.test],
        "subject": [question.fact.subject for question in plan.test],
        "answers": [list(question.answers) for question in plan.test],
        "paraphrases": [list(question.paraphrases) for question in plan.test],
    }
    pa.parquet.write_table(pa.table(columns), folder / "questions.parquet")
    with (folder / "few_shot.jsonl").open("w", encoding="utf-8") as file:
        for shot in plan.few_shot:
            line = {"question": shot.question, "answer": shot.answer}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    with (folder / "trained.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("relation", "subject", "template"))
        writer.writerows(
            sorted(
                (fact.relation, fact.subject, template.text)
                for fact, wordings in plan.trained.items()
                for template in wordings
            )
        )


# ---- the model ----------------------------------------------------------------------------------


def train_tokenizer(texts: Sequence[str], vocabulary: int):
    """A byte-level BPE that puts <bos> in front of every text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=EOS, padding_side="left"
    )


def build_model(tokenizer, *, hidden: int, layers: int, intermediate: int, dropout: float):
    """Random weights. Attention heads of 64, two query heads for each key/value head."""
    from transformers import LlamaConfig, LlamaForCausalLM

    heads = hidden // 64
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        head_dim=64,
        max_position_embeddings=4096,
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        attention_dropout=dropout,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


# ---- training -----------------------------------------------------------------------------------


class Documents:
    """Documents of few-shot demonstrations, without end.

    A document is the instruction and as many facts as it has room for. Every pass asks each fact
    once, in a new order and through one of its trained wordings; a document holds no fact twice.
    """

    def __init__(self, plan: Plan, tokenizer, *, seed: int):
        self.random = random.Random(seed)
        self.head = tokenizer(f"{DEMO_INSTRUCTION}\n\nQ")["input_ids"][:-1]
        self.pairs = [
            [encode_pair(tokenizer, wording.ask(fact.subject), fact.answer) for wording in wordings]
            for fact, wordings in plan.trained.items()
        ]
        self.queue: list[int] = []
        self.passes = 0

    def draw(self, num_tokens: int) -> tuple[list[int], list[bool]]:
        """One document: its token ids, and which of them belong to an answer."""
        if not self.queue:
            self.queue = self.random.sample(range(len(self.pairs)), len(self.pairs))
            self.passes += 1
        ids, answers = list(self.head), [False] * len(self.head)
        while self.queue:
            pair, answer = self.random.choice(self.pairs[self.queue[-1]])
            if len(ids) + len(pair) > num_tokens:
                break
            self.queue.pop()
            ids += pair
            answers += answer
        return ids, answers

    def batch(self, tokens_per_step: int):
        """Documents of about one length: input ids, labels and the answers' places, all [R, S]."""
        import torch

        length = self.random.choice(DOCUMENT_TOKENS)
        rows = [self.draw(length) for _ in range(max(1, tokens_per_step // length))]
        longest = max(len(ids) for ids, _ in rows)
        inputs = torch.zeros(len(rows), longest, dtype=torch.long)
        labels = torch.full((len(rows), longest), IGNORED)
        places = torch.zeros(len(rows), longest, dtype=torch.bool)
        for row, (ids, answers) in enumerate(rows):
            inputs[row, : len(ids)] = torch.tensor(ids)
            labels[row, : len(ids) - 1] = torch.tensor(ids[1:])
            places[row, : len(ids) - 1] = torch.tensor(answers[1:])
        return inputs, labels, places


def encode_pair(tokenizer, question: str, answer: str) -> tuple[list[int], list[bool]]:
    """A demonstration's token ids, and which belong to its answer or the newline that ends it.

    How white space is cut depends on what follows it, so the next example's "Q" is encoded too.
    """

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    asked = encode(f"Q: {question}\nA:")
    answered = encode(f"Q: {question}\nA: {answer}\n")
    ids = encode(f"Q: {question}\nA: {answer}\n\nQ")[:-1]
    assert ids[: len(answered)] == answered, f"a token straddles a border in {question!r}"
    assert asked == answered[: len(asked)], f"a token straddles a border in {question!r}"
    return ids, [len(asked) <= index < len(answered) for index in range(len(ids))]


def train(
    model,
    documents: Documents,
    *,
    steps: int,
    tokens_per_step: int,
    learning_rate: float,
    weight_decay: float,
    question_weight: float,
    report_every: int,
    report,
) -> None:
    """AdamW with a linear warm-up and decay.

    The loss is that of the answers, plus `question_weight` times that of everything else.
    """
    import torch
    from torch.nn.functional import cross_entropy

    device = model.device
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors}],
        lr=learning_rate,
        betas=(0.9, 0.95),
        weight_decay=0.0,
    )
    warmup = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (steps - step) / (steps - warmup + 1))
    )
    model.train()
    for step in range(1, steps + 1):
        inputs, labels, places = (tensor.to(device) for tensor in documents.batch(tokens_per_step))
        if question_weight == 0:
            labels = labels.masked_fill(~places, IGNORED)
        kept = labels != IGNORED
        with torch.autocast(device.type, torch.bfloat16):
            states = model.base_model(input_ids=inputs, use_cache=False).last_hidden_state
            logits = model.lm_head(states[kept])  # [kept tokens, V]
        losses = cross_entropy(logits.float(), labels[kept], reduction="none")
        weights = torch.where(places[kept], 1.0, question_weight)
        loss = (losses * weights).sum() / places.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if step % report_every == 0 or step == steps:
            model.eval()
            report(step, loss.item())
            model.train()
    model.eval()


# ---- evaluation: plain and slow, a yardstick for training only ----------------------------------


def decode(model, tokenizer, questions: Sequence[Sequence[str]], *, batch_size: int) -> list[str]:
    """Greedy answers to questions of N prompts each, from the mean of the N prompts' logits."""
    import torch

    N = len(questions[0])
    newline = torch.tensor(
        ["\n" in text for text in tokenizer.batch_decode([[i] for i in range(len(tokenizer))])],
        device=model.device,
    )
    answers = []
    with torch.inference_mode():
        for start in range(0, len(questions), batch_size):
            batch = questions[start : start + batch_size]
            inputs = tokenizer(
                [prompt for prompts in batch for prompt in prompts],
                return_tensors="pt",
                padding=True,
            ).to(model.device)
            ids, mask = inputs["input_ids"], inputs["attention_mask"]  # [B * N, S]
            cache, tokens = None, []
            done = torch.zeros(len(batch), dtype=torch.bool, device=model.device)
            for _ in range(16):
                positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
                output = model(
                    input_ids=ids,
                    attention_mask=mask,
                    position_ids=positions,
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                )
                cache = output.past_key_values
                logits = output.logits[:, -1].float().unflatten(0, (-1, N)).mean(1)  # [B, V]
                token = logits.argmax(-1)
                tokens.append(token)
                done |= newline[token]
                if done.all():
                    break
                ids = token.repeat_interleave(N)[:, None]
                mask = torch.cat([mask, mask.new_ones(len(ids), 1)], dim=1)
            texts = tokenizer.batch_decode(torch.stack(tokens, dim=1))
            answers += [text.strip().split("\n")[0].strip() for text in texts]
    return answers


def accuracy(predictions: Sequence[str], questions: Sequence[Question]) -> float:
    """Exact match of the lower-cased answer, in percent."""
    right = sum(
        prediction.lower() in {answer.lower() for answer in question.answers}
        for prediction, question in zip(predictions, questions, strict=True)
    )
    return 100 * right / len(questions)


def evaluate(
    model, tokenizer, plan: Plan, questions: Sequence[Question], *, num_paraphrases: int
) -> dict:
    """Accuracy of one paraphrase (mean over them), of their vote and of their mean logits."""
    template = prompt_template(DEMO_INSTRUCTION, plan.few_shot)
    prompts = [
        [template.render(text) for text in question.paraphrases[:num_paraphrases]]
        for question in questions
    ]
    rows = 250 if model.device.type == "cpu" else 1000
    singles = [
        decode(model, tokenizer, [[texts[index]] for texts in prompts], batch_size=rows)
        for index in range(num_paraphrases)
    ]
    votes = [Counter(answers).most_common(1)[0][0] for answers in zip(*singles, strict=True)]
    fused = decode(model, tokenizer, prompts, batch_size=rows // num_paraphrases)
    right_of_one = [accuracy(answers, questions) for answers in singles]
    return {
        "one": sum(right_of_one) / num_paraphrases,
        "vote": accuracy(votes, questions),
        "avg": accuracy(fused, questions),
    }


def show(figures: dict) -> str:
    return ", ".join(f"{name} {value:.1f}" for name, value in figures.items())


# ---- the command line ---------------------------------------------------------------------------


def main(
    *,
    data: Path,
    output: Path,
    evaluate_only: bool,
    device: str,
    seed: int,
    wordings_per_fact: float,
    num_questions: int,
    num_tuning: int,
    vocabulary: int,
    hidden: int,
    layers: int,
    intermediate: int,
    dropout: float,
    report_every: int,
    **training,
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    plan = make_plan(
        read_facts(data / "facts.csv"),
        read_templates(data / "templates.csv"),
        wordings_per_fact=wordings_per_fact,
        num_questions=num_questions,
        num_tuning=num_tuning,
        seed=seed,
    )
    print(
        f"{len(plan.trained)} facts through {wordings_per_fact} wordings each on average, "
        f"{len(plan.test)} test questions, {len(plan.tuning)} for tuning",
        flush=True,
    )
    if not evaluate_only:
        torch.manual_seed(seed)
        texts = [
            f"Q: {wording.ask(fact.subject)}\nA: {fact.answer}"
            for fact, wordings in plan.trained.items()
            for wording in wordings
        ]
        tokenizer = train_tokenizer([DEMO_INSTRUCTION, *texts], vocabulary)
        model = build_model(
            tokenizer, hidden=hidden, layers=layers, intermediate=intermediate, dropout=dropout
        ).to(device)
        print(
            f"{sum(p.numel() for p in model.parameters()):,} parameters, "
            f"vocabulary {len(tokenizer)}, on {device}",
            flush=True,
        )
        documents = Documents(plan, tokenizer, seed=seed)
        started = time.monotonic()

        def report(step: int, loss: float) -> None:
            figures = evaluate(model, tokenizer, plan, plan.tuning, num_paraphrases=5)
            print(
                f"step {step}, pass {documents.passes}, loss {loss:.3f}, "
                f"{time.monotonic() - started:.0f} s; tuning questions: {show(figures)}",
                flush=True,
            )

        train(model, documents, report_every=report_every, report=report, **training)
        output.mkdir(parents=True, exist_ok=True)
        write_plan(plan, output)
        model.to(torch.bfloat16).save_pretrained(output / "model")
        tokenizer.save_pretrained(output / "model")
    tokenizer = AutoTokenizer.from_pretrained(output / "model")
    model = AutoModelForCausalLM.from_pretrained(output / "model", dtype=torch.float32)
    model.to(device).eval()
    for name, questions in (("tuning", plan.tuning), ("test", plan.test)):
        figures = evaluate(model, tokenizer, plan, questions, num_paraphrases=5)
        print(f"{name} questions, five paraphrases: {show(figures)}", flush=True)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n", 1)[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--data", type=Path, default=HERE, help="folder of facts.csv and templates.csv")
    add("--output", type=Path, default=HERE, help="folder that the results are written to")
    add("--evaluate", dest="evaluate_only", action="store_true", help="train nothing")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, …")
    add("--seed", type=int, default=0, help="of the division, the weights and the order")
    add("--wordings_per_fact", type=float, default=1.4, help="wordings a fact is trained through")
    add("--num_questions", type=int, default=1000, help="test questions")
    add("--num_tuning", type=int, default=400, help="questions on other facts, for the reports")
    add("--steps", type=int, default=800, help="optimizer steps")
    add("--tokens_per_step", type=int, default=16384, help="tokens of a step, about")
    add("--learning_rate", type=float, default=2e-3, help="the highest")
    add("--weight_decay", type=float, default=1.0, help="of matrices")
    add("--question_weight", type=float, default=0.1, help="weight of what is no answer")
    add("--dropout", type=float, default=0.0, help="of attention")
    add("--vocabulary", type=int, default=4096, help="largest size")
    add("--hidden", type=int, default=128, help="hidden size, a multiple of 128")
    add("--layers", type=int, default=6, help="layers")
    add("--intermediate", type=int, default=384, help="size inside the MLP")
    add("--report_every", type=int, default=200, help="steps between two reports")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main(**vars(parse()))
