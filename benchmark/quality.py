"""Accuracy of every method on the same questions, each compared in pairs with logit averaging.

    python benchmark/quality.py
    python benchmark/quality.py --num_paraphrases 5,10 --model MODEL --dataset FILE ...

Runs both scripts once a method (a finished file is not made again) and scores the files with
score.py. Flags that both scripts share are passed on to them.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER.parent), str(FOLDER)]

from measure import run_scripts

import flex_attention_generate
import generate
from self_ensemble.cli.parser import Parser, run
from self_ensemble.cli.types import index_list
from self_ensemble.evaluation import make_report, render_report

LOGIT_METHODS = (
    "per_prompt",
    "vote",
    "avg",
    "max",
    "prob_avg",
    "weighted_avg",
    "weighted_prob_avg",
    "weighted_max",
)
ATTENTION_METHODS = (
    ("--fusion_tau", "0"),
    ("--fusion_tau", "1"),
    ("--fusion_tau", "0", "--positions", "left"),
    ("--fusion_tau", "0", "--positions", "right"),
    ("--fusion_tau", "0", "--positions", "sequential"),
    ("--fusion", "joint"),
    ("--layout", "concat", "--fusion", "joint", "--positions", "sequential"),
)


def commands(count: int, shared: Sequence[str]):
    """(script, its arguments) of every method with this many paraphrases."""
    common = ["--num_paraphrases", str(count), *shared]
    for method in LOGIT_METHODS:
        yield generate, ["--method", method, *common]
    for flags in ATTENTION_METHODS:
        yield flex_attention_generate, [*flags, *common]


def main(args) -> None:
    for count in args.num_paraphrases:
        stems = run_scripts(commands(count, args.shared))
        files = [f"{stem}.feather" for stem in stems]
        baseline = next(file for file in files if Path(file).name.startswith("avg-"))
        print(render_report(make_report(files, baseline)))


def parse_args(argv: Sequence[str] | None = None):
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--num_paraphrases",
        type=index_list,
        default=(5,),
        metavar="N,N,...",
        help="how many paraphrases to fuse, one table each (default: 5)",
    )
    args, args.shared = parser.parse_known_args(argv)
    return args


if __name__ == "__main__":
    run(main, parse_args())
