"""Starts the interpreter of the model's code in its jail, and stays beside it as its warden.

Run as a script, `python -I -S jail.py LINE CONFIG`; descriptors 0 and 1 go on to the interpreter,
LINE is the host's to the warden: `s` stops the jail, `c` lets it go on, its end kills it. So the
jail ends with the host however the host ends. (A parent-death signal would come when the *thread*
that started it ends.) The warden ends with 128 + the signal that ended the interpreter, or with its
status.

CONFIG: kind ("bubblewrap", "namespaces", "landlock", "none"), bwrap (a path), python and arguments
(the program), mounts (paths shown read-only), hidden (folders shown empty), links
([target, path]), uid (to change to, if root), folder and files (limits of the folder to write in),
home (where there is no such folder).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import select
import signal
import sys
from typing import Any, NoReturn

INSIDE = 65534  # user and group in a user namespace
TMP = "/tmp"
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
ENVIRONMENT = {"HOME": TMP, "TMPDIR": TMP, "LANG": "C.UTF-8", "PATH": "/nowhere"}

_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT = 1, 2, 4, 8, 32
_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18
_MNT_DETACH = 2
_NEW = {"user": 1 << 28, "mount": 1 << 17, "uts": 1 << 26, "ipc": 1 << 27, "pid": 1 << 29}
_NEW_NET, _NEW_CGROUP = 1 << 30, 1 << 25
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38

libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: Any) -> None:
    """A function of libc that returns 0, or an OSError."""
    given = [a.encode() if isinstance(a, str) else a for a in arguments]
    if getattr(libc, name)(*given):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def mount(
    source: str | None, target: str, kind: str | None, flags: int, options: str | None = None
) -> None:
    call("mount", source, target, kind, ctypes.c_ulong(flags), options)


def main(line: int, config: dict[str, Any]) -> int:
    """Start it, watch over it, return its status."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # if memory runs out, rather this than the host
    wakes, wake = os.pipe()
    os.set_blocking(wakes, False)
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    informs, inform = os.pipe()
    os.set_inheritable(inform, True)  # through bubblewrap
    os.set_inheritable(line, False)
    root = os.geteuid() == 0
    if config["kind"] == "namespaces":
        enter_namespaces(root)
    child = os.fork()
    if child == 0:
        try:
            os.close(informs)
            START[config["kind"]](config, inform, root)
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode()[:1000])
        os._exit(125)
    os.close(inform)
    for descriptor in (0, 1):
        os.close(descriptor)
    worker = inner_process(informs) if config["kind"] == "bubblewrap" else child
    return watch(child, worker, line, wakes)


def watch(child: int, worker: int, line: int, wakes: int) -> int:
    """Carry out the host's orders until the child ends or the host does; the child's status."""
    poll = select.poll()
    poll.register(line, select.POLLIN)
    poll.register(wakes, select.POLLIN)
    while True:
        ready = [descriptor for descriptor, _ in poll.poll()]
        if line in ready:
            order = os.read(line, 1)
            if not order:
                kill(child, worker)
                os.waitpid(child, 0)
                return 0
            if worker:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGSTOP if order == b"s" else signal.SIGCONT)
        if wakes in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(wakes, 4096)
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                kill(child, 0)  # what it may have left behind
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code


def kill(child: int, worker: int) -> None:
    """The session that the child leads, and the worker, with which its process namespace ends."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)
    if worker:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)


def inner_process(informs: int) -> int:
    """What bubblewrap calls its child, once it has one."""
    text = b""
    while b"}" not in text and (part := os.read(informs, 1024)):
        text += part
    os.close(informs)
    return int(json.loads(text)["child-pid"]) if text else 0


def run_program(config: dict[str, Any], environment: dict[str, str]) -> NoReturn:
    close_others()
    os.execve(config["python"], [config["python"], *config["arguments"]], environment)


def change_user(config: dict[str, Any], root: bool) -> None:
    """Nobody else has this user, so the limit on its processes is this jail's alone."""
    if root:
        os.setgroups([])
        os.setresgid(config["uid"], config["uid"], config["uid"])
        os.setresuid(config["uid"], config["uid"], config["uid"])


def close_others() -> None:
    os.closerange(3, 4096)


# How each kind starts.


def start_bubblewrap(config: dict[str, Any], inform: int, root: bool) -> NoReturn:
    """The user changes first: bubblewrap started by root would leave the program root outside,
    whom no limit on processes binds."""
    os.setsid()
    change_user(config, root)
    os.execve(config["bwrap"], ["bwrap", *bubblewrap_options(config, inform)], ENVIRONMENT)


def bubblewrap_options(config: dict[str, Any], inform: int) -> list[str]:
    options = ["--unshare-all", "--as-pid-1", "--die-with-parent", "--new-session", "--clearenv"]
    options += ["--cap-drop", "ALL", "--cap-add", "CAP_SYS_ADMIN"]  # see lockdown.limit_folder
    options += ["--uid", str(INSIDE), "--gid", str(INSIDE), "--info-fd", str(inform)]
    for name, value in ENVIRONMENT.items():
        options += ["--setenv", name, value]
    for target, path in config["links"]:
        options += ["--symlink", target, path]
    for path in config["mounts"]:
        options += ["--ro-bind", path, path]
    for path in config["hidden"]:
        options += ["--tmpfs", path, "--remount-ro", path]
    for path in DEVICES:
        options += ["--dev-bind", path, path]
    options += ["--perms", "0700", "--size", str(config["folder"]), "--tmpfs", TMP]
    options += ["--remount-ro", "/", "--chdir", TMP, "--"]
    return [*options, config["python"], *config["arguments"]]


def enter_namespaces(root: bool) -> None:
    """Of the warden, so that its child is the first process of a new process namespace. A user
    namespace only where there is no root: what is not there cannot be attacked."""
    user, group = os.geteuid(), os.getegid()
    flags = sum(_NEW.values()) | _NEW_NET | _NEW_CGROUP
    if root:
        flags &= ~_NEW["user"]
    call("unshare", ctypes.c_int(flags))
    if not root:
        write("/proc/self/setgroups", "deny")
        write("/proc/self/uid_map", f"{INSIDE} {user} 1")
        write("/proc/self/gid_map", f"{INSIDE} {group} 1")
    mount("none", "/", None, _MS_REC | _MS_PRIVATE)


def write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def start_namespaces(config: dict[str, Any], inform: int, root: bool) -> NoReturn:
    os.close(inform)
    os.setsid()
    new_root(config, root)
    change_user(config, root)
    begin(config)


def begin(config: dict[str, Any]) -> NoReturn:
    os.umask(0o077)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, *map(ctypes.c_ulong, (1, 0, 0, 0)))
    libc.prctl(_PR_SET_PDEATHSIG, *map(ctypes.c_ulong, (signal.SIGKILL, 0, 0, 0)))
    run_program(config, ENVIRONMENT)


def new_root(config: dict[str, Any], root: bool) -> None:
    """A root folder of nothing but the interpreter, three devices and a folder to write in."""
    sources = [os.open(path, os.O_PATH) for path in config["mounts"]]
    devices = [os.open(path, os.O_PATH) for path in DEVICES]
    base = TMP  # any folder will do: it is covered for this process only
    mount("tmpfs", base, "tmpfs", _MS_NOSUID | _MS_NODEV, "size=4m,nr_inodes=4k,mode=0755")
    for path, place in zip(config["mounts"], sources, strict=True):
        bind(place, base + path, _MS_RDONLY | _MS_NOSUID | _MS_NODEV)
    for path, place in zip(DEVICES, devices, strict=True):
        bind(place, base + path, _MS_NOSUID | _MS_NOEXEC)
    for target, path in config["links"]:
        os.makedirs(os.path.dirname(base + path), exist_ok=True)
        os.symlink(target, base + path)
    for path in config["hidden"]:
        flags = _MS_RDONLY | _MS_NOSUID | _MS_NODEV
        mount("tmpfs", base + path, "tmpfs", flags, "size=4k,nr_inodes=2,mode=0755")
    os.mkdir(base + TMP)
    owner = config["uid"] if root else INSIDE
    options = f"size={config['folder']},nr_inodes={config['files']},mode=0700"
    options += f",uid={owner},gid={owner}"
    mount("tmpfs", base + TMP, "tmpfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, options)
    os.chdir(base)
    here = b"."
    number = _PIVOT_ROOT[os.uname().machine]
    if libc.syscall(number, here, here):
        raise OSError(ctypes.get_errno(), "pivot_root")
    call("umount2", ".", _MNT_DETACH)
    mount(None, "/", None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV)
    os.chdir(TMP)
    for place in (*sources, *devices):
        os.close(place)


def bind(place: int, target: str, flags: int) -> None:
    """Show what is open as `place` at `target`."""
    source = f"/proc/self/fd/{place}"
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY))
    try:
        mount(source, target, None, _MS_BIND)
    except OSError as error:  # in a user namespace, mounts below it must come along
        if error.errno != errno.EINVAL:
            raise
        mount(source, target, None, _MS_BIND | _MS_REC)
    kept = os.statvfs(target).f_flag & (_MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    mount(None, target, None, _MS_REMOUNT | _MS_BIND | flags | kept)


def start_landlock(config: dict[str, Any], inform: int, root: bool) -> NoReturn:
    """No namespaces: the layers that the interpreter puts on itself must do."""
    os.close(inform)
    os.setsid()
    change_user(config, root)
    os.chdir("/")
    begin(config)


def start_none(config: dict[str, Any], inform: int, root: bool) -> NoReturn:
    """No isolation at all: what the user of `--unsafe-python-tools` asks for."""
    os.close(inform)
    os.setsid()
    home = config["home"]
    os.chdir(home)
    run_program(config, {**ENVIRONMENT, "HOME": home, "TMPDIR": home, "PATH": os.defpath})


START = {
    "bubblewrap": start_bubblewrap,
    "namespaces": start_namespaces,
    "landlock": start_landlock,
    "none": start_none,
}

if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), json.loads(sys.argv[2])))
