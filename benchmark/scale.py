"""Time and memory of all that is around the model, at many questions.

    python benchmark/scale.py
    python benchmark/scale.py --questions 10000,100000,1000000 --part_rows 100000

A stand-in answers at once, 1 to 8 tokens a question, the same ones every time; all else is what
flex_attention_generate.py (or with --method what generate.py) does on a file of questions in five
wordings. One process answers them all and writes the result; another one finds the journal of a run
that was killed before it wrote, and ends with the same bytes. Of each phase the table has its
seconds and the most memory that its process had, in MB (10^6 bytes; resident, Linux only):

    read     the file, as records, with their fingerprint
    plan     prompts split into tokens, checked, scheduled in batches
    journal  every batch answered, and kept on the disk before the next one
    write    the table and its manifest
    restart  the journal read again, and what it holds taken in
"""

import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from self_ensemble.cli.parser import Parser, run
from self_ensemble.cli.types import index_list, positive_int
from self_ensemble.system.errors import UserError

LANDS = ("Peru", "Mali", "the Netherlands", "Papua New Guinea", "Chad", "Saint Vincent", "Cuba")
WORDINGS = (
    "What is the capital of {land}, district {n}?",
    "District {n} of {land}: its capital is [MASK].",
    "Which city is the seat of the government of district {n} in {land}?",
    "[MASK] is the capital city of district number {n} of {land}.",
    "In {land} there is a district {n}. Name its capital.",
)
MOST_TOKENS = 8
RESULT, JOURNAL = ("read", "plan", "journal", "write"), ("restart",)


def write_questions(path: Path, count: int) -> None:
    with open(path, "w", encoding="utf-8") as file:
        for n in range(count):
            land = LANDS[n % len(LANDS)]
            row = {
                "uuid": f"question-{n:08}",
                "paraphrases": [wording.format(land=land, n=n) for wording in WORDINGS],
                "answers": [f"City {n % 1009}", f"the city of {n % 1009}"],
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


class Phases:
    """Seconds and peak memory of what is done one after the other."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, float]] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here on
        begun = time.monotonic()
        yield
        before = self.found.get(name, {"seconds": 0.0, "megabytes": 0.0})
        self.found[name] = {
            "seconds": before["seconds"] + time.monotonic() - begun,
            "megabytes": max(before["megabytes"], _peak_megabytes()),
        }


def _peak_megabytes() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6


def stand_in_engine(source, answers_begin):
    """An engine of the demo's model that is asked for nothing but the prefix.

    answers_begin: called once a request is planned.
    """
    from self_ensemble.generation.attaching import make_engine
    from self_ensemble.generation.decode import Answer
    from self_ensemble.generation.engine import Engine
    from self_ensemble.generation.passes import Generation
    from self_ensemble.models.loading import load_model

    model, tokenizer = load_model(source)
    words = tokenizer(" ".join(WORDINGS), add_special_tokens=False)["input_ids"]

    def answer_to(index: int) -> Answer:
        chance = random.Random(index)
        tokens = tuple(chance.choices(words, k=chance.randint(1, MOST_TOKENS)))
        return Answer(tokens, tuple(-chance.random() for _ in tokens), False)

    class StandIn(Generation):
        def _compute(self, questions, places, finished):
            for index in questions:
                finished(index, answer_to(index))

    class StandInEngine(Engine):
        def generate(self, request, *, batch_size=None, batches=None, max_batch_size=None, **_):
            prefix, rotary = self._prepare(request, captured=False)
            settings = {"batch_size": batch_size, "max_batch_size": max_batch_size}
            made = StandIn(self, request, prefix, rotary, batches, captured=False, **settings)
            answers_begin()
            return made

    made = make_engine(model, tokenizer, capture=False)
    return StandInEngine(model, tokenizer, made.wrapper, keep_prefix=True)


def measured_run(argv: Sequence[str], method_name: str | None, kept: Path | None) -> dict:
    """One process' run. kept: where its journal is copied before the result is written."""
    import flex_attention_generate
    import generate
    from self_ensemble.attention.fusion import Fusion
    from self_ensemble.experiment.identity import attention_settings, logit_settings
    from self_ensemble.experiment.names import attention_method_name, logit_method_name
    from self_ensemble.experiment.questions import read_questions
    from self_ensemble.experiment.run import Run
    from self_ensemble.methods.attention_fusion import AttentionFusion
    from self_ensemble.methods.names import make_method
    from self_ensemble.models.loading import find_model

    phases = Phases()
    if method_name is None:
        config = flex_attention_generate.parse_args(argv)
        method = AttentionFusion(positions="exact")
        name = attention_method_name(method, default_positions="exact")
        settings = attention_settings(method)
    else:
        config = generate.parse_args([*argv, "--method", method_name])
        method = make_method(method_name)
        name, settings = logit_method_name(config.method), logit_settings(config.method, None)
    source = find_model(config.model)
    with phases.phase("read"):
        questions = read_questions(config.questions, config.prompt, model=config.model.name)
        this = Run(config, questions, source, name, settings)
    stages = Stages(phases)
    engine = stand_in_engine(source, lambda: stages.go_on("journal"))
    with engine.wrapper:
        stages.go_on("restart")
        with this.claimed() as unfinished:
            assert unfinished, this.stem
            take_in_kept(this.journal, lambda: stages.go_on("taken in"))
            this.load(engine, Fusion())
            stages.go_on("plan")
            rows = this.answer(method, each_paraphrase=method_name == "per_prompt")
            stages.end()
            if kept is not None:
                shutil.copy(this.journal.path, kept)
            with phases.phase("write"):
                this.write(rows)
    return phases.found


def take_in_kept(journal, begins) -> None:
    """From now on `begins` is called when what the journal keeps begins to be taken in."""
    kept = journal.kept

    def told(name):
        begins()
        yield from kept(name)

    journal.kept = told


class Stages:
    """Phases that end where the next one begins."""

    def __init__(self, phases: Phases):
        self.phases = phases
        self.open = None

    def go_on(self, name: str) -> None:
        self.end()
        self.open = self.phases.phase(name)
        self.open.__enter__()

    def end(self) -> None:
        if self.open is not None:
            self.open.__exit__(None, None, None)
            self.open = None


def measure(count: int, args, folder: Path) -> dict:
    """The phases of both processes, at so many questions."""
    questions = folder / "questions.jsonl"
    write_questions(questions, count)
    flags = [] if args.part_rows is None else ["--part_rows", str(args.part_rows)]
    kept = folder / "kept.journal"
    first = child(args, [*flags, "--dataset", str(questions)], folder / "first", kept)
    [stem] = {path.with_suffix("") for path in (folder / "first").rglob("*.json")}
    place = folder / "again" / stem.relative_to(folder / "first")
    place.parent.mkdir(parents=True)
    journal_bytes = kept.stat().st_size
    shutil.move(kept, place.with_name(place.name + ".journal"))
    again = child(args, [*flags, "--dataset", str(questions)], folder / "again", None)
    check_same(folder / "first", folder / "again")
    found = {name: first[name] for name in RESULT}
    found["restart"] = {
        "seconds": again["restart"]["seconds"] + again["taken in"]["seconds"],
        "megabytes": max(again[name]["megabytes"] for name in ("restart", "plan", "taken in")),
    }
    sizes = [path.stat().st_size for path in (folder / "first").rglob("*") if path.is_file()]
    return found | {"journal_bytes": journal_bytes, "result_bytes": sum(sizes)}


def child(args, argv: Sequence[str], output: Path, kept: Path | None) -> dict:
    command = [
        sys.executable,
        __file__,
        "--child",
        json.dumps([*argv, "--output_dir", str(output)]),
    ]
    if kept is not None:
        command += ["--kept", str(kept)]
    if args.method is not None:
        command += ["--method", args.method]
    ended = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if ended.returncode != 0:
        raise UserError(f"a run ended with status {ended.returncode}")
    return json.loads(ended.stdout)


def check_same(one: Path, other: Path) -> None:
    """Raises UserError where the two runs' tables differ."""
    names = [path.relative_to(one) for path in one.rglob("*") if path.is_file()]
    for name in names:
        if name.suffix != ".json" and (one / name).read_bytes() != (other / name).read_bytes():
            raise UserError(f"{name} of the run that went on differs from the other's")


def print_table(found: dict[int, dict]) -> None:
    print("| questions | phase | seconds | ms a question | MB |\n| --- | --- | --- | --- | --- |")
    for count, phases in found.items():
        for name in (*RESULT, *JOURNAL):
            seconds, megabytes = phases[name]["seconds"], phases[name]["megabytes"]
            each = 1000 * seconds / count
            print(f"| {count:,} | {name} | {seconds:.1f} | {each:.3f} | {megabytes:,.0f} |")
    for count, phases in found.items():
        sizes = (
            f"{phases[f'{what}_bytes'] / 1e6:,.0f} MB of {what}" for what in ("journal", "result")
        )
        print(f"\n{count:,} questions: {', '.join(sizes)}")


def main(args) -> None:
    if args.child is not None:
        # Tables go to stdout; what a run says goes to stderr as ever.
        print(json.dumps(measured_run(json.loads(args.child), args.method, args.kept)))
        return
    found = {}
    for count in args.questions:
        with tempfile.TemporaryDirectory(dir=args.folder) as name:
            found[count] = measure(count, args, Path(name))
    print_table(found)


def parse_args(argv: Sequence[str] | None = None):
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--questions", type=index_list, default=[10**4, 10**5, 10**6], metavar="N,N,..."
    )
    parser.add_argument("--part_rows", type=positive_int, metavar="K", help="of the scripts")
    parser.add_argument("--method", metavar="NAME", help="of generate.py (default: attention)")
    parser.add_argument("--folder", type=Path, help="where files are made (default: /tmp)")
    parser.add_argument("--child", help="one process' part, for the benchmark itself")
    parser.add_argument("--kept", type=Path, help="with --child")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run(main, parse_args())
