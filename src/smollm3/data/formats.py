"""What a row holds, found by looking at it: a text, a conversation or a preference pair, in the
spellings that data sets use.

    messages              OpenAI, trl, SmolTalk2: messages, with tools and chat_template_kwargs
    conversations         ShareGPT, LLaMA-Factory: from and value
    prompt, completion    as texts or messages; also response, question and answer, query
    instruction, output   Alpaca, with input and history; Dolly, with context and response
    instruction, instances   Self-Instruct
    prompt with replies   an OpenAssistant tree: the best-ranked reply of each turn
    chosen, rejected      pairs, with or without prompt, conversations or messages
    text                  a conversation that was rendered already: ChatML, Llama, Anthropic's
                          transcripts
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from smollm3.data.messages import (
    Damaged,
    Messages,
    from_json,
    is_absent,
    normal_messages,
    normal_tools,
    without_end_marks,
    without_padding,
)

Format = Literal["text", "chat", "preference"]
Row = Mapping[str, Any]
_MESSAGES = ("messages", "conversations", "conversation")
OF_MESSAGES = (*_MESSAGES, "prompt", "completion", "chosen", "rejected")
_PROMPTS = ("prompt", "instruction", "question", "query", "input", "problem")
_ANSWERS = ("completion", "response", "output", "answer", "solution")
_INPUTS = ("input", "context")
_TEXTS = ("text", "content", "document", "body", "markdown")
_REASONING = ("reasoning_content", "thinking", "reasoning")
COLUMNS = list(
    dict.fromkeys(
        [
            *_MESSAGES,
            *_PROMPTS,
            *_ANSWERS,
            *_INPUTS,
            *_REASONING,
            *("chosen", "rejected", "tools", "functions", "system", "system_prompt", "history"),
            *("instances", "label", "chat_template_kwargs", "text", "enable_thinking"),
        ]
    )
)


@dataclass(frozen=True)
class Talk:
    """One conversation; of a pair, `messages` is the prompt that both answers go on from.

    options: what the renderer is told. spelling: how the row said it.
    """

    spelling: str
    messages: Messages
    chosen: Messages = field(default_factory=list)
    rejected: Messages = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)


def named(row: Row, columns: Mapping[str, str]) -> dict[str, Any]:
    """The row with small letters in its columns' names, and with the user's `columns` under the
    names that are known: {"prompt": "frage"}."""
    found = {str(key).lower(): value for key, value in row.items()}
    found |= {str(key): value for key, value in row.items()}
    return found | {name: row[theirs] for name, theirs in columns.items() if theirs in row}


def spelling(row: Row) -> tuple[Format, str] | None:
    """(format, spelling) of a row with known names; None for one that has neither texts nor
    conversations."""
    has = {key for key, value in row.items() if not is_absent(value)}
    if {"chosen", "rejected"} <= has:
        return "preference", "chosen and rejected"
    for key in _MESSAGES:
        if key in has:
            return "chat", key
    tree = from_json(row["prompt"]) if "prompt" in has else None
    if isinstance(tree, Mapping) and "replies" in tree:
        return "chat", "tree"
    if {"instruction", "instances"} <= has:
        return "chat", "instruction and instances"
    prompt = next((key for key in _PROMPTS if key in has), None)
    answer = next((key for key in _ANSWERS if key in has), None)
    if prompt and answer:
        return "chat", f"{prompt} and {answer}"
    if text := text_column(row):
        rendered = isinstance(row[text], str) and transcript(row[text]) is not None
        return ("chat", f"rendered {text}") if rendered else ("text", text)
    return None


def text_column(row: Row) -> str | None:
    """The column that holds a row's text: one of that name, else the only one with texts."""
    texts = [key for key, value in row.items() if isinstance(value, str)]
    return next((key for key in _TEXTS if key in texts), texts[0] if len(texts) == 1 else None)


# Conversations


def talks(row: Row) -> list[Talk]:
    """The conversations of a row; more than one only where it has several `instances`."""
    found = spelling(row)
    if found is None or found[0] == "text":
        raise Damaged("without a conversation")
    form, how = found
    tools = normal_tools(row.get("tools", row.get("functions")))
    options = _options(row, tools)
    if form == "preference":
        return [_pair(row, how, options)]
    if row.get("label") is False or row.get("label") in ("false", "False"):
        raise Damaged("label: false, which marks a bad answer")
    if how in _MESSAGES:
        made = [normal_messages(row[how])]
    elif how == "tree":
        made = [_best_path(from_json(row["prompt"]))]
    elif how == "instruction and instances":
        made = list(_instances(row))
    elif how.startswith("rendered"):
        made = [normal_messages(transcript(row[how.partition(" ")[2]]))]
    else:
        made = [_question_and_answer(row, *how.split(" and "))]
    tools = options.get("tools")
    return [
        Talk(how, without_padding(_with_system(row, _usable(m)), tools), options=options)
        for m in made
    ]


def _usable(messages: Messages) -> Messages:
    answers = [m for m in messages if m["role"] == "assistant"]
    if not answers:
        raise Damaged("without an answer")
    if all("train" in m for m in answers):
        raise Damaged("without an answer to train on (empty, or left out by weight or train)")
    return messages


def _options(row: Row, tools: list[Any] | None) -> dict[str, Any]:
    """What the renderer is told: the row's tools, and SmolTalk2's `chat_template_kwargs`."""
    kwargs = from_json(row.get("chat_template_kwargs"))
    if kwargs is None or kwargs == "":
        kwargs = {}
    if not isinstance(kwargs, Mapping):
        raise Damaged("chat_template_kwargs is not an object")
    thinking = kwargs.get("enable_thinking", row.get("enable_thinking"))
    if thinking is not None and not isinstance(thinking, bool):
        raise Damaged("enable_thinking: must be true or false")
    options = {
        "tools": normal_tools(kwargs.get("xml_tools") or kwargs.get("tools")) or tools,
        "python_tools": normal_tools(kwargs.get("python_tools")),
        "custom_instructions": kwargs.get("custom_instructions"),
        "enable_thinking": thinking,
    }
    return {key: value for key, value in options.items() if value not in (None, [], "")}


def _with_system(row: Row, messages: Messages) -> Messages:
    """The messages after the row's own `system`, unless they begin with it."""
    system = row.get("system", row.get("system_prompt"))
    if is_absent(system) or system == "":
        return messages
    if not isinstance(system, str):
        raise Damaged("a system prompt that is no text")
    first = messages[0]
    if first["role"] == "system" and first["content"].strip() == system.strip():
        return messages
    return [{"role": "system", "content": system}, *messages]


def _is_messages(value: Any) -> bool:
    items = [value] if isinstance(value, Mapping) else value
    return (
        isinstance(items, list)
        and bool(items)
        and all(isinstance(item, Mapping) and ("role" in item or "from" in item) for item in items)
    )


def _side(value: Any, role: str) -> Messages:
    """One side of an exchange: messages, their JSON text, or a text that `role` says."""
    parsed = from_json(value)
    if _is_messages(parsed):
        return normal_messages(parsed)
    if not isinstance(value, str):
        raise Damaged("a prompt or answer that is neither a text nor messages")
    return normal_messages([{"role": role, "content": value}])


def _asked(value: Any) -> Messages:
    """A prompt's messages; one that was rendered ends with the header of its answer."""
    if not isinstance(value, str):
        return _side(value, "user")
    rendered = transcript(value)
    if rendered is None:
        return _side(_without_headers(value), "user")
    return normal_messages(rendered if rendered[-1]["content"] else rendered[:-1])


def _question_and_answer(row: Row, prompt: str, answer: str) -> Messages:
    asked = row[prompt]
    if isinstance(asked, str) and not _is_messages(from_json(asked)):
        more = next((row[k] for k in _INPUTS if k != prompt and not is_absent(row.get(k))), "")
        if not isinstance(more, str):
            raise Damaged("an input that is no text")
        asked = f"{asked}\n\n{more}" if more.strip() else asked
    before = [*_history(row.get("history")), *_asked(asked)]
    for message in before:  # trl, too, trains on the completion alone
        if message["role"] == "assistant":
            message["train"] = False
    after = _side(row[answer], "assistant")
    thought = next((row[key] for key in _REASONING if isinstance(row.get(key), str)), "")
    if thought.strip() and after[0]["role"] == "assistant":
        after[0].setdefault("reasoning_content", thought)
    return before + after


def _history(value: Any) -> Messages:
    """LLaMA-Factory's earlier turns: [[question, answer], ...]."""
    turns = from_json(value) or []
    if not isinstance(turns, list) or not all(isinstance(t, list) and len(t) == 2 for t in turns):
        raise Damaged("a history that is not [[question, answer], ...]")
    return [
        message
        for asked, answered in turns
        for message in (*_side(asked, "user"), *_side(answered, "assistant"))
    ]


def _instances(row: Row) -> Iterator[Messages]:
    instances = from_json(row["instances"])
    if not isinstance(instances, list) or not all(isinstance(i, Mapping) for i in instances):
        raise Damaged("instances that are no objects")
    if not instances:
        raise Damaged("no instances")
    for instance in instances:
        whole = {"instruction": row["instruction"], **instance}
        if is_absent(whole.get("output")):
            raise Damaged("an instance without output")
        yield _question_and_answer(whole, "instruction", "output")


def _best_path(node: Mapping[str, Any]) -> Messages:
    """From the root of an OpenAssistant tree on, the reply that people ranked first."""
    path = []
    while True:
        path.append({"role": node.get("role"), "content": node.get("text")})
        replies = node.get("replies") or []
        if not isinstance(replies, list):
            raise Damaged("replies that are no list")
        replies = [r for r in replies if isinstance(r, Mapping) and r.get("text")]
        replies = [r for r in replies if not r.get("deleted")]
        if not replies:
            while len(path) > 1 and path[-1]["role"] != "assistant":
                path.pop()
            return normal_messages(path)
        node = min(replies, key=_rank)


def _rank(reply: Mapping[str, Any]) -> float:
    rank = reply.get("rank")
    return rank if isinstance(rank, int | float) else math.inf


# Pairs


def _pair(row: Row, how: str, options: dict[str, Any]) -> Talk:
    """chosen and rejected are answers or whole conversations; turns that they share are prompt."""
    chosen, rejected = (_answers(row[key]) for key in ("chosen", "rejected"))
    keys = ("prompt", *_MESSAGES, *_PROMPTS)
    asked = next((row[key] for key in keys if not is_absent(row.get(key))), None)
    prompt = _asked(asked) if asked else []
    shared = 0
    while shared < min(len(chosen), len(rejected)) and _same(chosen[shared], rejected[shared]):
        shared += 1
    if shared == len(chosen) == len(rejected):
        raise Damaged("both answers are the same")
    if shared in (len(chosen), len(rejected)):
        raise Damaged("one side of the pair is the beginning of the other")
    before = chosen[:shared]
    answers_it = not before or before[0]["role"] == "assistant"
    if answers_it or not _holds(before, prompt):
        before = prompt + before
    sides = chosen[shared:], rejected[shared:]
    if any(side[0]["role"] != "assistant" for side in sides):
        raise Damaged("the sides of the pair answer different prompts")
    if not any(message["role"] == "user" for message in before):
        raise Damaged("a pair without a prompt")
    before = _with_system(row, before)
    for message in (*before, *sides[0], *sides[1]):
        message.pop("train", None)  # a pair has one answer, which is trained
    tools = options.get("tools")
    before, chosen, rejected = (without_padding(m, tools) for m in (before, *sides))
    return Talk(how, before, chosen, rejected, options)


def _answers(value: Any) -> Messages:
    rendered = transcript(value) if isinstance(value, str) else None
    return normal_messages(rendered) if rendered else _side(value, "assistant")


def _same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether two messages say the same, white space around their texts aside."""
    return _said(a) == _said(b)


def _said(message: dict[str, Any]) -> tuple[Any, ...]:
    calls = [call["function"] for call in message.get("tool_calls", ())]
    thought = message.get("reasoning_content", "").strip()
    return message["role"], message["content"].strip(), thought, calls


def _holds(messages: Messages, part: Messages) -> bool:
    """Whether `part` stands in `messages`, one turn after another."""
    said, wanted = [_said(m) for m in messages], [_said(m) for m in part]
    return any(said[i : i + len(wanted)] == wanted for i in range(len(said) - len(wanted) + 1))


# Conversations that were rendered already

_ALPACA = re.compile(
    r"\A(?:Below is an instruction\b[^\n]*\n+)?### Instruction:\s*\n(?P<asked>.*?)"
    r"(?:\n+### Input:\s*\n(?P<input>.*?))?\n+### (?:Response|Output):?\s*\Z",
    re.DOTALL,
)
# Where a turn begins: the role, and what stands before its content.
_TURNS = (
    re.compile(r"<\|im_start\|>[ \t]*(\w+)[ \t]*\n"),
    re.compile(r"<\|start_header_id\|>(\w+)<\|end_header_id\|>\n*"),
    re.compile(r"<start_of_turn>(\w+)\n"),
    re.compile(r"<\|(system|user|assistant)\|>\n"),
    re.compile(r"(?:\A|\n\n)(Human|Assistant):[ \t]*"),
    re.compile(r"\s*(\[/?INST\])[ \t]*"),
)
_INST = {"[INST]": "user", "[/INST]": "assistant"}
_SYS = re.compile(r"\s*<<SYS>>\n(.*?)\n<</SYS>>\s*", re.DOTALL)
MARKS = (
    *("<|im_start|>", "<|start_header_id|>", "<start_of_turn>", "<|user|>", "<|system|>"),
    "[INST]",
)
_BEGINS = re.compile(
    rf"\s*(?:<s>|<bos>|<\|begin_of_text\|>)?\s*(?:{'|'.join(map(re.escape, MARKS))})"
)
_BEGIN = re.compile(r"\s*(?:<s>|<bos>|<\|begin_of_text\|>)?\s*")


def _without_headers(prompt: str) -> str:
    """A prompt without the headers of Alpaca's template."""
    found = _ALPACA.match(prompt)
    if not found:
        return prompt
    more = found["input"]
    return f"{found['asked']}\n\n{more}" if more and more.strip() else found["asked"]


def transcript(text: str) -> Messages | None:
    """The messages of a text that spells a chat template's marks from its first character on and
    has an answer; None for any other text."""
    begin = _BEGIN.match(text)
    assert begin is not None  # it matches nothing, too
    for turn in _TURNS:
        start = turn.match(text, begin.end()) or turn.match(text)
        if not start:
            continue
        pieces = turn.split(text[start.start() :])
        roles, contents = [_INST.get(role, role) for role in pieces[1::2]], pieces[2::2]
        if not any(role.lower() in ("assistant", "model") for role in roles):
            continue
        contents = [without_end_marks(text.removesuffix("<s>")).strip("\n ") for text in contents]
        messages = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)]
        if system := _SYS.match(contents[0]):
            messages[0]["content"] = contents[0][system.end() :]
            messages.insert(0, {"role": "system", "content": system[1]})
        return messages
    return None


def spells_template(text: str) -> bool:
    """Whether a text begins with a mark that begins a turn in some model's template."""
    begin = text[:200]
    return any(mark in begin for mark in MARKS) and _BEGINS.match(begin) is not None
