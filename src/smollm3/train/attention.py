"""Packed documents as cumulative lengths: one call for all, and no shape that depends on them.

`model.packed` is faster where Python may look at every batch. Under `torch.compile` it would be
compiled again for every set of lengths; and with context parallelism a rank has queries for some
columns of a row and keys for all. Here documents are lists of (queries, keys) segments in tensors.

Tensor names: N queries and S keys of all rows one after another, H, G, D heads as in the model.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from smollm3.model.attention import Attend, sdpa
from smollm3.train.forward import Gather


@dataclass(frozen=True)
class Segments:
    """Segment i: queries cu_q[i] to cu_q[i+1], the last tokens of keys cu_k[i] to cu_k[i+1].

    keys: for each key its place in all rows' keys one after another; None: in order, all of them.
    """

    cu_q: Tensor
    cu_k: Tensor
    keys: Tensor | None

    @staticmethod
    def of(documents_BS: Tensor, columns: list[tuple[int, int]] | None = None) -> Segments:
        """columns: [start, end) of the columns that this rank has queries for; None: all."""
        B, S = documents_BS.shape
        changes = torch.diff(documents_BS, dim=1).ne(0)
        starts_k, lengths_q, lengths_k = [], [], []
        for b in range(B):
            cuts = [0, *(changes[b].nonzero()[:, 0] + 1).tolist(), S]
            for first, last in columns or [(0, S)]:
                for start, end in pairwise(cuts):
                    stop = min(end, last)
                    if (begin := max(start, first)) < stop:
                        starts_k.append(b * S + start)
                        lengths_q.append(stop - begin)
                        lengths_k.append(stop - start)
        keys = None
        if columns is not None:
            ranges = [torch.arange(s, s + n) for s, n in zip(starts_k, lengths_k, strict=True)]
            keys = torch.cat(ranges)
        cu_q, cu_k = (
            torch.tensor([0, *lengths]).cumsum(0).int() for lengths in (lengths_q, lengths_k)
        )
        return Segments(cu_q, cu_k, keys)

    def to(self, device: torch.device) -> Segments:
        keys = None if self.keys is None else self.keys.to(device)
        return Segments(self.cu_q.to(device), self.cu_k.to(device), keys)


def segmented(segments: Segments, width: int, gather: Gather | None = None) -> Attend:
    """Causal attention inside each document. width: columns of a whole row."""
    cu_q, cu_k, keys_S = segments.cu_q, segments.cu_k, segments.keys
    kernel = flash() if cu_q.is_cuda else None

    def attend(layer: int, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGD: Tensor) -> Tensor:
        if gather is not None:
            k_BTGD, v_BTGD = gather(k_BTGD), gather(v_BTGD)
        q_NHD, k_SGD, v_SGD = (x.flatten(0, 1) for x in (q_BTHD, k_BTGD, v_BTGD))
        if keys_S is not None:
            k_SGD, v_SGD = k_SGD[keys_S], v_SGD[keys_S]
        if kernel is not None and q_NHD.dtype in (torch.bfloat16, torch.float16):
            o_NHD = kernel(q_NHD, k_SGD, v_SGD, cu_q, cu_k, width, width)
        else:
            o_NHD = one_by_one(q_NHD, k_SGD, v_SGD, cu_q, cu_k)
        return o_NHD.view_as(q_BTHD)

    return attend


@cache
def flash() -> Callable[..., Tensor]:
    """PyTorch's kernel for segments, causal. Its signature grew: 2.10 says is_causal, later
    releases a window; grouped heads need no word before `enable_gqa` exists."""
    from torch.nn.attention.varlen import varlen_attn

    known = inspect.signature(varlen_attn).parameters
    options: dict[str, object] = (
        {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    )
    if "enable_gqa" in known:
        options["enable_gqa"] = True
    attend: Callable[..., Any] = varlen_attn
    return partial(attend, **options)


@torch.library.custom_op("smollm3::one_by_one", mutates_args=())
def one_by_one(q_NHD: Tensor, k_SGD: Tensor, v_SGD: Tensor, cu_q: Tensor, cu_k: Tensor) -> Tensor:
    """What `flash` computes, on any device and in any precision: a call per segment. One operation
    for the compiler, whatever the segments are."""
    out_NHD = torch.empty_like(q_NHD)
    for queries, keys in _slices(cu_q, cu_k):
        out_NHD[queries] = _segment(q_NHD[queries], k_SGD[keys], v_SGD[keys])
    return out_NHD


@one_by_one.register_fake
def _(q_NHD: Tensor, k_SGD: Tensor, v_SGD: Tensor, cu_q: Tensor, cu_k: Tensor) -> Tensor:
    return torch.empty_like(q_NHD)


@torch.library.custom_op("smollm3::one_by_one_backward", mutates_args=())
def _backward(
    grad_NHD: Tensor, q_NHD: Tensor, k_SGD: Tensor, v_SGD: Tensor, cu_q: Tensor, cu_k: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Makes each segment's scores again, so nothing of their size is kept."""
    grads = tuple(torch.zeros_like(x) for x in (q_NHD, k_SGD, v_SGD))
    for queries, keys in _slices(cu_q, cu_k):
        parts = _segment_backward(grad_NHD[queries], q_NHD[queries], k_SGD[keys], v_SGD[keys])
        for grad, where, part in zip(grads, (queries, keys, keys), parts, strict=True):
            grad[where] = part
    return grads[0], grads[1], grads[2]


@_backward.register_fake
def _(
    grad_NHD: Tensor, q_NHD: Tensor, k_SGD: Tensor, v_SGD: Tensor, cu_q: Tensor, cu_k: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q_NHD), torch.empty_like(k_SGD), torch.empty_like(v_SGD)


def _save(
    ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, ...], output: Tensor
) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(
    ctx: torch.autograd.function.BackwardCFunction, grad_NHD: Tensor
) -> tuple[Tensor | None, ...]:
    return (*_backward(grad_NHD.contiguous(), *ctx.saved_tensors), None, None)


one_by_one.register_autograd(_gradients, setup_context=_save)


def _segment(q_NHD: Tensor, k_SGD: Tensor, v_SGD: Tensor) -> Tensor:
    """The queries are the last of the keys' tokens."""
    mask_NS = None if len(q_NHD) == len(k_SGD) else _seen(q_NHD, k_SGD)
    return sdpa(q_NHD[None], k_SGD[None], v_SGD[None], mask_NS)[0]


def _segment_backward(
    grad_NHD: Tensor, q_NHD: Tensor, k_SGD: Tensor, v_SGD: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """With P = softmax(QK'/sqrt(D)) and O = PV: dV = P'dO, dP = dO V', and by softmax's own
    derivative dS = P * (dP - rowsum(P * dP)); then dQ = dS K/sqrt(D), dK = dS'Q/sqrt(D)."""
    G, R, scale = k_SGD.shape[1], q_NHD.shape[1] // k_SGD.shape[1], q_NHD.shape[2] ** -0.5
    q_GRND, grad_GRND = (x.float().view(len(x), G, R, -1).movedim(0, 2) for x in (q_NHD, grad_NHD))
    k_G1SD, v_G1SD = (x.float().movedim(0, 1)[:, None] for x in (k_SGD, v_SGD))
    scores_GRNS = (q_GRND @ k_G1SD.mT * scale).masked_fill(~_seen(q_NHD, k_SGD), -torch.inf)
    p_GRNS = scores_GRNS.softmax(-1)
    dp_GRNS = grad_GRND @ v_G1SD.mT
    ds_GRNS = p_GRNS * (dp_GRNS - (p_GRNS * dp_GRNS).sum(-1, keepdim=True)) * scale
    dq_NHD = (ds_GRNS @ k_G1SD).movedim(2, 0).flatten(1, 2)
    dk_SGD = (ds_GRNS.mT @ q_GRND).sum(1).movedim(1, 0)
    dv_SGD = (p_GRNS.mT @ grad_GRND).sum(1).movedim(1, 0)
    return dq_NHD, dk_SGD, dv_SGD


def _seen(q_NHD: Tensor, k_SGD: Tensor) -> Tensor:
    """[N, S] bool: each query sees the keys up to its own."""
    N, S = len(q_NHD), len(k_SGD)
    return torch.ones(N, S, dtype=torch.bool, device=q_NHD.device).tril(S - N)


def _slices(cu_q: Tensor, cu_k: Tensor) -> list[tuple[slice, slice]]:
    return [
        (slice(*q), slice(*k))
        for q, k in zip(pairwise(cu_q.tolist()), pairwise(cu_k.tolist()), strict=True)
    ]
