"""Any program that takes llama-bench's options: llama.cpp's own, ik_llama.cpp's, other forks'.

Each reading is a run of the program, which loads the model before it measures. It knows prefill,
and decoding of one stream from an empty cache.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from protocol import peak_memory, serve


class LlamaBench:
    def __init__(self) -> None:
        self.command: list[str] = []
        self.build = "unknown"

    def info(self) -> dict[str, Any]:
        name = Path(self.command[0]).name if self.command else "llama-bench"
        return {"name": name, "version": self.build}

    def memory(self) -> dict[str, int]:
        return peak_memory()

    def open(self, model: str, context: int, threads: int, program: str, flags: list[str]) -> float:
        self.command = [program, "-m", model, "-t", str(threads), "-r", "1", "-o", "json", *flags]
        return 0.0

    def prefill(self, ids: list[int]) -> float:
        """Tokens a second."""
        return self._run("-p", len(ids), "-n", 0)

    def decode(self, prompts: list[list[int]], tokens: int) -> float:
        """Tokens a second of one stream."""
        if len(prompts) > 1:
            raise ValueError("llama-bench decodes one stream")
        return self._run("-p", 0, "-n", tokens)

    def _run(self, *more: Any) -> float:
        command = [*self.command, *map(str, more)]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode:
            raise ValueError(f"exit code {run.returncode}: {run.stderr.strip()[-300:]}")
        (result,) = json.loads(run.stdout[run.stdout.index("[") :])
        self.build = f"{result.get('build_number', '')} {result.get('build_commit', '')}".strip()
        return float(result["avg_ts"])


if __name__ == "__main__":
    serve(LlamaBench())
