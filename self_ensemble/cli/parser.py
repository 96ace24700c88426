"""The command line that the scripts share: its flags, their types, and how mistakes are told.

A script does

    if __name__ == "__main__":
        run(main, parse_args())

where `parse_args` fills a `Parser` with `add_common_arguments` and flags of its own. Nothing heavy
is imported here, so that --help answers at once; `main` imports what it needs.
"""

import argparse
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from self_ensemble.cli.remedies import told
from self_ensemble.data.names import (
    DEFAULT_NUM_AUTO,
    DEFAULT_NUM_FEW_SHOT,
    DEFAULT_NUM_MANUAL,
    DEFAULT_NUM_PARAPHRASES,
    DEFAULT_SEED,
)
from self_ensemble.data.registry import (
    DATASET_OPTIONS,
    SOURCE_OPTIONS,
    check_options,
    dataset_names,
    users_of,
)
from self_ensemble.system.errors import UserError
from self_ensemble.system.interrupts import ctrl_c_ends_soon, leave


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose flags may be written with `_` or `-` and whose errors are one line.

    The docstring of a script serves as its description, lines as they are.
    """

    def __init__(self, **settings):
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        # A flag cut short could come to mean another one as flags are added.
        settings.setdefault("allow_abbrev", False)
        super().__init__(**settings)

    def parse_args(self, args: Sequence[str] | None = None, namespace=None) -> argparse.Namespace:
        given = list(sys.argv[1:] if args is None else args)
        parsed, unknown = self.parse_known_args(given, namespace)
        if unknown:
            # In the spelling in which it was given. Some Pythons leave the `--` in.
            odd = next((arg for arg in unknown if arg != "--"), "--")
            typed = next((arg for arg in given if _underscored(arg) == odd), odd)
            self.error(f"{'unknown flag' if typed.startswith('-') else 'unexpected'} {typed!r}")
        return parsed

    def parse_known_args(self, args: Sequence[str] | None = None, namespace=None):
        given = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(_in_one_spelling(given), namespace)

    def error(self, message: str):
        self.exit(2, f"error: {_one_line(message.removeprefix('argument '))} (see --help)\n")


def _in_one_spelling(args: Sequence[str]) -> list[str]:
    """Flags with underscores, and a negative number tied to its flag: `-1,2` is no flag of ours."""
    spelled: list[str] = []
    for position, arg in enumerate(args):
        if arg == "--":
            return spelled + list(args[position:])
        if re.match(r"-[0-9.]", arg) and spelled and re.fullmatch(r"--\w+", spelled[-1]):
            spelled[-1] += f"={arg}"
        else:
            spelled.append(_underscored(arg))
    return spelled


def _underscored(arg: str) -> str:
    flag, equals, value = arg.partition("=")
    if re.fullmatch(r"--[A-Za-z][\w-]*", flag):
        flag = "--" + flag[2:].replace("-", "_")
    return flag + equals + value


def add_question_arguments(
    parser: argparse.ArgumentParser, *, max_samples: int | None = None
) -> None:
    """What `pipeline.read_questions` asks for but the prompt; ``max_samples`` is a default."""
    data = parser.add_argument_group("questions")
    data.add_argument(
        "--dataset",
        default="demo",
        metavar="NAME|FILE",
        help=f"{', '.join(dataset_names())}, or a .parquet, .feather, .jsonl or .csv file with "
        "answers and paraphrases, or question and/or paraphrase0, paraphrase1, ... (default: demo)",
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
        help=f"the first N paraphrases of each question (default: {DEFAULT_NUM_PARAPHRASES})",
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
        "--max_samples",
        type=positive_int,
        default=max_samples,
        metavar="N",
        help=f"the first N questions (default: {max_samples or 'all'})",
    )


def add_source_arguments(data) -> None:
    """Where a dataset's tables are from; ``data`` is a group of a parser."""
    data.add_argument(
        "--data_dir",
        type=Path,
        metavar="FOLDER",
        help=f"{_users('data_dir')}: a folder with the tables as files, instead of the hub",
    )
    data.add_argument(
        "--dataset_revision",
        metavar="REVISION",
        help=f"{_users('dataset_revision')}: branch, tag or commit of the dataset on the hub",
    )


def _users(option: str) -> str:
    return ", ".join(users_of(option))


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model, and how it is run."""
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model",
        default="demo",
        help="alias of constants.py, hub id, or folder (default: %(default)s)",
    )
    model.add_argument("--revision", help="branch, tag or commit of the model on the hub")
    model.add_argument(
        "--device",
        type=device_name,
        default="auto",
        metavar="{auto,cpu,cuda,cuda:N}",
        help="auto: the first GPU if there is one (default: %(default)s)",
    )
    model.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="number format of the weights (default: %(default)s)",
    )
    model.add_argument(
        "--attention",
        choices=("auto", "flex", "sdpa", "eager"),
        default="auto",
        help="how attention is computed; what is asked for and not to be had is an error, "
        "only auto falls back (default: %(default)s)",
    )


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
        help="solved examples, jsonl with question (or paraphrases) and answer "
        "(default: the dataset's own)",
    )
    prompt.add_argument(
        "--num_few_shot",
        type=non_negative_int,
        metavar="N",
        help=f"how many of them to show, at most (default: {DEFAULT_NUM_FEW_SHOT})",
    )
    add_chat_template_argument(prompt)


def add_chat_template_argument(prompt) -> None:
    """``prompt`` is a group of a parser."""
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
    running = parser.add_argument_group("running")
    add_length_argument(running)
    running.add_argument(
        "--batch_size",
        type=auto_or_positive_int,
        default="auto",
        metavar="{auto,N}",
        help="questions at a time; auto: what fits (default: %(default)s)",
    )
    running.add_argument(
        "--output_dir",
        type=Path,
        default=Path("results"),
        metavar="FOLDER",
        help="where the results are kept, in folders of datasets and models (default: %(default)s)",
    )
    running.add_argument("--overwrite", action="store_true", help="make finished results again")
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


def add_length_argument(running) -> None:
    """``running`` is a parser or a group of one."""
    running.add_argument(
        "--max_new_tokens",
        type=positive_int,
        default=20,
        metavar="N",
        help="longest answer, in tokens (default: %(default)s)",
    )


def add_fusion_arguments(method) -> None:
    """How attention fusion fuses; ``method`` is a parser or a group of one."""
    method.add_argument(
        "--positions",
        choices=("exact", "left", "right", "sequential"),
        help="where the paraphrases stand (default: exact; left with joint fusion or where a "
        "model's positions are learned)",
    )
    method.add_argument(
        "--fusion",
        choices=("mean", "joint"),
        default="mean",
        help="mean of the paraphrases' attentions, or one softmax over all (default: %(default)s)",
    )
    method.add_argument(
        "--fusion_tau",
        type=finite_float,
        default=0.0,
        metavar="TAU",
        help="mean fusion: weigh each paraphrase by its attention mass to this power "
        "(default: %(default)s, equal weights)",
    )
    method.add_argument(
        "--weights",
        type=weight_list,
        metavar="U,U,...",
        help="a weight for each paraphrase (default: equal)",
    )


def check_common_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends the program where shared flags do not go together."""
    check_question_arguments(parser, args)
    if args.spacy_model is not None and not args.lemmaize:
        parser.error("--spacy_model: only --lemmaize uses it")
    if args.lemmaize and args.overwrite:
        parser.error("--overwrite makes a result again, --lemmaize adds to a finished one")


def check_question_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends the program where a flag of one dataset is given with another, or flags contradict.

    Sets the number of paraphrases where nothing is said of it.
    """
    check_dataset_arguments(parser, args, DATASET_OPTIONS)
    if getattr(args, "method", None) == "origin":
        of_paraphrases = [flag for flag in DATASET_OPTIONS if flag not in SOURCE_OPTIONS]
        for flag in (*of_paraphrases, "num_paraphrases", "indexs"):
            if getattr(args, flag) is not None:
                parser.error(f"--{flag}: --method origin asks the original wording only")
    if args.num_manual == 0 and args.num_auto == 0:
        parser.error("--num_manual 0 and --num_auto 0 leave nothing to ask")
    if args.num_paraphrases is None:
        args.num_paraphrases = DEFAULT_NUM_PARAPHRASES
    elif args.indexs is not None:
        parser.error("--num_paraphrases: --indexs says which paraphrases are taken")


def check_dataset_arguments(
    parser: argparse.ArgumentParser, args: argparse.Namespace, flags: Iterable[str] = SOURCE_OPTIONS
) -> None:
    """Ends the program where one of these flags is given with a dataset that does not use it."""
    try:
        check_options(args.dataset, {flag: getattr(args, flag) for flag in flags})
    except UserError as error:
        parser.error(str(error))


def check_fusion_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends the program where these flags do not go together."""
    if args.fusion == "joint" and args.fusion_tau != 0:
        parser.error("--fusion_tau is a dial of --fusion mean; --fusion joint does not use it")
    if args.fusion == "joint" and args.positions == "exact":
        parser.error("--fusion joint has one softmax and cannot have --positions exact; use left")


# Types: each raises with a sentence that shows the text as it was typed.


def positive_int(text: str) -> int:
    number = _digits(text)
    if not number:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return number


def non_negative_int(text: str) -> int:
    number = _digits(text)
    if number is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return number


def auto_or_positive_int(text: str) -> str | int:
    number = _digits(text)
    if text != "auto" and not number:
        raise argparse.ArgumentTypeError(f"{text!r} is neither auto nor a whole number above 0")
    return number or text


def device_name(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is none of auto, cpu, cuda, cuda:N")
    return text


def index_list(text: str) -> tuple[int, ...]:
    """`0,2,4` -> (0, 2, 4); each at most once."""
    indexs = tuple(_digits(part.strip()) for part in text.split(","))
    if None in indexs:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a list of whole numbers of 0 or more, like 0,1,2"
        )
    if len(set(indexs)) < len(indexs):
        raise argparse.ArgumentTypeError(f"{text!r} names an index twice")
    return indexs


def finite_float(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return number


def float_list(text: str) -> tuple[float, ...]:
    """`1,0.5` -> (1.0, 0.5); finite numbers."""
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = (math.nan,)
    if not all(map(math.isfinite, numbers)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers, like 1,0.5,2")
    return numbers


def weight_list(text: str) -> tuple[float, ...]:
    """A `float_list` of 0 or more each, not all 0."""
    weights = float_list(text)
    if min(weights) < 0:
        raise argparse.ArgumentTypeError(f"{text!r} holds a weight below 0")
    if not any(weights):
        raise argparse.ArgumentTypeError(f"{text!r} holds no weight above 0")
    return weights


def _digits(text: str) -> int | None:
    # int() would also take 1_000, +5, a blank, and digits of other scripts.
    return int(text) if re.fullmatch(r"[0-9]{1,12}", text) else None


def run(main: Callable[[argparse.Namespace], object], args: argparse.Namespace) -> None:
    """`main(args)`, where a mistake of the user's becomes one line and exit status 2.

    Ctrl-C becomes one line and status 130 within two seconds, and a reader of the output that went
    away (`| head`) silence and status 141, as shells have it. Anything else is a fault of the
    program's and keeps its traceback.
    """
    try:
        with ctrl_c_ends_soon():
            main(args)
            print(end="", flush=True)
    except UserError as error:
        print(f"error: {_one_line(told(error))}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        leave()
    except BrokenPipeError:
        # What is still buffered would fail again when Python closes its streams.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere, stream.fileno())
        sys.exit(141)


def _one_line(text: str) -> str:
    return " ".join(text.splitlines())
