"""Tokens as answers tell them: log-probabilities, and the glass box."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from smollm3.infer import Step
from smollm3.serve.answering import Answering
from smollm3.serve.ask import Ask
from smollm3.tokenizer import Tokenizer
from smollm3.turn import Usage

GLASS_TOP = 5
_LEAST = -9999.0  # JSON has no infinity


def token_text(tokenizer: Tokenizer, index: int) -> str:
    return tokenizer.decode([index])


def finite(logprob: float) -> float:
    return max(logprob, _LEAST)


def chat_logprob(tokenizer: Tokenizer, step: Step, top: int) -> dict[str, Any]:
    """OpenAI's form in chats."""
    likeliest = step.top_logprobs[:top]
    own = _logprob(tokenizer, step.id, step.logprob)
    return own | {"top_logprobs": [_logprob(tokenizer, i, p) for i, p in likeliest]}


def _logprob(tokenizer: Tokenizer, index: int, logprob: float) -> dict[str, Any]:
    return {
        "token": token_text(tokenizer, index),
        "logprob": finite(logprob),
        "bytes": list(tokenizer.token_bytes(index)),
    }


def completion_logprobs(
    tokenizer: Tokenizer, steps: Sequence[Step], top: int, offset: int = 0
) -> dict[str, Any]:
    """OpenAI's older form. offset: of the first token in the text."""
    texts = [token_text(tokenizer, step.id) for step in steps]
    offsets = []
    for step in steps:
        offsets.append(offset)
        offset += len(step.text)
    return {
        "tokens": texts,
        "token_logprobs": [finite(step.logprob) for step in steps],
        "top_logprobs": [
            {token_text(tokenizer, i): finite(p) for i, p in step.top_logprobs[:top]}
            for step in steps
        ],
        "text_offset": offsets,
    }


def glass_token(tokenizer: Tokenizer, step: Step) -> dict[str, Any]:
    """All of a token of the answer: also its nearest alternatives and where it came from."""
    return {
        **_glass(tokenizer, step.id),
        "logprob": finite(step.logprob),
        "top": [{**_glass(tokenizer, i), "logprob": finite(p)} for i, p in step.top_logprobs],
        "source": step.source,
    }


def glass_prompt(tokenizer: Tokenizer, ids: Sequence[int], cached: int) -> list[dict[str, Any]]:
    """All tokens of the prompt, and whether they were found computed."""
    return [{**_glass(tokenizer, id), "cached": i < cached} for i, id in enumerate(ids)]


def _glass(tokenizer: Tokenizer, index: int) -> dict[str, Any]:
    return {"id": index, "text": token_text(tokenizer, index)}


def tops(ask_glass: bool, asked: int) -> int:
    """Likeliest tokens that the engine must tell."""
    return max(asked, GLASS_TOP if ask_glass else 0)


def glass_of(tokenizer: Tokenizer, ask: Ask, steps: Sequence[Step]) -> dict[str, Any]:
    """The extension's field of a chunk or choice, where it was asked for."""
    return {"tokens": [glass_token(tokenizer, s) for s in steps]} if ask.glass_box else {}


def prompt_detail(tokenizer: Tokenizer, answering: Answering) -> dict[str, Any]:
    """The same of the prompt."""
    if not answering.ask.glass_box:
        return {}
    told = glass_prompt(tokenizer, answering.prompt, answering.cached)
    return {"prompt_tokens_detail": told}


def usage_of(usage: Usage) -> dict[str, Any]:
    """As OpenAI's older APIs tell it."""
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    }
