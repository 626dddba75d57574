"""Builds the chat page into the package where npm is; without it the server says so."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

WITHOUT = "SMOLLM3_NO_CHAT_PAGE"


class ChatPage(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        index = root / "src" / "smollm3" / "serve" / "static" / "index.html"
        # An editable installation reads the folder itself (make ui); an archive brings it along.
        if version == "editable" or not (root / "ui" / "package-lock.json").exists():
            return
        npm = None if os.environ.get(WITHOUT) else shutil.which("npm")
        if npm is None:
            state = "as it was built before" if index.exists() else "left out"
            print(f"chat page: not built now, {state}", file=sys.stderr)
            return
        for step in (["ci", "--no-audit", "--no-fund"], ["run", "build"]):
            done = subprocess.run([npm, *step], cwd=root / "ui", check=False, stdout=sys.stderr)
            if done.returncode:
                raise SystemExit(
                    f"chat page: npm {step[0]} failed; {WITHOUT}=1 installs without it"
                )
