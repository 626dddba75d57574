import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smollm3.model import ModelConfig, Rope, Transformer, Yarn, attention, nope_pattern, packed
from smollm3.model.rope import inverse_frequencies, rope_tables
from smollm3.model.transformer import RMSNorm

SMALL = ModelConfig(
    vocab_size=50,
    layers=4,
    hidden=32,
    heads=4,
    kv_heads=2,
    head_dim=8,
    ffn=48,
    uses_rope=nope_pattern(4, 4),
    rope_theta=10_000.0,
    context=64,
)
SMOLLM3_3B = ModelConfig(
    vocab_size=128256,
    layers=36,
    hidden=2048,
    heads=16,
    kv_heads=4,
    head_dim=128,
    ffn=11008,
    uses_rope=nope_pattern(36, 4),
    rope_theta=5e6,
    context=65536,
)


def small(seed: int = 0, **changes) -> Transformer:
    model = Transformer(replace(SMALL, **changes))
    model.init_weights(seed)
    with torch.no_grad():  # init_std gives nearly flat logits; these tests want differences
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.mul_(8)
    return model


def test_published_size():
    assert SMOLLM3_3B.parameters == 3_075_098_624
    assert replace(SMOLLM3_3B, tied=False).parameters == 3_337_766_912
    with torch.device("meta"):
        model = Transformer(SMOLLM3_3B)
    assert sum(p.numel() for p in model.parameters()) == 3_075_098_624
    assert [i for i, rope in enumerate(SMOLLM3_3B.uses_rope) if not rope] == list(range(3, 36, 4))


def test_published_utilisation():
    # 14,000 tokens/s on a GPU of 989 TFLOPS at context 4096
    assert 14_000 * SMOLLM3_3B.flops_per_token(4096) / 989e12 == pytest.approx(0.287, abs=5e-4)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"kv_heads": 3}, "kv_heads"),
        ({"head_dim": 7}, "head_dim"),
        ({"layers": 5}, "uses_rope"),
        *(({name: 0}, name) for name in ("head_dim", "heads", "kv_heads", "ffn", "hidden")),
    ],
)
def test_impossible_shapes(changes, word):
    with pytest.raises(ValueError, match=word):
        replace(SMALL, **changes)


def test_initialisation_is_published_and_keyed_by_name():
    config = replace(SMALL, hidden=256, head_dim=64, vocab_size=1000)
    model, again, other = (Transformer(config) for _ in range(3))
    model.init_weights(1)
    again.init_weights(1)
    other.init_weights(2)
    weights = dict(model.named_parameters())
    for name, weight in again.named_parameters():
        assert torch.equal(weight, weights[name])
    for name, weight in other.named_parameters():
        assert weight.ndim == 1 or not torch.equal(weight, weights[name])
    assert not torch.equal(model.blocks[0].attention.k.weight, model.blocks[0].attention.v.weight)
    block = model.blocks[2]
    assert block.ffn.up.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.embed.weight.std().item() == pytest.approx(0.02, rel=0.05)
    for weight in (block.attention.o.weight, block.ffn.down.weight):
        assert weight.std().item() == pytest.approx(0.02 / math.sqrt(2 * 4), rel=0.05)
    assert torch.equal(block.ffn_norm.weight, torch.ones(256))


def test_tied_and_untied_heads():
    tied, untied = small(), small(tied=False)
    assert tied.unembed.weight is tied.embed.weight
    assert untied.unembed.weight is not untied.embed.weight
    names = dict(untied.named_parameters()).keys() - dict(tied.named_parameters()).keys()
    assert names == {"unembed.weight"}


def test_no_token_sees_the_future():
    model = small()
    ids = torch.arange(20)[None] % 50
    changed = ids.clone()
    changed[0, 12] = 49
    with torch.no_grad():
        a, b = model(ids), model(changed)
    assert torch.equal(a[:, :12], b[:, :12])
    assert (a[:, 12:] - b[:, 12:]).abs().amax(-1).min() > 1e-4


def test_positions_matter_only_where_a_layer_rotates():
    ids = torch.arange(20)[None] % 50
    stretched = torch.arange(20) * 3
    with torch.no_grad():
        for uses_rope, moves in (((False,) * 4, False), (SMALL.uses_rope, True)):
            model = small(uses_rope=uses_rope)
            plain, other = model(ids), model(ids, rope_tables(model.config, stretched))
            assert ((plain - other).abs().max() > 1e-3) == moves
            shifted = model(ids, rope_tables(model.config, torch.arange(20) + 37))
            torch.testing.assert_close(plain, shifted, atol=1e-3, rtol=1e-4)  # RoPE is relative


def test_rotation_is_the_complex_product():
    config = replace(SMALL, rope_theta=500.0)
    cos, sin = rope_tables(config, torch.arange(9))
    x = torch.randn(1, 9, 2, 8, generator=torch.Generator().manual_seed(0))
    from smollm3.model.transformer import rotate

    turned = rotate(x, Rope(cos, sin))
    for position in range(9):
        for pair in range(4):
            angle = position * 500.0 ** (-2 * pair / 8)
            z = torch.complex(x[0, position, :, pair], x[0, position, :, pair + 4])
            z = z * complex(math.cos(angle), math.sin(angle))
            torch.testing.assert_close(turned[0, position, :, pair], z.real)
            torch.testing.assert_close(turned[0, position, :, pair + 4], z.imag)


def test_yarn_to_128k_has_the_published_numbers():
    plain, one = inverse_frequencies(128, 5e6, None)
    slowed, factor = inverse_frequencies(128, 5e6, Yarn(2.0, 65536))
    assert one == 1.0
    assert factor == pytest.approx(1.06931, abs=1e-5)
    ratio = plain / slowed
    assert torch.equal(slowed[:25], plain[:25])
    assert (ratio[25:39] > 1).all()
    assert (ratio[25:39] < 2).all()
    torch.testing.assert_close(ratio[39:], torch.full((25,), 2.0))
    # pair 30 lies 6/15 up the ramp: 0.6 of it plain, 0.4 halved
    torch.testing.assert_close(slowed[30], plain[30] * (0.6 + 0.4 / 2))
    tables = rope_tables(replace(SMOLLM3_3B, yarn=Yarn(2.0, 65536)), torch.arange(3))
    assert tables.cos[0, 0].item() == pytest.approx(factor)


def test_yarn_leaves_nope_layers_alone():
    ids = torch.arange(20)[None] % 50
    yarn = Yarn(4.0, 16)
    with torch.no_grad():
        model, slowed = (small(uses_rope=(False,) * 4, yarn=y) for y in (None, yarn))
        assert torch.equal(model(ids), slowed(ids))
        assert not torch.equal(small()(ids), small(yarn=yarn)(ids))


@pytest.mark.parametrize("mask_max", [0, 512], ids=["a call each", "mask"])
@settings(max_examples=15)
@given(rows=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=5), min_size=1, max_size=3))
def test_packed_documents_are_alone(mask_max, rows):
    """Logits and gradients of a packed row are those of each document by itself."""
    total = max(map(sum, rows))
    lengths = [[*row, total - sum(row)] if sum(row) < total else row for row in rows]
    documents = torch.tensor([[i for i, n in enumerate(row) for _ in range(n)] for row in lengths])
    positions = torch.tensor([[p for n in row for p in range(n)] for row in lengths])
    ids = torch.randint(50, documents.shape, generator=torch.Generator().manual_seed(total))
    weights = torch.randn(*ids.shape, 50, generator=torch.Generator().manual_seed(1))
    model = small()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "MASK_MAX_TOKENS", mask_max)
        together = model(ids, rope_tables(model.config, positions), packed(documents))
    (together * weights).sum().backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    for b, row in enumerate(lengths):
        start = 0
        for n in row:
            alone = model(ids[b : b + 1, start : start + n])
            piece = together[b : b + 1, start : start + n]
            torch.testing.assert_close(piece, alone, atol=1e-4, rtol=1e-4)
            (alone * weights[b : b + 1, start : start + n]).sum().backward()
            start += n
    for name, p in model.named_parameters():
        torch.testing.assert_close(grads[name], p.grad, atol=1e-3, rtol=1e-3)


def test_one_document_a_row_is_plain_causal():
    assert packed(torch.tensor([[3, 3, 3], [5, 5, 5]])) is attention.causal


def test_norm_of_tiny_states_is_held_by_eps() -> None:
    """x / sqrt(mean x² + eps): at x = eps = 1e-6 the square is nothing beside eps."""
    norm = RMSNorm(8, eps=1e-6)
    x_BTE = torch.full((1, 1, 8), 1e-6)
    torch.testing.assert_close(norm(x_BTE), torch.full((1, 1, 8), 1e-3), rtol=1e-5, atol=0)
