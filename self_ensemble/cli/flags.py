"""The flags that several scripts share, group by group, and the configurations made of them.

A group is added by `add_*_arguments`, checked by `check_*_arguments`, and becomes a configuration
by the function named after it. Defaults are the configurations' own. Nothing heavy is imported
here, so that --help answers at once.
"""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from self_ensemble.cli.parser import Parser
from self_ensemble.cli.types import (
    auto_or_positive_int,
    column_value,
    device_name,
    extraction,
    finite_float,
    index_list,
    non_negative_int,
    number_of_workers,
    positive_float,
    positive_fraction,
    positive_int,
    stop_text,
    weight_list,
    weighting,
)
from self_ensemble.data.choice_columns import ANSWER_COLUMNS
from self_ensemble.data.choices import NORMS
from self_ensemble.data.long_format import WORDING_COLUMNS, Columns
from self_ensemble.data.names import (
    DEFAULT_NUM_AUTO,
    DEFAULT_NUM_FEW_SHOT,
    DEFAULT_NUM_MANUAL,
    DEFAULT_SEED,
    FEWER,
)
from self_ensemble.data.registry import (
    DATASET_OPTIONS,
    SOURCE_OPTIONS,
    DatasetOptions,
    check_options,
    cloned_datasets,
    dataset_names,
    users_of,
)
from self_ensemble.experiment.config import (
    TASKS,
    ExperimentConfig,
    LemmaConfig,
    MethodConfig,
    OutputConfig,
    PromptConfig,
    QuestionConfig,
    TaskConfig,
)
from self_ensemble.generation.config import GenerationConfig, SamplingConfig, make_sampling
from self_ensemble.methods.config import (
    DEFAULT_TAU,
    POSITIONS,
    AttentionFusionConfig,
    fusion_names,
)
from self_ensemble.methods.weighting import WEIGHTINGS
from self_ensemble.models.config import ATTENTIONS, DTYPES, ModelConfig
from self_ensemble.system.errors import UserError
from self_ensemble.workers.config import WorkersConfig

# What only one of the tasks uses.
GENERATE_FLAGS = ("max_new_tokens", "stop", "extract", "temperature", "top_p", "sample_seed")
CHOICE_FLAGS = ("choice_norm",)
# Refused where they are not used, also where what is given is the default.
TOLD_FLAGS = (*GENERATE_FLAGS, *CHOICE_FLAGS, "fewer")


class Flags(Protocol):
    """A parser, or a group of one."""

    def add_argument(self, *name_or_flags: str, **kwargs: Any) -> argparse.Action: ...


def add_question_arguments(
    parser: argparse.ArgumentParser, *, max_samples: int | None = None
) -> None:
    """What `read_questions` asks for but the prompt; ``max_samples`` is a default."""
    data = parser.add_argument_group("questions")
    data.add_argument(
        "--dataset",
        default=QuestionConfig.dataset,
        metavar="NAME|FILE|ID",
        help=f"{', '.join(dataset_names())}, or a .parquet, .feather, .jsonl or .csv file with "
        "answers and paraphrases, or question and/or paraphrase0, paraphrase1, ..., or the hub id "
        "of a dataset with such columns (default: %(default)s)",
    )
    add_source_arguments(data)
    data.add_argument(
        "--paraphrase_model",
        metavar="NAME",
        help=f"{_users('paraphrase_model')}: the model whose paraphrases are taken, as "
        "paraphrase.py --model had it "
        "(default: that of --model)",
    )
    data.add_argument(
        "--num_manual",
        type=non_negative_int,
        metavar="M",
        help=f"{_users('num_manual')}: how many manual paraphrases of each question are drawn "
        f"(default: {DEFAULT_NUM_MANUAL})",
    )
    data.add_argument(
        "--num_auto",
        type=non_negative_int,
        metavar="A",
        help=f"{_users('num_auto')}: and how many automatic ones; they are mixed, and "
        f"--num_paraphrases or --indexs takes from the mixture (default: {DEFAULT_NUM_AUTO})",
    )
    data.add_argument(
        "--seed",
        type=non_negative_int,
        help=f"{_users('seed')}: what the draw depends on, with the question's uuid "
        f"(default: {DEFAULT_SEED})",
    )
    data.add_argument(
        "--num_paraphrases",
        type=positive_int,
        metavar="N",
        help="the first N paraphrases of each question "
        f"(default: {DatasetOptions.num_paraphrases})",
    )
    data.add_argument(
        "--num_samples",
        dest="num_paraphrases",
        type=positive_int,
        default=argparse.SUPPRESS,
        metavar="N",
        help="another name of --num_paraphrases",
    )
    data.add_argument(
        "--indexs",
        type=index_list,
        metavar="I,J,...",
        help="these paraphrases instead, counted from 0",
    )
    data.add_argument(
        "--fewer",
        choices=FEWER,
        default=DatasetOptions.fewer,
        help="where a question has fewer paraphrases than that: refuse, use those that it has, or "
        "skip the question (default: %(default)s)",
    )
    data.add_argument(
        "--max_samples",
        type=positive_int,
        default=max_samples,
        metavar="N",
        help=f"the first N questions (default: {max_samples or 'all'})",
    )


def add_source_arguments(data: Flags) -> None:
    """Where a dataset's tables are from."""
    data.add_argument(
        "--data_dir",
        type=Path,
        metavar="FOLDER",
        help=f"{_users('data_dir')}: a folder with the tables as files, instead of the hub; "
        f"{', '.join(cloned_datasets())} needs it",
    )
    data.add_argument(
        "--dataset_revision",
        metavar="REVISION",
        help=f"{_users('dataset_revision')}, hub ids: branch, tag or commit of the dataset on the "
        "hub",
    )
    data.add_argument("--split", help="hub ids: which split (default: the only one)")
    add_column_arguments(data)


def add_column_arguments(data: Flags) -> None:
    """How the columns of a table are read."""
    data.add_argument(
        "--group_by",
        metavar="COLUMN",
        help="files and hub ids with a row a wording: the column whose value all rows of one "
        "question share; it becomes the uuid",
    )
    data.add_argument(
        "--paraphrase_column",
        metavar="COLUMN",
        help="files and hub ids: where the wordings are (default with --group_by: "
        f"{', else '.join(WORDING_COLUMNS)})",
    )
    data.add_argument(
        "--answer_column",
        metavar="COLUMN",
        help="files and hub ids: what counts as right, a list or one text "
        f"(default: {', else '.join(ANSWER_COLUMNS)})",
    )
    data.add_argument(
        "--where",
        action="append",
        type=column_value,
        metavar="COLUMN=VALUE",
        help="files and hub ids: take only the rows with this value; may be given again, for "
        "another value of the column or another column",
    )


def _users(option: str) -> str:
    return ", ".join(users_of(option))


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model, and how it is run."""
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model",
        default=ModelConfig.name,
        help="alias of constants.py, hub id, folder, or .gguf file (default: %(default)s)",
    )
    model.add_argument("--revision", help="branch, tag or commit of the model on the hub")
    model.add_argument(
        "--device",
        type=device_name,
        default=ModelConfig.device,
        metavar="{auto,cpu,cuda,cuda:N}",
        help="auto: the first GPU if there is one (default: %(default)s)",
    )
    model.add_argument(
        "--dtype",
        choices=DTYPES,
        default=ModelConfig.dtype,
        help="number format of the weights (default: %(default)s)",
    )
    model.add_argument(
        "--attention",
        choices=ATTENTIONS,
        default=ModelConfig.attention,
        help="how attention is computed; what is asked for and not to be had is an error, "
        "only auto falls back (default: %(default)s)",
    )


def add_workers_arguments(running: Flags) -> None:
    """How many workers answer."""
    running.add_argument(
        "--workers",
        type=number_of_workers,
        metavar="{auto,N}",
        help="processes that hold the model each and share the questions, on Ray; auto: as many as "
        "there are GPUs for "
        f"(default: {WorkersConfig.number}, without Ray)",
    )
    running.add_argument(
        "--ray_address",
        metavar="ADDRESS",
        help="a Ray cluster that is running, such as auto or host:6379 (default: with --workers "
        "one of the run's own, on this machine)",
    )
    running.add_argument(
        "--gpus_per_worker",
        type=positive_int,
        metavar="N",
        help="spread the model's layers over N GPUs, also without --workers (default: one, under "
        "--device auto as few as hold the model)",
    )


def check_workers_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends the program where these flags do not go together."""
    if args.workers is None and args.ray_address is not None:
        parser.error("--ray_address: say how many workers answer there, such as --workers auto")


def workers_config(args: argparse.Namespace) -> WorkersConfig:
    """Of `add_workers_arguments`, checked."""
    return WorkersConfig(number=args.workers or WorkersConfig.number, address=args.ray_address)


def add_prompt_arguments(parser: argparse.ArgumentParser) -> None:
    """What stands around the paraphrase."""
    prompt = parser.add_argument_group("prompt")
    prompt.add_argument(
        "--instruction",
        metavar="TEXT",
        help="what the prompt begins with (default: the dataset's own)",
    )
    prompt.add_argument(
        "--few_shot",
        type=Path,
        metavar="FILE",
        help="few-shot demonstrations, jsonl with question (or paraphrases) and answer "
        "(default: the dataset's own)",
    )
    prompt.add_argument(
        "--num_few_shot",
        type=non_negative_int,
        metavar="N",
        help=f"how many of them to show, at most (default: {DEFAULT_NUM_FEW_SHOT})",
    )
    add_chat_template_argument(prompt)


def add_chat_template_argument(prompt: Flags) -> None:
    prompt.add_argument(
        "--chat_template",
        action="store_true",
        help="put the prompt into the model's own chat format (for instruct models)",
    )


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that both generating scripts take, with their defaults."""
    add_question_arguments(parser)
    add_model_arguments(parser)
    add_prompt_arguments(parser)
    add_task_arguments(parser)
    running = parser.add_argument_group("running")
    add_batch_argument(running)
    add_workers_arguments(running)
    running.add_argument(
        "--output_dir",
        type=Path,
        default=OutputConfig.folder,
        metavar="FOLDER",
        help="where the results are kept, in folders of datasets and models (default: %(default)s)",
    )
    running.add_argument("--overwrite", action="store_true", help="make finished results again")
    running.add_argument(
        "--part_rows",
        type=positive_int,
        default=OutputConfig.part_rows,
        metavar="K",
        help="write the table as parquet parts of K rows instead of one feather file and a CSV; "
        "other tools take the manifest (.json) in their place (default: one file)",
    )
    running.add_argument("--verbose", action="store_true", help="say more while running")

    lemmas = parser.add_argument_group("lemmas")
    lemmas.add_argument(
        "--lemmaize",
        "--lemmatize",
        action="store_true",
        help="add the lemmas of predictions and answers to the finished result of this command "
        "line; no language model is loaded",
    )
    lemmas.add_argument(
        "--spacy_model",
        metavar="NAME|FOLDER",
        help="what lemmatises: a spaCy pipeline, or lookup for a table of words "
        "(default: en_core_web_lg where it is installed, else lookup)",
    )


def add_task_arguments(parser: argparse.ArgumentParser) -> None:
    """What is done with the questions: how answers are generated, or that choices are scored."""
    task = parser.add_argument_group("answers")
    task.add_argument(
        "--task",
        choices=TASKS,
        default=TaskConfig.name,
        help="answer the questions, or score the choices that each of them gives "
        "(default: %(default)s)",
    )
    add_length_argument(task)
    task.add_argument(
        "--stop",
        action="append",
        type=stop_text,
        metavar="TEXT",
        help="a text that ends an answer and is no part of it, with escapes such as \\n; may be "
        "given again, and as --stop=TEXT where TEXT begins with -; none alone: nothing but "
        "end-of-sequence and the limit (default: the newline after the first visible character)",
    )
    task.add_argument(
        "--extract",
        type=extraction,
        default=TaskConfig.extract,
        metavar="{line,all,after:TEXT,last_number,regex:PATTERN}",
        help="what of a generation is the prediction: its first line, all, what follows the last "
        "TEXT, the last number, or the first group of the first match (default: %(default)s)",
    )
    task.add_argument(
        "--choice_norm",
        choices=NORMS,
        default=TaskConfig.choice_norm,
        help="--task choices: take the choice of the highest log-likelihood, in sum, or by token "
        "or UTF-8 byte (default: %(default)s)",
    )
    task.add_argument(
        "--temperature",
        type=positive_float,
        metavar="T",
        help="draw tokens instead of taking the likeliest one, from the logits divided by T",
    )
    task.add_argument(
        "--top_p",
        type=positive_fraction,
        metavar="P",
        help="draw from the likeliest tokens that together have this probability "
        f"(default: {SamplingConfig.top_p})",
    )
    task.add_argument(
        "--sample_seed",
        type=non_negative_int,
        metavar="N",
        help=f"what the draws depend on, with the question's uuid (default: {SamplingConfig.seed})",
    )


def add_length_argument(running: Flags) -> None:
    running.add_argument(
        "--max_new_tokens",
        type=positive_int,
        default=GenerationConfig.max_new_tokens,
        metavar="N",
        help="longest answer, in tokens (default: %(default)s)",
    )


def add_batch_argument(running: Flags) -> None:
    running.add_argument(
        "--batch_size",
        type=auto_or_positive_int,
        default=GenerationConfig.batch_size,
        metavar="{auto,N}",
        help="questions at a time; auto: what fits (default: auto)",
    )


def add_fusion_arguments(method: Flags) -> None:
    """How attention fusion fuses."""
    method.add_argument(
        "--positions",
        choices=POSITIONS,
        help="where the paraphrases stand (default: exact; left with joint fusion or where a "
        "model's positions are learned)",
    )
    method.add_argument(
        "--fusion",
        choices=fusion_names(),
        default=AttentionFusionConfig.fusion,
        help="mean of the paraphrases' attentions, or one softmax over all (default: %(default)s)",
    )
    method.add_argument(
        "--fusion_tau",
        type=finite_float,
        metavar="TAU",
        help="mean fusion: weigh each paraphrase by its attention mass to this power; 0: equal "
        f"weights (default: {DEFAULT_TAU['mean']:g})",
    )
    method.add_argument(
        "--weights",
        type=weight_list,
        metavar="U,U,...",
        help="a weight for each paraphrase (default: equal)",
    )


def add_weighting_argument(method: Flags, usual: str) -> None:
    """How each question's own weights are found. usual: what is done without."""
    method.add_argument(
        "--weights_by",
        type=weighting,
        metavar=",".join(f"{name}:BETA" for name in WEIGHTINGS),
        help="weigh the paraphrases of each question by how sure each of them is alone: entropy: "
        "by exp(-BETA * H), H the entropy of its own first answer token, in nats "
        f"(default: {usual})",
    )


def parse_common_arguments(parser: Parser, argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; what is not given of TOLD_FLAGS is None until it is checked."""
    return parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(TOLD_FLAGS)))


def check_common_arguments(
    parser: argparse.ArgumentParser, args: argparse.Namespace, *, draws: bool = False
) -> None:
    """Ends the program where shared flags do not go together.

    draws: the method draws tokens, whether a temperature is given or not.
    """
    check_question_arguments(parser, args)
    check_workers_arguments(parser, args)
    _check_task_arguments(parser, args, draws=draws)
    for flag in TOLD_FLAGS:
        if getattr(args, flag) is None:
            setattr(args, flag, parser.get_default(flag))
    if args.spacy_model is not None and not args.lemmaize:
        parser.error("--spacy_model: only --lemmaize uses it")
    if args.lemmaize and args.overwrite:
        parser.error("--overwrite makes a result again, --lemmaize adds to a finished one")


def _check_task_arguments(
    parser: argparse.ArgumentParser, args: argparse.Namespace, *, draws: bool
) -> None:
    if args.task == "choices":
        for flag in GENERATE_FLAGS:
            if getattr(args, flag) is not None:
                parser.error(f"--{flag}: --task choices scores given choices and generates nothing")
    else:
        for flag in CHOICE_FLAGS:
            if getattr(args, flag) is not None:
                parser.error(f"--{flag}: only --task choices uses it")
    if args.temperature is None and not draws:
        for flag in ("top_p", "sample_seed"):
            if getattr(args, flag) is not None:
                parser.error(
                    f"--{flag}: without --temperature the likeliest token is taken, nothing drawn"
                )
    if args.stop is not None and None in args.stop and len(args.stop) > 1:
        parser.error(
            "--stop: none means that no text ends an answer; leave it or the others out "
            "(the text itself is written \\x6eone)"
        )


def check_question_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends the program where a flag of one dataset is given with another, or flags contradict.

    Sets the number of paraphrases where nothing is said of it.
    """
    check_dataset_arguments(parser, args, DATASET_OPTIONS)
    if args.num_manual == 0 and args.num_auto == 0:
        parser.error("--num_manual 0 and --num_auto 0 leave nothing to ask")
    if args.num_paraphrases is None:
        args.num_paraphrases = DatasetOptions.num_paraphrases
    elif args.indexs is not None:
        parser.error("--num_paraphrases: --indexs says which paraphrases are taken")


def check_origin_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends the program where a flag chooses paraphrases, of which the method asks none."""
    check_dataset_arguments(parser, args, DATASET_OPTIONS)
    of_paraphrases = [flag for flag in DATASET_OPTIONS if flag not in SOURCE_OPTIONS]
    for flag in (*of_paraphrases, "num_paraphrases", "indexs", "fewer"):
        if getattr(args, flag) is not None:
            parser.error(f"--{flag}: --method {args.method} asks the original wording only")


def check_dataset_arguments(
    parser: argparse.ArgumentParser,
    args: argparse.Namespace,
    flags: Iterable[str] = SOURCE_OPTIONS,
    *,
    name: str | None = None,
) -> None:
    """Ends the program where one of these flags is given with a dataset that does not use it.

    name: of the dataset; None: --dataset.
    """
    try:
        check_options(name or args.dataset, {flag: getattr(args, flag) for flag in flags})
    except UserError as error:
        parser.error(str(error))


def check_fusion_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends the program where these flags do not go together."""
    if args.fusion == "joint" and args.fusion_tau:
        parser.error("--fusion_tau is an exponent of --fusion mean; --fusion joint does not use it")
    if args.fusion == "joint" and args.positions == "exact":
        parser.error("--fusion joint has one softmax and cannot have --positions exact; use left")


def check_weighting_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends the program where attention fusion is given weights twice."""
    if args.weights_by is not None and args.weights is not None:
        parser.error("--weights_by finds the weights that --weights gives: leave one of them out")


def question_config(args: argparse.Namespace) -> QuestionConfig:
    """Of `add_question_arguments`, checked."""
    names = ("max_samples", "num_paraphrases", "indexs", "fewer", *DATASET_OPTIONS)
    options = DatasetOptions(**{name: getattr(args, name) for name in names})
    return QuestionConfig(dataset=args.dataset, options=options)


def columns_config(args: argparse.Namespace) -> Columns:
    """Of `add_column_arguments`."""
    return Columns(
        group_by=args.group_by,
        paraphrase_column=args.paraphrase_column,
        answer_column=args.answer_column,
        where=tuple(args.where or ()),
    )


def model_config(args: argparse.Namespace, gpus_per_worker: int | None = 1) -> ModelConfig:
    """Of `add_model_arguments`. gpus_per_worker: see `ModelConfig`."""
    return ModelConfig(
        name=args.model,
        revision=args.revision,
        device=args.device,
        dtype=args.dtype,
        attention=args.attention,
        gpus_per_worker=gpus_per_worker,
    )


def prompt_config(args: argparse.Namespace) -> PromptConfig:
    """Of `add_prompt_arguments`."""
    return PromptConfig(
        instruction=args.instruction,
        few_shot=args.few_shot,
        num_few_shot=args.num_few_shot,
        chat_template=args.chat_template,
    )


def fusion_config(
    args: argparse.Namespace,
    *,
    layout: str = AttentionFusionConfig.layout,
    weights_by: str | None = None,
) -> AttentionFusionConfig:
    """Of `add_fusion_arguments`, checked."""
    return AttentionFusionConfig(
        layout=layout,
        positions=args.positions,
        fusion=args.fusion,
        tau=args.fusion_tau,
        weights=args.weights,
        weights_by=weights_by,
    )


def generation_config(
    args: argparse.Namespace, draws: SamplingConfig | None = None
) -> GenerationConfig:
    """Of `add_task_arguments`, checked, and the batch size.

    draws: from what is drawn where no temperature is given; None: nothing is.
    """
    stop = args.stop and tuple(text for text in args.stop if text is not None)
    return GenerationConfig(
        max_new_tokens=args.max_new_tokens,
        batch_size=args.batch_size,
        stop=stop,
        sampling=make_sampling(
            temperature=args.temperature, top_p=args.top_p, seed=args.sample_seed, usual=draws
        ),
    )


def experiment_config(
    args: argparse.Namespace, method: MethodConfig, *, draws: SamplingConfig | None = None
) -> ExperimentConfig:
    """Of `add_common_arguments`, checked, and the method that a script's own flags ask for.

    draws: see `generation_config`.
    """
    return ExperimentConfig(
        method=method,
        questions=question_config(args),
        prompt=prompt_config(args),
        model=model_config(args, args.gpus_per_worker),
        workers=workers_config(args),
        task=TaskConfig(name=args.task, extract=args.extract, choice_norm=args.choice_norm),
        generation=generation_config(args, draws),
        output=OutputConfig(
            folder=args.output_dir, overwrite=args.overwrite, part_rows=args.part_rows
        ),
        lemmas=LemmaConfig(spacy_model=args.spacy_model) if args.lemmaize else None,
        verbose=args.verbose,
    )
