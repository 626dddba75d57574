"""Makes smollm3's own modules see another system than this one, named by $SMOLLM3_TEST_SYSTEM.

Python imports this file by itself where its folder is in PYTHONPATH, so it holds for the processes
that smollm3 starts too. Libraries see the real system: only what smollm3 asks for is taken away.
"""

import builtins
import ctypes
import mmap
import os
import select
import signal
import socket
import subprocess
import sys
import types

SYSTEM = os.environ["SMOLLM3_TEST_SYSTEM"]
POSIX_MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "readline", "resource", "termios", "tty"}
LINUX_OS = {"sched_getaffinity", "posix_fallocate", "posix_fadvise", "process_cpu_count", "eventfd"}
POSIX_OS = LINUX_OS | {
    "fork", "forkpty", "pread", "pwrite", "getuid", "geteuid", "getgid", "getegid", "getpgid", "setsid",
    "killpg", "chown", "mkfifo", "uname", "nice", "getloadavg", "sysconf", "waitid", "openpty",
    "O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "WNOHANG",
}  # fmt: skip
POSIX_SIGNAL = {
    "SIGKILL", "SIGHUP", "SIGSTOP", "SIGCONT", "SIGALRM", "SIGUSR1", "SIGUSR2", "SIGPIPE", "SIGWINCH",
    "SIGCHLD", "SIGQUIT", "setitimer", "alarm", "pthread_kill", "pthread_sigmask", "sigwait",
}  # fmt: skip


class Without(types.ModuleType):
    """A module that lacks some names and has others changed."""

    def __init__(self, module, missing=frozenset(), **changed):
        super().__init__(module.__name__)
        self.__dict__.update(changed, _module=module, _missing=missing)

    def __getattr__(self, name):
        if name in self._missing:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r} on {SYSTEM}")
        return getattr(self._module, name)


def open_as_windows(path, flags, *rest, **options):
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", path)
    return os.open(path, flags, *rest, **options)


class WindowsPopen(subprocess.Popen):
    def __init__(self, *arguments, **options):
        if options.get("pass_fds") or options.get("preexec_fn"):
            raise ValueError("pass_fds and preexec_fn are not supported on Windows")
        super().__init__(*arguments, **options)


class WindowsKernel:
    """What ctypes.windll.kernel32 is asked for."""

    @staticmethod
    def GlobalMemoryStatusEx(reference):
        status = reference._obj
        assert ctypes.sizeof(status) == status[0] == 64
        status[1], status[2] = 16 << 30, 5 << 30  # all memory, and what is available
        return 1


if SYSTEM == "windows":
    MISSING = POSIX_MODULES
    CHANGED = {
        "ctypes": Without(ctypes, windll=types.SimpleNamespace(kernel32=WindowsKernel)),
        "mmap": Without(
            mmap, {name for name in dir(mmap) if name.startswith(("MADV_", "MAP_", "PROT_"))}
        ),
        "os": Without(os, POSIX_OS, name="nt", open=open_as_windows),
        "sys": Without(sys, platform="win32"),
        "signal": Without(signal, POSIX_SIGNAL),
        "select": Without(select, {"poll", "epoll"}),
        "socket": Without(socket, {"AF_UNIX"}),
        "subprocess": Without(subprocess, Popen=WindowsPopen),
    }
else:
    MISSING = set()
    CHANGED = {"os": Without(os, LINUX_OS), "sys": Without(sys, platform="darwin")}

real_import = builtins.__import__


def seen_import(name, globals=None, locals=None, fromlist=(), level=0):
    importer = (globals or {}).get("__name__") or ""
    if level == 0 and importer.partition(".")[0] == "smollm3":
        if name.partition(".")[0] in MISSING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        if name in CHANGED:
            return CHANGED[name]
    return real_import(name, globals, locals, fromlist, level)


builtins.__import__ = seen_import
