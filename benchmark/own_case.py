"""A user's own model and questions: how fast, what limits it, and whether the paths agree."""

from dataclasses import replace
from pathlib import Path

import measure
from measure import Table, without_ours

NEW_TOKENS = 20


class OwnCase(Table):
    """Attention fusion on a model and questions of the user's.

    Args:
        model, dataset, instruction, few_shot, max_samples, num_paraphrases, attention: as the
            generating scripts take them.
        plain: nothing is compiled and captured but FlexAttention.
    """

    def __init__(
        self,
        model: str,
        dataset: str,
        *,
        instruction: str | None,
        few_shot: Path | None,
        max_samples: int | None,
        num_paraphrases: int,
        attention: str,
        plain: bool,
    ):
        from self_ensemble.data import choose_template, select_paraphrases
        from self_ensemble.data.registry import DatasetOptions, open_dataset

        super().__init__(model)
        self.model, self.attention, self.plain = model, attention, plain
        options = DatasetOptions(
            max_samples=max_samples,
            needs_few_shot=few_shot is None,
            num_paraphrases=num_paraphrases,
            model=model,
        )
        opened = open_dataset(dataset, options)
        self.template = choose_template(
            opened, instruction=instruction, few_shot_file=few_shot, num_few_shot=None
        )
        records = select_paraphrases(opened.records, num_paraphrases=num_paraphrases, indexs=None)
        self.texts = [record.paraphrases for record in records]

    def source(self, dtype):
        from self_ensemble.models.config import ModelConfig
        from self_ensemble.models.loading import find_model

        return find_model(ModelConfig(name=self.model, device=measure.DEVICE, dtype=dtype))

    def request(self, engine, texts=None):
        """Attention fusion as it is by default on this model."""
        from self_ensemble.generation.config import GenerationConfig
        from self_ensemble.methods.attention_fusion import AttentionFusion

        config = GenerationConfig(max_new_tokens=NEW_TOKENS)
        return AttentionFusion().request(engine, self.template, texts or self.texts, config)

    def answers(self, engine, batch_size=None, *, texts=None, reduce=None, capture=True):
        """(Token ids by question, what was computed)."""
        request = replace(self.request(engine, texts), capture=capture)
        if reduce is not None:
            request = replace(request, reduce=reduce)
        generation = engine.generate(request, batch_size=batch_size)
        found = {index: answer.token_ids for batch in generation for index, answer in batch}
        return [found[index] for index in range(len(found))], generation.stats

    def own(self):
        """Questions a second, and the times that arithmetic and memory alone would take."""
        from self_ensemble.attention.checks import head_shape
        from self_ensemble.generation.loading import loaded_engine

        source = self.source("auto")
        with loaded_engine(source, attention=self.attention, capture=not self.plain) as engine:
            seconds = self.seconds(lambda: self.answers(engine))
            stats, config = self.answers(engine)[1], engine.config
            questions = self.request(engine).questions
            segment_tokens = sum(s.encoded_tokens for [s] in questions) / len(questions)
            weights = sum(p.numel() for p in engine.model.parameters())
            head = config.vocab_size * config.hidden_size
            tied = engine.model.get_output_embeddings().weight is (
                engine.model.get_input_embeddings().weight
            )
            body = weights - (head if tied else 2 * head)
            rows, size = stats.decode_rows, engine.model.dtype.itemsize
            flop = 2 * (stats.encoded_tokens * body + rows * (body + head))
            _, kv_heads, width = head_shape(config)
            cached = 2 * config.num_hidden_layers * kv_heads * width * size
            read = stats.decode_forwards * (body + head) * size
            read += rows * segment_tokens * cached
        arithmetic, memory = flop / self.flops, read / self.bandwidth
        rest = seconds - arithmetic - memory
        limits = {"arithmetic": arithmetic, "memory bandwidth": memory, "launches and host": rest}
        parts = ", ".join(f"{name} {value / seconds:.0%}" for name, value in limits.items())
        note = f"{seconds:.2f} s, of which {parts}: limited by {max(limits, key=limits.get)}; "
        note += f"{stats.decoded_tokens / rows:.0%} of the decoded rows gave an answer's token"
        rate = len(self.texts) / seconds
        self.add("own case, attention fusion", rate, "questions/s", note=note)

    def agreement(self):
        """How many answers differ between our paths, our batch sizes, and stock's batch sizes."""
        from throughput import stock_answers

        from self_ensemble.generation.loading import loaded_engine

        for dtype in ("float32", "bfloat16"):
            source, found = self.source(dtype), {}
            with loaded_engine(source, attention="flex") as engine:
                assert engine.captures
                for path, capture in (("recorded", True), ("plain", False)):
                    for size, name in ((None, path), (64, f"{path}, batches of 64")):
                        found[name], _ = self.answers(engine, size, capture=capture)
                self.compare(dtype, found, "recorded", "plain", engine)
                for path in ("recorded", "plain"):
                    self.compare(dtype, found, path, f"{path}, batches of 64", engine)
                one_each = [texts[:1] for texts in self.texts]
                with without_ours(engine):
                    engine.model.set_attn_implementation("sdpa")
                    for size in (64, 512):
                        answers = stock_answers(engine, self.template, one_each, size, NEW_TOKENS)
                        found[f"stock, {size}"] = [
                            self.trimmed(engine, group[0]) for group in answers
                        ]
                self.compare(dtype, found, "stock, 64", "stock, 512")

    @staticmethod
    def trimmed(engine, tokens) -> tuple[int, ...]:
        """Without the padding behind a stop."""
        import torch

        seen = torch.zeros(1, dtype=torch.bool, device=engine.device)
        for at, token in enumerate(tokens):
            stop, _, seen = engine.line_stop(torch.tensor([token], device=engine.device), seen)
            if stop.item():
                return tuple(tokens[: at + 1])
        return tuple(tokens)

    def compare(self, dtype, found, one, other, engine=None):
        pairs = list(zip(found[one], found[other], strict=True))
        differing = [index for index, (a, b) in enumerate(pairs) if a != b]
        gaps = [self.gap(engine, index, *pairs[index]) for index in differing[:12] if engine]
        note = f"{len(differing)} of {len(pairs)} questions"
        if gaps:
            note += "; first over second logit there: " + ", ".join(f"{gap:.2g}" for gap in gaps)
        share = len(differing) / len(pairs)
        self.add(f"{dtype}: {one} against {other}", 100 * share, "% differ", note=note)

    def gap(self, engine, index, one, other) -> float:
        """How far the first logit was above the second where two answers part, asked alone."""
        from batches import first_difference

        parting, gaps = first_difference(one, other), []

        def watch(logits, weights):
            gaps.append(logits[0, 0].topk(2).values.diff().abs().item())
            return logits[:, 0]

        self.answers(engine, texts=[self.texts[index]], reduce=watch, capture=False)
        return gaps[parting] if parting < len(gaps) else float("nan")
