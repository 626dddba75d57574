"""The HTTP APIs: OpenAI's, Anthropic's and our own endpoints, all over one stream of events."""
