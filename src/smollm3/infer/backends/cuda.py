"""What makes PyTorch fast on CUDA: steps captured once and replayed, and quantised weights.

A step of single tokens is a thousand small kernels, which take longer to start than to run. As a
CUDA graph they start together; a graph is of fixed memory and sizes, so there is one for each
(rows, blocks) of a few sizes, and a step is padded to the next.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor, nn

from smollm3.errors import UserError
from smollm3.infer.backends import BLOCK, Ints, StepBatch
from smollm3.model import ModelConfig, Rope, Transformer, rope_tables
from smollm3.quiet import quiet

ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
QUANTISED = ("int4", "int8")
INT4_GROUP = 64  # weights that share a scale

Run = Callable[["Inputs"], Tensor]  # logits [S, V] of a step of single tokens


@dataclass
class Inputs:
    """A step of one token of each of S sequences, of at most W blocks. places: of the pool, in
    tokens, which the new keys and values take; lengths: with the new token."""

    ids_1S: Tensor
    cos_1SD: Tensor
    sin_1SD: Tensor
    places_S: Tensor
    tables_SW: Tensor
    lengths_S: Tensor

    @property
    def rope(self) -> Rope:
        return Rope(self.cos_1SD, self.sin_1SD)

    def copy_(self, other: Inputs) -> None:
        for item in fields(self):
            getattr(self, item.name).copy_(getattr(other, item.name))


class Graphs:
    """Replays steps of single tokens. run: such a step, of kernels only; spare: a block of the pool
    that holds nothing, for the rows that pad a step. capture: makes a graph of a run on inputs that
    stay where they are, for tests anything with the same effect."""

    def __init__(
        self,
        config: ModelConfig,
        device: torch.device,
        run: Run,
        spare: int,
        capture: Callable[[Run, Inputs], Callable[[], Tensor]],
    ) -> None:
        self._config = config
        self._device = device
        self._run = run
        self._spare = spare
        self._capture = capture
        self._graphs: dict[tuple[int, int], tuple[Inputs, Callable[[], Tensor]]] = {}

    def step(self, batch: StepBatch) -> Tensor | None:
        """Logits [S, V], or None for a step that is not of single tokens."""
        S = len(batch.starts) - 1
        if len(batch.ids_N) != S or len(batch.wanted_R) != S or ROWS[-1] < S:
            return None
        inputs = self._padded(batch, next(rows for rows in ROWS if rows >= S))
        key = (inputs.ids_1S.shape[1], inputs.tables_SW.shape[1])
        if key not in self._graphs:
            self._graphs[key] = (inputs, self._capture(self._run, inputs))
        static, replay = self._graphs[key]
        static.copy_(inputs)
        return replay()[:S]

    def _padded(self, batch: StepBatch, rows: int) -> Inputs:
        """With the rows and blocks of a graph. Its blocks are a power of two, so that a long
        answer meets few of them; a step reads at most twice what it needs."""
        S, B = batch.tables_SB.shape
        tables_SW = np.full((rows, 1 << (B - 1).bit_length()), self._spare, np.int64)
        tables_SW[:S, :B] = batch.tables_SB
        positions_S = _filled(batch.positions_N, rows)
        places_S = tables_SW[np.arange(rows), positions_S // BLOCK] * BLOCK + positions_S % BLOCK
        rope = rope_tables(self._config, self._tensor(positions_S)[None])
        return Inputs(
            ids_1S=self._tensor(_filled(batch.ids_N, rows))[None],
            cos_1SD=rope.cos,
            sin_1SD=rope.sin,
            places_S=self._tensor(places_S),
            tables_SW=self._tensor(tables_SW),
            lengths_S=self._tensor(positions_S + 1),
        )

    def _tensor(self, values: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> Tensor:
        return torch.from_numpy(values).to(self._device)


def _filled(values: Ints, rows: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return np.concatenate([values, np.zeros(rows - len(values), np.int32)]).astype(np.int64)


class Capture:
    """Makes CUDA graphs. They share their memory, as one's logits are read before the next runs."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Run, inputs: Inputs) -> Callable[[], Tensor]:
        device = inputs.ids_1S.device
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):  # libraries choose their kernels and take their memory
            for _ in range(2):
                run(inputs)
        torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, self._pool):
            logits_SV = run(inputs)

        def replay() -> Tensor:
            graph.replay()
            return logits_SV

        return replay


def quantize(model: Transformer, kind: str, device: torch.device) -> Transformer:
    """The model on `device`, its blocks' weights in 4 or 8 bits (torchao, weight-only), one layer
    after the other: the whole never has to fit in its own dtype.

    int4 is for CUDA from Ampere on, in bfloat16. Embedding and unembedding keep their dtype.
    """
    if kind not in QUANTISED:
        raise UserError(f"quantize: {kind!r} is not one of {', '.join(QUANTISED)}")
    dtype = model.embed.weight.dtype
    if kind == "int4" and not _has_int4(device, dtype):
        name = str(dtype).removeprefix("torch.")
        raise UserError(
            f"quantize: int4 runs on CUDA, from Ampere on, in bfloat16, not on {device} in {name}"
        )
    return _narrowed(model, kind, device)


def _has_int4(device: torch.device, dtype: torch.dtype) -> bool:
    return (
        device.type == "cuda"
        and torch.cuda.get_device_capability(device) >= (8, 0)
        and dtype == torch.bfloat16
    )


def _narrowed(model: Transformer, kind: str, device: torch.device) -> Transformer:
    with quiet():
        try:
            torchao = importlib.import_module("torchao.quantization")
        except ImportError as e:
            raise UserError(f"quantize needs torchao ({e}); pip install torchao") from None
        wanted = (
            torchao.Int4WeightOnlyConfig(
                group_size=INT4_GROUP, int4_packing_format="tile_packed_to_4d"
            )
            if kind == "int4"
            else torchao.Int8WeightOnlyConfig()
        )
        for block in model.blocks:
            torchao.quantize_(block, wanted, lambda part, _: isinstance(part, nn.Linear), device)
    return model.to(device)
