"""`--engine vllm`: vLLM on the same model, for those who have outgrown one engine."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smollm3.checkpoint import locate_adapter
from smollm3.checkpoint.adapter import read_adapter
from smollm3.errors import UserError
from smollm3.serve.settings import KEY_VARIABLE, Settings, adapters_of, key_texts

PROGRAM = "SMOLLM3_VLLM"  # names another program than the `vllm` on PATH
_SETTINGS = frozenset(
    (
        "host",
        "port",
        "name",
        "aliases",
        "adapters",
        "api_key_file",
        "allowed_origins",
        "think",
        "running",
    )
)
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
_OPTIONS = {"dtype": "--dtype", "context": "--max-model-len"}


def become_vllm(
    model: Path,
    name: str,
    settings: Settings,
    options: Mapping[str, Any],
    environment: Mapping[str, str] = os.environ,
) -> None:
    """This process becomes vLLM's server of a model folder. Raises UserError for what that cannot
    do, or where there is no vLLM."""
    words = command(model, name, settings, options)
    keys = key_texts(settings, environment)
    if len(keys) > 1:
        raise UserError("api key: vLLM takes one from the environment; give one only")
    program = environment.get(PROGRAM, "vllm")
    found = shutil.which(program, path=environment.get("PATH"))
    if found is None:
        raise UserError(
            f"engine: there is no program {program!r}; install vllm in an environment of its own "
            f"and put its `vllm` on PATH, or name it in {PROGRAM}"
        )
    given = dict(environment)
    given.pop(KEY_VARIABLE, None)
    if keys:
        given["VLLM_API_KEY"] = keys[0]  # where nobody's `ps` shows it
    os.execve(found, [found, *words], given)


def command(model: Path, name: str, settings: Settings, options: Mapping[str, Any]) -> list[str]:
    """What vLLM is told. SmolLM3 writes calls as Hermes does and reasoning as Qwen 3."""
    if not model.is_dir():
        raise UserError(f"{model}: vLLM takes a folder of Hugging Face's format here")
    for key in settings.model_fields_set - _SETTINGS:
        raise UserError(f"{key}: is not for vLLM; leave it out")
    for key in options.keys() - _OPTIONS.keys():
        raise UserError(f"{key}: is of our own engines, not of vLLM; leave it out")
    if any("*" in alias for alias in settings.aliases):
        raise UserError("aliases: vLLM knows whole names only, without *")
    words = [
        "serve",
        str(model),
        f"--host={settings.host}",
        f"--port={settings.port}",
        "--served-model-name",
        settings.name or name,
        *settings.aliases,
        "--enable-auto-tool-choice",
        "--tool-call-parser=hermes",
        "--reasoning-parser=qwen3",
        f"--allowed-origins={json.dumps(settings.allowed_origins)}",  # its own default is all
    ]
    if adapters := adapters_of(settings):
        folders = {id: locate_adapter(place) for id, place in adapters.items()}
        rank = max(read_adapter(folder).rank for folder in folders.values())
        words += ["--enable-lora", f"--max-loras={len(folders)}", f"--max-lora-rank={_rank(rank)}"]
        words += ["--lora-modules", *(f"{id}={folder}" for id, folder in folders.items())]
    if "running" in settings.model_fields_set:
        words.append(f"--max-num-seqs={settings.running}")
    if not settings.think:
        words.append('--default-chat-template-kwargs={"enable_thinking": false}')
    return words + [f"{_OPTIONS[key]}={value}" for key, value in options.items()]


def _rank(rank: int) -> int:
    """The least that vLLM has room for."""
    return next((r for r in _RANKS if r >= rank), rank)
