"""From result files to scores: matchers, statistics, comparison, tables, plots, the page."""
