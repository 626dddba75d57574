"""What a server allows: from the command line and a file, all of it checked before it starts."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field

from smollm3.config import StrictModel
from smollm3.errors import UserError
from smollm3.files import read_text
from smollm3.option import Option
from smollm3.portable import is_own, others_can_read

KEY_VARIABLE = "SMOLLM3_API_KEY"
LEAST_KEY = 16  # characters

Count = Annotated[int, Field(ge=1, strict=True)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]


class Settings(StrictModel):
    """Keys of a configuration file, and the command line's options of the same names."""

    host: Annotated[str, Option("Address to listen on.", metavar="ADDRESS")] = "127.0.0.1"
    port: Annotated[
        int,
        Field(ge=0, le=65_535, strict=True),
        Option("Port to listen on; 0 takes any free one.", metavar="PORT"),
    ] = 8000
    name: Annotated[
        Annotated[str, Field(min_length=1, max_length=200)] | None,
        Option("Id of the model in the API.", metavar="ID", default="the name of MODEL"),
    ] = None
    aliases: Annotated[
        tuple[str, ...],
        Option("Another id of the model; * stands for any text; repeatable.", "--alias", "ID"),
    ] = ()
    adapters: Annotated[
        tuple[str, ...],
        Option(
            "LoRA adapter beside the model, and the id that requests give for it (else the name "
            "of its folder); repeatable.",
            "--adapter",
            "[ID=]FOLDER",
        ),
    ] = ()
    max_adapters: Count = 16
    """Loaded at once, after which requests can load no more."""
    api_key_file: Annotated[
        str | None,
        Option(
            f"File of API keys, one a line; one more may stand in {KEY_VARIABLE}.", metavar="FILE"
        ),
    ] = None
    allowed_origins: Annotated[
        tuple[str, ...],
        Option(
            "Origin of a web page that may use the API, as https://example.org; repeatable.",
            "--allow-origin",
            "ORIGIN",
        ),
    ] = ()
    think: Annotated[bool, Option("Reason before answering where a request does not say.")] = True
    max_tokens: Count = 8192
    """Of an answer, where a request does not say."""
    tools: Annotated[
        tuple[str, ...],
        Option(
            "Function that the server runs as a tool. May be repeated.", "--tool", "MODULE:NAME"
        ),
    ] = ()
    mcp: Annotated[
        tuple[str, ...],
        Option(
            "MCP server whose tools the server runs: a command or a URL; repeatable.",
            metavar="COMMAND",
        ),
    ] = ()
    python_tools: Annotated[bool, Option("Run the model's own Python code, isolated.")] = False
    files: Annotated[
        str | None,
        Option(
            "Folder of uploaded files and of batches, which go on where the server is started "
            "again; without it there are neither.",
            metavar="FOLDER",
        ),
    ] = None
    max_file_bytes: Count = 64 << 20
    max_files_bytes: Count = 1 << 30
    """Of all files together; where there are several keys, each has an equal share of it, of their
    number and of the batches."""
    max_files: Count = 1000
    """As many batches that have ended are remembered."""
    max_batches: Count = 16
    """That wait or run."""
    batch_running: Count = 8
    """Maximum number of a batch's answers in progress at once; others go first."""
    running: Count = 64
    """Maximum number of answers in progress at once."""
    queue: Annotated[int, Field(ge=0, strict=True)] = 256
    """Maximum number of answers that wait to begin."""
    queue_seconds: Seconds = 60
    request_seconds: Seconds = 1800
    grace_seconds: Seconds = 30
    """Time that answers in progress have after SIGTERM."""
    connections: Count = 512
    """Maximum number of open ones; each needs a descriptor."""
    connections_per_address: Count = 64
    """Of these, from one address that is not this machine's."""
    read_seconds: Seconds = 20
    """Time in which a request's headers, and each further stretch of its body, must have come."""
    send_seconds: Seconds = 60
    """Time in which a client must have taken what it is sent."""
    stored_responses: Annotated[int, Field(ge=0, strict=True)] = 1000
    """Number of the newest responses that are kept in memory for `previous_response_id`."""
    stored_bytes: Count = 64 << 20
    max_body_bytes: Count = 4 << 20
    max_choices: Count = 16
    max_stops: Count = 16
    max_logit_bias: Count = 300
    max_top_logprobs: Count = 20
    max_tools: Count = 128
    max_schema_bytes: Count = 64 << 10
    max_schema_depth: Count = 32


def adapters_of(settings: Settings) -> dict[str, str]:
    """Where each adapter is, by the ids that requests give."""
    found: dict[str, str] = {}
    for given in settings.adapters:
        name, equals, place = given.partition("=")
        if not equals:
            name, place = Path(given).name, given
        if not name or not place or name in found:
            raise UserError(f"adapter: {given}: give each as ID=FOLDER, with an id of its own")
        found[name] = place
    return found


class Keys:
    """The keys that open the server, kept as digests; without any, it is open."""

    def __init__(self, keys: list[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    def __len__(self) -> int:
        return len(self._digests)

    def salt(self, given: str) -> str | None:
        """What keeps the prefixes of this key apart from others'; None: no key of ours."""
        digest = _digest(given)
        found = [hmac.compare_digest(digest, own) for own in self._digests]
        return digest[:32] if any(found) else None


def _digest(key: str) -> str:
    return hashlib.sha256(b"smollm3 api key " + key.encode(errors="surrogateescape")).hexdigest()


def read_keys(settings: Settings, environment: Mapping[str, str] = os.environ) -> Keys:
    """As `key_texts`, of which only digests are kept."""
    return Keys(key_texts(settings, environment))


def key_texts(settings: Settings, environment: Mapping[str, str]) -> list[str]:
    """Keys from the file and the environment. Raises UserError for weak ones, and where the server
    would be open to other machines without one."""
    keys = []
    if settings.api_key_file is not None:
        path = Path(settings.api_key_file).expanduser()
        keys = [line.strip() for line in read_text(path).splitlines() if line.strip()]
        if not keys:
            raise UserError(f"{path}: holds no key; write one a line")
        if not (is_own(path.stat()) or path.stat().st_uid == 0):
            raise UserError(f"{path}: belongs to somebody else; keys are one's own or root's")
        if others_can_read(path.stat()):
            raise UserError(f"{path}: others can read it; chmod 600")
    if environment.get(KEY_VARIABLE):
        keys.append(environment[KEY_VARIABLE])
    for key in keys:
        if len(key) < LEAST_KEY or not (key.isascii() and key.isprintable()) or " " in key:
            raise UserError(
                f"api key: at least {LEAST_KEY} letters, digits or signs without blanks; "
                "openssl rand -hex 24 makes one"
            )
    if not keys and not is_loopback(settings.host):
        raise UserError(
            f"host: {settings.host} can be reached from other machines, which needs a key: set "
            f"{KEY_VARIABLE} or api_key_file"
        )
    return keys


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the host: a name or an address, without a port."""
    name = host.lower().removeprefix("[").removesuffix("]").rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
