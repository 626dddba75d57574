"""Segments give what `packed` gives: values and gradients, whole rows and parts of them."""

import inspect

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smollm3.model import packed
from smollm3.train import attention
from smollm3.train.attention import Segments, segmented
from smollm3.train.layout import Layout

B, S, H, G, D = 2, 24, 4, 2, 8


def tensors(seed=0):
    torch.manual_seed(seed)
    return [torch.randn(B, S, n, D, requires_grad=True) for n in (H, G, G)]


def documents(cuts):
    """[B, S] from the columns where each row's documents begin."""
    return torch.tensor([[sum(c <= i for c in row) for i in range(S)] for row in cuts])


def gradients(out, leaves, of):
    return torch.autograd.grad(out, leaves, of)


CUTS = st.lists(st.lists(st.integers(1, S - 1), max_size=6), min_size=B, max_size=B)


@settings(max_examples=20)
@given(CUTS)
def test_documents_as_segments(cuts):
    ids = documents(cuts)
    q, k, v = tensors()
    expected = packed(ids)(0, q, k, v)
    out = segmented(Segments.of(ids), S)(0, q, k, v)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    weight = torch.randn_like(out)
    for a, b in zip(
        gradients(out, (q, k, v), weight), gradients(expected, (q, k, v), weight), strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@settings(max_examples=20)
@given(CUTS, st.sampled_from([2, 3, 4]))
def test_ranks_with_some_columns_together_are_the_whole(cuts, cp):
    ids = documents(cuts)
    q, k, v = tensors()
    expected = packed(ids)(0, q, k, v)
    weight = torch.randn_like(expected)
    sums = [torch.zeros_like(x) for x in (q, k, v)]
    for rank in range(cp):
        columns = Layout(cp=cp).columns(rank, S)
        own = torch.cat([torch.arange(*each) for each in columns])
        attend = segmented(Segments.of(ids, columns), S, lambda x: x)
        out = attend(0, q[:, own], k, v)
        torch.testing.assert_close(out, expected[:, own], atol=1e-5, rtol=1e-5)
        parts = gradients(out, (q, k, v), weight[:, own])
        sums = [total + part for total, part in zip(sums, parts, strict=True)]
    for a, b in zip(sums, gradients(expected, (q, k, v), weight), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_operations_are_sound():
    """Fake shapes, schema and autograd of the custom operations agree with what they do."""
    q, k, v = (x.flatten(0, 1) for x in tensors())
    segments = Segments.of(documents([[5, 9], []]))
    inputs = (*(x.detach().requires_grad_() for x in (q, k, v)), segments.cu_q, segments.cu_k)
    torch.library.opcheck(attention.one_by_one, inputs)


@pytest.mark.parametrize(
    ("keywords", "options"),
    [
        (("is_causal",), {"is_causal": True}),  # PyTorch 2.10
        (("scale", "window_size"), {"window_size": (-1, 0)}),
        (("window_size", "enable_gqa"), {"window_size": (-1, 0), "enable_gqa": True}),  # 2.12
    ],
)
def test_every_signature_of_the_kernel_is_called_causally(monkeypatch, keywords, options):
    def kernel(*args, **said):
        return said

    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in keywords
    ]
    kernel.__signature__ = inspect.Signature(parameters)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", kernel)
    attention.flash.cache_clear()
    try:
        assert attention.flash()() == options
    finally:
        attention.flash.cache_clear()
