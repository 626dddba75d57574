"""Any template renders as in transformers: text, ids, masks and errors."""

import random

import pytest
from tests.support.templates import PUBLISHED, tokenizer_for, trl_templates
from transformers import AutoTokenizer

from smollm3.chat import default_template
from smollm3.errors import UserError
from smollm3.tokenizer import CONTROL

OURS = default_template("Nano", "Lab", "June 2025")
TEMPLATES = {"ours": OURS, "published": PUBLISHED, **trl_templates()}
WORDS = [*CONTROL, "a", " b", "\n", "<", "1 2", "é", "日", "{", "'", "/think", "/no_think", "  "]
PARTS_ONLY = ("idefics3", "llava_next", "smolvlm")
TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "description": "dé <b>",
        "parameters": {
            "type": "object",
            "properties": {"x": {"type": "integer", "description": "n"}},
            "required": ["x"],
        },
    },
}


class Conversations:
    """Conversations such as clients and data sets hold, and some that templates refuse."""

    def __init__(self, seed):
        self.random = random.Random(seed)

    def text(self):
        return "".join(self.random.choices(WORDS, k=self.random.randrange(5)))

    def content(self):
        if self.random.random() < 0.9:
            return self.text()
        return self.random.choice([None, [{"type": "text", "text": self.text()}], []])

    def arguments(self):
        arguments = {self.text(): self.random.choice([1, None, 0.5, self.text(), [True]])}
        return self.random.choice([arguments, {}, '{"x": 1}'])

    def turn(self, role):
        message = {"role": role, "content": self.content()}
        if role == "tool":
            message |= {"tool_call_id": "call00001", "name": "f"}
        if role == "assistant" and self.random.random() < 0.3:
            message["reasoning_content"] = self.text()
        if role == "assistant" and self.random.random() < 0.3:
            function = {"name": "f", "arguments": self.arguments()}
            call = {"id": "call00001", "type": "function", "function": function}
            message["tool_calls"] = [call] * self.random.randrange(1, 3)
        return message

    def conversation(self):
        n = self.random.randrange(1, 6)
        roles = [["user", "assistant"][i % 2] for i in range(n)]
        if self.random.random() < 0.4:
            roles = self.random.choices(["user", "assistant", "tool", "system"], k=n)
        if self.random.random() < 0.4:
            roles = ["system", *roles]
        return [self.turn(role) for role in roles]

    def options(self):
        options = {
            "enable_thinking": self.random.random() < 0.5,
            "add_generation_prompt": self.random.random() < 0.5,
            "tools": [TOOL] if self.random.random() < 0.4 else None,
        }
        if self.random.random() < 0.2:
            options["custom_instructions"] = self.text()
        if self.random.random() < 0.2:
            options["python_tools"] = ["def g(): ..."]
        return options


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    ours = tokenizer_for(list(TEMPLATES.values()))
    ours.save(folder)
    return ours, AutoTokenizer.from_pretrained(folder)


def outcome(function, errors):
    try:
        return function()
    except errors as e:
        return f"{type(e).__name__}: {e}"


def assert_same(pair, name, n):
    source = TEMPLATES[name]
    ours, theirs = pair[0].with_template(source), pair[1]
    conversations = Conversations(seed=name)
    masked = "generation %}" in source
    raised = 0
    for _ in range(n):
        chat, options = conversations.conversation(), conversations.options()
        call = {"conversation": chat, "chat_template": source, **options}
        try:
            text = theirs.apply_chat_template(tokenize=False, **call)
            expected = theirs.apply_chat_template(
                return_dict=True, return_assistant_tokens_mask=masked, **call
            )
        except Exception:
            raised += 1
            with pytest.raises(UserError, match="chat template: "):
                ours.render(chat, exact=True, **options)
            continue
        assert ours.render_text(chat, exact=True, **options) == text
        rendered = ours.render(chat, exact=True, **options)
        assert rendered.ids == expected["input_ids"]
        if masked:
            assert_same_mask(ours, rendered, expected["assistant_masks"])
        if is_plain(chat, every=name == "ours"):
            if name.startswith(PARTS_ONLY):  # they print no texts: we give them parts
                chat = [m | {"content": [{"type": "text", "text": m["content"]}]} for m in chat]
                call["conversation"] = chat
                text = theirs.apply_chat_template(tokenize=False, **call)
            assert ours.render_text(chat, **options) == text
    return raised


def assert_same_mask(tok, rendered, expected):
    for token, ours, theirs in zip(rendered.ids, rendered.published, expected, strict=True):
        # They forget the further bytes of a character at the end of a block.
        assert ours == bool(theirs) or (ours and tok.decode([token]) == "�")


def is_plain(chat, every):
    """Whether nothing is brought into another form for the template, nor spelled like its own."""
    if any(message["role"] == "system" for message in chat[1:]):
        return False  # gathered in front
    for message in chat:
        if not isinstance(message["content"], str):
            return False
        if any(isinstance(c["function"]["arguments"], str) for c in message.get("tool_calls", [])):
            return False
        if not every and (message["role"] == "tool" or len(message) > 2):
            return False
        if not every and "<" in message["content"]:
            return False
    return True


def test_ours(pair):
    assert assert_same(pair, "ours", 200) == 0


def test_published(pair):
    assert_same(pair, "published", 100)


@pytest.mark.parametrize("name", trl_templates())
def test_trl(pair, name):
    assert_same(pair, name, 4)


@pytest.mark.slow
@pytest.mark.parametrize("name", trl_templates())
def test_trl_many(pair, name):
    assert_same(pair, name, 200)
