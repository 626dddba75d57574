import json

import numpy as np
import pytest

from smollm3.chat import default_template
from smollm3.data import Shard, documents, prepare
from smollm3.data.shards import verify
from smollm3.data.spec import FileSource, ProceduralSource
from smollm3.errors import UserError
from smollm3.tokenizer import Tokenizer

CHAT = ProceduralSource(kind="procedural", generator="chat", documents=60, format="chat")
PAIRS = ProceduralSource(kind="procedural", generator="pairs", documents=30, format="preference")


@pytest.fixture(scope="module")
def tokenizer():
    source = ProceduralSource(kind="procedural", generator="maths", documents=100)
    texts = [text for document in documents(source, 0) for text in document.texts()]
    return Tokenizer.train(texts, 400, default_template("Test"))


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"text": f"Document {i} says {i * i}."} for i in range(200)] + [{"text": 0}]
    path.write_text("\n".join(map(json.dumps, rows)))
    return FileSource(kind="jsonl", files=[str(path)], holdout=0.1)


def texts_of(shard, tokenizer):
    return [
        tokenizer.decode(shard.tokens[shard.document(i)].tolist()) for i in range(shard.documents)
    ]


def test_every_document_once_ended_shuffled_and_held_out_apart(tmp_path, source, tokenizer):
    shard = prepare("rows", source, tokenizer, tmp_path / "cache", 0)
    heldout = Shard.open(shard.folder, "heldout")
    train, held = texts_of(shard, tokenizer), texts_of(heldout, tokenizer)
    assert all(text.endswith(".<|end_of_text|>") for text in train)
    assert 5 <= len(held) <= 40
    assert not set(train) & set(held)
    everything = [f"Document {i} says {i * i}.<|end_of_text|>" for i in range(200)]
    assert sorted(train + held) == sorted(everything)
    assert train != [text for text in everything if text in train]
    assert shard.meta["skipped"] == {"without the field 'text'": 1}
    assert shard.meta["documents"] == shard.documents == len(train)
    assert shard.meta["tokens"] == shard.n_tokens == int(shard.ends[-1])
    assert shard.tokens.dtype == np.uint16
    assert shard.masks is None


def test_same_inputs_give_the_same_bytes(tmp_path, source, tokenizer):
    one = prepare("rows", source, tokenizer, tmp_path / "x", 0)
    two = prepare("rows", source, tokenizer, tmp_path / "y", 0)
    other = prepare("rows", source, tokenizer, tmp_path / "y", 1)
    assert one.folder.name == two.folder.name != other.folder.name
    assert one.digest == two.digest != other.digest
    files = [path.relative_to(one.folder) for path in one.folder.rglob("*") if path.is_file()]
    assert len(files) == 8
    for file in files:
        assert (one.folder / file).read_bytes() == (two.folder / file).read_bytes()


def test_finished_folders_are_reused(tmp_path, source, tokenizer):
    shard = prepare("rows", source, tokenizer, tmp_path / "cache", 0)
    before = (shard.folder / "meta.json").stat().st_mtime_ns
    prepare("rows", source, tokenizer, tmp_path / "cache", 0)
    assert (shard.folder / "meta.json").stat().st_mtime_ns == before
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [shard.folder.name]


@pytest.mark.parametrize("damage", ["cut", "delete", "meta"])
def test_a_damaged_shard_is_named_and_made_anew(tmp_path, source, tokenizer, damage):
    shard = prepare("rows", source, tokenizer, tmp_path / "cache", 0)
    path = shard.folder / ("meta.json" if damage == "meta" else "train/00000.ds")
    if damage == "delete":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match=path.name):
        Shard.open(shard.folder)
    again = prepare("rows", source, tokenizer, tmp_path / "cache", 0)
    assert again.digest == shard.digest


def test_a_changed_file_is_prepared_again(tmp_path, source, tokenizer):
    one = prepare("rows", source, tokenizer, tmp_path / "cache", 0)
    with open(source.files[0], "a") as f:
        f.write('\n{"text": "one more"}')
    two = prepare("rows", source, tokenizer, tmp_path / "cache", 0)
    assert two.digest != one.digest
    assert two.meta["documents"] + two.meta["heldout"]["documents"] == 201


def test_datatrove_layout(tmp_path, source, tokenizer):
    shard = prepare("rows", source, tokenizer, tmp_path / "cache", 0)
    tokens = np.fromfile(shard.folder / "train/00000.ds", np.uint16)
    ends = np.fromfile(shard.folder / "train/00000.ds.index", np.uint64)
    assert (tokens == shard.tokens[:]).all()
    assert (tokens[ends.astype(int) - 1] == tokenizer.end_of_text_id).all()
    name, count = (shard.folder / "train/00000.ds.metadata").read_text().splitlines()
    assert name.endswith("|2")
    assert int(count) == len(tokens)


@pytest.mark.parametrize(
    ("contents", "share", "held"),
    [([1, 2], 0.01, 1), ([1, 2], 0.0, 0), ([1], 0.5, 0), ([1, 2, 3], 0.999, 2), ([7, 7], 0.5, 0)],
)
def test_small_sources_keep_a_document_on_each_side(tmp_path, contents, share, held):
    from smollm3.data.shards import _held_out

    spread = np.array(contents, np.uint64) * np.uint64(2**60)
    assert _held_out(spread, share, alone=True).sum() == held


def test_masks_of_conversations(tmp_path, tokenizer):
    shard = prepare("chat", CHAT, tokenizer, tmp_path, 0)
    assert shard.masks is not None
    thinking = 0
    for i in range(shard.documents):
        where = shard.document(i)
        ids, masks = shard.tokens[where], shard.masks[where]
        text = tokenizer.decode(ids.tolist())
        answer = text.split("<|im_start|>assistant\n")[1]
        assert tokenizer.decode(ids[masks & 2 > 0].tolist()) == f"<|im_start|>assistant\n{answer}"
        own = answer.removeprefix("<think>\n\n</think>\n").removesuffix("\n")
        assert tokenizer.decode(ids[masks & 1 > 0].tolist()) == own
        thinking += own.startswith("<think>")
    assert 0 < thinking < shard.documents
    by_mode = shard.meta["tokens_by_mode"]
    assert set(by_mode) == {"think", "no_think"}
    assert sum(by_mode.values()) == shard.n_tokens + shard.meta["heldout"]["tokens"]


def test_pairs_share_the_prompt_and_mark_the_answer(tmp_path, tokenizer):
    shard = prepare("pairs", PAIRS, tokenizer, tmp_path, 0)
    assert shard.masks is not None
    assert shard.documents % 2 == 0
    for i in range(0, shard.documents, 2):
        chosen, rejected = shard.document(i), shard.document(i + 1)
        sides = []
        for where in (chosen, rejected):
            ids, mask = shard.tokens[where], shard.masks[where]
            assert set(mask.tolist()) == {0, 3}
            assert ids[-1] in tokenizer.stop_ids
            start = int(np.flatnonzero(mask)[0])
            assert (mask[start:] == 3).all()
            sides.append((ids[:start].tolist(), ids[start:].tolist()))
        assert sides[0][0] == sides[1][0]
        assert sides[0][1] != sides[1][1]
        prompt = tokenizer.decode(sides[0][0])
        assert prompt.endswith(("assistant\n", "assistant\n<think>\n\n</think>\n"))


def test_conversations_that_cannot_be_rendered_are_counted(tmp_path, tokenizer):
    user = {"role": "user", "content": "Q"}
    thought = {"role": "assistant", "content": "A", "reasoning_content": "because"}
    rows = [
        {"messages": [user, thought]},
        {"messages": [user, thought], "chat_template_kwargs": {"enable_thinking": False}},
        {"messages": [{"role": "nobody", "content": ""}, thought]},
    ]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = FileSource(kind="jsonl", files=[str(tmp_path / "c.jsonl")], format="chat")
    shard = prepare("c", source, tokenizer, tmp_path / "cache", 0)
    assert shard.documents == 1
    assert sum(shard.meta["skipped"].values()) == 2


def test_errors_name_the_source(tmp_path, tokenizer):
    source = FileSource(kind="text", files=[str(tmp_path / "none.txt")])
    with pytest.raises(UserError, match=r"sources\.mine: .*none\.txt: no such file"):
        prepare("mine", source, tokenizer, tmp_path, 0)
    (tmp_path / "c.jsonl").write_text('{"messages": [{"role": "assistant", "content": 1}]}')
    source = FileSource(kind="jsonl", files=[str(tmp_path / "c.jsonl")], format="chat")
    with pytest.raises(
        UserError, match=r"sources\.chat: .*no usable documents in it \(1 a content that is no text"
    ):
        prepare("chat", source, tokenizer, tmp_path / "cache", 0)
    assert not [p for p in (tmp_path / "cache").iterdir() if not p.name.startswith(".")]


def test_progress_is_told(tmp_path, source, tokenizer):
    seen = []
    prepare("rows", source, tokenizer, tmp_path / "cache", 0, progress=seen.append)
    assert seen == [64, 128, 192, 200]


@pytest.mark.parametrize("file", ["train/00000.ds", "heldout/00000.ds.index", "parts/00000.json"])
def test_a_change_of_the_same_size_is_found_by_verify(tmp_path, source, tokenizer, file):
    shard = prepare("rows", source, tokenizer, tmp_path / "cache", 0)
    assert list(verify(shard.folder)) == []
    path = shard.folder / file
    data = path.read_bytes()
    changed = data.replace(b'"digest": "', b'"digest": "0', 1) if file.endswith("json") else data
    path.write_bytes(changed[:-1] + bytes([changed[-1] ^ 1]) if changed == data else changed)
    assert [line.split(":")[0] for line in verify(shard.folder)] == [str(path)]
    path.unlink()
    if not file.startswith("parts"):
        assert list(verify(shard.folder)) == [f"{path}: missing"]


def test_only_the_last_answer_of_a_pair_counts(tmp_path, tokenizer):
    def said(role, content, **more):
        return {"role": role, "content": content, **more}

    turns = [said("user", "One?"), said("assistant", "Two."), said("user", "Three?")]
    rows = [
        {"prompt": turns, "chosen": "Four.", "rejected": "Five, no."},
        {"prompt": turns, "chosen": [said("user", "Four.")], "rejected": "Five."},
        {
            "prompt": turns,
            "chosen": [said("assistant", "Four.", reasoning_content="because")],
            "rejected": "Five.",
            "chat_template_kwargs": {"enable_thinking": False},
        },
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = FileSource(kind="jsonl", files=[str(tmp_path / "p.jsonl")], format="preference")
    shard = prepare("p", source, tokenizer, tmp_path / "cache", 0)
    assert shard.masks is not None
    answers = [
        tokenizer.decode(shard.tokens[w][shard.masks[w] == 3].tolist())
        for w in map(shard.document, range(shard.documents))
    ]
    assert answers == ["Four.<|im_end|>", "Five, no.<|im_end|>"]
    assert sum(shard.meta["skipped"].values()) == 2
    assert "the sides of the pair answer different prompts" in shard.meta["skipped"]
