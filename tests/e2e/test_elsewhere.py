"""What only Linux, or only POSIX, has is taken away, and everything that can work still does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ELSEWHERE = Path(__file__).parents[1] / "elsewhere"
SRC = Path(__file__).parents[2] / "src"
# The programs of the sandbox for the model's Python: they are run in it, on Linux and macOS.
ONLY_POSIX = {f"smollm3.agent.sandbox.{name}" for name in ("jail", "lockdown", "worker")}
RECIPE = """
name: tiny
processes: 2
model: {layers: 2, hidden: 16, heads: 2, kv_heads: 1, ffn: 32}
sources:
  web: {kind: procedural, generator: web, documents: 40}
  talk: {kind: procedural, generator: chat, documents: 40, format: chat}
stages:
  tokenizer: {kind: tokenizer, vocab: 300, mixture: {web: 1}, characters: 20000}
  pretrain: {kind: train, mixture: {web: 1}, context: 256, batch: 2, steps: 2, lr: {peak: 1e-3}}
  sft: {kind: train, mixture: {talk: 1}, loss: assistant, packing: bfd, context: 256, batch: 2, steps: 2, lr: {peak: 1e-3}}
  out: {kind: export, to: [hf, "gguf:f16"]}
"""
PROGRAM = """
import importlib, pkgutil, sys
import smollm3
from smollm3.cli import cli

for module in pkgutil.walk_packages(smollm3.__path__, "smollm3."):
    if module.name not in {skipped} and not module.name.endswith("__main__"):
        importlib.import_module(module.name)
for words in {commands}:
    print(">", *words, flush=True)
    try:
        cli.main(words, standalone_mode=False)
    except SystemExit as e:  # of a batch of requests
        assert not e.code, e.code
"""


def everything_works(system, folder, extra=()):
    (folder / "tiny.yaml").write_text(RECIPE)
    requests = [{"prompt": "a"}, {"messages": [{"role": "user", "content": "b"}]}]
    (folder / "in.jsonl").write_text("".join(json.dumps(r) + "\n" for r in requests))
    model = str(folder / "run")
    commands = [
        ["run", str(folder / "tiny.yaml"), "--out", model],
        ["report", model],
        ["generate", model, "x", "--max-tokens", "3"],
        ["generate", model, "--input", str(folder / "in.jsonl"), "--output", str(folder / "out.jsonl"), "--max-tokens", "3"],
        ["export", model, "--to", "hf:float16", str(folder / "half")],
        *extra,
    ]  # fmt: skip
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ELSEWHERE), str(SRC)]),
        "SMOLLM3_TEST_SYSTEM": system,
        "SMOLLM3_CACHE": str(folder / "cache"),
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(skipped=ONLY_POSIX, commands=commands)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len((folder / "out.jsonl").read_text().splitlines()) == 2
    assert not list(folder.glob(".out.jsonl*"))
    assert (folder / "half" / "model.safetensors").exists()
    assert (folder / "run" / "out" / "gguf-f16.gguf").exists()


def test_windows(tmp_path):
    everything_works("windows", tmp_path)


@pytest.mark.slow
def test_macos(tmp_path):
    everything_works("macos", tmp_path, extra=[["bench", str(tmp_path / "run"), "--repeat", "1", "--long", "16", "--tokens", "4"]])  # fmt: skip


def test_what_is_taken_away_is_missing():
    """Else the tests above would prove nothing."""
    code = (
        "import os, smollm3.portable as p\n"
        "assert not hasattr(p.os, 'sched_getaffinity') and p.os.name == 'nt'\n"
        "assert os.name == 'posix' and p.usable_cpus() == os.cpu_count()\n"
        "assert p.peak_memory() is None and p.available_memory() == 5 << 30\n"
        "assert not hasattr(p.mmap, 'MADV_WILLNEED')\n"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ELSEWHERE), str(SRC)]),
        "SMOLLM3_TEST_SYSTEM": "windows",
    }
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
