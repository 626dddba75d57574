"""OpenVINO GenAI's LLMPipeline on a GGUF file of the llama architecture."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np
from protocol import peak_memory, serve, timed


class OpenVino:
    def __init__(self) -> None:
        self.pipeline: Any = None

    def info(self) -> dict[str, Any]:
        return {"name": "OpenVINO GenAI", "version": version("openvino-genai")}

    def memory(self) -> dict[str, int]:
        return peak_memory()

    def open(self, model: str, context: int, threads: int = 2) -> float:
        return timed(lambda: self._open(model, threads))

    def _open(self, model: str, threads: int) -> None:
        import openvino_genai

        self.pipeline = openvino_genai.LLMPipeline(model, "CPU", INFERENCE_NUM_THREADS=threads)

    def prefill(self, ids: list[int]) -> float:
        """Tokens a second, from ids to the first new token."""
        return len(ids) / (self._generate(ids, 1).get_ttft().mean / 1e3)

    def decode(self, prompts: list[list[int]], tokens: int) -> float:
        """Tokens a second for `tokens` after the first."""
        (ids,) = prompts
        return 1e3 / self._generate(ids, tokens + 1).get_tpot().mean

    def _generate(self, ids: list[int], tokens: int) -> Any:
        import openvino
        import openvino_genai

        settings = openvino_genai.GenerationConfig()
        settings.max_new_tokens = tokens
        settings.ignore_eos, settings.do_sample, settings.apply_chat_template = True, False, False
        row = openvino.Tensor(np.array([ids], np.int64))
        return self.pipeline.generate(row, settings).perf_metrics


if __name__ == "__main__":
    serve(OpenVino())
