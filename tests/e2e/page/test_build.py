"""How the chat page comes into the package: by npm, out of a wheel, or a line says how to get it."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from .conftest import UI

NODE = shutil.which("node")


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A copy of what makes the page, without the page."""
    shutil.copytree(UI, tmp_path / "ui", ignore=shutil.ignore_patterns("node_modules"))
    shutil.copy(UI.parent / "Makefile", tmp_path)
    return tmp_path


@pytest.fixture
def packages(checkout, built):
    """npm's packages are there."""
    if not (UI / "node_modules").exists():
        pytest.skip("npm's packages are not here")
    (checkout / "ui" / "node_modules").symlink_to(UI / "node_modules")


def static(checkout: Path) -> Path:
    return checkout / "src" / "smollm3" / "serve" / "static"


def make_page(checkout: Path, path: str, *command):
    command = command or (sys.executable, "ui/page.py")
    return subprocess.run(
        command,
        cwd=checkout,
        env={**os.environ, "PATH": path, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def npm_that(folder: Path, script: str) -> str:
    """A PATH whose npm does this."""
    npm = folder / "bin" / "npm"
    npm.parent.mkdir(exist_ok=True)
    npm.write_text(f"#!/bin/sh\n{script}\n")
    npm.chmod(0o755)
    return f"{npm.parent}:/usr/bin:/bin"


def wheel(checkout: Path, text: str) -> Path:
    file = checkout / "dist" / "smollm3-0.1.0-py3-none-any.whl"
    file.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("smollm3/serve/static/index.html", text)
        archive.writestr("smollm3/serve/static/assets/app-1.js", "1")
        archive.writestr("smollm3/serve/page.py", "")
    return file


def parts(page: Path) -> dict[str, bytes]:
    """The index and all that it names; fails if one is not there."""
    index = (page / "index.html").read_text()
    names = re.findall(r'"(assets/[^"]+)"', index)
    assert len(names) == 3
    return {name: (page / name).read_bytes() for name in ["index.html", *names]}


def test_without_npm_a_line_says_what_to_do(checkout):
    done = make_page(checkout, "/nowhere")
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert "npm is not installed" in line
    assert "`make ui`" in line
    # It is not in the way of `make demo`, and `make ui` fails.
    make = shutil.which("make")
    if make is None:
        pytest.skip("make is not here")
    for target, code in (("page", 0), ("ui", 2)):
        done = make_page(checkout, "/nowhere", make, target, "SHELL=/bin/sh")
        assert done.returncode == code
        assert "npm is not installed" in done.stderr


def test_without_npm_a_wheel_gives_its_page(checkout):
    old = wheel(checkout, "the page")
    os.utime(old, (1e9, 1e9))
    done = make_page(checkout, "/nowhere")
    assert done.returncode == 0
    assert "taken from dist/smollm3-0.1.0" in done.stderr
    assert (static(checkout) / "index.html").read_text() == "the page"
    assert (static(checkout) / "assets" / "app-1.js").read_text() == "1"
    assert not list(static(checkout).rglob("*.part"))
    # It is older than the source: where npm is, it is built anew; where npm fails, it stays.
    done = make_page(checkout, npm_that(checkout, "echo 'npm error network' >&2; exit 1"))
    assert done.returncode == 1
    assert "stays as it was before" in done.stderr
    assert "npm error network" in done.stderr.splitlines()[-1]
    assert (static(checkout) / "index.html").read_text() == "the page"


def test_packages_that_npm_was_killed_over_are_fetched_again(checkout):
    log = checkout / "log"
    path = npm_that(checkout, f"echo $1 >> {log}; mkdir -p node_modules; test $1 = ci || exit 1")
    make_page(checkout, path)
    assert log.read_text().split() == ["ci", "run"]
    make_page(checkout, path)
    assert log.read_text().split() == ["ci", "run", "run"]
    (checkout / "ui" / "node_modules" / ".installed.json").unlink()
    make_page(checkout, path)
    assert log.read_text().split() == ["ci", "run", "run", "ci", "run"]


@pytest.mark.usefixtures("packages")
def test_a_page_is_built_once(checkout):
    assert make_page(checkout, os.environ["PATH"]).returncode == 0
    before = (static(checkout) / "index.html").stat().st_mtime_ns
    parts(static(checkout))
    assert make_page(checkout, os.environ["PATH"]).returncode == 0
    assert (static(checkout) / "index.html").stat().st_mtime_ns == before
    (checkout / "ui" / "src" / "style.css").write_text("body { colour: red }")
    assert make_page(checkout, os.environ["PATH"]).returncode == 0
    assert (static(checkout) / "index.html").stat().st_mtime_ns != before
    assert len(list((static(checkout) / "assets").glob("app-*"))) == 2  # the old are gone


@pytest.mark.slow
@pytest.mark.usefixtures("packages")
def test_a_build_that_is_killed_leaves_a_whole_page(checkout):
    """A kill at twenty moments of a build: the page is the one before or the new one."""

    def build(after=None) -> float:
        started = time.monotonic()
        process = subprocess.Popen([NODE, "build.mjs"], cwd=checkout / "ui")
        try:
            assert process.wait(after) == 0
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        return time.monotonic() - started

    style, page = checkout / "ui" / "src" / "style.css", static(checkout)
    styles = [style.read_text() + f"\n.n{i} {{ color: red }}" for i in range(2)]
    whole = []
    for text in styles:
        style.write_text(text)
        seconds = build()
        whole.append(parts(page))
    for i in range(20):
        style.write_text(styles[i % 2])
        build(seconds * (i + 1) / 20)
        assert parts(page) in whole
    build()
    assert not list(page.rglob("*.part"))
