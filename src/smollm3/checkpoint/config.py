"""`config.json` <-> ModelConfig: SmolLM3's and Llama's keys, defaults and traps.

The published `no_rope_layers` (1 = the layer *uses* RoPE) exists only in this file.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from smollm3.errors import UserError
from smollm3.model import ModelConfig, Yarn, nope_pattern

# What transformers' classes assume where config.json is silent; a checkpoint may rely on it.
DEFAULTS: dict[str, dict[str, Any]] = {
    "smollm3": {
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "rope_theta": 2_000_000.0,
        "no_rope_layer_interval": 4,
        "tie_word_embeddings": True,
    },
    "llama": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 2048,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": False,
    },
}
# Keys that would change the network in a way it does not have, with the only value it has.
FIXED: dict[str, Any] = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": False,
    "quantization_config": None,
}
# Far beyond any model of this shape; building what a hostile file claims would take for ever.
MAX_LAYERS, MAX_PARAMETERS, MAX_INTEGER = 1024, 10**13, 2**31 - 1
YARN_KEYS = {
    "type",
    "rope_type",
    "rope_theta",
    "factor",
    "original_max_position_embeddings",
    "beta_fast",
    "beta_slow",
}


class _Keys:
    """Typed access to the keys of one JSON object; every complaint names the file and the key."""

    def __init__(self, file: Path, values: Any, defaults: dict[str, Any], prefix: str = "") -> None:
        self.file, self.prefix = file, prefix
        if not isinstance(values, dict):
            raise UserError(f"{file}: {prefix.rstrip('.') or 'the file'} is not a JSON object")
        self.values, self.defaults = values, defaults

    def get(self, key: str) -> Any:
        """The value, or the class default where the key is absent or null."""
        value = self.values.get(key)
        return self.defaults.get(key) if value is None else value

    def fail(self, key: str, problem: str) -> UserError:
        return UserError(f"{self.file}: {self.prefix}{key}: {problem}")

    def integer(self, key: str, most: int = MAX_INTEGER) -> int:
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= most:
            raise self.fail(key, f"must be a whole number from 1 to {most}, not {value!r:.80}")
        return value

    def number(self, key: str) -> float:
        value = self.get(key)
        ok = isinstance(value, int | float) and not isinstance(value, bool)
        if not ok or not 0 < value <= sys.float_info.max:
            raise self.fail(key, f"must be a finite number above 0, not {value!r:.80}")
        return float(value)

    def flag(self, key: str) -> bool:
        value = self.get(key)
        if not isinstance(value, bool):
            raise self.fail(key, f"must be true or false, not {value!r}")
        return value


def from_json(values: Any, file: Path) -> ModelConfig:
    """The network that the JSON object of a SmolLM3 or Llama `config.json` describes.

    Raises UserError, naming `file` and the key, for anything this network is not.
    """
    kind = values.get("model_type") if isinstance(values, dict) else None
    defaults = DEFAULTS.get(kind) if isinstance(kind, str) else None
    if defaults is None:
        raise UserError(f"{file}: model_type: {kind!r} is not supported, only smollm3 and llama")
    keys = _Keys(file, values, {**defaults, "rms_norm_eps": 1e-6, "initializer_range": 0.02})
    for key, only in FIXED.items():
        if values.get(key, only) not in (only, None):
            raise keys.fail(key, f"{values[key]!r} is not supported, only {only!r}")
    layer_types = keys.get("layer_types") or []
    if not isinstance(layer_types, list) or any(t != "full_attention" for t in layer_types):
        raise keys.fail("layer_types", "only full_attention is supported")

    layers, hidden = keys.integer("num_hidden_layers", MAX_LAYERS), keys.integer("hidden_size")
    heads = keys.integer("num_attention_heads")
    kv_heads = (
        heads if keys.get("num_key_value_heads") is None else keys.integer("num_key_value_heads")
    )
    theta, yarn, context = _rope(keys)
    try:
        config = ModelConfig(
            vocab_size=keys.integer("vocab_size"),
            layers=layers,
            hidden=hidden,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=hidden // heads if keys.get("head_dim") is None else keys.integer("head_dim"),
            ffn=keys.integer("intermediate_size"),
            uses_rope=_uses_rope(keys, layers) if kind == "smollm3" else nope_pattern(layers, 0),
            rope_theta=theta,
            context=context,
            norm_eps=keys.number("rms_norm_eps"),
            init_std=keys.number("initializer_range"),
            tied=keys.flag("tie_word_embeddings"),
            yarn=yarn,
        )
    except ValueError as e:
        raise UserError(f"{file}: {e}") from None
    if config.parameters > MAX_PARAMETERS:
        raise UserError(f"{file}: {config.parameters:.3g} parameters; no such model is supported")
    return config


def _uses_rope(keys: _Keys, layers: int) -> tuple[bool, ...]:
    """The published list may be longer than the model has layers; the rest is not used."""
    explicit = keys.get("no_rope_layers")
    if explicit is None:
        return nope_pattern(layers, keys.integer("no_rope_layer_interval"))
    if not isinstance(explicit, list) or any(flag not in (0, 1) for flag in explicit):
        raise keys.fail("no_rope_layers", "must be a list of 0 (NoPE) and 1 (RoPE)")
    if len(explicit) < layers:
        raise keys.fail("no_rope_layers", f"has {len(explicit)} entries for {layers} layers")
    return tuple(bool(flag) for flag in explicit[:layers])


def _rope(keys: _Keys) -> tuple[float, Yarn | None, int]:
    """theta, YaRN and context from `rope_scaling` (older, and it wins) or `rope_parameters`."""
    key = "rope_scaling" if keys.get("rope_scaling") else "rope_parameters"
    theta = {"rope_theta": keys.get("rope_theta")}
    rope = _Keys(keys.file, keys.get(key) or {}, theta, f"{key}.")
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in ("default", "yarn"):
        raise rope.fail("rope_type", f"{kind!r} is not supported, only default and yarn")
    known = YARN_KEYS if kind == "yarn" else {"type", "rope_type", "rope_theta"}
    for name, value in rope.values.items():
        if name not in known and value not in (None, {"partial_rotary_factor": 1.0}.get(name)):
            raise rope.fail(name, f"is not supported with rope_type {kind!r}")
    context = keys.integer("max_position_embeddings")
    if kind == "default":
        return rope.number("rope_theta"), None, context
    yarn = _yarn(rope, context)
    scaled = yarn.factor * yarn.original_context
    if scaled > MAX_INTEGER:
        raise rope.fail("factor", f"{yarn.factor} is out of reach")
    return rope.number("rope_theta"), yarn, round(scaled)


def _yarn(rope: _Keys, context: int) -> Yarn:
    """As transformers 5 reads it: `factor` decides, and may be left out where both lengths are
    given. max_position_embeddings is the length with YaRN or, where it is the original one, the
    length without. transformers warns where factor and lengths contradict each other; here that
    is an error."""
    rope.defaults |= {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "original_max_position_embeddings": context,
    }
    original = rope.integer("original_max_position_embeddings")
    factor = context / original
    if original == context or rope.get("factor") is not None:
        factor = rope.number("factor")
    if original != context and factor != context / original:
        raise rope.fail(
            "factor",
            f"{factor:g} contradicts max_position_embeddings / original_max_position_embeddings = "
            f"{context} / {original} = {context / original:g}; mend one of the three",
        )
    return Yarn(factor, original, rope.number("beta_fast"), rope.number("beta_slow"))


def to_json(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """The keys of `config.json` about the network, for transformers 4 and 5, vLLM and mlx-lm.

    transformers 5 and vLLM read `rope_parameters`; mlx-lm needs `rope_theta` at the top.
    """
    scaling: dict[str, Any] | None = None
    if config.yarn is not None:
        if config.yarn.factor != config.context / config.yarn.original_context:
            raise ValueError("the YaRN factor is not context / original_context")
        scaling = {
            "rope_type": "yarn",
            "factor": config.yarn.factor,
            "original_max_position_embeddings": config.yarn.original_context,
            "beta_fast": config.yarn.beta_fast,
            "beta_slow": config.yarn.beta_slow,
        }
    values: dict[str, Any] = {
        "architectures": ["SmolLM3ForCausalLM"],
        "model_type": "smollm3",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden,
        "intermediate_size": config.ffn,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "hidden_act": "silu",
        "max_position_embeddings": config.context,
        "initializer_range": config.init_std,
        "rms_norm_eps": config.norm_eps,
        "use_cache": True,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "tie_word_embeddings": config.tied,
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling,
        "rope_parameters": {
            "rope_theta": config.rope_theta,
            **(scaling or {"rope_type": "default"}),
        },
        "no_rope_layers": [int(flag) for flag in config.uses_rope],
        "layer_types": ["full_attention"] * config.layers,
        "use_sliding_window": False,
        "sliding_window": None,
        "dtype": dtype,
        "torch_dtype": dtype,
    }
    if config.head_dim * config.heads != config.hidden:
        values["head_dim"] = config.head_dim
    interval = _interval(config.uses_rope)
    if interval is not None:
        values["no_rope_layer_interval"] = interval
    return values


def _interval(uses_rope: tuple[bool, ...]) -> int | None:
    """The `no_rope_layer_interval` that says the same as the list; 4 is tried first because
    short models leave a choice and llama.cpp reads nothing else. L+1: no layer is NoPE."""
    layers = len(uses_rope)
    choices = (4, *range(1, layers + 2))
    return next((n for n in choices if nope_pattern(layers, n) == uses_rope), None)
