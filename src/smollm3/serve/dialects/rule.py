"""What requests say that changes no answer here, and what is turned away: the one list.

What asks for something that changes the answer and that this server cannot do gets a 400 that names
it. What only hints, labels or describes the past is accepted and has no effect. Null is absent. A
field that neither a dialect reads nor this list names is turned away, as it may be a slip.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Where in a request: the request itself in one of the dialects, or a part that several have.
REQUESTS = ("chat", "completions", "responses", "messages")


@dataclass(frozen=True)
class Row:
    """Fields of the same standing. places: where they are found, of `REQUESTS` or a part's name.

    only: the values that are accepted; None: any. why: what they are; behind a field's name, the
    reason for the 400 that other values get.
    """

    places: tuple[str, ...]
    names: tuple[str, ...]
    why: str
    only: tuple[Any, ...] | None = None


def _row(places: str, names: str, why: str, *only: Any) -> Row:
    """only: [...] is any value, none is no value."""
    anything = only == (...,)
    return Row(tuple(places.split()), tuple(names.split()), why, None if anything else only)


_OPENAI = "chat completions responses"
_FIXED = "only the default; there is no other here"
RULE = (
    # labels, and hints on how to serve
    _row(_OPENAI, "user request_id", "a label", ...),
    _row("chat responses", "safety_identifier session_id trace_id", "a label", ...),
    _row("chat completions messages", "metadata", "a label", ...),
    _row("messages", "user_profile_id betas anthropic_version", "a label", ...),
    _row("responses", "client_metadata access_programs", "a label", ...),
    _row(
        "chat responses",
        "prompt_cache_key prompt_cache_retention prompt_cache_options",
        "a hint; prefixes are cached anyway",
        ...,
    ),
    _row("chat completions", "cache_prompt id_slot", "a hint; prefixes are cached anyway", ...),
    _row("chat messages tool", "cache_control", "a hint; prefixes are cached anyway", ...),
    _row("chat completions responses messages", "service_tier priority", "a hint on speed", ...),
    _row("messages", "speed inference_geo", "a hint on where and how fast", ...),
    _row("messages", "billing_policy fallback_credit_token", "who pays", ...),
    _row("chat", "store", "a hint; chats are not kept", ...),
    _row("chat text", "verbosity", "a hint; the model knows no levels", ...),
    _row("chat", "usage include_reasoning", "a hint on what is told, which is told anyway", ...),
    _row("messages", "diagnostics fallbacks", "a hint for what does not happen here", ...),
    _row("messages responses", "context_management", "a hint; nothing is taken away here", ...),
    _row("stream_options", "include_obfuscation", "a hint; streams are not padded", ...),
    _row("reasoning", "context", "a hint; reasoning is told whole", ...),
    _row("thinking", "display block_binding", "a hint; reasoning is told whole", ...),
    _row("output_config", "task_budget", "a hint", ...),
    _row(
        "tool",
        "defer_loading input_examples eager_input_streaming allowed_callers output_schema",
        "a hint on how tools are shown",
        ...,
    ),
    # what is the default anyway
    _row("chat", "modalities", "the model writes text only", ["text"]),
    _row("chat completions", "use_beam_search", _FIXED, False),
    _row("chat completions", "include_stop_str_in_output", _FIXED, False),
    _row("chat completions", "skip_special_tokens spaces_between_special_tokens", _FIXED, True),
    _row("chat completions", "length_penalty typical_p", _FIXED, 1),
    _row("chat", "echo add_special_tokens return_token_ids", _FIXED, False),
    _row("stream_options", "continuous_usage_stats", "usage is told at the end", False),
    _row("completions", "suffix", "the model does not fill in what is between texts", ""),
    _row("responses", "background", "answers are made while the client waits", False),
    _row("reasoning", "mode", "the model has one mode", "standard"),
    _row("responses", "truncation", "what is too long is turned away", "auto", "disabled"),
    _row("responses", "personality", "a hint; the model has one", ...),
    _row("messages", "mcp_servers", "the server calls those it was started with only", []),
    # what would change the answer
    _row("chat", "audio web_search_options", "the model reads and writes text only"),
    _row("chat", "functions", "the older form; use tools", []),
    _row("chat", "function_call", "the older form; use tool_choice", "none", "auto"),
    _row("chat responses", "moderation", "there is no other model here to judge"),
    _row("chat", "chat_template documents", "the template is the server's"),
    _row("responses", "image", "the model reads and writes text only"),
    _row("responses", "prompt", "none are kept here"),
    _row("responses", "background_options", "answers are made while the client waits"),
    _row("responses", "max_tool_calls", "calls are not counted here"),
    _row("messages", "container", "no code runs in this dialect"),
    _row("messages", "compaction thread", "nothing is summed up or kept here"),
)
_AT: dict[str, dict[str, Row]] = {}
for _each in RULE:
    for _place in _each.places:
        _AT.setdefault(_place, {}).update(dict.fromkeys(_each.names, _each))


def rows(place: str) -> Mapping[str, Row]:
    """The rows of a place in a request, by the names of fields."""
    return _AT.get(place, {})


def accepts(row: Row, value: Any) -> bool:
    """Whether the field may have this value. True is no 1."""
    if row.only is None:
        return True
    same = (known for known in row.only if isinstance(value, bool) == isinstance(known, bool))
    return any(known == value for known in same)
