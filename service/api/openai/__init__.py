"""The same datasets, uploads and jobs in the form that OpenAI's clients know: a translation without rules."""
