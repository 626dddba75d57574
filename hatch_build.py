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
        script = root / "ui" / "page.py"
        # An editable installation reads the folder itself (make ui); an archive brings it along.
        if version == "editable" or not script.exists():
            return
        if os.environ.get(WITHOUT) or not shutil.which("npm"):
            index = root / "src" / "smollm3" / "serve" / "static" / "index.html"
            state = "as it was built before" if index.exists() else "left out"
            print(f"chat page: not built now, {state}", file=sys.stderr)
        elif subprocess.run([sys.executable, script], check=False, stdout=sys.stderr).returncode:
            raise SystemExit(f"chat page: not built; {WITHOUT}=1 installs without it")
