"""llama.cpp through its C library, as the package llama-cpp-python builds it.

Time is that of llama_decode and of finding the largest logit: none of llama.cpp's sampler, which
would only add to it.
"""

from __future__ import annotations

import ctypes
import itertools
from importlib.metadata import version
from typing import Any

import llama_cpp as lib
import numpy as np
from protocol import peak_memory, serve, timed

KV_CACHE_DTYPES = {"f16": 1, "q8_0": 8}  # ggml's numbers
TILE = 256  # cells of the state that is repeated to fill a long one


@lib.llama_log_callback
def _silent(level: int, text: bytes, user: ctypes.c_void_p) -> None:
    pass


class LlamaCpp:
    def __init__(self) -> None:
        lib.llama_backend_init()
        lib.llama_log_set(_silent, ctypes.c_void_p(0))
        self.model: Any = None
        self.context: Any = None
        self.loaded: tuple[str, bool] | None = None

    def info(self) -> dict[str, Any]:
        system = lib.llama_print_system_info().decode()
        return {
            "name": "llama.cpp",
            "version": f"llama-cpp-python {version('llama-cpp-python')}",
            "system": system,
            "vnni": "AVX512_VNNI = 1" in system,
        }

    def memory(self) -> dict[str, int]:
        return peak_memory()

    def open(
        self,
        model: str,
        context: int,
        threads: int = 2,
        ubatch: int = 512,
        flash: bool = True,
        repack: bool = True,
        cache: str = "f16",
        streams: int = 1,
        unified: bool = False,
    ) -> float:
        """Load `model` unless it is loaded, and make a context of `context` tokens a stream; the
        seconds that took. repack: copy weights into the layout of its fastest kernels."""
        return timed(
            lambda: self._open(
                model, context, threads, ubatch, flash, repack, cache, streams, unified
            )
        )

    def _open(
        self,
        model: str,
        context: int,
        threads: int,
        ubatch: int,
        flash: bool,
        repack: bool,
        cache: str,
        streams: int,
        unified: bool,
    ) -> None:
        if self.context:
            lib.llama_free(self.context)
            self.context = None
        if self.loaded != (model, repack):
            if self.model:
                lib.llama_model_free(self.model)
            settings = lib.llama_model_default_params()
            settings.use_extra_bufts = repack
            self.model = lib.llama_model_load_from_file(model.encode(), settings)
            if not self.model:
                raise ValueError(f"llama.cpp does not load {model}")
            self.loaded = (model, repack)
        params = lib.llama_context_default_params()
        params.n_ctx = context * streams
        params.n_batch = max(512, ubatch)
        params.n_ubatch = ubatch
        params.n_seq_max = streams
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = int(flash)
        params.type_k = params.type_v = KV_CACHE_DTYPES[cache]
        params.kv_unified = unified
        self.context = lib.llama_init_from_model(self.model, params)
        if not self.context:
            raise ValueError("llama.cpp refuses these settings")
        self.vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.model))

    def prefill(self, ids: list[int]) -> float:
        """Tokens a second, from ids to the first new token."""
        self._clear()
        return len(ids) / timed(lambda: self._feed([ids], [0]))

    def decode(self, prompts: list[list[int]], tokens: int) -> float:
        """Tokens a second of all prompts together, for `tokens` of each after its first."""
        self._clear()
        last = [self._feed([ids], [0], first_stream=s)[0] for s, ids in enumerate(prompts)]
        return self._steps(last, [len(ids) for ids in prompts], tokens)

    def _steps(self, last: list[int], places: list[int], tokens: int) -> float:
        def run() -> None:
            now = last
            for step in range(tokens):
                now = self._feed([[token] for token in now], [p + step for p in places])

        return len(last) * tokens / timed(run)

    def fill(self, places: int) -> None:
        """A state of `places` tokens made by repeating a short one: prefilling a long one takes
        minutes and the time of the next token does not depend on what the cache holds."""
        self._clear()
        self._feed([[(7 * i + 1) % self.vocab for i in range(TILE)]], [0])
        state = self._state()
        self._clear()
        long = _repeated(state, places)
        buffer = (ctypes.c_uint8 * len(long)).from_buffer_copy(long)
        if lib.llama_state_seq_set_data(self.context, buffer, len(long), 0) != len(long):
            raise ValueError("llama.cpp does not take the long state")
        memory = lib.llama_get_memory(self.context)
        assert lib.llama_memory_seq_pos_max(memory, 0) == places - 1

    def decode_behind(self, places: int, tokens: int) -> float:
        """Tokens a second behind the state made by `fill`, which stays as it was."""
        rate = self._steps([1], [places], tokens)
        lib.llama_memory_seq_rm(lib.llama_get_memory(self.context), 0, places, -1)
        return rate

    def score(self, batch: list[list[int]]) -> list[list[float]]:
        """Log-probability of each token after the first, of rows of at most 512."""
        return [self._score(ids) for ids in batch]

    def _score(self, ids: list[int]) -> list[float]:
        self._clear()
        logits = self._decode([ids], [0], 0, [True] * len(ids)).astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        chosen = logits[np.arange(len(ids) - 1), ids[1:]]
        return (chosen - np.log(np.exp(logits[:-1]).sum(axis=1))).tolist()

    def _clear(self) -> None:
        lib.llama_memory_clear(lib.llama_get_memory(self.context), False)

    def _state(self) -> bytes:
        size = lib.llama_state_seq_get_size(self.context, 0)
        buffer = (ctypes.c_uint8 * size)()
        written = lib.llama_state_seq_get_data(self.context, buffer, size, 0)
        return bytes(buffer[:written])

    def _feed(self, rows: list[list[int]], starts: list[int], first_stream: int = 0) -> list[int]:
        """The likeliest token after each row, taken together in pieces of n_batch."""
        if len(rows) == 1 and len(rows[0]) > 512:
            for at in range(0, len(rows[0]) - 512, 512):
                self._decode([rows[0][at : at + 512]], [starts[0] + at], first_stream, None)
            cut = (len(rows[0]) - 1) // 512 * 512
            rows, starts = [rows[0][cut:]], [starts[0] + cut]
        return self._decode(rows, starts, first_stream, None).argmax(axis=1).tolist()

    def _decode(
        self, rows: list[list[int]], starts: list[int], first_stream: int, wanted: Any
    ) -> np.ndarray:
        count = sum(map(len, rows))
        batch = lib.llama_batch_init(count, 0, 1)
        batch.n_tokens = count
        at = itertools.count()
        for stream, (row, start) in enumerate(zip(rows, starts, strict=True), first_stream):
            for place, token in enumerate(row):
                i = next(at)
                batch.token[i], batch.pos[i] = token, start + place
                batch.n_seq_id[i] = 1
                batch.seq_id[i][0] = stream
                batch.logits[i] = wanted is not None or place == len(row) - 1
        failed = lib.llama_decode(self.context, batch)
        lib.llama_batch_free(batch)
        if failed:
            raise ValueError(f"llama_decode: {failed}")
        outputs = count if wanted is not None else len(rows)
        logits = lib.llama_get_logits(self.context)
        return np.ctypeslib.as_array(logits, (outputs, self.vocab))


def _repeated(state: bytes, places: int) -> bytes:
    """The state of `places` cells that repeats the TILE cells of one sequence's `state`.

    Layout (llama_kv_cache::state_write): magic, sequence, streams, cells; each cell's position
    and sequences; v_trans, layers; keys, then values, of each layer as type, row size, rows; values
    that are transposed as type, element size, rows, and a row of cells each.
    """
    data = memoryview(state)
    times = places // TILE
    assert places % TILE == 0
    magic_sequence_streams, cells = data[:12], int.from_bytes(data[12:16], "little")
    assert cells == TILE, cells
    out = [bytes(magic_sequence_streams), np.uint32(places).tobytes()]
    meta = np.zeros((places, 3), np.int32)  # position, one sequence, number 0
    meta[:, 0], meta[:, 1] = np.arange(places), 1
    out.append(meta.tobytes())
    at = 16 + 12 * cells
    transposed, layers = (int(n) for n in np.frombuffer(data[at : at + 8], np.uint32))
    out.append(bytes(data[at : at + 8]))
    at += 8
    for part in range(2 * layers):
        if part >= layers and transposed:
            head = bytes(data[at : at + 12])
            size, rows = (int(n) for n in np.frombuffer(head[4:], np.uint32))
            at += 12
            raw = np.frombuffer(data[at : at + rows * cells * size], np.uint8)
            out += [head, np.tile(raw.reshape(rows, cells * size), (1, times)).tobytes()]
            at += rows * cells * size
        else:
            head = bytes(data[at : at + 12])
            row = int.from_bytes(head[4:], "little")
            at += 12
            out += [head, bytes(data[at : at + cells * row]) * times]
            at += cells * row
    assert at == len(data), (at, len(data))
    return b"".join(out)


if __name__ == "__main__":
    serve(LlamaCpp())
