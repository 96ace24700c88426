"""The run that both generating scripts share: read the questions, answer them, write the table."""

from __future__ import annotations

import logging
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from answers import first_line
from constants import UserError
from dataset import (
    Dataset,
    PromptTemplate,
    Record,
    chat_prompt_template,
    choose_template,
    load_dataset,
    select_paraphrases,
)
from progress import progress, say
from results import (
    REQUIRED_COLUMNS,
    check_finished,
    check_writable,
    read_manifest,
    read_results,
    result_file,
    result_stem,
    run_name,
    write_results,
)

if TYPE_CHECKING:  # torch takes seconds to import: mistakes on the command line come first
    from engine import Answer, Engine


@dataclass(frozen=True)
class Questions:
    """What a run asks: the dataset, its records with the paraphrases chosen, and the prompt."""

    dataset: Dataset
    records: list[Record]
    template: PromptTemplate


def read_questions(args, *, original: bool = False) -> Questions:
    """The questions of a command line.

    ``original`` takes one wording each: the column `question`, else paraphrase 0.
    """
    dataset = load_dataset(args.dataset, max_samples=args.max_samples)
    template = choose_template(
        dataset,
        instruction=args.instruction,
        few_shot_file=args.few_shot,
        num_few_shot=args.num_few_shot,
    )
    if original:
        records = [
            replace(record, paraphrases=(record.question or record.paraphrases[0],))
            for record in dataset.records
        ]
    else:
        records = select_paraphrases(
            dataset.records, num_paraphrases=args.num_paraphrases, indexs=args.indexs
        )
    return Questions(dataset, records, template)


class Run:
    """One run of a generating script, from its command line to its three files.

    Args:
        args: of the command line, see `cli.add_common_arguments`.
        questions: from `read_questions`.
        source: a `loading.ModelSource`.
        method: what names the file, see `results.run_name`.
        settings: of the method, part of the run's identity; JSON types.
    """

    def __init__(self, args, questions: Questions, source, method: str, settings: dict[str, Any]):
        self.args = args
        self.questions = questions
        self.source = source
        self.template, rendered = questions.template, {}
        if args.chat_template:
            from loading import load_tokenizer

            self.template = chat_prompt_template(load_tokenizer(source), questions.template)
            # A chat template may print what changes from day to day, such as the date.
            rendered = {"rendered_head": self.template.head, "rendered_tail": self.template.tail}
        count = len(questions.records[0].paraphrases)
        self.stem = result_stem(
            args.output_dir,
            questions.dataset.name,
            source.name,
            run_name(method, num_paraphrases=count, indexs=args.indexs),
            indexs=args.indexs,
        )
        self.identity = {
            "data": questions.dataset.fingerprint,
            # Not its name: a folder has as many names as there are paths to it.
            "model": source.fingerprint,
            "prompt": prompt_identity(args, questions) | rendered,
            "paraphrases": list(args.indexs) if args.indexs else count,
            "method": settings,
            "dtype": str(source.dtype).removeprefix("torch."),
            "max_new_tokens": args.max_new_tokens,
        }

    def is_finished(self) -> bool:
        """Whether the file is there already; says so. Checks early that it can be written."""
        finished = check_finished(
            self.stem,
            self.identity,
            num_questions=len(self.questions.records),
            overwrite=self.args.overwrite,
        )
        if finished:
            path = result_file(self.stem, ".feather")
            say(f"{path} is finished already; --overwrite makes it again")
        else:
            check_writable(self.stem)
        return finished

    def write(self, rows: list[dict], engine: Engine, seconds: float, **extra) -> None:
        """Write the table and its manifest, and say what was done."""
        import pandas as pd

        count = len(self.questions.records)
        manifest = {
            "identity": self.identity,
            "num_questions": count,
            "dataset": self.questions.dataset.name,
            "model": {"name": self.source.name, "revision": self.source.revision},
            "device": describe_device(self.source.device),
            "attention": {
                "asked": self.args.attention,
                "encode": engine.wrapper.backend,
                "fallback": engine.wrapper.fallback,
                "decode": "split softmax over prefix, segments and fused tokens",
            },
            "batch_size": self.args.batch_size,
            "counts": asdict(engine.counts),
            "seconds": round(seconds, 3),
            "versions": versions(),
            **extra,
        }
        write_results(self.stem, pd.DataFrame(rows), manifest)
        say(f"wrote {result_file(self.stem, '.feather')} (.csv and .json beside it)")
        say(
            f"{count} questions in {seconds:.1f} s, {count / seconds:.1f} questions/s; "
            f"{engine.counts.encoded_tokens:,} tokens encoded, "
            f"{engine.counts.decoded_tokens:,} decoded in {engine.counts.decode_rows:,} rows"
        )


def lemmatize_finished(
    args, questions: Questions, methods: Sequence[str], settings: dict[str, Any]
) -> Path:
    """Add lemmas to the finished result of a command line. No model is loaded, nor even torch.

    Args:
        args, questions: as of `Run`.
        methods: what may name the file.
        settings: of the method, as far as they are known without the model.

    Returns:
        The result's path without its suffix.

    Raises:
        UserError: there is no finished result, it belongs to another run, or nothing lemmatises.
    """
    from lemmatize import append_lemmas, init_spacy, lemmaize_chunk, lemmatizer_of

    count = len(questions.records[0].paraphrases)
    stems = [
        result_stem(
            args.output_dir,
            questions.dataset.name,
            args.model,
            run_name(method, num_paraphrases=count, indexs=args.indexs),
            indexs=args.indexs,
        )
        for method in methods
    ]
    stem, manifest = _finished_result(stems, settings)
    there = manifest["identity"]
    known = {
        "data": questions.dataset.fingerprint,
        # What a chat template makes of it is not known without the tokenizer.
        "prompt": _identity_part(manifest, "prompt") | prompt_identity(args, questions),
        "paraphrases": list(args.indexs) if args.indexs else count,
        "method": _identity_part(manifest, "method") | settings,
        "max_new_tokens": args.max_new_tokens,
    }
    if args.dtype != "auto":
        known["dtype"] = args.dtype
    check_finished(stem, there | known, num_questions=0, overwrite=False)

    frame = read_results(result_file(stem, ".feather"))
    missing = [f"`{name}`" for name in REQUIRED_COLUMNS if name not in frame.columns]
    if missing:
        raise UserError(
            f"{result_file(stem, '.feather')} lacks the column {' and '.join(missing)}; "
            "--overwrite without --lemmaize makes it again"
        )
    nlp = init_spacy(args.spacy_model)
    frame = append_lemmas(frame, [lemmaize_chunk(frame, nlp)])
    manifest["lemmatizer"] = lemmatizer_of(nlp)
    write_results(stem, frame, manifest, same_answers=True)
    say(
        f"added predict_lemma and answer_lemmas to {result_file(stem, '.feather')} "
        f"({len(frame)} rows, {manifest['lemmatizer']['model']})"
    )
    return stem


def _finished_result(stems: Sequence[Path], settings: dict[str, Any]) -> tuple[Path, dict]:
    for stem in stems:
        manifest = read_manifest(stem)
        if manifest is None or not result_file(stem, ".feather").exists():
            continue
        positions = _identity_part(manifest, "method").get("positions")
        if settings.get("positions", positions) == positions:
            return stem, manifest
    raise UserError(
        f"--lemmaize: {result_file(stems[0], '.feather')} is not there or not finished; "
        "run without --lemmaize first"
    )


def _identity_part(manifest: dict, name: str) -> dict[str, Any]:
    part = manifest["identity"].get(name)
    return part if isinstance(part, dict) else {}


def prompt_identity(args, questions: Questions) -> dict[str, Any]:
    template = questions.template
    return {
        "head": template.head,
        "tail": template.tail,
        "chat_template": args.chat_template,
    }


def result_row(record: Record, answer: Answer, tokenizer, **columns) -> dict:
    """One row of the result table."""
    generation = tokenizer.decode(answer.token_ids, skip_special_tokens=True)
    row = {
        "uuid": record.uuid,
        "paraphrases": list(record.paraphrases),
        **columns,
        "answers": list(record.answers),
        "prediction": first_line(generation),
        "generation": generation,
        "logprob": sum(answer.logprobs),
        "truncated": answer.truncated,
    }
    if record.relation is not None:
        row["relation"] = record.relation
    return row


def in_order(
    batches: Iterable[Sequence[tuple[int, Any]]], total: int, what: str, *, unit: str = "questions"
) -> list:
    """Collect batches of (index, answer) with progress on stderr; answers come back in order."""
    answers: list = [None] * total
    with progress(total, what, unit) as advance:
        for batch in batches:
            for index, answer in batch:
                answers[index] = answer
            advance(len(batch))
    return answers


def set_up_logging(verbose: bool) -> None:
    """Our warnings as plain lines; the libraries' bars and remarks only with --verbose."""
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(message)s")
    if not verbose:
        from transformers.utils import logging as transformers_logging

        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()


def describe_device(device) -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def versions() -> dict[str, str]:
    import torch

    packages = ("transformers", "tokenizers", "numpy", "pandas", "pyarrow")
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,  # says what CUDA it was built for, too
        **{name: version(name) for name in packages},
    }
