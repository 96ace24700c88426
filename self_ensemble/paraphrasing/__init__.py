"""Making paraphrases with a model, and telling good ones from bad."""
