"""Agents that read, change and run: each is told once, and does three calls before it answers."""

import json
import os
import subprocess
import sys
from pathlib import Path

from trying import AFTER, BEFORE, CHANGED, FILE, run, same

BASE, AGENT = sys.argv[1:3]
BIN = Path(__file__).parents[1] / "node_modules" / ".bin"
TASK = f"{AGENT}, please change it"
QUIET = {"DISABLE_AUTOUPDATER": "1", "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1"}
CODEX = f"""
model = "tiny"
model_provider = "ours"
[model_providers.ours]
name = "ours"
base_url = "{BASE}/v1"
wire_api = "responses"
request_max_retries = 0
stream_max_retries = 0
"""
OPENCODE = {
    "model": "ours/tiny",
    "small_model": "ours/tiny",
    "autoupdate": False,
    "share": "disabled",
    "permission": {"*": "allow"},
    "provider": {
        "ours": {
            "npm": "@ai-sdk/openai-compatible",
            "options": {"baseURL": f"{BASE}/v1", "apiKey": "none"},
            "models": {"tiny": {"tool_call": True, "limit": {"context": 200_000, "output": 4000}}},
        }
    },
}


CONTINUE = {
    "name": "ours",
    "version": "1",
    "schema": "v1",
    "models": [
        {
            "name": "tiny",
            "provider": "openai",
            "model": "tiny",
            "apiBase": f"{BASE}/v1",
            "apiKey": "none",
            "roles": ["chat", "edit"],
            "capabilities": ["tool_use"],
        }
    ],
}


def command():
    """And what it needs in its environment."""
    if AGENT == "claude":
        given = {"ANTHROPIC_BASE_URL": BASE, "ANTHROPIC_API_KEY": "none", **QUIET}
        options = ["--model", "tiny", "--allowedTools", "Read,Edit,Bash"]
        return [BIN / "claude", "-p", TASK, *options], given
    if AGENT == "codex":
        home = Path("codex")
        home.mkdir()
        (home / "config.toml").write_text(CODEX)
        options = ["--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"]
        return [BIN / "codex", "exec", *options, TASK], {"CODEX_HOME": str(home.absolute())}
    if AGENT == "continue":
        Path("continue.yaml").write_text(json.dumps(CONTINUE))  # JSON is YAML
        options = ["--config", "continue.yaml", "--auto"]
        return [BIN / "cn", *options, "-p", TASK], {"CONTINUE_TELEMETRY_ENABLED": "0"}
    if AGENT == "cline":
        key = ["-k", "none", "-m", "tiny", "-b", f"{BASE}/v1"]
        subprocess.run([BIN / "cline", "auth", "-p", "openai-compatible", *key], check=True)
        return [BIN / "cline", TASK], {}
    given = {"OPENCODE_CONFIG_CONTENT": json.dumps(OPENCODE), "OPENCODE_DISABLE_MODELS_FETCH": "1"}
    return [BIN / "opencode", "run", TASK], given


def loop():
    file = Path(FILE)
    file.write_text(f"{BEFORE} {AGENT}\n")
    arguments, given = command()
    done = subprocess.run(
        arguments,
        env=os.environ | given,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    print(done.stderr[-3000:], done.stdout[-3000:], file=sys.stderr)
    same(file.read_text(), f"{AFTER} {AGENT}\n")
    assert CHANGED in done.stdout, done.stdout[-300:]


run(globals())
