"""From what a user calls a model to an engine."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path

import torch

from smollm3.checkpoint import (
    digest,
    load_config,
    load_model,
    load_tokenizer,
    locate,
    locate_adapter,
    open_weights,
)
from smollm3.errors import UserError
from smollm3.infer.backends import Backend
from smollm3.infer.backends.cuda import quantize as quantized
from smollm3.infer.backends.torch import TorchBackend
from smollm3.infer.engine import MAX_NUM_SEQS, Engine
from smollm3.infer.hooks import MakeDrafter
from smollm3.infer.params import model_params
from smollm3.infer.speculation import DraftModel, PromptLookup, StepCosts
from smollm3.model import ModelConfig, extend_context

ENGINES = ("auto", "native", "torch", "mlx")
MISSING = (
    "the CPU kernels are not installed, so this runs on PyTorch, several times slower; "
    "with a C++ compiler: pip install smollm3-kernels (here: pip install ./kernels)"
)


def load_engine(
    target: str | Path,
    dtype: str | None = None,
    device: str | torch.device | None = None,
    context: int | None = None,
    engine: str = "auto",
    *,
    kv_cache_dtype: str | None = None,
    threads: int | None = None,
    weight_cache: bool = True,
    draft: str | Path | None = None,
    speculation: bool = True,
    quantize: str | None = None,
    adapter: str | Path | None = None,
) -> Engine:
    """The engine of a model folder, GGUF file, run folder, Hub id or short name.

    dtype: of the computation; None: what the file holds, on PyTorch float32 and on a GPU bfloat16
    (float16 before Ampere). Native also takes q8_0 and q4_0, which quantise plain weights.
    device: None takes a CUDA GPU where there is one. context: tokens it must hold; more than
    config.json says turns on YaRN. engine: auto is native on a CPU where the kernels are
    installed, else torch; mlx hands a folder to mlx-lm, which answers one request at a time.
    kv_cache_dtype: of the KV cache, native only: bf16, int8 or f32 (None: f32 for float32 weights,
    else bf16). threads: of the CPU; None takes one for each core. weight_cache: keep native
    weights on the disk as the kernels want them. draft: a small model of the same vocabulary that
    proposes tokens. speculation: without a draft, prompt lookup proposes them. quantize: PyTorch
    only: int4 (CUDA) or int8 weights. adapter: one in PEFT's format, or a fine-tune's folder, that
    all requests have; `Engine.adapters` takes more.
    """
    if engine not in ENGINES:
        raise UserError(f"engine: {engine!r} is not one of {', '.join(ENGINES)}")
    path = locate(target)
    make = partial(
        _backend,
        dtype=dtype,
        device=device,
        context=context,
        engine=engine,
        kv_cache_dtype=kv_cache_dtype,
        threads=threads,
        weight_cache=weight_cache,
        quantize=quantize,
    )
    backend, tokenizer = make(path), load_tokenizer(path)
    costs = _costs(backend)
    drafter: MakeDrafter | None = partial(PromptLookup, costs) if speculation else None
    if draft is not None:
        small = locate(draft)
        drafter = partial(DraftModel(make(small), load_tokenizer(small), tokenizer).drafter, costs)
    made = Engine(
        backend,
        tokenizer,
        model_params(path),
        drafter=drafter,
        costs=costs,
        identity=lambda: f"{digest(path)} {dtype} {quantize}",
        weights=partial(open_weights, path),
        max_num_seqs=1 if engine == "mlx" else MAX_NUM_SEQS,
    )
    if adapter is not None:
        try:
            made.adapters.load(str(adapter), locate_adapter(adapter))
        except BaseException:
            made.close()
            raise
        made.adapters.default = str(adapter)
    return made


def _backend(
    path: Path,
    *,
    dtype: str | None,
    device: str | torch.device | None,
    context: int | None,
    engine: str,
    kv_cache_dtype: str | None,
    threads: int | None,
    weight_cache: bool,
    quantize: str | None,
) -> Backend:
    if engine == "mlx":
        given = {
            "dtype": dtype,
            "device": device,
            "kv_cache_dtype": kv_cache_dtype,
            "threads": threads,
        }
        return _mlx(path, context, given | {"quantize": quantize})
    device = _device(device, engine)
    on_cpu = device.type == "cpu"
    if engine == "auto":
        fits = on_cpu and quantize is None and _fits_native(path, dtype)
        engine = "native" if fits else "torch"
    if engine == "native":
        if not on_cpu:
            raise UserError(f"device: the native engine runs on the CPU, not on {device}")
        if find_spec("smollm3_kernels") is None:
            raise UserError(f"engine: {MISSING}")
        if quantize is not None:
            raise UserError("quantize: is of PyTorch; the native engine takes dtype q4_0 or q8_0")
        from smollm3.infer.backends.native import NativeBackend

        return NativeBackend(
            path,
            _config(path, context),
            dtype=dtype,
            kv_cache_dtype=kv_cache_dtype,
            threads=threads,
            weight_cache=weight_cache,
        )
    if kv_cache_dtype is not None:
        raise UserError(
            "kv_cache_dtype: PyTorch keeps keys and values in dtype; take --engine native"
        )
    if threads is not None:
        torch.set_num_threads(threads)
    return _torch(path, dtype or _own_dtype(device), device, context, quantize)


def _torch(
    path: Path, dtype: str, device: torch.device, context: int | None, quantize: str | None
) -> TorchBackend:
    if quantize is None:
        return TorchBackend(load_model(path, dtype, device, context))
    return TorchBackend(quantized(load_model(path, dtype, "cpu", context), quantize, device))


def _device(device: str | torch.device | None, engine: str) -> torch.device:
    if device is None:
        return torch.device("cuda" if engine != "native" and torch.cuda.is_available() else "cpu")
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.mps.is_available()}
    try:
        found = torch.device(device)
    except RuntimeError:
        found = None
    if found is None or found.type not in there:
        raise UserError(f"device: {str(device)!r} is not one of {', '.join(there)}")
    if not there[found.type]:
        raise UserError(f"device: {device}: PyTorch finds none here; take --device cpu")
    return found


def _own_dtype(device: torch.device) -> str:
    if device.type == "cpu":
        return "float32"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return "float16"  # before Ampere bfloat16 is emulated
    return "bfloat16"


def _mlx(path: Path, context: int | None, given: Mapping[str, object]) -> Backend:
    for name, value in given.items():
        if value is not None:
            raise UserError(f"{name}: mlx-lm takes this from the folder; leave it out")
    config = _config(path, context)
    if config != load_config(path):
        raise UserError(f"context: mlx-lm goes by config.json, {load_config(path).context} tokens")
    from smollm3.infer.backends.mlx import MlxBackend

    return MlxBackend(path, config)


def _costs(backend: Backend) -> StepCosts:
    """Of draft tokens. PyTorch's logits depend, in their last digits, on how many tokens a step
    has; were that number to depend on the clock, near-ties would fall now so, now so."""
    if isinstance(backend, TorchBackend):
        if backend.k_LPGD.device.type != "cpu":
            return StepCosts(first=0.05, more=0.01, measured=False)
        # Float32 products of two tokens take half as long again as of one (MKL, 2 cores).
        first = 0.4 if backend.k_LPGD.dtype == torch.float32 else 0.05
        return StepCosts(first, more=0.04, measured=False)
    return StepCosts()


def _fits_native(path: Path, dtype: str | None) -> bool:
    if find_spec("smollm3_kernels") is None:
        _say_once(MISSING)
        return False
    from smollm3.infer.backends.packed import can_pack

    return can_pack(path, dtype)


@cache
def _say_once(what: str) -> None:
    logging.getLogger("smollm3").warning(what)


def _config(path: Path, context: int | None) -> ModelConfig:
    config = load_config(path)
    try:
        return config if context is None else extend_context(config, context)
    except ValueError as e:
        raise UserError(f"{path}: {e}") from None
