"""The server as a process: its socket, its signals, its end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial

import uvicorn

from smollm3.agent import Agent, load_tools
from smollm3.agent.sandbox import find_sandbox
from smollm3.checkpoint import locate_adapter
from smollm3.errors import UserError
from smollm3.infer import Engine
from smollm3.serve import page
from smollm3.serve.app import guarded
from smollm3.serve.connections import Connection
from smollm3.serve.service import Service
from smollm3.serve.settings import KEY_VARIABLE, Settings, adapters_of, read_keys

log = logging.getLogger("smollm3.serve")
_SIGNALS = [
    getattr(signal, name)  # Windows has no SIGHUP, which a terminal sends that is closed
    for name in ("SIGINT", "SIGTERM", "SIGHUP")
    if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) != signal.SIG_IGN
]
CLEAN_UP = 2.0  # of the grace time, in which the last errors are told


def run(load: Callable[[], Engine], settings: Settings, name: str) -> None:
    """Serve what `load` gives until a signal comes. Raises UserError for what would not do, before
    the model is loaded where that can be known."""
    keys, tools = read_keys(settings), own_tools(settings)
    os.environ.pop(KEY_VARIABLE, None)  # no program that is started from here is told
    if missing := page.how_to_get():
        log.info("%s", missing)
    adapters = {id: locate_adapter(place) for id, place in adapters_of(settings).items()}
    with listening(settings) as listener, load() as engine, tools(engine) as agent:
        for id, folder in adapters.items():
            engine.adapters.load(id, folder)
        Server(Service(engine, settings, keys, name, agent)).run([listener])
    log.info("ended")


def own_tools(settings: Settings) -> Callable[[Engine], AbstractContextManager[Agent | None]]:
    """The tools that the server runs, if any; what they need is looked for before there is an
    engine. With Python they are functions of it too."""
    found = [tool for target in settings.tools for tool in load_tools(target)]
    if settings.python_tools:
        find_sandbox()
    if not (found or settings.mcp or settings.python_tools):
        return lambda _: contextlib.nullcontext()
    inside = found if settings.python_tools else False
    return lambda engine: Agent(
        engine, () if settings.python_tools else found, python_tools=inside, mcp=settings.mcp
    )


@contextlib.contextmanager
def listening(settings: Settings) -> Iterator[socket.socket]:
    """The bound socket; bound before the model is loaded, as a taken port ends it all."""
    try:
        places = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, kind, protocol, _, place = places[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as e:
        raise UserError(f"host: {settings.host}: {e.strerror or e}") from None
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # the kernel, too, keeps nothing for longer
            milliseconds = round(settings.send_seconds * 1000)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        try:
            listener.bind(place)
        except OSError as e:
            raise UserError(
                f"port: {settings.host} port {settings.port}: {e.strerror or e}; "
                "give another --port, or 0 for any"
            ) from None
        yield listener


def address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """uvicorn's, that ends answers before it ends connections."""

    def __init__(self, service: Service) -> None:
        settings = service.settings
        super().__init__(
            uvicorn.Config(
                guarded(service),
                lifespan="off",
                http=partial(Connection, settings=settings),  # type: ignore[arg-type]
                ws="none",
                log_config=None,
                access_log=False,
                log_level="error",  # lines that strangers cause would fill it
                server_header=False,
                proxy_headers=False,  # nobody's word on who they are is taken
                timeout_graceful_shutdown=max(1, round(settings.grace_seconds)),
            )
        )
        self._service = service

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        _ = self._service.engine.tokenizer.longest  # found once, before anybody waits
        # What lives as long as the server is not looked through again for every large body.
        gc.collect()
        gc.freeze()
        for listener in sockets or ():
            log.info("%s on %s", self._service.model, address(listener))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        service = self._service
        log.info("ending: %d answers still run", service.admission.running)
        service.drain()
        seconds = service.settings.grace_seconds
        late = max(seconds / 2, seconds - CLEAN_UP)
        timer = asyncio.get_running_loop().call_later(late, service.end_all)
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn would raise them again at the end; here an asked-for end is a good one."""
        before = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
