"""The engine over HTTP: OpenAI's and Anthropic's APIs, a chat page, safe where it stands alone."""
