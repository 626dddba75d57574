"""The engine: prompts to tokens, conversations to messages, texts to log-probabilities."""

from smollm3.infer.backends.torch import TorchBackend
from smollm3.infer.constrain.masks import Choice, Grammar, Json, Regex, Tools
from smollm3.infer.engine import Engine
from smollm3.infer.generation import Completion, Generation, Step
from smollm3.infer.load import load_engine
from smollm3.infer.params import SamplingParams

__all__ = [
    "Choice",
    "Completion",
    "Engine",
    "Generation",
    "Grammar",
    "Json",
    "Regex",
    "SamplingParams",
    "Step",
    "Tools",
    "TorchBackend",
    "load_engine",
]
