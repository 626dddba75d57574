"""Which rows ask something, and what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from smollm3.data.readers import Read
from smollm3.errors import UserError
from smollm3.files import sha256_json

Row = dict[str, Any]


def usable_prompts(reads: Iterable[Read], tell: Callable[[str], None]) -> list[Row]:
    """The rows that ask something, each once; what is left out is told by reason."""
    skipped: Counter[str] = Counter()
    prompts: dict[str, Row] = {}
    for read in reads:
        messages = messages_of(read.row) if isinstance(read.row, dict) else []
        if read.fault is not None or not messages:
            skipped[read.fault or "without a prompt"] += 1
        elif (key := sha256_json(messages)) in prompts:
            skipped["asked by another row already"] += 1
        else:
            prompts[key] = read.row
    for reason, n in skipped.items():
        tell(f"{n} prompts skipped: {reason}")
    if not prompts:
        raise UserError("prompts: none in its sources; rows need `prompt` or `messages`")
    return list(prompts.values())


def messages_of(row: Row) -> list[Row]:
    """The conversation up to the user's last turn; empty where there is none."""
    messages = row.get("messages")
    if isinstance(row.get("prompt"), str) and row["prompt"].strip():
        messages = [{"role": "user", "content": row["prompt"]}]
    if not isinstance(messages, list):
        return []
    if not all(isinstance(m, dict) and isinstance(m.get("content"), str) for m in messages):
        return []
    roles = [message.get("role") for message in messages]
    last = max((i for i, role in enumerate(roles) if role == "user"), default=-1)
    return [{"role": m["role"], "content": m["content"]} for m in messages[: last + 1]]
