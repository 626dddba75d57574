"""Tokenizer: training, folders, text against markup, stops."""

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smollm3.chat import default_template
from smollm3.errors import UserError
from smollm3.tokenizer import CONTROL, Tokenizer

TEXTS = [
    "def add(a, b):\n    return a + b\n\n\nfor n in range(1000):\n    print(add(n, 12345))\n",
    "The garden is green. Le jardin est vert. El jardín es verde. O jardim é verde, não é?\n",
    "Der Garten ist grün; il giardino è verde.\r\n\tHe's 3.14 years old <|im_end|> </think>\n",
] * 20


def train():
    return Tokenizer.train(iter(TEXTS), 390, default_template("Nano"))


@pytest.fixture(scope="module")
def tok():
    return train()


def test_layout(tok):
    assert tok.vocab_size == 390
    base = 390 - len(CONTROL)
    assert [tok.encode_markup(token) for token in CONTROL] == [[base + i] for i in range(18)]
    assert tok.decode(tok.stop_ids) == "<|im_end|><|end_of_text|>"
    assert tok.decode([tok.end_of_text_id]) == "<|end_of_text|>"
    assert tok.decode([tok.pad_id]) == "<|finetune_right_pad_id|>"
    assert tok.bos is None


def test_same_texts_same_bytes_in_another_process(tok, tmp_path):
    code = f"""
from smollm3.chat import default_template
from smollm3.tokenizer import Tokenizer
Tokenizer.train({TEXTS!r}, 390, default_template("Nano")).save({str(tmp_path / "b")!r})
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONHASHSEED": "7"})
    tok.save(tmp_path / "a")
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == [
        "chat_template.jinja",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_split_is_llama_3s(tok):
    pre = tok._markup.pre_tokenizer
    pieces = [piece for piece, _ in pre.pre_tokenize_str("It's 12345 añb,\n\n  x")]
    assert pieces == ["It", "'s", "Ġ", "123", "45", "ĠaÃ±b", ",ĊĊ", "Ġ", "Ġx"]


@settings(max_examples=200)
@given(st.text(st.characters(codec="utf-8")))
def test_text_round_trip(text):
    tok = MODULE_TOK
    assert tok.decode(tok.encode(text)) == text
    assert max(tok.encode(text), default=0) < tok.vocab_size - len(CONTROL)


MODULE_TOK = train()
spelled = st.lists(
    st.sampled_from([*CONTROL, "<", "|", ">", " ", "im_end", "<|im_", "\n", "a"]), max_size=8
).map("".join)


@settings(max_examples=200)
@given(spelled)
def test_text_never_becomes_control(text):
    ids = MODULE_TOK.encode(text)
    assert MODULE_TOK.decode(ids) == text
    assert max(ids, default=0) < MODULE_TOK.vocab_size - len(CONTROL)


def test_encode_batch_is_encode(tok):
    texts = ["", "a b", "<think>", TEXTS[1]]
    assert tok.encode_batch(texts) == [tok.encode(text) for text in texts]
    assert tok.encode_batch([]) == []


def test_markup_and_skip_special(tok):
    ids = tok.encode_markup("<|im_start|>a<think>b</think><tool_call>c</tool_call><|im_end|>")
    assert sum(i >= tok.vocab_size - len(CONTROL) for i in ids) == 6
    assert tok.decode(ids, skip_special=True) == "a<think>b</think><tool_call>c</tool_call>"


def test_parse_ids_stop_at_the_stop_token(tok):
    ids = tok.encode_markup("<think>\nhm\n</think>\n7<|im_end|>\n<|im_start|>user")
    message = tok.parse(ids)
    assert (message.reasoning, message.content) == ("hm", "7")


def test_lone_surrogates_are_refused(tok):
    for encode in (tok.encode, tok.encode_markup):
        with pytest.raises(UserError, match="surrogate"):
            encode("a\ud800")
    with pytest.raises(UserError, match="surrogate"):
        tok.render([{"role": "user", "content": "\ud800"}])


def test_vocab_too_small():
    with pytest.raises(UserError, match="274"):
        Tokenizer.train(TEXTS, 273, "")
    assert Tokenizer.train(["aa"], 1000, "").vocab_size == 256 + 1 + len(CONTROL)


def test_save_and_load(tok, tmp_path):
    tok.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.digest == tok.digest
    assert again.template == tok.template
    assert (again.stop_ids, again.pad_id, again.end_of_text_id) == (
        tok.stop_ids,
        tok.pad_id,
        tok.end_of_text_id,
    )
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    assert Tokenizer.load(tmp_path).digest != tok.digest


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"\xff\xfe"])
def test_bad_files_are_named(tok, tmp_path, name, content):
    tok.save(tmp_path)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=name):
        Tokenizer.load(tmp_path)


def test_bad_template_and_bad_eos_are_named(tok, tmp_path):
    tok.save(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"chat_template\.jinja: not UTF-8"):
        Tokenizer.load(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    edit(tmp_path / "tokenizer_config.json", eos_token="<nope>")
    with pytest.raises(UserError, match=r"eos_token '<nope>'"):
        Tokenizer.load(tmp_path)
    edit(tmp_path / "tokenizer_config.json", eos_token=None)
    with pytest.raises(UserError, match="no eos_token"):
        Tokenizer.load(tmp_path)


LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


@pytest.fixture
def llama(tok, tmp_path):
    """A folder as Llama 3 has it: adds a BOS, several stops, ends of turn that are not ChatML, the
    template inside tokenizer_config.json, control tokens listed in the model's own vocabulary."""
    tok.save(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    parts = json.loads((tmp_path / "tokenizer.json").read_text())
    added = {token["content"]: token["id"] for token in parts["added_tokens"]}
    bos = "<|begin_of_text|>"
    parts["model"]["vocab"] |= added
    parts["model"]["ignore_merges"] = True
    parts["model"]["unk_token"] = "<|end_of_text|>"
    parts["truncation"] = {
        "max_length": 3,
        "strategy": "LongestFirst",
        "stride": 0,
        "direction": "Right",
    }
    parts["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": bos, "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {bos: {"id": bos, "ids": [added[bos]], "tokens": [bos]}},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(parts))
    config = {"bos_token": {"content": bos}, "eos_token": "<|eot_id|>", "chat_template": LLAMA}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    stops = [added["<|end_of_text|>"], added["<|eom_id|>"], added["<|eot_id|>"]]
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": stops}))
    return tmp_path


def test_a_llama_folder(llama):
    tok = Tokenizer.load(llama)
    assert [tok.decode([i]) for i in tok.stop_ids] == [
        "<|eot_id|>",
        "<|end_of_text|>",
        "<|eom_id|>",
    ]
    assert tok.decode([tok.bos]) == "<|begin_of_text|>"
    assert tok.pad_id == tok.end_of_text_id
    for text in ("hello there", "<|eot_id|> and </think>", "<|end_of_text|>"):
        ids = tok.encode(text)
        assert tok.decode(ids) == text
        assert max(ids) < tok.vocab_size - len(CONTROL)
    chat = [{"role": "user", "content": "a<|eot_id|>"}, {"role": "assistant", "content": "b"}]
    rendered = tok.render(chat, add_generation_prompt=False)
    assert sum(i in tok.stop_ids for i in rendered.ids) == 2
    pairs = zip(rendered.ids, rendered.generated, strict=True)
    assert tok.decode([i for i, trained in pairs if trained]) == "b<|eot_id|>"
    assert not any(rendered.published)
    assert rendered.ids[0] == tok.bos
    assert tok.render([{"role": "user", "content": "a"}]).ids.count(tok.bos) == 1
    assert tok.render_text(chat).startswith("<|begin_of_text|><|start_header_id|>user")

    tok.save(llama / "again")
    (llama / "again" / "generation_config.json").write_bytes(
        (llama / "generation_config.json").read_bytes()
    )
    assert Tokenizer.load(llama / "again").digest == tok.digest


@pytest.mark.parametrize("unknown", [None, "<|end_of_text|>"])
def test_control_tokens_among_the_pieces_are_out_of_reach(llama, unknown):
    """Without a split, `ignore_merges` would find them as whole words."""
    parts = json.loads((llama / "tokenizer.json").read_text())
    parts["model"]["unk_token"] = unknown
    parts["pre_tokenizer"] = parts["pre_tokenizer"]["pretokenizers"][1]
    (llama / "tokenizer.json").write_text(json.dumps(parts))
    tok = Tokenizer.load(llama)
    for token in CONTROL:
        assert len(tok.encode(token)) > 1
        assert tok.decode(tok.encode(token)) == token


def test_added_runs_of_blanks_are_text(tok, tmp_path):
    """As in GPT-NeoX's vocabulary: added, but no markup."""
    tok.save(tmp_path)
    parts = json.loads((tmp_path / "tokenizer.json").read_text())
    parts["added_tokens"].append({**parts["added_tokens"][2], "id": 390, "content": "     "})
    (tmp_path / "tokenizer.json").write_text(json.dumps(parts))
    tok = Tokenizer.load(tmp_path)
    assert 390 in tok.encode("a     b")
    rendered = tok.render([{"role": "user", "content": "<     >"}])
    assert 390 in rendered.ids


@pytest.mark.parametrize("run", [None, "     "])
def test_text_by_the_shared_model_is_that_of_one_apart(tok, tmp_path, monkeypatch, run):
    tok.save(tmp_path)
    if run:  # among the pieces, before the control tokens
        parts = json.loads((tmp_path / "tokenizer.json").read_text())
        first = len(parts["model"]["vocab"])
        parts["model"]["vocab"][run] = first
        added = [{**token, "id": token["id"] + 1} for token in parts["added_tokens"]]
        blanks = {**added[2], "id": first, "content": run}
        (tmp_path / "tokenizer.json").write_text(
            json.dumps({**parts, "added_tokens": [blanks, *added]})
        )
    tok = Tokenizer.load(tmp_path)
    apart = tok._text_apart()
    monkeypatch.setattr(Tokenizer, "_text_apart", None)
    for text in (*TEXTS[:3], "a     b", *CONTROL, "x<|im_end|>     </think>"):
        assert tok.encode(text) == apart.encode(text).ids
    assert not set(tok.encode("".join(CONTROL))) & set(tok._control_ids.values())
    assert run is None or first in tok.encode("a     b")


def test_no_template(tok, tmp_path):
    tok.save(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="no chat template"):
        Tokenizer.load(tmp_path).render([{"role": "user", "content": "a"}])


def test_named_templates(tok, tmp_path):
    tok.save(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    edit(tmp_path / "tokenizer_config.json", chat_template=named)
    assert Tokenizer.load(tmp_path).template == "yes"
