"""What transformers and trl make of a folder that we saved."""

import json
from importlib import resources

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer
from trl.chat_template_utils import (
    has_generation_markers,
    is_chat_template_prefix_preserving,
    is_chat_template_stop_token_trained,
)

from smollm3.chat import default_template
from smollm3.tokenizer import CONTROL, Tokenizer

TEXTS = ["Some text to learn from, du texte, del texto: 1, 2, 3.\n\n    return <x>\r\n"] * 5


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    ours = Tokenizer.train(TEXTS, 330, default_template("Nano", "Lab", "June 2025"))
    ours.save(folder)
    return ours, AutoTokenizer.from_pretrained(folder)


def test_same_vocabulary(pair):
    ours, theirs = pair
    assert len(theirs) == ours.vocab_size
    assert theirs.eos_token_id == ours.stop_ids[0]
    assert theirs.pad_token_id == ours.pad_id
    assert theirs.bos_token_id is None
    for token, special in CONTROL.items():
        index = theirs.convert_tokens_to_ids(token)
        assert [index] == ours.encode_markup(token)
        assert theirs.added_tokens_decoder[index].special == special


@settings(max_examples=100)
@given(st.lists(st.sampled_from([*CONTROL, "a", " b", "\n", "1234", "é", " <"])).map("".join))
def test_same_markup_ids(pair, text):
    ours, theirs = pair
    ids = ours.encode_markup(text)
    assert theirs(text)["input_ids"] == ids
    for skip in (False, True):
        assert theirs.decode(ids, skip_special_tokens=skip) == ours.decode(ids, skip_special=skip)


TOOL = {
    "type": "function",
    "function": {"name": "f", "description": "dé", "parameters": {"type": "object"}},
}
# No "<": contents that spell control tokens differ on purpose.
content = st.text(st.characters(codec="utf-8", exclude_characters="<"), max_size=12)
answers = content.filter(lambda text: text == text.lstrip())
calls = st.fixed_dictionaries(
    {
        "type": st.just("function"),
        "function": st.fixed_dictionaries(
            {"name": st.just("f"), "arguments": st.dictionaries(content, st.integers(), max_size=2)}
        ),
    }
)
turns = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "tool"]), "content": content})
    | st.fixed_dictionaries(
        {"role": st.just("assistant"), "content": answers},
        optional={"reasoning_content": content, "tool_calls": st.lists(calls, max_size=2)},
    ),
    min_size=1,
    max_size=5,
)
system = st.just([]) | content.map(lambda text: [{"role": "system", "content": text}])


options = st.fixed_dictionaries(
    {
        "enable_thinking": st.booleans(),
        "add_generation_prompt": st.booleans(),
        "tools": st.none() | st.just([TOOL]),
    },
    optional={
        "python_tools": st.just(["def g(): ..."]),
        "custom_instructions": st.just("Be é."),
    },
)


@settings(max_examples=150)
@given(system, turns, options)
def test_same_conversations(pair, system, turns, options):
    ours, theirs = pair
    rendered = ours.render(system + turns, **options)
    expected = theirs.apply_chat_template(
        system + turns, return_dict=True, return_assistant_tokens_mask=True, **options
    )
    text = theirs.apply_chat_template(system + turns, tokenize=False, **options)
    assert ours.render_text(system + turns, **options) == text
    assert rendered.ids == expected["input_ids"]
    assert rendered.published == [bool(on) for on in expected["assistant_masks"]]


def test_defaults_are_the_same(pair):
    ours, theirs = pair
    chat = [{"role": "user", "content": [{"type": "text", "text": "a"}]}]
    assert theirs.apply_chat_template(chat, tokenize=False) == ours.render_text(
        chat, add_generation_prompt=False
    )


def test_trl_accepts_the_template(pair):
    _, theirs = pair
    assert has_generation_markers(theirs.chat_template)
    assert is_chat_template_prefix_preserving(theirs)
    assert is_chat_template_stop_token_trained(theirs)


@pytest.mark.parametrize(
    "name", ["qwen2_5", "qwen2_5_training", "qwen3", "qwen3_training", "llama3", "llama3_1"]
)
def test_other_templates(pair, tmp_path, name):
    ours, _ = pair
    ours.save(tmp_path)
    source = resources.files("trl").joinpath(f"chat_templates/{name}.jinja").read_text()
    (tmp_path / "chat_template.jinja").write_text(source)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["bos_token"] = "<|begin_of_text|>"
    if name.startswith("llama"):
        config["eos_token"] = "<|eot_id|>"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours, theirs = Tokenizer.load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a 1"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d"},
    ]
    options = {"tools": [TOOL], "enable_thinking": True}
    for messages, prompt in ((chat, False), (chat[:-1], True)):
        expected = theirs.apply_chat_template(
            messages,
            add_generation_prompt=prompt,
            return_dict=True,
            return_assistant_tokens_mask="training" in name,
            **options,
        )
        rendered = ours.render(messages, add_generation_prompt=prompt, **options)
        assert rendered.ids == expected["input_ids"]
        if "training" in name:
            assert rendered.published == [bool(on) for on in expected["assistant_masks"]]
