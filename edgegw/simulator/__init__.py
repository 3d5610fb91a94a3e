"""A provider that is not there: speaks OpenAI Chat Completions and Anthropic Messages, and fails on demand."""
