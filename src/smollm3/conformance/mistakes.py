"""What ports of SmolLM3 get wrong, each as the log-probabilities it leads to.

Every mistake is made with the package's own model: on another configuration, on edited weights, or
with another `attend` or other rotary tables handed in. The model file knows none of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from smollm3.conformance.kit import CONFIG, reshaped
from smollm3.model import Attend, ModelConfig, Rope, Transformer, rope_tables
from smollm3.model.attention import causal, sdpa

Logits = Callable[[Transformer, Tensor], Tensor]  # (model, ids_BT) -> logits_BTV


@dataclass(frozen=True)
class Mistake:
    """name: what was done. fix: what to do instead."""

    name: str
    fix: str
    logits: Logits


# Ways to make a mistake


def _configured(change: Callable[[ModelConfig], ModelConfig]) -> Logits:
    return lambda model, ids_BT: reshaped(model, change(model.config))(ids_BT)


def _pattern(uses_rope: Callable[[int, int], bool]) -> Logits:
    """uses_rope(layer, layers) instead of SmolLM3's rule."""
    return _configured(
        lambda c: replace(c, uses_rope=tuple(uses_rope(i, c.layers) for i in range(c.layers)))
    )


def _edited(change: Callable[[str, Tensor, dict[str, Tensor]], Tensor]) -> Logits:
    """Each weight replaced by change(name, weight, all weights)."""

    def logits(model: Transformer, ids_BT: Tensor) -> Tensor:
        old = model.state_dict()
        new = {name: change(name, weight, old) for name, weight in old.items()}
        logits_BTV: Tensor = reshaped(model, model.config, new)(ids_BT)
        return logits_BTV

    return logits


def _attending(make: Callable[[ModelConfig], Attend]) -> Logits:
    return lambda model, ids_BT: model(ids_BT, attend=make(model.config))


def _tabled(make: Callable[[ModelConfig, Tensor], Rope]) -> Logits:
    return lambda model, ids_BT: model(ids_BT, make(model.config, torch.arange(ids_BT.shape[1])))


# Attention


def _tiled(config: ModelConfig) -> Attend:
    """Query head h reads key head h mod G, not h // (H/G)."""
    times = config.heads // config.kv_heads

    def attend(layer: int, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGD: Tensor) -> Tensor:
        k_BTHD, v_BTHD = k_BTGD.repeat(1, 1, times, 1), v_BTGD.repeat(1, 1, times, 1)
        return causal(layer, q_BTHD, k_BTHD, v_BTHD)

    return attend


def _scaled(factor: Callable[[ModelConfig, int], float]) -> Callable[[ModelConfig], Attend]:
    """Scores of a layer multiplied by factor(config, layer)."""

    def make(config: ModelConfig) -> Attend:
        def attend(layer: int, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGD: Tensor) -> Tensor:
            return causal(layer, q_BTHD * factor(config, layer), k_BTGD, v_BTGD)

        return attend

    return make


def _unmasked(config: ModelConfig) -> Attend:
    def attend(layer: int, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGD: Tensor) -> Tensor:
        everything = torch.ones(q_BTHD.shape[1], k_BTGD.shape[1], dtype=torch.bool)
        return sdpa(q_BTHD, k_BTGD, v_BTGD, everything)

    return attend


# Weights


def _permuted(order: Callable[[Tensor], Tensor], parts: str) -> Logits:
    """Rows of every head of the projections in `parts` taken in another order."""
    endings = tuple(f"attention.{part}.weight" for part in parts)

    def change(name: str, weight: Tensor, _: dict[str, Tensor]) -> Tensor:
        if not name.endswith(endings):
            return weight
        rows = order(torch.arange(CONFIG.head_dim))
        return weight.view(-1, CONFIG.head_dim, CONFIG.hidden)[:, rows].flatten(0, 1)

    return _edited(change)


def _halves_to_pairs(rows: Tensor) -> Tensor:
    """[0, 16, 1, 17, ...]: the order in which GGUF files keep rows."""
    return rows.view(2, -1).T.flatten()


def _pairs_to_halves(rows: Tensor) -> Tensor:
    """[0, 2, 4, ..., 1, 3, ...]: what turning neighbours does to rows kept in halves."""
    return rows.view(-1, 2).T.flatten()


def _swapped(a: str, b: str) -> Logits:
    def change(name: str, weight: Tensor, all_: dict[str, Tensor]) -> Tensor:
        for one, other in ((a, b), (b, a)):
            if name.endswith(f"{one}.weight"):
                return all_[name.replace(f"{one}.weight", f"{other}.weight")]
        return weight

    return _edited(change)


def _norms(change: Callable[[Tensor], Tensor]) -> Logits:
    return _edited(lambda name, weight, _: change(weight) if weight.ndim == 1 else weight)


def _embeddings_scaled(model: Transformer, ids_BT: Tensor) -> Tensor:
    embed = model.embed.weight
    untied = replace(model.config, tied=False)
    changed = {"embed.weight": embed * model.config.hidden**0.5, "unembed.weight": embed}
    logits_BTV: Tensor = reshaped(model, untied, changed)(ids_BT)
    return logits_BTV


def _bos(model: Transformer, ids_BT: Tensor) -> Tensor:
    bos = torch.full_like(ids_BT[:, :1], BOS)
    logits_BTV: Tensor = model(torch.cat([bos, ids_BT], 1))
    return logits_BTV[:, 1:]


# YaRN


def _attention_factor(config: ModelConfig) -> float:
    cos, sin = rope_tables(config, torch.tensor([0]))
    return float(torch.hypot(cos, sin)[0, 0])


def _no_attention_factor(config: ModelConfig, positions: Tensor) -> Rope:
    cos, sin = rope_tables(config, positions)
    factor = _attention_factor(config)
    return Rope(cos / factor, sin / factor)


def _interpolated(config: ModelConfig, positions: Tensor) -> Rope:
    assert config.yarn is not None
    return rope_tables(replace(config, yarn=None), positions / config.yarn.factor)


def _factor_on_nope(config: ModelConfig, layer: int) -> float:
    return 1.0 if config.uses_rope[layer] else _attention_factor(config) ** 2


NOPE_RULE = "layer i (from 0) has no RoPE where (i + 1) % 4 == 0"
BOS = CONFIG.vocab_size - 18  # `<|begin_of_text|>`, the first of the 18 control tokens

MISTAKES = (
    Mistake(
        "RoPE on every layer",
        f"{NOPE_RULE}; a GGUF file has no key for it",
        _pattern(lambda i, n: True),
    ),
    Mistake(
        "NoPE pattern inverted",
        "in config.json no_rope_layers[i] == 1 means that layer i USES RoPE",
        _pattern(lambda i, n: (i + 1) % 4 == 0),
    ),
    Mistake("NoPE pattern shifted by one", NOPE_RULE, _pattern(lambda i, n: i % 4 != 0)),
    Mistake("NoPE pattern of another interval", NOPE_RULE, _pattern(lambda i, n: (i + 1) % 2 != 0)),
    Mistake(
        "RoPE on the last layer",
        "the last layer too is NoPE where layers are a multiple of 4",
        _pattern(lambda i, n: i == n - 1 or (i + 1) % 4 != 0),
    ),
    Mistake("no RoPE at all", NOPE_RULE, _pattern(lambda i, n: False)),
    Mistake(
        "neighbours rotated instead of halves",
        "Hugging Face rows pair i with i + head_dim/2",
        _permuted(_pairs_to_halves, "qk"),
    ),
    Mistake(
        "q/k rows of a GGUF file not put back",
        "GGUF pairs row 2i with 2i + 1, on all layers; put rows back or rotate neighbours",
        _permuted(_halves_to_pairs, "qk"),
    ),
    Mistake(
        "k rows permuted, q rows not", "permute both or neither", _permuted(_halves_to_pairs, "k")
    ),
    Mistake(
        "rope_theta ignored, 10,000 taken",
        "read rope_theta from config.json",
        _configured(lambda c: replace(c, rope_theta=10_000.0)),
    ),
    Mistake(
        "rope_theta ignored, 2,000,000 taken",
        "that is the class default; read rope_theta from config.json",
        _configured(lambda c: replace(c, rope_theta=2_000_000.0)),
    ),
    Mistake(
        "grouped heads wrong: query head h reads key head h mod kv_heads",
        "query head h reads key head h // (heads / kv_heads)",
        _attending(_tiled),
    ),
    Mistake(
        "attention scores not scaled",
        "divide them by sqrt(head_dim), on NoPE layers too",
        _attending(_scaled(lambda c, layer: c.head_dim**0.5)),
    ),
    Mistake(
        "attention scores of NoPE layers not scaled",
        "divide them by sqrt(head_dim), on NoPE layers too",
        _attending(_scaled(lambda c, i: 1.0 if c.uses_rope[i] else c.head_dim**0.5)),
    ),
    Mistake(
        "attention scaled by sqrt(hidden)",
        "divide scores by sqrt(head_dim)",
        _attending(_scaled(lambda c, layer: (c.head_dim / c.hidden) ** 0.5)),
    ),
    Mistake("no causal mask", "a token sees itself and those before it", _attending(_unmasked)),
    Mistake(
        "a BOS token put before the prompt",
        "SmolLM3 was trained without one; take the ids as they are",
        _bos,
    ),
    Mistake(
        "rms_norm_eps ignored, 1e-6 taken",
        "read rms_norm_eps from the configuration",
        _configured(lambda c: replace(c, norm_eps=1e-6)),
    ),
    Mistake(
        "rms_norm_eps ignored, 1e-5 taken",
        "read rms_norm_eps from the configuration",
        _configured(lambda c: replace(c, norm_eps=1e-5)),
    ),
    Mistake("norm weights ignored", "multiply by the norm's weight", _norms(torch.ones_like)),
    Mistake("1 added to norm weights", "multiply by the weight as it is", _norms(lambda w: w + 1)),
    Mistake("embeddings scaled by sqrt(hidden)", "take the embedding as it is", _embeddings_scaled),
    Mistake(
        "gate and up swapped",
        "SwiGLU: down(silu(gate(x)) * up(x))",
        _swapped("ffn.gate", "ffn.up"),
    ),
    Mistake(
        "k and v swapped",
        "the order of a fused projection is q, k, v",
        _swapped("attention.k", "attention.v"),
    ),
)

YARN_MISTAKES = (
    Mistake(
        "YaRN ignored",
        "read rope_scaling or rope_parameters; in GGUF the rope.scaling keys",
        _configured(lambda c: replace(c, yarn=None)),
    ),
    Mistake(
        "YaRN's attention factor missing",
        "multiply cos and sin by 0.1 ln(factor) + 1",
        _tabled(_no_attention_factor),
    ),
    Mistake(
        "YaRN's attention factor on NoPE layers",
        "it belongs to cos and sin; layers without them are not scaled",
        _attending(_scaled(_factor_on_nope)),
    ),
    Mistake(
        "positions divided by the factor instead of YaRN",
        "YaRN slows only the slow pairs down",
        _tabled(_interpolated),
    ),
    Mistake(
        "RoPE with YaRN on every layer",
        f"{NOPE_RULE}; YaRN does not change that",
        _pattern(lambda i, n: True),
    ),
)
