"""What an implementation can be asked. Each kind answers what it can and says why not the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from smollm3.chat import ToolCall
from smollm3.conformance.cases import Case
from smollm3.conformance.kit import Weights

Ids = list[int]


class Unsupported(Exception):
    """The implementation does not offer this; the text says why. A row is skipped."""


class Broken(Exception):
    """It offers this and does it wrongly; the text says how. A row fails."""


@dataclass(frozen=True)
class TargetTokens:
    """What is known of a prompt: at best its ids, else only its text or how many tokens it has."""

    ids: Ids | None = None
    text: str | None = None
    count: int | None = None


@dataclass(frozen=True)
class ChatAnswer:
    """A chat answer as an API tells it; None is untold. finish_reason in OpenAI's words."""

    content: str
    reasoning: str | None
    tool_calls: tuple[ToolCall, ...]
    finish_reason: str | None


class Target:
    """An implementation under test. Every method may raise Unsupported.

    tolerance: allowed difference in natural log-probability.
    """

    name: str
    tolerance: float

    def logprobs(self, weights: Weights, ids: Ids) -> Tensor:
        """Log-probabilities [P, V] of the next token at the last P >= 1 positions of a prompt;
        NaN for tokens about which nothing is told."""
        raise Unsupported("tells no log-probabilities")

    def greedy(self, prompts: Sequence[Ids], n: int) -> list[Ids]:
        """n likeliest tokens after each prompt, all prompts at the same time."""
        raise Unsupported("does not generate")

    def encode(self, text: str) -> TargetTokens:
        """A prompt that is plain text."""
        raise Unsupported("encodes no text")

    def render(self, case: Case) -> TargetTokens:
        """The prompt made of a conversation, generation prompt included."""
        raise Unsupported("renders no conversation")

    def chat(self, case: Case, stream: bool) -> ChatAnswer:
        """The greedy answer; with `stream` put together from pieces."""
        raise Unsupported("has no chat interface")

    def close(self) -> None:
        """Free what the target holds."""
