"""Any program that takes llama-bench's options: llama.cpp's own, ik_llama.cpp's, other forks'.

Each reading is a run of the program, which loads the model before it measures. It knows prefill,
and decoding of one stream from an empty cache; of several streams llama-batched-bench beside it.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from protocol import peak_memory, serve

BATCHED = "llama-batched-bench"


class LlamaBench:
    def __init__(self) -> None:
        self.program = "llama-bench"
        self.model: list[str] = []  # and threads, as options
        self.flags: list[str] = []
        self.build = "unknown"

    def info(self) -> dict[str, Any]:
        return {"name": Path(self.program).name, "version": self.build}

    def memory(self) -> dict[str, int]:
        return peak_memory()

    def open(self, model: str, context: int, threads: int, program: str, flags: list[str]) -> float:
        self.program, self.flags = program, flags
        self.model = ["-m", model, "-t", str(threads)]
        return 0.0

    def prefill(self, ids: list[int]) -> float:
        """Tokens a second."""
        return self._run("-p", len(ids), "-n", 0)

    def decode(self, prompts: list[list[int]], tokens: int) -> float:
        """Tokens a second of all streams together."""
        if len(prompts) == 1:
            return self._run("-p", 0, "-n", tokens)
        sizes = {"-npp": len(prompts[0]), "-ntg": tokens, "-npl": len(prompts)}
        context = len(prompts) * (len(prompts[0]) + tokens)
        command = [str(Path(self.program).with_name(BATCHED)), *self.model]
        command += [flag for flag in self.flags if flag != "1"]  # its switches have no value
        for option, value in {**sizes, "-c": context}.items():
            command += [option, str(value)]
        *_, row = [line for line in _output(command).splitlines() if line.startswith("|")]
        return float(row.split("|")[8])  # PP, TG, B, N_KV, T_PP, S_PP, T_TG, S_TG

    def _run(self, *more: Any) -> float:
        fixed = ["-r", "1", "-o", "json", *self.flags, *map(str, more)]
        out = _output([self.program, *self.model, *fixed])
        result, _ = json.JSONDecoder().raw_decode(out, out.index("{"))
        self.build = f"{result.get('build_number', '')} {result.get('build_commit', '')}".strip()
        return float(result["avg_ts"])


def _output(command: list[str]) -> str:
    """What it says on both streams; ValueError with its end where it fails."""
    with tempfile.TemporaryDirectory() as place:  # some write their log where they run
        run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=place)
    if run.returncode:
        raise ValueError(f"exit code {run.returncode}: {run.stderr.strip()[-300:]}")
    return run.stdout + run.stderr


if __name__ == "__main__":
    serve(LlamaBench())
