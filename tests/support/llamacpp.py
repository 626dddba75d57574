"""llama.cpp as an oracle: the C library inside the `xllamacpp` wheel, through ctypes.

Only logits, tokens and the quantiser are taken; keys and values are kept in float32, as here.
"""

from __future__ import annotations

import ctypes
import importlib.util
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray


class Opaque(ctypes.Structure):
    """A parameter struct passed by value; larger than the real ones, of which few fields count."""

    _fields_ = (("words", ctypes.c_int32 * 128),)


# Positions of 32-bit words in llama_context_params, with their defaults as a check of the layout.
N_CTX, N_BATCH, N_UBATCH, FLASH, TYPE_K, TYPE_V = 0, 1, 2, 13, 26, 27
DEFAULTS = {N_CTX: 512, N_BATCH: 2048, N_UBATCH: 512, FLASH: -1, TYPE_K: 1, TYPE_V: 1}


class Batch(ctypes.Structure):
    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.c_void_p),
        ("n_seq_id", ctypes.c_void_p),
        ("seq_id", ctypes.c_void_p),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def _quiet(level: int, text: bytes, user: int) -> None:
    pass


@cache
def library() -> Any:
    """The C library; skips the test where it is absent or not the version this was written for."""
    spec = importlib.util.find_spec("xllamacpp")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("llama.cpp is the oracle here: pip install xllamacpp")
    (path,) = Path(spec.submodule_search_locations[0]).glob("*.so")
    lib = ctypes.CDLL(str(path))
    lib.llama_log_set(_quiet, None)
    pointer, text, i32 = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32
    i64 = ctypes.c_int64
    for name, result, arguments in (
        ("llama_backend_init", None, []),
        ("llama_model_default_params", Opaque, []),
        ("llama_context_default_params", Opaque, []),
        ("llama_model_load_from_file", pointer, [text, Opaque]),
        ("llama_init_from_model", pointer, [pointer, Opaque]),
        ("llama_model_get_vocab", pointer, [pointer]),
        ("llama_vocab_n_tokens", i32, [pointer]),
        ("llama_set_n_threads", None, [pointer, i32, i32]),
        ("llama_decode", i32, [pointer, Batch]),
        ("llama_get_logits", ctypes.POINTER(ctypes.c_float), [pointer]),
        ("llama_tokenize", i32, [pointer, text, i32, pointer, i32, ctypes.c_bool, ctypes.c_bool]),
        ("llama_free", None, [pointer]),
        ("llama_free_model", None, [pointer]),
        ("ggml_quantize_chunk", ctypes.c_size_t, [i32, pointer, pointer, i64, i64, i64, pointer]),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    lib.llama_backend_init()
    defaults = lib.llama_context_default_params().words
    if any(defaults[at] != value for at, value in DEFAULTS.items()):
        pytest.skip("this llama.cpp lays its parameters out in another way; see constraints.txt")
    return lib


def quantize(
    values: NDArray[np.float32],
    ggml_type: int,
    size: int,
    importance: NDArray[np.float32] | None = None,
) -> NDArray[np.uint8]:
    """llama.cpp's own quantisation of rows to `size` bytes."""
    values = np.ascontiguousarray(values, np.float32)
    out = np.empty(size, np.uint8)
    rows, columns = values.shape
    weights = None if importance is None else importance.ctypes.data
    written = library().ggml_quantize_chunk(
        ggml_type, values.ctypes.data, out.ctypes.data, 0, rows, columns, weights
    )
    assert written == size
    return out


class LlamaCpp:
    """A GGUF file loaded by llama.cpp on one thread. Use as a context manager."""

    def __init__(self, path: Path, context: int = 512) -> None:
        self.lib = library()
        model = self.lib.llama_model_load_from_file(
            str(path).encode(), self.lib.llama_model_default_params()
        )
        assert model, f"llama.cpp does not load {path}"
        self.model = ctypes.c_void_p(model)
        self.vocab = ctypes.c_void_p(self.lib.llama_model_get_vocab(self.model))
        self.vocab_size: int = self.lib.llama_vocab_n_tokens(self.vocab)
        self.context = context

    def __enter__(self) -> LlamaCpp:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.lib.llama_free_model(self.model)

    def log_probs(self, ids: list[int]) -> NDArray[np.float64]:
        """[T, V]: the log-probabilities of the next token after each of `ids`."""
        params = self.lib.llama_context_default_params()
        params.words[N_CTX] = params.words[N_BATCH] = params.words[N_UBATCH] = self.context
        params.words[FLASH] = params.words[TYPE_K] = params.words[TYPE_V] = 0  # off, F32, F32
        context = ctypes.c_void_p(self.lib.llama_init_from_model(self.model, params))
        assert context
        try:
            self.lib.llama_set_n_threads(context, 1, 1)
            count = len(ids)
            tokens, wanted = (ctypes.c_int32 * count)(*ids), (ctypes.c_int8 * count)(*[1] * count)
            assert self.lib.llama_decode(context, Batch(count, tokens, logits=wanted)) == 0
            logits = self.lib.llama_get_logits(context)
            values = np.ctypeslib.as_array(logits, (count, self.vocab_size)).astype(np.float64)
        finally:
            self.lib.llama_free(context)
        values -= values.max(axis=1, keepdims=True)
        return np.asarray(values - np.log(np.exp(values).sum(axis=1, keepdims=True)))

    def greedy(self, ids: list[int], stop_ids: list[int], most: int) -> list[int]:
        """The likeliest token, again and again, up to one of `stop_ids`; each time from the start,
        which is slow and needs no cache."""
        answer: list[int] = []
        while len(answer) < most:
            token = int(self.log_probs(ids + answer)[-1].argmax())
            if token in stop_ids:
                break
            answer.append(token)
        return answer

    def tokenize(self, text: str, markup: bool = False) -> list[int]:
        """`markup`: control tokens spelled in the text are recognised."""
        raw = text.encode()
        ids = (ctypes.c_int32 * (len(raw) + 8))()
        count = self.lib.llama_tokenize(self.vocab, raw, len(raw), ids, len(ids), False, markup)
        assert count >= 0
        return list(ids[:count])
