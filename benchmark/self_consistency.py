"""Self-consistency against fusion: what several rows a question buy, drawn or in several wordings.

    python benchmark/self_consistency.py
    python benchmark/self_consistency.py --num_paraphrases 5,10 --seeds 0,1,2 --model MODEL ...

With N rows a question: N answers drawn for one wording, which vote; N wordings whose answers vote;
N wordings fused at the logits (`avg`). With one row: one wording, and N wordings fused in the
attention. Runs both scripts once a method (a finished file is not made again), scores the files
with score.py in pairs with self-consistency's first draw, and tells what each has computed. Flags
that both scripts share are passed on to them.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER.parent), str(FOLDER)]

from measure import run_scripts

import flex_attention_generate
import generate
from self_ensemble.cli.parser import Parser, run
from self_ensemble.cli.types import float_list, index_list
from self_ensemble.data.result_files import read_manifest
from self_ensemble.evaluation import make_report, render_report


def commands(
    count: int, seeds: Sequence[int], temperatures: Sequence[float], shared: Sequence[str]
) -> Iterator[tuple]:
    """(script, its arguments) of every method with so many rows or wordings; draws come first."""
    for temperature in temperatures:
        for seed in seeds:
            draws = ["--samples", str(count), "--sample_seed", str(seed)]
            draws += ["--temperature", str(temperature)]
            yield generate, ["--method", "self_consistency", *draws, *shared]
    yield generate, ["--method", "origin", *shared]
    wordings = ["--num_paraphrases", str(count), *shared]
    for method in ("vote", "avg"):
        yield generate, ["--method", method, *wordings]
    yield flex_attention_generate, wordings


def computed(stem: Path) -> str:
    """What a run computed, a question."""
    manifest = read_manifest(stem)
    assert manifest is not None, stem
    counts, questions = manifest["counts"], manifest["num_questions"]
    rows, encoded = counts["decode_rows"] / questions, counts["encoded_tokens"] / questions
    return f"{stem.name:<30} {rows:>8.1f} {encoded:>8.1f}"


def main(args) -> None:
    for count in args.num_paraphrases:
        stems = run_scripts(commands(count, args.seeds, args.temperatures, args.shared))
        files = [f"{stem}.feather" for stem in stems]
        print(render_report(make_report(files, files[0])))
        print(f"\n{'a question':<30} {'rows':>8} {'encoded':>8}")
        print("\n".join(map(computed, stems)), flush=True)


def parse_args(argv: Sequence[str] | None = None):
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--num_paraphrases",
        type=index_list,
        default=(5,),
        metavar="N,N,...",
        help="how many answers to draw, or paraphrases to fuse, one table each (default: 5)",
    )
    parser.add_argument(
        "--seeds",
        type=index_list,
        default=(0, 1, 2),
        metavar="S,S,...",
        help="draw once with each of these (default: 0,1,2)",
    )
    parser.add_argument(
        "--temperatures",
        type=float_list,
        default=(0.7,),
        metavar="T,T,...",
        help="draw at each of these (default: 0.7)",
    )
    args, args.shared = parser.parse_known_args(argv)
    return args


if __name__ == "__main__":
    run(main, parse_args())
