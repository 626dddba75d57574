"""The chat page, broken in one line: a test must notice."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import UI

# One line each of ui/src: file, what stands there, what it is broken into, the test that notices.
BREAKAGES = [
    ("markdown.js", "html: false", "html: true", "hostile"),
    ("markdown.js", "md.renderer.rules.image =", "md.renderer.rules.picture =", "hostile"),
    ("markdown.js", "|[^a-z]|[a-z+.-]+(?:[^a-z+.:-]|$)", "", "no_think"),
    ("app.js", "running()?.controller.abort();", "running();", "stop"),
    ("app.js", "await store.save(conversation)", "[]", "reload"),
    ("answers.js", "old.tokens.slice(0, at)", "old.tokens.slice(0, at + 1)", "glass_box"),
    ("api.js", "enable_thinking: settings.thinking", "enable_thinking: true", "no_think"),
    ("store.js", "!known || later(known, node) === node", "true", "old_journal"),
    ("store.js", "heads.put({ id, removed: true })", "heads.delete(id)", "deleted"),
    ("answers.js", "const safe = writeJournal(conversation)", "const safe = true", "moment"),
    ("app.js", "if (unsavedOf(conversation).length) keep(conversation)", "", "outlives"),
    ("drafts.js", "  write(PREFIX + place, text);", "", "draft_stays"),
    ("app.js", 'tell({ type: "changed", id, names })', "", "two_tabs"),
    ("message.jsx", "|| copyBySelection(text)", "", "copying"),
    ("message.jsx", "send(draft, place, node.parent)", "send(draft, place, node.id)", "edit"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("file", "old", "new", "test"), BREAKAGES)
def test_a_broken_page_is_noticed(browser, file, old, new, test, tmp_path):
    ui, out = tmp_path / "ui", tmp_path / "static"
    shutil.copytree(UI, ui, ignore=shutil.ignore_patterns("node_modules"))
    (ui / "node_modules").symlink_to(UI / "node_modules")
    source = (ui / "src" / file).read_text()
    assert source.count(old) == 1
    (ui / "src" / file).write_text(source.replace(old, new))
    subprocess.run(["node", "build.mjs", str(out)], cwd=ui, check=True, timeout=120)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", Path(__file__).parent, "-k", f"{test} and not broken"],
        env={**os.environ, "SMOLLM3_PAGE": str(out)},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout[-1000:]
