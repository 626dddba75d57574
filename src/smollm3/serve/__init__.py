"""The engine over HTTP: OpenAI's and Anthropic's APIs, a chat page, safe where it stands alone."""

from smollm3.serve.app import create_app
from smollm3.serve.settings import Settings

__all__ = ["Settings", "create_app"]
