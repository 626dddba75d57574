"""A server of the standard library beside a test."""

import threading
from contextlib import contextmanager


@contextmanager
def running(server):
    """Its address, as http://127.0.0.1:PORT; it ends with the block."""
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
