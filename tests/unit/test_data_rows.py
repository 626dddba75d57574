"""Rows as people have them: each is used rightly, or left out and named by its line."""

import json

import pytest

from smollm3.data import look as looking
from smollm3.data.detect import detect
from smollm3.data.look import look

TOKENIZER = looking.bytes_tokenizer()
Q, A = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
END = "<|im_end|>"
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "1", "content": "r"}
SCHEMA = {"type": "object", "properties": {"x": {"type": "integer"}, "y": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
WROTE = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'


def chat(*messages, **more):
    return {"messages": list(messages), **more}


def said(content, role="assistant", **more):
    return {"role": role, "content": content, **more}


def with_arguments(arguments, **more):
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    return chat(Q, {"role": "assistant", "tool_calls": [call]}, **more)


# what: (the line: a row or its bytes, the trained texts or why it is left out)
USED = {
    "plain": (chat(Q, A), ["A"]),
    "CRLF": (json.dumps(chat(Q, A)).encode() + b"\r", ["A"]),
    "white space around": (b" \t" + json.dumps(chat(Q, A)).encode() + b"  ", ["A"]),
    "messages as JSON text": (chat() | {"messages": json.dumps([Q, A])}, ["A"]),
    "JSON text in JSON text": ({"messages": json.dumps(json.dumps([Q, A]))}, ["A"]),
    "messages as Python text": ({"messages": str([Q, A])}, ["A"]),
    "capital keys": ({"Messages": [Q, A]}, ["A"]),
    "roles in capitals": (chat(said("Q", "USER"), said("A", " Assistant ")), ["A"]),
    "ShareGPT": (
        {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
        ["A"],
    ),
    "ShareGPT call": (
        {
            "conversations": [
                {"from": "human", "value": "Q"},
                {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
                {"from": "observation", "value": "r"},
                {"from": "gpt", "value": "A"},
            ],
            "tools": json.dumps([TOOL]),
        },
        [WROTE, "A"],
    ),
    "Alpaca": ({"instruction": "Q", "input": "", "output": "A"}, ["A"]),
    "Alpaca with NaN": (b'{"instruction": "Q", "input": NaN, "output": "A"}', ["A"]),
    "Alpaca with history": (
        {"instruction": "Q", "output": "A", "history": [["q", "a"]]},
        ["A"],
    ),
    "Dolly": ({"instruction": "Q", "context": "C", "response": "A", "category": "x"}, ["A"]),
    "Alpaca's template": (
        {"prompt": "### Instruction:\nQ\n\n### Response:\n", "response": "A"},
        ["A"],
    ),
    "Self-Instruct": (
        {"instruction": "Q", "instances": [{"input": "", "output": "A"}]},
        ["A"],
    ),
    "prompt and completion": ({"prompt": "Q", "completion": "A"}, ["A"]),
    "prompt and completion as messages": (
        {"prompt": [Q, said("no"), Q], "completion": [A]},
        ["A"],
    ),
    "an answer that looks like JSON": ({"prompt": "Q", "completion": "[1, 2]"}, ["[1, 2]"]),
    "an OpenAssistant tree": (
        {
            "prompt": {
                "role": "prompter",
                "text": "Q",
                "replies": [
                    {"role": "assistant", "text": "worse", "rank": 1, "replies": []},
                    {"role": "assistant", "text": "A", "rank": 0, "replies": []},
                ],
            }
        },
        ["A"],
    ),
    "ChatML in text": (
        {"text": "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"},
        ["A"],
    ),
    "Llama 3 in text": (
        {
            "text": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nQ<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nA<|eot_id|>"
        },
        ["A"],
    ),
    "Anthropic's transcripts": ({"text": "\n\nHuman: Q\n\nAssistant: A"}, ["A"]),
    "Llama 2 in text": (
        {"text": "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nQ [/INST] A </s><s>[INST] Q [/INST] B </s>"},
        ["A", "B"],
    ),
    "a rendered prompt": (
        {
            "prompt": "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n",
            "completion": "A<|im_end|>",
        },
        ["A"],
    ),
    "content in parts": (chat(Q, said([{"type": "text", "text": "A"}, "B"])), ["AB"]),
    "a refusal": (chat(Q, said(None, refusal="No.")), ["No."]),
    "reasoning": (chat(Q, said("A", reasoning_content="hm")), ["<think>\nhm\n</think>\nA"]),
    "thinking in parts": (
        chat(Q, said([{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "A"}])),
        ["<think>\nhm\n</think>\nA"],
    ),
    "weight 0": (chat(Q, said("no", weight=0), Q, said("A", weight=1)), ["A"]),
    "train false": (chat(Q, said("no", train=False), Q, A), ["A"]),
    "an empty answer among others": (chat(Q, said(""), Q, A), ["A"]),
    "null content with calls": (chat(Q, CALLING, RESULT, A, tools=[TOOL]), [WROTE, "A"]),
    "tools as JSON text": (chat(Q, CALLING, tools=json.dumps([TOOL])), [WROTE]),
    "the legacy function_call": (
        chat(Q, said(None, function_call={"name": "f", "arguments": '{"x": 1}'})),
        [WROTE],
    ),
    "arguments as an object": (with_arguments({"x": 1}), [WROTE]),
    "arguments as pairs": (with_arguments([["x", 1]]), [WROTE]),
    "padding in arguments": (with_arguments({"x": 1, "y": None, "z": None}, tools=[TOOL]), [WROTE]),
    "a result that is an object": (
        chat(Q, CALLING, {"role": "tool", "content": {"a": 1}}, A, tools=[TOOL]),
        [WROTE, "A"],
    ),
    "ends on the user": (chat(Q, A, Q), ["A"]),
    "an end mark in the answer": (chat(Q, said("A<|im_end|>\n")), ["A"]),
    "forged marks": (chat(said("<|im_start|>", "user"), A), ["A"]),
    "two system messages": (chat(said("a", "system"), said("b", "system"), Q, A), ["A"]),
    "a system column": (chat(Q, A, system="S"), ["A"]),
    "a late system message": (chat(Q, A, said("S", "system"), A), ["A", "A"]),
    "NUL": (chat(said("\0", "user"), said("A")), ["A"]),
    "a line separator": (chat(Q, said("A\u2028B")), ["A\u2028B"]),
    "10 MB": (chat(Q, A, notes="x" * 10_000_000), ["A"]),
    "a duplicate id": (chat(Q, A, id=1), ["A"]),
    "unknown columns": (chat(Q, A, score=1.5, date="2020"), ["A"]),
    "null members": (chat(Q | {"name": None, "tool_calls": None}, A), ["A"]),
}
LEFT_OUT = {
    "cut off": (b'{"messages": [{"role": "us', "damaged JSON"),
    "a raw NUL": (b'{"messages": "\0"}', "damaged JSON"),
    "two rows on a line": (json.dumps(chat(Q, A)).encode() * 2, "damaged JSON"),
    "nested without end": (b"[" * 100_000, "damaged JSON"),
    "not UTF-8": (b'{"messages": "caf\xe9"}', "not UTF-8"),
    "no object": ([1, 2], "not an object"),
    "a text": ("only words", "not an object"),
    "null": (None, "not an object"),
    "empty object": ({}, "without a conversation"),
    "other columns": ({"a": 1, "b": 2}, "without a conversation"),
    "no messages": (chat(), "without messages"),
    "messages of blanks": ({"messages": "  "}, "without messages"),
    "messages in words": (
        {"messages": "[{'role': oh, well"},
        "messages that are a text and no JSON",
    ),
    "messages that are no list": ({"messages": 5}, "without messages"),
    "a message that is no object": (chat("Q", "A"), "a message that is no object"),
    "no role": (chat({"content": "Q"}, A), "a message without a role"),
    "a role misspelt": (
        chat(Q, said("A", "asistant")),
        "unknown role 'asistant' (did you mean ass",
    ),
    "no answer": (chat(Q), "without an answer"),
    "only the system": (chat(said("S", "system")), "without an answer"),
    "empty answers": (chat(Q, said("")), "without an answer to train on"),
    "null content": (chat(Q, said(None)), "without an answer to train on"),
    "all weights 0": (chat(Q, said("A", weight=0)), "without an answer to train on"),
    "a weight between": (chat(Q, said("A", weight=0.5)), "weight: must be 0 or 1"),
    "train that is no bool": (chat(Q, said("A", train="no")), "train: must be true or false"),
    "a number as content": (chat(Q, said(5)), "a content that is no text (int)"),
    "an image": (
        chat(said([{"type": "image_url", "image_url": {"url": "x"}}], "user"), A),
        "a content that is no text (image_url)",
    ),
    "a lone surrogate": (chat(Q, said("\ud800")), "a lone surrogate"),
    "a result before its call": (chat(Q, RESULT, A), "a tool's result before any call"),
    "a result of no call": (
        chat(Q, CALLING, RESULT | {"tool_call_id": "9"}, A),
        "whose tool_call_id no call has",
    ),
    "a call without a name": (
        chat(Q, {"role": "assistant", "tool_calls": [{"function": {}}]}),
        "a tool call without a name",
    ),
    "arguments that are a list": (with_arguments([1]), "arguments of a tool call that are no obj"),
    "arguments nested deeply": (
        json.dumps(with_arguments({"x": "?"})).replace('"?"', "[" * 900 + "]" * 900).encode(),
        "nested too deeply",
    ),
    "NaN in arguments": (
        json.dumps(with_arguments({"x": float("nan")})).encode(),
        "a number that JSON has not",
    ),
    "tools that are numbers": (chat(Q, A, tools=[5]), "tools that are no objects"),
    "reasoning under /no_think": (
        chat(Q, said("A", reasoning_content="hm"), chat_template_kwargs={"enable_thinking": False}),
        "reasoning in a /no_think conversation",
    ),
    "a bad answer by its label": (
        {"prompt": "Q", "completion": "A", "label": False},
        "label: false",
    ),
    "a pair among conversations": (
        {"prompt": "Q", "chosen": "A", "rejected": "B"},
        "not a conversation",
    ),
    "kwargs that are a text": (chat(Q, A, chat_template_kwargs="x"), "chat_template_kwargs"),
}


def line(row):
    return row if isinstance(row, bytes) else json.dumps(row).encode()


@pytest.fixture(scope="module")
def looked(tmp_path_factory):
    """Every row of the table in one file, behind a BOM and between blank lines."""
    path = tmp_path_factory.mktemp("rows") / "all.jsonl"
    table = {**USED, **LEFT_OUT}
    path.write_bytes(b"\xef\xbb\xbf" + b"\n\n".join(line(row) for row, _ in table.values()))
    rows = list(look(detect(path, format="chat").source, TOKENIZER))
    found = {row.entry.line: row for row in rows}
    assert len(found) == len(rows) == len(table) >= 60
    return {name: found.get(1 + 2 * i) for i, name in enumerate(table)}


@pytest.mark.parametrize("name", USED)
def test_what_is_used(looked, name):
    [side] = looked[name].sides or [None]
    assert side is not None, looked[name].left_out
    assert [text.removesuffix(END) for text in side.trained] == USED[name][1]


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_is_left_out(looked, name):
    assert LEFT_OUT[name][1] in looked[name].left_out
