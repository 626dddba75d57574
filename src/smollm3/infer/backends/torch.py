"""The training model file as a backend: CPU, CUDA, MPS.

L layers, P places (tokens) of the pool, W blocks of the longest sequence in a group, S sequences,
N tokens of a step, T tokens of one sequence in it, H query heads, G key/value heads, D head dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count, pairwise

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import Module
from torch.utils.hooks import RemovableHandle

from smollm3.infer.adapters import Addition, Additions
from smollm3.infer.backends import BLOCK, Ints, StepBatch, pool_places
from smollm3.infer.backends.cuda import Capture, Graphs, Inputs
from smollm3.infer.backends.memory import pool_blocks
from smollm3.model import Attend, Transformer, causal, rope_tables
from smollm3.model.attention import sdpa

# Of one attention mask, in elements: the queries of a chunk behind a long past are split.
MASK_ELEMENTS = 1 << 24
# Queries up to which the heads of a group become queries of one head: on a CPU, attention of one
# query with grouped heads takes twice as long in float32 and twelve times in bfloat16.
FOLD_QUERIES = 32

# (layer, q_THD, k_TGD, v_TGD) of some tokens -> o_THD
_Attention = Callable[[int, Tensor, Tensor, Tensor], Tensor]


class TorchBackend:
    """`Backend` over a Transformer; its dtype and device are the cache's too.

    blocks: of the pool; None takes what memory allows.
    """

    name = "torch"
    copies_blocks = True

    def __init__(self, model: Transformer, blocks: int | None = None) -> None:
        config, like = model.config, model.embed.weight
        self.model = model
        self.config = config
        self.kv_cache_dtype = str(like.dtype).removeprefix("torch.")
        shape = (config.layers, BLOCK, config.kv_heads, config.head_dim)
        self.block_bytes = 2 * math.prod(shape) * like.dtype.itemsize
        self.blocks = blocks or pool_blocks(config, self.block_bytes, like.device)
        # One block more than the engine knows of, for rows that only pad a step.
        places = (config.layers, (self.blocks + 1) * BLOCK, config.kv_heads, config.head_dim)
        self.k_LPGD, self.v_LPGD = _zeros(places, like), _zeros(places, like)

        self._adapters: dict[int, dict[str, Addition]] = {}
        self._hooks: list[RemovableHandle] = []
        self._rows: list[tuple[Tensor, dict[str, Addition]]] = []  # of the step, by adapter
        self._h_NE = like.new_empty(0, config.hidden)
        self._graphs: Graphs | None = None
        if like.device.type == "cuda":
            self._graphs = Graphs(config, like.device, self.decode, self.blocks, Capture())

    @torch.inference_mode()
    def step(self, batch: StepBatch) -> Tensor:
        self._rows = self._adapted_rows(batch)
        graphs = None if self._rows else self._graphs
        if graphs and (logits_SV := graphs.step(batch)) is not None:
            return logits_SV
        ids_1N = self._tensor(batch.ids_N)[None]
        rope = rope_tables(self.config, self._tensor(batch.positions_N)[None])
        h_1NE = self.model.hidden(ids_1N, rope, self._attend(batch))
        self._h_NE = h_1NE[0]
        return self.model.logits(h_1NE[0, self._tensor(batch.wanted_R)]).float()

    def states(self) -> Tensor:
        return self._h_NE.float().cpu()

    @torch.inference_mode()
    def decode(self, inputs: Inputs) -> Tensor:
        """Logits [S, V] of a step of single tokens, by operations that a graph can hold."""
        W = inputs.tables_SW.shape[1]
        seen_SP = torch.arange(W * BLOCK, device=inputs.ids_1S.device) < inputs.lengths_S[:, None]
        mask_S11P = seen_SP[:, None, None]

        def attend(layer: int, q_1SHD: Tensor, k_1SGD: Tensor, v_1SGD: Tensor) -> Tensor:
            k_PGD, v_PGD = self.k_LPGD[layer], self.v_LPGD[layer]
            k_PGD.index_copy_(0, inputs.places_S, k_1SGD[0])
            v_PGD.index_copy_(0, inputs.places_S, v_1SGD[0])
            k_SPGD, v_SPGD = (
                _blocks(pool, 0)[inputs.tables_SW].flatten(1, 2) for pool in (k_PGD, v_PGD)
            )
            return _folded(q_1SHD[0][:, None], k_SPGD, v_SPGD, mask_S11P)[:, 0][None]

        h_1SE = self.model.hidden(inputs.ids_1S, inputs.rope, attend)
        return self.model.logits(h_1SE[0]).float()

    def add_adapter(self, additions: Additions) -> int:
        """A number for `StepBatch.adapters_S`."""
        like = self.k_LPGD
        number = next(n for n in count() if n not in self._adapters)
        self._adapters[number] = {
            name: Addition(
                addition.a_KI.to(like),
                addition.b_OK.to(like),
                None if addition.lengths_O is None else addition.lengths_O.to(like),
            )
            for name, addition in additions.items()
        }
        if not self._hooks:
            self._hooks = [
                self.model.get_submodule(name).register_forward_hook(partial(self._add, name))
                for name in self.config.linear_shapes
            ]
        return number

    def remove_adapter(self, number: int) -> None:
        del self._adapters[number]
        if not self._adapters:
            self._unhook()

    def _unhook(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _adapted_rows(self, batch: StepBatch) -> list[tuple[Tensor, dict[str, Addition]]]:
        """Of each adapter in the step its tokens."""
        if batch.adapters_S is None:
            return []
        adapter_N = np.repeat(batch.adapters_S, np.diff(batch.starts))
        numbers = np.unique(batch.adapters_S[batch.adapters_S >= 0]).tolist()
        return [(self._tensor(np.flatnonzero(adapter_N == n)), self._adapters[n]) for n in numbers]

    def _add(self, name: str, _: Module, inputs: tuple[Tensor], out_1NO: Tensor) -> Tensor:
        """A linear layer's product with what the adapters of its tokens add."""
        for rows_R, additions in self._rows:
            if (addition := additions.get(name)) is None:
                continue
            x_RI = inputs[0][0, rows_R]
            out_RO = out_1NO[0, rows_R] + _each(_each(x_RI, addition.a_KI), addition.b_OK)
            if addition.lengths_O is not None:
                out_RO = out_RO * addition.lengths_O
            out_1NO[0, rows_R] = out_RO
        return out_1NO

    @torch.inference_mode()
    def export_blocks(self, blocks: Sequence[int]) -> NDArray[np.uint8]:
        chosen = self._tensor(np.asarray(blocks, np.int64))
        halves = [_blocks(pool, 1)[:, chosen] for pool in (self.k_LPGD, self.v_LPGD)]
        data = torch.stack(halves).movedim(2, 0).contiguous().cpu()  # [n, 2, L, BLOCK, G, D]
        return data.flatten(1).view(torch.uint8).numpy()

    @torch.inference_mode()
    def import_blocks(self, blocks: Sequence[int], data: NDArray[np.uint8]) -> None:
        chosen = self._tensor(np.asarray(blocks, np.int64))
        L, _, G, D = self.k_LPGD.shape
        values = torch.from_numpy(data.copy()).view(self.k_LPGD.dtype)
        halves = values.view(len(blocks), 2, L, BLOCK, G, D).movedim(0, 2).to(self.k_LPGD.device)
        for pool, half in zip((self.k_LPGD, self.v_LPGD), halves, strict=True):
            _blocks(pool, 1)[:, chosen] = half

    @torch.inference_mode()
    def copy_blocks(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        from_, to = (self._tensor(np.asarray(b, np.int64)) for b in (sources, targets))
        for pool in (self.k_LPGD, self.v_LPGD):
            blocks = _blocks(pool, 1)
            blocks[:, to] = blocks[:, from_]

    def close(self) -> None:
        self._graphs = None
        self._unhook()
        del self.k_LPGD, self.v_LPGD

    def _tensor(self, values: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(values).to(self.k_LPGD.device)

    def _attend(self, batch: StepBatch) -> Attend:
        """Write the new keys and values, then let each group of sequences attend."""
        places_N = self._tensor(pool_places(batch.tables_SB, batch.starts, batch.positions_N))
        groups = self._groups(batch)

        def attend(layer: int, q_1NHD: Tensor, k_1NGD: Tensor, v_1NGD: Tensor) -> Tensor:
            self.k_LPGD[layer].index_copy_(0, places_N, k_1NGD[0])
            self.v_LPGD[layer].index_copy_(0, places_N, v_1NGD[0])
            if len(groups) == 1:  # all tokens, in their order
                return groups[0][1](layer, q_1NHD[0], k_1NGD[0], v_1NGD[0])[None]
            o_1NHD = torch.empty_like(q_1NHD)
            for tokens, attention in groups:
                new = (x_1NHD[0, tokens] for x_1NHD in (q_1NHD, k_1NGD, v_1NGD))
                o_1NHD[0, tokens] = attention(layer, *new)
            return o_1NHD

        return attend

    def _groups(self, batch: StepBatch) -> list[tuple[slice | Tensor, _Attention]]:
        """Which tokens are looked at together, and how: each chunk of a prompt by itself, single
        tokens of sequences of similar length in one go."""
        groups: list[tuple[slice | Tensor, _Attention]] = []
        singles = []
        for s, (start, end) in enumerate(pairwise(batch.starts.tolist())):
            position = int(batch.positions_N[start])
            if end - start == 1:
                singles.append((position + 1, start, s))
            elif position == 0:
                groups.append((slice(start, end), _whole))
            else:
                table_W = batch.tables_SB[s, : -(-(position + end - start) // BLOCK)]
                groups.append((slice(start, end), self._chunk(table_W, position, end - start)))
        singles.sort()
        while singles:
            longest = singles[-1][0]
            near = [single for single in singles if 2 * single[0] + BLOCK > longest]
            singles = singles[: -len(near)]
            near.sort(key=lambda single: single[1])  # in the order of their tokens
            rows = [s for _, _, s in near]
            tables_SW = batch.tables_SB[rows, : -(-longest // BLOCK)]
            attention = self._singles(tables_SW, [length for length, _, _ in near])
            groups.append((self._tensor(np.array([t for _, t, _ in near])), attention))
        return groups

    def _singles(self, tables_SW: Ints, lengths: list[int]) -> _Attention:
        """One query of each sequence, which sees its first lengths[s] places."""
        gather = self._gather(tables_SW, max(lengths))
        device, mask = self.k_LPGD.device, None
        if min(lengths) < max(lengths):
            lengths_S1 = torch.tensor(lengths, device=device)[:, None]
            mask = (torch.arange(max(lengths), device=device) < lengths_S1)[:, None, None]

        def attention(layer: int, q_SHD: Tensor, k_SGD: Tensor, v_SGD: Tensor) -> Tensor:
            k_SPGD, v_SPGD = gather(layer)
            return _folded(q_SHD[:, None], k_SPGD, v_SPGD, mask)[:, 0]

        return attention

    def _chunk(self, table_W: Ints, position: int, count: int) -> _Attention:
        """`count` queries of one sequence, the first of which sees position + 1 places."""
        end = position + count
        gather = self._gather(table_W[None], end)
        device, dtype = self.k_LPGD.device, self.k_LPGD.dtype
        size = max(1, MASK_ELEMENTS // end)
        masks = []
        for start in range(position, end, size):
            seen_T1 = torch.arange(start, min(start + size, end), device=device)[:, None]
            hidden_TP = torch.arange(end, device=device) > seen_T1
            zeros_TP = torch.zeros(hidden_TP.shape, dtype=dtype, device=device)
            masks.append(zeros_TP.masked_fill_(hidden_TP, -torch.inf))

        def attention(layer: int, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor) -> Tensor:
            k_1PGD, v_1PGD = gather(layer)
            look = _folded if count <= FOLD_QUERIES else sdpa
            pieces = zip(torch.split(q_THD[None], size, 1), masks, strict=True)
            return torch.cat([look(q, k_1PGD, v_1PGD, mask)[0] for q, mask in pieces])

        return attention

    def _gather(self, tables_SW: Ints, places: int) -> Callable[[int], tuple[Tensor, Tensor]]:
        """layer -> keys and values [S, places, G, D] of the sequences; without a copy where it is
        one, and its blocks follow each other in the pool."""
        first = int(tables_SW[0, 0]) * BLOCK
        if len(tables_SW) == 1 and bool((np.diff(tables_SW[0]) == 1).all()):
            run = slice(first, first + places)
            return lambda layer: (self.k_LPGD[layer, run][None], self.v_LPGD[layer, run][None])
        chosen_SW = self._tensor(tables_SW)

        def copied(pool_PGD: Tensor) -> Tensor:
            return _blocks(pool_PGD, 0)[chosen_SW].flatten(1, 2)[:, :places]

        return lambda layer: (copied(self.k_LPGD[layer]), copied(self.v_LPGD[layer]))


def _each(x_RI: Tensor, w_OI: Tensor) -> Tensor:
    """[R, O]: the matrix by each row in a product of its own, whose bits no other row changes."""
    return torch.bmm(x_RI[:, None], w_OI.T.expand(len(x_RI), -1, -1))[:, 0]


def _whole(layer: int, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor) -> Tensor:
    """A sequence from its first token on."""
    return causal(layer, q_THD[None], k_TGD[None], v_TGD[None])[0]


def _folded(q_STHD: Tensor, k_SPGD: Tensor, v_SPGD: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of few queries: the H/G heads that share keys become queries of one head.

    mask: bool [S, 1, 1, P], or what is added to the scores [T, P]; None sees all.
    """
    S, T, H, D = q_STHD.shape
    G = k_SPGD.shape[2]
    q_SGQD = q_STHD.view(S, T, G, H // G, D).transpose(1, 2).reshape(S, G, T * (H // G), D)
    if mask is not None and mask.ndim == 2:
        mask = mask.repeat_interleave(H // G, 0)
    o_SGQD = F.scaled_dot_product_attention(
        q_SGQD, k_SPGD.transpose(1, 2), v_SPGD.transpose(1, 2), attn_mask=mask
    )
    return o_SGQD.view(S, G, T, H // G, D).transpose(1, 2).reshape(S, T, H, D)


def _zeros(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Zeros, not empty memory: a masked place still enters the product, and 0 x NaN is NaN.

    On a CPU by calloc, which torch.zeros does not use: the system hands out zero pages when they
    are first written, so blocks that are not used cost nothing.
    """
    if like.device.type != "cpu":
        return torch.zeros(shape, dtype=like.dtype, device=like.device)
    octets = np.zeros(math.prod(shape) * like.dtype.itemsize, np.uint8)
    return torch.from_numpy(octets).view(like.dtype).view(shape)


def _blocks(pool: Tensor, dim: int) -> Tensor:
    """The pool with its places, dimension `dim`, as blocks of BLOCK."""
    shape = pool.shape
    return pool.view(*shape[:dim], -1, BLOCK, *shape[dim + 1 :])
