"""What docs/make_reference.py cannot read off the code: what a column, a key or a file means."""

# Scripts that a user starts, in the order of docs/quick_reference.md.
COMMANDS = (
    "flex_attention_generate",
    "generate",
    "score",
    "paraphrase",
    "validate_flexattention_env",
    "debug_flexattention",
    "example_flexattention",
)

# The package's rooms, the lower ones first: none imports one that comes later.
ROOMS = (
    "system",
    "data",
    "attention",
    "models",
    "generation",
    "workers",
    "methods",
    "evaluation",
    "paraphrasing",
    "experiment",
    "diagnostics",
    "integrations",
    "cli",
)

COLUMNS = {
    "uuid": "of the question, from the dataset, or made from the question",
    "paraphrases": "the wordings that were used",
    "paraphrase": "`per_prompt` only, which has a row a paraphrase: the wording of this row",
    "answers": "what counts as right, from the dataset",
    "choices": "those that the question gives, where it gives some",
    "choice_sum": "`--task choices`: of each choice the natural log-probability, summed over its "
    "tokens",
    "choice_mean": "`--task choices`: the same by token",
    "choice_bytes": "`--task choices`: the same by byte of its UTF-8",
    "prediction": "what `--extract` takes of the generation, by default its first line that holds "
    "anything; with `--task choices` the choice taken by `--choice_norm`",
    "generation": "all the text that was generated, up to a stop; with `--task choices` the choice",
    "logprob": "natural log-probability of the answer's tokens, the stop token excluded; with "
    "`--task choices` of the choice's",
    "truncated": "whether the token limit came before a stop",
    "relation": "from the dataset, where it has one",
    "predict_lemma": "with `--lemmaize`: the lower-cased lemmas of the prediction's tokens",
    "answer_lemmas": "with `--lemmaize`: those of each answer",
}

FILES = [
    (
        "`results/<dataset>/<model>/flex_attention[-layout][-positions][-fusion]-<n>.feather`",
        "flex_attention_generate.py",
        "the table; what is not default is named; `<n>` is the number of paraphrases",
    ),
    (
        "`results/<dataset>/<model>/<method>-<n>.feather`",
        "generate.py",
        "the table",
    ),
    (
        "`results/<dataset>/<model>/<method>-choices-<n>.feather`",
        "both, with `--task choices`",
        "the table of scored choices",
    ),
    (
        "`results/<dataset>/<model>/<method>-t<T>[-seed<S>]-<n>.feather`",
        "both, with `--temperature T`",
        "the table of drawn answers",
    ),
    (
        "`results/<dataset>/<model>/self_consistency-t<T>[-seed<S>]-<K>.feather`",
        "generate.py `--method self_consistency --samples K`",
        "the table of the answers that K drawn ones voted for",
    ),
    ("`….csv`, `….json` beside it", "both", "the same table as text; the manifest"),
    (
        "`….parts/<first row>-<end>-<fingerprint>.parquet`",
        "both, with `--part_rows K`",
        "the table in parts, in place of `.feather` and `.csv`; the manifest `….json` stands for "
        "all of them",
    ),
    (
        "`results/<dataset>/<model>/diversity/<method>-<i>_<j>.feather`",
        "both, with `--indexs i,j`",
        "the same for chosen paraphrases",
    ),
    ("`….journal`", "both, and paraphrase.py", "what is answered so far; gone at the end"),
    ("`….lock`", "both, and paraphrase.py", "which process writes; gone at the end"),
    (
        "`data/<dataset>/<model>/paraphrases.jsonl`",
        "paraphrase.py",
        "a line a question: `uuid`, `question`, `paraphrases`, `answers`, `relation`; "
        "`--dataset webqa` reads it, and `--dataset FILE` can",
    ),
    (
        "`paraphrases_report.csv` beside it",
        "paraphrase.py",
        "a row a rejection of the quality filter: `uuid`, `paraphrase`, `check`, `what` word or "
        "text failed, `value` held against a threshold",
    ),
    ("`paraphrases.json` beside it", "paraphrase.py", "the manifest"),
    (
        "`OUT.jsonl`, `OUT_report.csv`, `OUT.json`",
        "paraphrase.py `--output OUT.jsonl`",
        "the same three elsewhere",
    ),
    (
        "`data/<file>/<file>.<ending>-<hash of its path>[-<model>]_report.csv`",
        "paraphrase.py `--check FILE`, also with `--model`",
        "the report on a file's own paraphrases, columns as above",
    ),
    ("the FILE of `--plot`", "score.py", "a picture: .png, .svg or .pdf"),
    ("the FILE of `--html`", "score.py", "one page that loads nothing"),
    (
        "`FOLDER/index.html`, `FOLDER/question<i>-<picture>.png`",
        "debug_flexattention.py `--save FOLDER`",
        "one page that loads nothing, and its pictures: mask, attention, candidates",
    ),
    (
        "the caches of the hub's clients",
        "download_resources.sh",
        "models and datasets, below `HF_HOME`",
    ),
]

MANIFEST = {
    "identity": "what the answers depend on, see below",
    "num_questions": "how many questions the file answers",
    "dataset": "its name",
    "model": "`name` and `revision` as they were asked for",
    "device": "of a GPU its name; of several, which layers each has; of a "
    "CPU its instruction set and the number of threads",
    "attention": "`asked` (`--attention`), `encode` (flex, sdpa or eager), `fallback` (why auto "
    "did not take FlexAttention), `decode` (split softmax, or on a GPU one kernel, recorded)",
    "batch_size": "as it was asked for",
    "versions": "of Python, torch, transformers, tokenizers, numpy, pandas, pyarrow",
    "counts": "`encoded_tokens`, `decoded_tokens`, `decode_forwards`, `decode_rows` (summed over "
    "the forwards), `largest_batch`, `out_of_memory` (how often a batch was halved)",
    "seconds": "of the run without loading, over all its parts if it was interrupted",
    "workers": "only with `--workers`: how many there were; of the keys above, those in which they "
    "differ are lists",
    "computed_by": "only with `--workers`: how many questions (or prompts, or draws) each kind of "
    "device has answered",
    "asked_examples": "only where there are any: how many questions are demonstrations too",
    "left_out": "only where there are any: how many questions have too few paraphrases "
    "(`--fewer skip`), or none",
    "with_fewer": "only where there are any: how many questions have fewer paraphrases than were "
    "asked for (`--fewer use`)",
    "ties": "only with `--task choices`: in how many rows the choice taken shares its place with "
    "a later one",
    "begun_with": "only where an interrupted run went on elsewhere: what computed before",
    "extends": "only of a file that a larger `--max_samples` extended: the manifest before",
    "lemmatizer": "only with `--lemmaize`: what made the lemmas, and its version",
    "parts": "only with `--part_rows`: the `file` of each part of the table, and its `rows`",
}

IDENTITY = {
    "data": "fingerprint of the questions, whatever `--max_samples`",
    "model": "commit on the hub, or fingerprint of a folder or a .gguf file",
    "prompt": "`head` and `tail` around a paraphrase, `chat_template`; with it `rendered_head` and "
    "`rendered_tail`",
    "paraphrases": "how many, or the list of `--indexs`",
    "method": "its name and settings, see below",
    "dtype": "number format of the weights",
    "max_new_tokens": "the token limit",
    "stop": "not where it is the default: `--stop`, sorted",
    "sampling": "not where the likeliest token is taken: `temperature`, `top_p`, `seed`",
    "extract": "not where it is `line`: `--extract`",
    "task": "not where it is `generate`: `--task`",
    "choices": "`--task choices`: fingerprint of the choices, whatever `--max_samples`",
    "choice_norm": "not where it is `sum`: `--choice_norm`",
    "fewer": "not where it is `error`: `--fewer`",
}

SETTINGS = {
    "name": "`flex_attention`, or what `--method` says",
    "layout": "attention fusion: `--layout`",
    "positions": "attention fusion: `--positions`, or the model's default",
    "fusion": "attention fusion: `--fusion`",
    "tau": "attention fusion: `--fusion_tau`, or the fusion's default",
    "weights": "attention fusion: `--weights`",
    "weights_by": "only with `--weights_by`: by what each question's weights are found; of a "
    "weighting of your own `name` and the sha256 of its `source`",
    "samples": "self_consistency: `--samples`",
    "confidence": "weighted methods without `--weights_by`: `own answer`, or `column` and its "
    "`fingerprint`",
}

PARAPHRASE_MANIFEST = {
    "identity": "what the paraphrases depend on, see below",
    "num_questions": "how many questions the file holds",
    "dataset": "its name",
    "model": "`name` and `revision` as they were asked for",
    "device": "as above",
    "versions": "as above",
    "begun_with": "as above",
    "workers": "as above",
    "computed_by": "as above",
    "batch_size": "`--batch_size`",
    "paraphrases": "how many are in the file",
    "draws": "how many were drawn",
    "flagged": "in how many of them the quality filter found something",
    "short": "uuid and number of each question with fewer than were asked for",
    "counts": "as above",
    "fitting": "how many are drawn at a time since memory ran out, or null",
    "seconds": "as above",
}

PARAPHRASE_IDENTITY = {
    "data": "fingerprint of the questions and answers",
    "model": "commit on the hub, or fingerprint of a folder or a .gguf file",
    "prompt": "what stands before and behind a question and a sentence with `[MASK]`",
    "chat_template": "whether it is rendered by the model's template",
    "num_paraphrases": "of each question",
    "sampling": "`temperature`, `top_p`, `seed`",
    "max_new_tokens": "the token limit",
    "length": "how long a draw may be, by its question",
    "drop": "whether the quality filter takes out what it finds",
    "max_attempts": "how often a paraphrase is drawn at most",
    "quality_filter": "the version of the quality filter: what it rejects is drawn again",
    "hopeless": "with `--drop` after how many failed draws a question is given up, and the share "
    "of a round under which all are; else null",
    "dtype": "number format of the weights",
}

SCORE_COLUMNS = {
    "file": "the path as it was given",
    "by": "with `--by`: the column",
    "value": "with `--by`: its value; empty in the row of the whole file",
    "questions": "how many",
    "paraphrases": "rows a question: 1, or those of `per_prompt`",
    "prompts": "how many paraphrases each question was asked in",
    "match": "what counts as right: `--match`",
    "right": "how many are; empty for several rows a question",
    "accuracy": "their fraction",
    "low": "of its 95% interval",
    "high": "of its 95% interval",
    "exact": "fraction right by this matcher",
    "first_token": "fraction right by this matcher",
    "f1": "the mean of SQuAD's F1",
    "one_way": "fraction right by this matcher, where there are lemmas",
    "two_way": "fraction right by this matcher, where there are lemmas",
    "empty": "predictions without text",
    "truncated": "predictions that ran into the token limit",
    "only_two_way": "right by `two_way` and not by `one_way`",
    "baseline": "the file compared with",
    "pairs": "questions that both have",
    "won": "right here and wrong in the baseline",
    "lost": "the reverse",
    "difference": "accuracy minus the baseline's, over the pairs",
    "difference_low": "of its 95% interval (Tango)",
    "difference_high": "of its 95% interval (Tango)",
    "bootstrap_low": "of its interval over resampled questions",
    "bootstrap_high": "of its interval over resampled questions",
    "relation_bootstrap_low": "of its interval over resampled relations",
    "relation_bootstrap_high": "of its interval over resampled relations",
    "mcnemar_p": "McNemar's exact p",
    "holm_p": "the same, adjusted for the number of files",
}

# Behind those, and only where one of the files has them.
FURTHER_SCORE_COLUMNS = {
    "extract": "with `--extract`: how the predictions were made",
    "number": "fraction right by this matcher, where every question has a number for an answer",
    "worst": "`per_prompt`: the accuracy of the worst paraphrase",
    "worst_paraphrase": "its number, from 0, as `--indexs` counts",
    "best": "`per_prompt`: the accuracy of the best paraphrase",
    "best_paraphrase": "its number",
    "spread": "`best` minus `worst`",
    "sd": "the standard deviation of the paraphrases' accuracies",
    "complete": "questions that have all paraphrases: `worst` to `sd` are of these",
    "consistency": "how often a pair of a question's paraphrases has the same answer",
    "all_agree": "questions on which all paraphrases have the same answer",
    **{
        f"{norm}_{name}": text
        for norm in ("sum", "mean", "bytes")
        for name, text in {
            "accuracy": f"`--task choices`, taken by {norm}: fraction of right choices",
            "confidence": "the mean probability of the choice taken",
            "ece": "expected calibration error, 15 bins of equal width",
            "adaptive_ece": "the same with bins of equal mass",
            "brier": "Brier score, 0 to 2",
            "nll": "negative log-likelihood of the right choices, in nats",
            "tied": "how often several choices had the highest log-likelihood",
        }.items()
    },
}

STATUSES = [
    ("0", "done, or finished already"),
    (
        "1",
        "paraphrase.py: a question has too few paraphrases; validate_flexattention_env.py: "
        "something failed; debug_flexattention.py: a question failed the isolation check. "
        "With a traceback from any script: a fault of the program's",
    ),
    ("2", "a mistake of the user's, told in one line that begins with `error: `"),
    ("130", "ended with Ctrl-C"),
    ("141", "the reader of the output went away, as in `… | head`"),
]

VARIABLES = [
    ("`HF_HOME`", "the hub's clients", "where the caches and the token are"),
    ("`HF_HUB_CACHE`", "the hub's clients", "where models are, if not in `HF_HOME`"),
    ("`HF_DATASETS_CACHE`", "the hub's clients", "where datasets are, if not in `HF_HOME`"),
    ("`XDG_CACHE_HOME`", "the hub's clients", "where the default of `HF_HOME` is"),
    ("`HF_ENDPOINT`", "the hub's clients", "the hub or mirror that is asked"),
    ("`HF_TOKEN`", "the hub's clients", "as whom"),
    ("`HF_HUB_OFFLINE`", "the hub's clients", "1: only what is on this machine is used"),
    (
        "`HF_HUB_DISABLE_PROGRESS_BARS`, `HF_DATASETS_DISABLE_PROGRESS_BARS`",
        "download_resources.sh",
        "set to 1 off a terminal, unless you set them",
    ),
    ("`PYTHON`", "download_resources.sh", "the Python that runs it"),
    ("`CUDA_VISIBLE_DEVICES`", "torch", "which GPUs are seen"),
    ("`OMP_NUM_THREADS`", "torch", "how many threads compute on a CPU"),
    (
        "`WORLD_SIZE`",
        "the model type for lm-evaluation-harness",
        "how many processes a launcher started: more than one is refused",
    ),
]
