"""JSON as OpenAI's clients send and read it."""
