"""The Hub, up and down, against a stand-in on 127.0.0.1."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from tests.support.hub_server import TOKEN, Hub, stand_in

from smollm3.checkpoint import digest, load_model, locate, save_model, weights
from smollm3.checkpoint.hub import push
from smollm3.errors import UserError
from smollm3.model import ModelConfig, Transformer, nope_pattern
from smollm3.tokenizer import Tokenizer

# huggingface_hub sends files to its HTTP library in a way that the latter has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")

CARD = "---\ntags: [smollm3]\n---\n# tiny\n"
REPO = "somebody/tiny"
CONFIG = ModelConfig(
    vocab_size=300,
    layers=2,
    hidden=32,
    heads=2,
    kv_heads=1,
    head_dim=16,
    ffn=48,
    uses_rope=nope_pattern(2, 4),
    rope_theta=10_000.0,
    context=64,
)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with stand_in() as server:
        settings = {
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "DOWNLOAD_CHUNK_SIZE": 4096,
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_TOKEN_PATH": str(tmp_path / "no token"),
        }
        for name, value in settings.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        yield server


def save(folder: Path, config: ModelConfig = CONFIG, seed: int = 0) -> Transformer:
    model = Transformer(config)
    model.init_weights(seed)
    save_model(model, Tokenizer.train(["to be or not to be"], 300, "{{ messages }}"), folder)
    (folder / "README.md").write_text(CARD)
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    save(path)
    return path


@pytest.fixture
def sharded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(weights, "SHARD_BYTES", 40_000)
    path = tmp_path / "sharded"
    save(path)
    assert len(list(path.glob("model-*.safetensors"))) > 1
    return path


def test_up_and_down_again(hub: Hub, folder: Path) -> None:
    (folder / "optimizer.safetensors").write_bytes(b"mine")
    (folder / "stage.json").write_text("{}")
    url = push(folder, REPO, private=True)
    assert url == f"{hub.url}/{REPO}/commit/{hub.at(REPO, 'main')[0]}"
    assert hub.private[REPO]
    assert len(hub.commits[REPO]) == 2  # making the repository, and one commit
    files = hub.files(REPO)
    assert files["README.md"].decode() == CARD
    assert set(files) == {
        ".gitattributes",
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    (folder / "optimizer.safetensors").unlink()
    assert digest(locate(REPO)) == digest(folder)


def test_a_second_upload_leaves_no_old_weights(hub: Hub, folder: Path, sharded: Path) -> None:
    push(sharded, REPO)
    assert not hub.private[REPO]
    assert any(name.startswith("model-00001-of-") for name in hub.files(REPO))
    push(folder, REPO, card="---\n---\n# another\n")
    kept = [name for name in hub.files(REPO) if name.startswith("model")]
    assert kept == ["model.safetensors"]
    assert hub.files(REPO)["README.md"] == b"---\n---\n# another\n"
    model = load_model(locate(REPO))
    assert torch.equal(model.embed.weight, load_model(folder).embed.weight)


def test_what_cannot_be_uploaded(
    hub: Hub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tiny", "a/b/c", "somebody/tiny@main", "../x"):
        with pytest.raises(UserError, match=r"hub:.*: not a repository; write hub:USER/NAME"):
            push(folder, name)
    with pytest.raises(UserError, match=r"needs config\.json and model\*\.safetensors"):
        push(tmp_path, REPO)
    with pytest.raises(UserError, match=r"upload failed: Invalid metadata in README"):
        push(folder, REPO, card="# no front matter")
    (folder / "README.md").unlink()
    with pytest.raises(UserError, match=r"README\.md: no such file; write the model card"):
        push(folder, REPO)
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    with pytest.raises(UserError, match=r"hub:somebody/tiny: the upload failed: .*401"):
        push(folder, REPO, card=CARD)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="offline"):
        push(folder, REPO, card=CARD)


def test_a_sharded_checkpoint_is_fetched_once(hub: Hub, sharded: Path) -> None:
    push(sharded, REPO)
    fetched = locate(REPO)
    assert digest(fetched) == digest(sharded)
    sha, _ = hub.at(REPO, "main")
    assert fetched.name == sha
    assert (fetched.parent.parent / "refs" / "main").read_text() == sha
    asked = len(hub.asked("GET", "/resolve/"))
    assert locate(REPO) == fetched
    assert len(hub.asked("GET", "/resolve/")) == asked


def test_a_broken_connection_goes_on_where_it_stopped(hub: Hub, sharded: Path) -> None:
    push(sharded, REPO)
    shard = sorted(sharded.glob("model-*.safetensors"))[0]
    hub.cut = shard.name
    assert digest(locate(REPO)) == digest(sharded)
    whole_chunks = shard.stat().st_size // 2 // 4096 * 4096
    assert hub.asked("GET", shard.name) == ["", f"bytes={whole_chunks}-"]


def test_a_failed_fetch_keeps_the_whole_files(hub: Hub, sharded: Path) -> None:
    push(sharded, REPO)
    first, *_, last = sorted(sharded.glob("model-*.safetensors"))
    hub.fail = f"/{last.name}"
    with pytest.raises(UserError, match=r"somebody/tiny: no such folder, and fetching it .*403"):
        locate(REPO)
    hub.fail = ""
    assert digest(locate(REPO)) == digest(sharded)
    assert len(hub.asked("GET", first.name)) == 1


def test_offline(hub: Hub, sharded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    push(sharded, REPO)
    fetched = locate(REPO)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    before = len(hub.requests)
    assert locate(REPO) == fetched
    assert locate(f"{REPO}@{fetched.name}") == fetched
    with pytest.raises(UserError, match="somebody/other: no such folder"):
        locate("somebody/other")
    assert len(hub.requests) == before


def test_revisions(hub: Hub, folder: Path, tmp_path: Path) -> None:
    push(folder, REPO)
    old, _ = hub.at(REPO, "main")
    newer = tmp_path / "newer"
    save(newer, dataclasses.replace(CONFIG, ffn=64), seed=1)
    push(newer, REPO)
    assert load_model(REPO).config.ffn == 64
    assert load_model(f"{REPO}@{old}").config == CONFIG
    assert locate(f"{REPO}@{old}").name == old
    with pytest.raises(UserError, match="404"):
        locate(f"{REPO}@nothing")
