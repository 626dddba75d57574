"""An engine without a model: answers what the last message says, at a speed that it says.

As a program: a conversation with it on the terminal.
"""

import threading
import time
from types import SimpleNamespace

from smollm3.chat import default_template
from smollm3.errors import UserError
from smollm3.infer.generation import Channel, Generation, Step
from smollm3.tokenizer import Tokenizer


class ScriptedEngine:
    """`answers`: by the user's last words; a number in an answer is a pause in seconds."""

    def __init__(self, tokenizer, answers, context=2048):
        self.tokenizer, self.answers = tokenizer, answers
        self.config = SimpleNamespace(context=context)
        self.asked = []

    def submit(self, prompt, params, *, constraint=None, thinking_budget=None):
        text = self.tokenizer.decode(prompt)
        self.asked.append((text, params))
        words = text.rsplit("<|im_start|>user\n")[-1].split("<|im_end|>")[0].strip()
        if words == "too long":
            raise UserError("9,999 tokens do not fit the model's context of 2048")
        channel = Channel(len(prompt))
        channel.cached_tokens = 3
        script = self.answers.get(words, [f"you said: {words} ({params.seed})"])
        generation = Generation(channel, self, lambda: None)
        threading.Thread(target=self.speak, args=(channel, script), daemon=True).start()
        return generation

    @staticmethod
    def speak(channel, script):
        for i, piece in enumerate(script):
            if isinstance(piece, Exception):
                channel.fail(piece)
            elif isinstance(piece, str):
                channel.push(Step(i, piece, -0.1), "stop" if i == len(script) - 1 else None)
            else:
                time.sleep(piece)
            if channel.done:
                return


def thought(n, pause):
    """A reasoning of n lines, its answer after it."""
    lines = [x for i in range(n) for x in (f"idea {i}\n", pause)]
    return ["<think>", "\n", *lines, "</think>", "\n", "the ", "answer"]


ANSWERS = {
    "quick": thought(3, 0.0),
    "slow": thought(40, 0.05),
    "tall": thought(30, 0.0),
    "endless": ["and "] + ["so ", 0.02] * 10_000,
    "late": [1.2, "here"],
    "hostile": ["\x1b[2J\x1b]0;title\x07", "\u202edetrevni", "\ttab"],
    "broken": ["half", ValueError("a bug")],
}


def main():
    from smollm3.cli import main as cli_main  # noqa: F401  (what a user's process has loaded)
    from smollm3.console.chat import chat_on_console
    from smollm3.infer import SamplingParams

    tokenizer = Tokenizer.train(["the model answers"] * 4, 280, default_template())
    chat_on_console(ScriptedEngine(tokenizer, ANSWERS), SamplingParams())


if __name__ == "__main__":
    main()
