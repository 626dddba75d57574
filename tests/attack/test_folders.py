"""Folders from strangers, and folders that several write: what is read lies inside, what is
published is whole."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from smollm3.checkpoint import load_config, load_tokenizer
from smollm3.checkpoint.hf import load_model, save_model
from smollm3.errors import UserError
from smollm3.files import new_folder, own_file, sweep, write_atomic
from smollm3.model import ModelConfig, Transformer

pytestmark = pytest.mark.xdist_group("attack")
FILES = (
    "config.json",
    "tokenizer.json",
    "generation_config.json",
    "model.safetensors",
    "chat_template.jinja",
)


@pytest.fixture
def folder(tokenizer, tmp_path):
    config = ModelConfig(
        tokenizer.vocab_size, 1, 8, 2, 1, 4, 12, (True,), rope_theta=1e4, context=64
    )
    model = Transformer(config)
    model.init_weights(0)
    save_model(model, tokenizer, tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("load", [load_config, load_tokenizer, load_model])
@pytest.mark.parametrize("name", FILES)
def test_links_lead_nowhere_else(folder, name, load, tmp_path):
    """The one line names the file, and says nothing of what it leads to."""
    secret = tmp_path / "secret"
    secret.write_text('{"a-secret": 1}')
    for target in (secret, "../secret", "/dev/zero"):
        (folder / name).unlink()
        (folder / name).symlink_to(target)
        with pytest.raises(UserError, match=rf"{name}: is a link that leads elsewhere") as told:
            load(folder)
        assert "a-secret" not in str(told.value)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(UserError, match=rf"{name}: is no regular file"):
        load(folder)


def test_the_cache_of_the_hub_is_read(folder, tmp_path):
    """Its files are links to blobs beside it; links inside a folder are, too."""
    blobs, snapshot = tmp_path / "cache" / "blobs", tmp_path / "cache" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(folder.iterdir())):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    assert load_model(snapshot).config.layers == 1


def test_two_who_publish_one_folder(tmp_path):
    """Begun at once and ended in any order: what is there is one of them, whole."""
    final = tmp_path / "model"
    barrier = threading.Barrier(2)
    failed = []

    def write(word):
        try:
            for _ in range(30):
                with new_folder(final) as folder:
                    barrier.wait(60)
                    for name in FILES:
                        (folder / name).write_text(word)
                    barrier.wait(60)
        except Exception as e:
            failed.append(e)
            barrier.abort()

    threads = [threading.Thread(target=write, args=(word,)) for word in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert failed == []
    assert {file.name for file in final.iterdir()} == set(FILES)
    assert len({file.read_text() for file in final.iterdir()}) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_writers_of_one_process_id_do_not_meet(tmp_path, monkeypatch):
    """As in two containers over one volume: the other's file stayed mapped while it was cut off."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    path = tmp_path / "a"
    with own_file(path) as mine, own_file(path) as other:
        mine.write_bytes(b"m" * 8192)
        mapped = np.memmap(mine, np.uint8, "r+")
        other.write_bytes(b"o")
        sweep(tmp_path)
        assert bytes(mapped[-1:]) == b"m"
        assert other.exists()
        other.replace(path)
        mine.replace(path)
    assert path.read_bytes() == b"m" * 8192
    write_atomic(path, "z")
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


HOLD = """
import sys
from pathlib import Path
from smollm3.files import own_file, new_folder
with own_file(Path(sys.argv[1])), new_folder(Path(sys.argv[2])):
    print("there", flush=True)
    sys.stdin.read()
"""


def test_what_killed_writers_left_is_swept(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path / "a"), str(tmp_path / "b")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"there\n"
        sweep(tmp_path)
        assert len(list(tmp_path.iterdir())) == 2  # somebody holds them
        process.kill()
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []
