"""From what a user calls a model to an engine."""

from __future__ import annotations

import logging
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path

import torch

from smollm3.checkpoint import digest, load_config, load_model, load_tokenizer, locate
from smollm3.errors import UserError
from smollm3.infer.backends import Backend
from smollm3.infer.backends.torch import TorchBackend
from smollm3.infer.engine import Engine
from smollm3.infer.hooks import MakeDrafter
from smollm3.infer.params import model_params
from smollm3.infer.speculation import DraftModel, PromptLookup, StepCosts
from smollm3.model import ModelConfig, extend_context

ENGINES = ("auto", "native", "torch")
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
    cache_type: str | None = None,
    threads: int | None = None,
    weights_cache: bool = True,
    draft: str | Path | None = None,
    speculation: bool = True,
) -> Engine:
    """The engine of a model folder, GGUF file, run folder, Hub id or short name.

    dtype: of the computation; None: what the file holds (on PyTorch float32). Native also takes
    q8_0 and q4_0, which quantise plain weights. context: tokens it must hold; more than config.json
    says turns on YaRN. engine: auto is native on a CPU where the kernels are installed, else torch.
    cache_type: of keys and values, native only: bf16, int8 or f32 (None: f32 for float32 weights,
    else bf16). threads: of the CPU; None takes one for each core. weights_cache: keep native
    weights on the disk as the kernels want them. draft: a small model of the same vocabulary that
    guesses ahead. speculation: without a draft, guess from what was said before.
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
        cache_type=cache_type,
        threads=threads,
        weights_cache=weights_cache,
    )
    backend, tokenizer = make(path), load_tokenizer(path)
    costs = _costs(backend)
    drafter: MakeDrafter | None = partial(PromptLookup, costs) if speculation else None
    if draft is not None:
        small = locate(draft)
        drafter = partial(DraftModel(make(small), load_tokenizer(small), tokenizer).drafter, costs)
    return Engine(
        backend,
        tokenizer,
        model_params(path),
        drafter=drafter,
        costs=costs,
        identity=lambda: f"{digest(path)} {dtype}",
    )


def _backend(
    path: Path,
    *,
    dtype: str | None,
    device: str | torch.device | None,
    context: int | None,
    engine: str,
    cache_type: str | None,
    threads: int | None,
    weights_cache: bool,
) -> Backend:
    on_cpu = device is None or torch.device(device).type == "cpu"
    if engine == "auto":
        engine = "native" if on_cpu and _fits_native(path, dtype) else "torch"
    if engine == "native":
        if not on_cpu:
            raise UserError(f"device: the native engine runs on the CPU, not on {device}")
        if find_spec("smollm3_kernels") is None:
            raise UserError(f"engine: {MISSING}")
        from smollm3.infer.backends.native import NativeBackend

        return NativeBackend(
            path,
            _config(path, context),
            dtype=dtype,
            cache_type=cache_type,
            threads=threads,
            weights_cache=weights_cache,
        )
    if cache_type is not None:
        raise UserError("cache_type: PyTorch keeps keys and values in dtype; take --engine native")
    if threads is not None:
        torch.set_num_threads(threads)
    return TorchBackend(load_model(path, dtype or "float32", device or "cpu", context))


def _costs(backend: Backend) -> StepCosts:
    """Of guesses. PyTorch's logits depend, in their last digits, on how many tokens a step has;
    were that number to depend on the clock, near-ties would fall now so, now so."""
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
