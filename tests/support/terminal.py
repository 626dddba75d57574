"""A program on a terminal in memory: type to it, see what a person would see."""

import fcntl
import os
import select
import signal
import struct
import subprocess
import sys
import termios
import time

import pyte

PATIENCE = 180  # seconds until a test gives up; the machine may be busy with others

# Makes the terminal that of its session, so that Ctrl-C interrupts.
OWN = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


class Terminal:
    """Runs `command` on a terminal of its own; what has scrolled away is kept in `above`."""

    def __init__(self, command, columns=100, lines=16, cwd=None, **environment):
        self.screen = pyte.HistoryScreen(columns, lines, history=1000)
        self.stream = pyte.ByteStream(self.screen)
        self.master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.raw = b""
        self.process = subprocess.Popen(
            [sys.executable, "-c", OWN, *command],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            cwd=cwd,
            env={**os.environ, "TERM": "xterm", "OMP_NUM_THREADS": "1", **environment},
        )
        os.close(slave)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGHUP)
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        os.close(self.master)

    @property
    def lines(self):
        """What the screen shows, without empty lines at its end."""
        shown = [line.rstrip() for line in self.screen.display]
        while shown and not shown[-1]:
            shown.pop()
        return shown

    @property
    def text(self):
        return "\n".join(self.lines)

    @property
    def above(self):
        rows = self.screen.history.top
        return ["".join(row[i].data for i in range(self.screen.columns)).rstrip() for row in rows]

    def read(self, seconds):
        """Take in what comes within `seconds`; False at the program's end."""
        if not select.select([self.master], [], [], seconds)[0]:
            return True
        try:
            data = os.read(self.master, 1 << 16)
        except OSError:
            data = b""
        self.raw += data
        self.stream.feed(data)
        return bool(data)

    def until(self, seen, seconds=PATIENCE):
        """Read until `seen`, a text on the screen or a function of the lines, is there."""
        test = seen if callable(seen) else lambda lines: seen in "\n".join(lines)
        end = time.monotonic() + seconds
        while not test(self.lines):
            if time.monotonic() > end or not self.read(0.05):
                raise AssertionError(f"{seen!r} did not come:\n{self.text}")
        return self.lines

    def settle(self, seconds=0.3):
        """Until nothing comes for a while."""
        while select.select([self.master], [], [], seconds)[0] and self.read(0):
            pass
        return self.lines

    def type(self, keys):
        os.write(self.master, keys.encode())

    def end(self):
        """The exit code, at the program's end."""
        end = time.monotonic() + PATIENCE
        while self.read(0.1):
            if time.monotonic() > end:
                raise AssertionError(f"it does not end:\n{self.text}")
        return self.process.wait(PATIENCE)
