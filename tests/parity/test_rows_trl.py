"""Rows of data sets as trl renders and masks them, where the template is ours."""

import copy
import json

import pytest
from transformers import AutoTokenizer
from trl.data_utils import apply_chat_template, extract_prompt, maybe_convert_to_chatml

from smollm3.chat import default_template
from smollm3.data.preparation import rendered
from smollm3.data.shards import GENERATED, PUBLISHED
from smollm3.data.sources import documents
from smollm3.data.spec import FileSource
from smollm3.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    ours = Tokenizer.train(["Some text to learn from: 1, 2, 3.\n"] * 5, 330, default_template())
    ours.save(folder)
    return ours, AutoTokenizer.from_pretrained(folder)


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


SYSTEM, ASK, ANSWER = (
    turn("system", "Be brief."),
    turn("user", "Two and two?"),
    turn("assistant", "4."),
)
CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALLS = [ASK, turn("assistant", "", tool_calls=[CALL]), turn("tool", "4", tool_call_id="1"), ANSWER]
THINK = {"chat_template_kwargs": {"enable_thinking": True}}
CHATS = {
    "messages": {"messages": [ASK, ANSWER, ASK, ANSWER]},
    "system": {"messages": [SYSTEM, ASK, ANSWER]},
    "reasoning": {"messages": [ASK, {**ANSWER, "reasoning_content": "2 + 2"}], **THINK},
    "tools": {"messages": CALLS, "tools": [TOOL]},
    "tools as JSON text": {"messages": CALLS, "tools": json.dumps([TOOL])},
    "unused tools": {"messages": [ASK, ANSWER], "tools": [TOOL], **THINK},
    "ShareGPT": {"conversations": [{"from": m["role"], "value": m["content"]} for m in (ASK, ANSWER)]},
}  # fmt: skip
COMPLETIONS = {
    "messages": {"prompt": [SYSTEM, ASK], "completion": [ANSWER]},
    "earlier turns": {"prompt": [ASK, ANSWER, ASK], "completion": [ANSWER]},
    "tools": {"prompt": [ASK], "completion": CALLS[1:], "tools": [TOOL]},
}
OTHER = turn("assistant", "5, no?")
PAIRS = {
    "explicit": {"prompt": [SYSTEM, ASK], "chosen": [ANSWER], "rejected": [OTHER]},
    "implicit": {"chosen": [ASK, ANSWER], "rejected": [ASK, OTHER]},
    "many turns": {"chosen": [ASK, ANSWER, ASK, ANSWER], "rejected": [ASK, ANSWER, ASK, OTHER]},
    "both": {"prompt": "Two and two?", "chosen": [ASK, ANSWER], "rejected": [ASK, OTHER]},
    "reasoning": {
        "prompt": [ASK],
        "chosen": [{**ANSWER, "reasoning_content": "hm"}],
        "rejected": [{**OTHER, "reasoning_content": "eh"}],
        **THINK,
    },
}


def ours_of(row, tokenizer, folder, form):
    """(ids, masks) of each side."""
    (folder / "row.jsonl").write_text(json.dumps(row))
    source = FileSource(kind="files", files=[str(folder / "row.jsonl")], format=form)
    [document] = documents(source, 0)
    return zip(*rendered(document, tokenizer), strict=True)


def theirs_of(row):
    """(row in trl's form, tools, mode): rows that say nothing about thinking get ours."""
    row = maybe_convert_to_chatml(copy.deepcopy(row))
    tools = row.pop("tools", None)
    mode = row.pop("chat_template_kwargs", {"enable_thinking": False})
    return row, json.loads(tools) if isinstance(tools, str) else tools, mode


@pytest.mark.parametrize("name", CHATS)
def test_conversations(pair, tmp_path, name):
    ours, theirs = pair
    [(ids, mask)] = ours_of(CHATS[name], ours, tmp_path, "chat")
    row, tools, mode = theirs_of(CHATS[name])
    made = theirs.apply_chat_template(
        row["messages"],
        tools=tools,
        return_dict=True,
        return_assistant_tokens_mask=True,
        **mode,
    )
    assert ids == made["input_ids"]
    assert [bool(bit & PUBLISHED) for bit in mask] == [bool(m) for m in made["assistant_masks"]]


@pytest.mark.parametrize("name", COMPLETIONS)
def test_prompts_and_completions(pair, tmp_path, name):
    ours, theirs = pair
    [(ids, mask)] = ours_of(COMPLETIONS[name], ours, tmp_path, "chat")
    row, tools, mode = theirs_of(COMPLETIONS[name])
    made = apply_chat_template(row, theirs, tools=tools, **mode)
    assert ours.decode(ids) == made["prompt"] + made["completion"]
    first = next(i for i, bit in enumerate(mask) if bit & GENERATED)
    assert ours.decode(ids[first:]) == made["completion"]


@pytest.mark.parametrize("name", PAIRS)
def test_pairs(pair, tmp_path, name):
    ours, theirs = pair
    sides = ours_of(PAIRS[name], ours, tmp_path, "preference")
    row, tools, mode = theirs_of(PAIRS[name])
    if not isinstance(row.get("prompt"), list):
        row = extract_prompt(row)
    made = apply_chat_template(row, theirs, tools=tools, **mode)
    for (ids, mask), side in zip(sides, ("chosen", "rejected"), strict=True):
        # Ours end with the stop token, theirs with the line end behind it.
        assert ours.decode(ids) + "\n" == made["prompt"] + made[side]
        trained = [i for i, bit in zip(ids, mask, strict=True) if bit & GENERATED]
        assert ours.decode(trained) + "\n" == made[side]
