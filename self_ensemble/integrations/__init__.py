"""Our methods behind the doors of other toolkits, a module each; each needs that toolkit."""

# What lm-evaluation-harness knows our model type by: `--model self-ensemble`.
LM_EVAL_NAME = "self-ensemble"
# What Inspect knows our model API by: `--model self-ensemble/NAME`.
INSPECT_AI_NAME = "self-ensemble"
