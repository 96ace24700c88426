"""What a run is asked for: questions, prompt, model, method, and where its files go."""

from dataclasses import dataclass, field
from pathlib import Path

from self_ensemble.data import DatasetOptions
from self_ensemble.data.extraction import FIRST_LINE, Extraction
from self_ensemble.data.long_format import PLAIN, Columns
from self_ensemble.data.names import DATA_ROOT
from self_ensemble.generation.config import GenerationConfig
from self_ensemble.methods.config import AttentionFusionConfig, LogitFusionConfig
from self_ensemble.models.config import ModelConfig
from self_ensemble.paraphrasing.config import ParaphraseConfig
from self_ensemble.workers.config import WorkersConfig

TASKS = ("generate", "choices")

MethodConfig = AttentionFusionConfig | LogitFusionConfig


@dataclass(frozen=True, kw_only=True)
class QuestionConfig:
    """Which questions are asked, in which wordings.

    dataset: a registered name, or the path of a file.
    options: of the dataset; what a run knows itself (`original`, `needs_few_shot` and `model`) is
        filled in by `read_questions`.
    """

    dataset: str = "demo"
    options: DatasetOptions = field(default_factory=DatasetOptions)


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """What stands around a paraphrase.

    instruction: what the prompt begins with; None: the dataset's own.
    few_shot: a file of demonstrations; None: the dataset's own.
    num_few_shot: how many of them are shown, at most; None: some.
    chat_template: put the prompt into the model's own chat format.
    """

    instruction: str | None = None
    few_shot: Path | None = None
    num_few_shot: int | None = None
    chat_template: bool = False

    @property
    def needs_few_shot(self) -> bool:
        """Whether the dataset's own demonstrations are shown."""
        return self.few_shot is None and self.num_few_shot != 0


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """What is done with the questions.

    name: ``generate``: they are answered; ``choices``: their given choices are scored.
    extract: what of a generation is its prediction.
    choice_norm: by which of its likelihoods a choice is taken, one of `data.choices.NORMS`.
    """

    name: str = "generate"
    extract: Extraction = FIRST_LINE
    choice_norm: str = "sum"


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """folder: where results are kept, in folders of datasets and models.

    overwrite: make finished results again.
    part_rows: write the table as parts of so many rows; None: as one file.
    """

    folder: Path = Path("results")
    overwrite: bool = False
    part_rows: int | None = None


@dataclass(frozen=True, kw_only=True)
class LemmaConfig:
    """spacy_model: what lemmatises, see `lemmatizer.init_spacy`; None: its default."""

    spacy_model: str | None = None


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """A run of a generating script.

    lemmas: add them to the finished result, and answer nothing; None: answer.
    verbose: say more while running.
    """

    method: MethodConfig
    questions: QuestionConfig = field(default_factory=QuestionConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    workers: WorkersConfig = field(default_factory=WorkersConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    lemmas: LemmaConfig | None = None
    verbose: bool = False


@dataclass(frozen=True, kw_only=True)
class ParaphraseRunConfig:
    """A run that makes paraphrases of a dataset's questions.

    dataset: a registered name, or the path of a file.
    data_dir, dataset_revision, split: see `DatasetOptions`.
    columns: of a file, or a dataset of the hub.
    max_samples: the first so many questions; None: all.
    output_dir: in which `<dataset>/<model>/paraphrases.jsonl` is made.
    output: this file instead.
    overwrite: make finished files again.
    verbose: say more while running.
    """

    dataset: str = "demo"
    data_dir: Path | None = None
    dataset_revision: str | None = None
    split: str | None = None
    columns: Columns = PLAIN
    max_samples: int | None = None
    paraphrases: ParaphraseConfig = field(default_factory=ParaphraseConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    workers: WorkersConfig = field(default_factory=WorkersConfig)
    output_dir: Path = DATA_ROOT
    output: Path | None = None
    overwrite: bool = False
    verbose: bool = False


@dataclass(frozen=True, kw_only=True)
class TemplateConfig:
    """Paraphrases from templates, see `paraphrasing.templates`; no model is loaded.

    dataset: the path of a table of facts. templates: of one of templates.
    max_samples: the first so many questions; None: all.
    num_paraphrases: the first so many templates of each relation; None: all.
    output_dir: in which `<dataset>/templates/paraphrases.jsonl` is made.
    output: this file instead.
    overwrite: replace files that are there.
    """

    dataset: str
    templates: Path
    max_samples: int | None = None
    num_paraphrases: int | None = None
    output_dir: Path = DATA_ROOT
    output: Path | None = None
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class ParaphraseCheckConfig:
    """A look through the paraphrases of a file.

    file: whose paraphrases.
    columns: how they are read.
    max_samples: of the first so many questions; None: all.
    drop: write a file of those that pass.
    num_paraphrases: with ``drop``, how many of each question must be left.
    model: whose judgement is looked at as well; None: no model is loaded.
    batch_size: of the paraphrases that it is given at a time; None: as many as fit.
    output_dir: where the report goes.
    output: with ``drop``, the file.
    overwrite: replace files that are there.
    """

    file: str
    columns: Columns = PLAIN
    max_samples: int | None = None
    drop: bool = False
    num_paraphrases: int = 1
    model: ModelConfig | None = None
    batch_size: int | None = None
    output_dir: Path = DATA_ROOT
    output: Path | None = None
    overwrite: bool = False
