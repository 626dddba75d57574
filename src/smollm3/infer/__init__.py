"""The engine: prompts to tokens, conversations to messages, texts to log-probabilities."""

from smollm3.infer.engine import Completion, Engine, load_engine
from smollm3.infer.params import SamplingParams

__all__ = ["Completion", "Engine", "SamplingParams", "load_engine"]
