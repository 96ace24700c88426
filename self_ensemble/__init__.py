"""Self-ensembling language models: one question in several wordings, one fused answer."""
