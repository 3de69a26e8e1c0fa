"""HTTP as OpenAI's clients speak it."""
