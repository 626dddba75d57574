"""What people's clients do against the server: `make clients` runs each and writes the table.

The server speaks from a script, so that what is tried is the protocol and not what a model knows.
`python -m tests.clients.try_clients [WORD]` tries the clients that have this word in their name,
and leaves the table as it is.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PAGE = ROOT / "docs" / "serving.md"
PYTHON = ROOT / ".venv-clients"
BEGIN, END = "<!-- clients: `make clients` writes this -->", "<!-- end of clients -->"
LIMIT_SECONDS = 200
SDK = "chat streamed tools streamed_tools structured reasoning sent_back"
FEATURES = [*SDK.split(), "embeddings", "models", "overflow", "prediction", "custom_tools", "loop"]


@dataclass(frozen=True)
class Client:
    """name: in the table. package: whose pinned version is told. way: of those that its program
    knows."""

    name: str
    package: str
    program: str
    features: str
    way: str = ""

    @property
    def version(self) -> str:
        return PINS[self.package]

    def command(self, url: str) -> list[str]:
        runner = {".py": PYTHON / "bin/python", ".mjs": "node"}[Path(self.program).suffix]
        if self.package.startswith("previous "):
            runner = PYTHON / "previous/bin/python"
        program = HERE / "programs" / self.program
        return [str(runner), str(program), url, self.way, *self.features.split()]


def pins() -> dict[str, str]:
    """package -> version; those of Python's older majors are called previous."""
    found = json.loads((HERE / "package.json").read_text())["dependencies"]
    for file, prefix in (("requirements", ""), ("requirements-previous", "previous ")):
        text = (HERE / f"{file}.txt").read_text()
        for name, version in re.findall(r"^([\w-]+)(?:\[.*\])?==(.+)$", text, re.MULTILINE):
            found[f"{prefix}{name} (Python)"] = version
    return {name: version.rpartition("@")[2] for name, version in found.items()}


PINS = pins()


def _sdks():
    chat, embeds = f"{SDK} embeddings models prediction custom_tools", f"{SDK} embeddings"
    items = f"{SDK} custom_tools"
    for prefix in ("", "previous "):
        openai, other = f"{prefix}openai (Python)", f"{prefix}anthropic (Python)"
        yield Client("openai for Python, chat", openai, "openai_chat.py", chat)
        yield Client("openai for Python, responses", openai, "openai_responses.py", items)
        yield Client("anthropic for Python", other, "anthropic_sdk.py", f"{SDK} models")
    for openai, other in (
        ("openai", "@anthropic-ai/sdk"),
        ("openai-previous", "anthropic-previous"),
    ):
        yield Client("openai for Node, chat", openai, "openai_sdk.mjs", chat, f"chat {openai}")
        yield Client(
            "openai for Node, responses", openai, "openai_sdk.mjs", items, f"responses {openai}"
        )
        yield Client("anthropic for Node", other, "anthropic_sdk.mjs", f"{SDK} models", other)
    for way, package, features in (
        ("openai", "@ai-sdk/openai", embeds),
        ("openai chat", "@ai-sdk/openai", SDK),
        ("openai-compatible", "@ai-sdk/openai-compatible", embeds),
        ("anthropic", "@ai-sdk/anthropic", SDK),
    ):
        yield Client(f"Vercel AI SDK {PINS['ai']}, {way}", package, "ai_sdk.mjs", features, way)
    for way in ("chat", "responses", "anthropic"):
        package = "pydantic-ai-slim (Python)"
        yield Client(f"pydantic-ai, {way}", package, "pydantic_ai_models.py", SDK, way)
    for way in ("chat", "responses"):
        package = "openai-agents (Python)"
        yield Client(f"openai-agents, {way}", package, "openai_agents.py", SDK, way)
    for way in ("chat", "responses", "anthropic"):
        package = f"langchain-{'anthropic' if way == 'anthropic' else 'openai'} (Python)"
        features = f"{embeds} overflow" if way == "chat" else f"{SDK} overflow"
        yield Client(f"LangChain, {way}", package, "langchain_models.py", features, way)
    for way in ("openai", "anthropic", "ollama_chat", "hosted_vllm"):
        features = SDK if way in ("anthropic", "ollama_chat") else embeds
        features += "" if way == "ollama_chat" else " overflow"
        yield Client(f"LiteLLM, {way}", "litellm (Python)", "litellm_providers.py", features, way)
    yield Client(
        "LlamaIndex",
        "previous llama-index-llms-openai-like (Python)",
        "llama_index_models.py",
        SDK.replace("reasoning ", "") + " embeddings",
    )
    yield Client(
        "smolagents", "smolagents (Python)", "smolagents_agents.py", "chat streamed structured loop"
    )
    yield Client("ollama for Python", "ollama (Python)", "ollama_client.py", f"{embeds} models")
    for mode in [
        "TOOLS",
        "TOOLS_STRICT",
        "PARALLEL_TOOLS",
        "JSON",
        "JSON_O1",
        "JSON_SCHEMA",
        "MD_JSON",
        "RESPONSES_TOOLS",
        "RESPONSES_TOOLS_WITH_INBUILT_TOOLS",
        "ANTHROPIC_TOOLS",
        "ANTHROPIC_REASONING_TOOLS",
        "ANTHROPIC_PARALLEL_TOOLS",
        "ANTHROPIC_JSON",
    ]:
        package = "previous instructor (Python)"
        yield Client(f"instructor, {mode}", package, "instructor_modes.py", "structured", mode)


def _agents():
    for name, package, way in (
        ("Claude Code", "@anthropic-ai/claude-code", "claude"),
        ("Codex", "@openai/codex", "codex"),
        ("opencode", "opencode-ai", "opencode"),
        ("Continue", "@continuedev/cli", "continue"),
        ("Cline", "cline", "cline"),
    ):
        yield Client(name, package, "coding_agents.py", "loop", way)


CLIENTS = [*_sdks(), *_agents()]


def script() -> dict[str, str]:
    """What the model says, by the last words that it reads."""
    from tests.clients.programs import trying as t

    thought = f"<think>\n{t.THOUGHT}\n</think>\n"

    def call(name, **arguments):
        made = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
        return f"{thought}<tool_call>\n{made}\n</tool_call>"

    said = {
        t.HELLO: t.HELLO_SAID,
        t.AGAIN: t.AGAIN_SAID,
        t.PLACE: json.dumps(t.PLACE_SAID.model_dump()),
        t.RESULT: t.WEATHER_SAID,
        "act with code": "Thought: a tool.\n<code>\nfinal_answer(weather('Paris'))\n</code>",
    }
    said = {words: thought + text for words, text in said.items()}
    said[t.WEATHER] = call("weather", city="Paris")
    said[t.PLACE_CALL] = call("Place", **t.PLACE_SAID.model_dump())
    said["act with calls"] = call("final_answer", answer=t.RESULT)
    return said | coding(call)


def coding(call: Callable[..., str]) -> dict[str, str]:
    """What coding agents are told to do: read a file, change it, and look at it. Words that stand
    in their tools' results begin with a blank, as their first token depends on what is before it.
    """
    from tests.clients.programs import trying as t

    edit = {"old_string": t.BEFORE, "new_string": t.AFTER}
    patch = f"*** Update File: {t.FILE}\n@@\n-{t.BEFORE} codex\n+{t.AFTER} codex\n"
    patch = f"apply_patch <<'EOF'\n*** Begin Patch\n{patch}*** End Patch\nEOF\n"
    look, path = f"tr a-z A-Z < {t.FILE}", t.FILE
    camel = {"oldString": t.BEFORE, "newString": t.AFTER}
    texts = {"old_text": t.BEFORE, "new_text": t.AFTER}
    return {
        "claude, please change it": call("Read", file_path=path),
        " stands here claude": call("Edit", file_path=path, **edit),
        "codex, please change it": call("exec_command", cmd=f"cat {path}"),
        "opencode, please change it": call("read", filePath=path),
        "continue, please change it": call("Read", filepath=path),
        "cline, please change it": call("read_files", files=[{"path": path}]),
        " been updated": call("Bash", command=look, description="Look."),
        " the following files": call("exec_command", cmd=look),
        " applied successfully": call("bash", command=look),
        " stands here codex": call("exec_command", cmd=patch),
        " stands here opencode": call("edit", filePath=path, **camel),
        " stands here continue": call("Edit", file_path=path, **edit),
        " stands here cline": call("editor", path=path, **texts),
        " stood there continue": call("Bash", command=look),
        " stood there cline": call("run_commands", commands=[look]),
        " STOOD THERE": t.CHANGED,
    }


def tried(client: Client, url: str) -> dict[str, str | None]:
    """feature -> what failed, None where nothing did. The client sees nothing of this shell's
    environment, and no home but a new one."""
    with tempfile.TemporaryDirectory(prefix="client-") as home:
        environment = {"PATH": os.environ["PATH"], "HOME": home, "LANG": "C.UTF-8"}
        try:
            done = subprocess.run(
                client.command(url),
                cwd=home,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=LIMIT_SECONDS,
                check=False,
            )
            out, err = done.stdout, done.stderr
        except subprocess.TimeoutExpired as e:
            out, err = (e.stdout or b"").decode(), f"no end after {LIMIT_SECONDS} s"
    told = [json.loads(line) for line in out.splitlines() if line.startswith('{"feature"')]
    found = dict.fromkeys(client.features.split(), "it told nothing")
    found |= {each["feature"]: each["error"] for each in told}
    if any(found.values()):
        print(err[-1500:], file=sys.stderr)
    return found


def table(cells: dict[Client, dict[str, str | None]]) -> str:
    """Of Markdown. A client's empty cell is a feature that it lacks or that was not tried."""
    titles = [feature.replace("_", " ") for feature in FEATURES]
    lines = [f"| client | version | {' | '.join(titles)} |", "|---|---|" + "---|" * len(titles)]
    for client, found in cells.items():
        marks = [
            "" if feature not in found else "fails" if found[feature] else "works"
            for feature in FEATURES
        ]
        lines.append(f"| {client.name} | {client.version} | {' | '.join(marks)} |")
    return "\n".join(lines)


def main() -> int:
    from smollm3.chat import default_template
    from smollm3.infer import Engine
    from smollm3.infer.speculation import PromptLookup
    from smollm3.serve.settings import Settings
    from smollm3.tokenizer import Tokenizer
    from tests.support.serving import ScriptedBackend, listening

    word = " ".join(sys.argv[1:]).lower()
    texts = [path.read_text() for path in (ROOT / "docs").glob("*.md")]
    tokenizer = Tokenizer.train(texts, 4096, default_template())
    backend = ScriptedBackend(tokenizer, script(), blocks=32_768, context=262_144)
    cells = {}
    settings = Settings(aliases=("*",))
    with (
        Engine(backend, tokenizer, drafter=PromptLookup) as engine,
        listening(engine, settings) as (url, _),
    ):
        for client in CLIENTS:
            if word in client.name.lower():
                cells[client] = tried(client, url)
                for feature, error in cells[client].items():
                    print(f"{client.name} {client.version}, {feature}: {error or 'works'}")
    if not word:
        before, rest = PAGE.read_text().split(BEGIN)
        after = rest.split(END)[1]
        PAGE.write_text(f"{before}{BEGIN}\n\n{table(cells)}\n\n{END}{after}")
    return int(any(error for found in cells.values() for error in found.values()))


if __name__ == "__main__":
    sys.exit(main())
