"""A user's own model and questions: how fast, what limits it, and whether the paths agree."""

from types import SimpleNamespace

import measure
from measure import Table, without_ours

NEW_TOKENS = 20


class OwnCase(Table):
    def __init__(self, args):
        from self_ensemble.experiment.run import read_questions

        super().__init__(args, args.model)
        settings = {"indexs": None, "num_few_shot": None}
        asked = SimpleNamespace(**(vars(args) | settings))
        self.questions = read_questions(asked)
        self.texts = [record.paraphrases for record in self.questions.records]

    def source(self, dtype):
        from self_ensemble.models.loading import find_model

        return find_model(self.args.model, revision=None, device=measure.DEVICE, dtype=dtype)

    def answers(self, engine, source, batch_size=None, texts=None, combine=None) -> list:
        """Token ids by question, through attention fusion with its default positions."""
        from self_ensemble.attention.fusion import Fusion
        from self_ensemble.attention.segments import split_prompts
        from self_ensemble.generation.legacy import attention_streams, only_stream

        texts = texts or self.texts
        prefix, split = split_prompts(engine.tokenizer, self.questions.template, texts)
        engine.set_prefix(prefix)
        streams = [attention_streams(q, len(prefix), source.default_positions) for q in split]
        assert engine.can_turn(streams, NEW_TOKENS), source.default_positions
        self.segment_tokens = sum(len(s) for q in split for s in q.segments) / len(split)
        batches = engine.generate(
            streams,
            fusion=Fusion(),
            combine=combine or only_stream,
            max_new_tokens=NEW_TOKENS,
            batch_size=batch_size,
        )
        found = {index: answer.token_ids for batch in batches for index, answer in batch}
        return [found[index] for index in range(len(texts))]

    def own(self):
        """Questions a second, and the times that arithmetic and memory alone would take."""
        from self_ensemble.attention.checks import head_shape
        from self_ensemble.generation.legacy import Counts, loaded_engine

        source = self.source("auto")
        with loaded_engine(
            source, attention=self.args.attention, recorded=not self.args.plain
        ) as engine:
            work = lambda: self.answers(engine, source)  # noqa: E731
            work()
            engine.counts = Counts()
            repeats = 3
            seconds = self.seconds(work, repeats)
            counts, config = engine.counts, engine.config
            runs = repeats + 1
            weights = sum(p.numel() for p in engine.model.parameters())
            head = config.vocab_size * config.hidden_size
            tied = engine.model.get_output_embeddings().weight is (
                engine.model.get_input_embeddings().weight
            )
            body = weights - (head if tied else 2 * head)
            rows, size = counts.decode_rows / runs, engine.model.dtype.itemsize
            flop = 2 * (counts.encoded_tokens / runs * body + rows * (body + head))
            _, kv_heads, width = head_shape(config)
            cached = 2 * config.num_hidden_layers * kv_heads * width * size
            read = counts.decode_forwards / runs * (body + head) * size
            read += rows * self.segment_tokens * cached
        arithmetic, memory = flop / self.flops, read / self.bandwidth
        rest = seconds - arithmetic - memory
        limits = {"arithmetic": arithmetic, "memory bandwidth": memory, "launches and host": rest}
        parts = ", ".join(f"{name} {value / seconds:.0%}" for name, value in limits.items())
        note = f"{seconds:.2f} s, of which {parts}: limited by {max(limits, key=limits.get)}; "
        note += (
            f"{counts.decoded_tokens / runs / rows:.0%} of the decoded rows gave an answer's token"
        )
        rate = len(self.texts) / seconds
        self.add("own case, attention fusion", rate, "questions/s", note=note)

    def agreement(self):
        """How many answers differ between our paths, our batch sizes, and stock's batch sizes."""
        from throughput import stock_answers

        from self_ensemble.generation.legacy import loaded_engine

        for dtype in ("float32", "bfloat16"):
            source, found = self.source(dtype), {}
            with loaded_engine(source, attention="flex") as engine:
                assert engine.recording
                found["recorded"] = self.answers(engine, source)
                found["recorded, batches of 64"] = self.answers(engine, source, 64)
                engine.recording = False  # also where one question is asked alone, for its margins
                found["plain"] = self.answers(engine, source)
                found["plain, batches of 64"] = self.answers(engine, source, 64)
                self.compare(dtype, found, "recorded", "plain", (engine, source))
                for path in ("recorded", "plain"):
                    self.compare(dtype, found, path, f"{path}, batches of 64", (engine, source))
                engine.recording = True
                one_each = [texts[:1] for texts in self.texts]
                with without_ours(engine):
                    engine.model.set_attn_implementation("sdpa")
                    for size in (64, 512):
                        answers = stock_answers(
                            engine, self.questions.template, one_each, size, NEW_TOKENS
                        )
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
            stop, _, seen = engine.stop(torch.tensor([token], device=engine.device), seen)
            if stop.item():
                return tuple(tokens[: at + 1])
        return tuple(tokens)

    def compare(self, dtype, found, one, other, engine=None):
        pairs = list(zip(found[one], found[other], strict=True))
        differing = [index for index, (a, b) in enumerate(pairs) if a != b]
        gaps = [self.gap(*engine, index, *pairs[index]) for index in differing[:12] if engine]
        note = f"{len(differing)} of {len(pairs)} questions"
        if gaps:
            note += "; first over second logit there: " + ", ".join(f"{gap:.2g}" for gap in gaps)
        share = len(differing) / len(pairs)
        self.add(f"{dtype}: {one} against {other}", 100 * share, "% differ", note=note)

    def gap(self, engine, source, index, one, other) -> float:
        """How far the first logit was above the second where two answers part, asked alone."""
        from batches import first_difference

        parting, gaps = first_difference(one, other), []

        def watch(logits, weights):
            gaps.append(logits[0, 0].topk(2).values.diff().abs().item())
            return logits[:, 0]

        self.answers(engine, source, texts=[self.texts[index]], combine=watch)
        return gaps[parting] if parting < len(gaps) else float("nan")
