"""From result files to scores: matchers, statistics, comparison, tables, plots, the page."""

from self_ensemble.evaluation.comparison import compare
from self_ensemble.evaluation.report import make_report, summarize
from self_ensemble.evaluation.scored import MATCHERS, ScoredPredictions, score_predictions
from self_ensemble.evaluation.tables import render_csv, render_report

__all__ = [
    "MATCHERS",
    "ScoredPredictions",
    "compare",
    "make_report",
    "render_csv",
    "render_report",
    "score_predictions",
    "summarize",
]
