"""Tokens as answers tell them: log-probabilities, and the glass box."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from smollm3.infer import Step
from smollm3.serve.answering import Answered
from smollm3.serve.ask import Ask
from smollm3.serve.dialects.replies import (
    CachedTokens,
    ChatLogprobs,
    CompletionDetails,
    CompletionLogprobs,
    CompletionUsage,
    GlassAlternative,
    GlassToken,
    PromptToken,
    TokenLogprob,
    TopLogprob,
)
from smollm3.tokenizer import Tokenizer
from smollm3.turn import Usage

GLASS_TOP = 5
_LEAST = -9999.0  # JSON has no infinity


def token_text(tokenizer: Tokenizer, index: int) -> str:
    return tokenizer.decode([index])


def finite(logprob: float) -> float:
    return max(logprob, _LEAST)


def chat_logprobs(tokenizer: Tokenizer, steps: Sequence[Step], top: int) -> ChatLogprobs:
    """OpenAI's form in chats."""
    told = [chat_logprob(tokenizer, step, top) for step in steps]
    return ChatLogprobs(content=told, refusal=None)


def chat_logprob(tokenizer: Tokenizer, step: Step, top: int) -> TokenLogprob:
    likeliest = [TopLogprob(**_logprob(tokenizer, *pair)) for pair in _alternatives(step, top)]
    likeliest = likeliest if top else []
    return TokenLogprob(**_logprob(tokenizer, step.id, step.logprob), top_logprobs=likeliest)


def _logprob(tokenizer: Tokenizer, index: int, logprob: float) -> dict[str, Any]:
    return {
        "token": token_text(tokenizer, index),
        "logprob": finite(logprob),
        "bytes": list(tokenizer.token_bytes(index)),
    }


def _alternatives(step: Step, top: int) -> list[tuple[int, float]]:
    """The likeliest so many, and the token itself where it is none of them."""
    found = list(step.top_logprobs[:top])
    if all(index != step.id for index, _ in found):
        found.append((step.id, step.logprob))
    return found


def _name(tokenizer: Tokenizer, index: int) -> str:
    """A token as a key: no two are alike. Of a part of a character, its bytes."""
    data = tokenizer.token_bytes(index)
    try:
        return data.decode() or f"token_id:{index}"
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def completion_logprobs(
    tokenizer: Tokenizer, steps: Sequence[Step], top: int, offset: int = 0
) -> CompletionLogprobs:
    """OpenAI's older form. offset: of the first token in the text. A step without a figure is the
    first of an echoed prompt."""
    offsets = []
    for step in steps:
        offsets.append(offset)
        offset += len(step.text)
    known = [not math.isnan(step.logprob) for step in steps]
    return CompletionLogprobs(
        tokens=[_name(tokenizer, step.id) for step in steps],
        token_logprobs=[
            finite(step.logprob) if there else None
            for step, there in zip(steps, known, strict=True)
        ],
        top_logprobs=[
            {_name(tokenizer, i): finite(p) for i, p in _alternatives(step, top)} if there else None
            for step, there in zip(steps, known, strict=True)
        ],
        text_offset=offsets,
    )


def _alternative(tokenizer: Tokenizer, index: int, logprob: float) -> dict[str, Any]:
    return {"id": index, "text": token_text(tokenizer, index), "logprob": finite(logprob)}


def glass_token(tokenizer: Tokenizer, step: Step) -> GlassToken:
    """All of a token of the answer: also its nearest alternatives and where it came from."""
    return GlassToken(
        **_alternative(tokenizer, step.id, step.logprob),
        top=[GlassAlternative(**_alternative(tokenizer, i, p)) for i, p in step.top_logprobs],
        source=step.source,
    )


def tops(ask_glass: bool, asked: int) -> int:
    """Likeliest tokens that the engine must tell."""
    return max(asked, GLASS_TOP if ask_glass else 0)


def glass_of(tokenizer: Tokenizer, ask: Ask, steps: Sequence[Step]) -> dict[str, Any]:
    """The extension's field of a chunk or choice, where it was asked for."""
    return {"tokens": [glass_token(tokenizer, s) for s in steps]} if ask.glass_box else {}


def prompt_detail(tokenizer: Tokenizer, answering: Answered) -> dict[str, Any]:
    """All tokens of the prompt, and whether the prefix cache had them."""
    if not answering.ask.glass_box:
        return {}
    told = [
        PromptToken(id=token, text=token_text(tokenizer, token), cached=place < answering.cached)
        for place, token in enumerate(answering.prompt)
    ]
    return {"prompt_tokens_detail": told}


def usage_of(usage: Usage) -> CompletionUsage:
    """As OpenAI's older APIs tell it."""
    return CompletionUsage(
        prompt_tokens=usage.prompt,
        completion_tokens=usage.completion,
        total_tokens=usage.prompt + usage.completion,
        prompt_tokens_details=CachedTokens(cached_tokens=usage.cached),
        completion_tokens_details=CompletionDetails(
            reasoning_tokens=usage.reasoning,
            accepted_prediction_tokens=usage.accepted,
            rejected_prediction_tokens=usage.rejected,
        ),
    )
