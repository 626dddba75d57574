"""docs/serving.md does what it says: its code is run against a server on a tiny model."""

import re
from pathlib import Path

import pytest

from smollm3.serve.settings import Settings

from .test_serve import model, serving  # noqa: F401  (a fixture)

PAGE = (Path(__file__).parents[2] / "docs/serving.md").read_text()
CODE = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def server(model):  # noqa: F811
    with serving(model, "--name", "smollm3-3b") as server:
        yield server


@pytest.mark.parametrize(
    "code", CODE, ids=lambda code: re.search(r"from (\w+)|import (\w+)", code)[0]
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_code(server, code, capsys):
    for package in re.findall(r"^(?:from|import) (\w+)", code, re.MULTILINE):
        pytest.importorskip(package)
    assert "http://127.0.0.1:8000" in code
    exec(code.replace("http://127.0.0.1:8000", server.url), {"__name__": "page"})
    assert capsys.readouterr().out


def test_every_setting_is_told():
    for name in Settings.model_fields:
        assert f"`{name}`" in PAGE, name
