"""The kind of jail without namespaces: what Landlock does not govern is refused all the same.

The code runs as the very user whose files these are, which is the worst case.
"""

import os
import platform
from pathlib import Path

import pytest

from smollm3.agent.sandbox import Limits, StartError, lockdown
from smollm3.agent.sandbox.process import ProcessInterpreter

pytestmark = pytest.mark.xdist_group("attack")
CHANGES = {
    "chmod": "os.chmod(P, 0o777)",
    "fchmod": "os.fchmod(os.open(os.__file__, os.O_RDONLY), 0o777)",
    "utime": "os.utime(P, (1, 1))",
    "read": "open(P).read()",
    "write": "open(P, 'w')",
    "remove": "os.remove(P)",
    "rename": "os.rename(P, P + 'x')",
    "link": "os.link(P, P + 'x')",
    "truncate": "os.truncate(P, 0)",
    "list": "os.listdir(os.path.dirname(P))",
    "xattr": "os.setxattr(P, 'user.a', b'1')",
    "chown": "os.chown(P, os.getuid(), -1)",
    "readlink": "os.readlink(os.path.dirname(P) + '/link')",
    "getxattr": "os.getxattr(P, 'user.a')",
    "listxattr": "os.listxattr(P)",
    "statvfs": "os.statvfs(P)",
    "stat": "os.stat(P)",
    "lstat": "os.lstat(P)",
    "access": "assert os.access(P, os.F_OK)",
    "a name only": "os.fstat(os.open(P, os.O_PATH))",
    "the folder": "os.scandir(os.path.dirname(P))",
}
# System calls of x86-64: stat, lstat, access, newfstatat, faccessat, statx, faccessat2.
NUMBERS = {4: "p, b", 6: "p, b", 21: "p, 0", 262: "-100, p, b, 0", 269: "-100, p, 0", 332: "-100, p, 0, 4095, b", 439: "-100, p, 0, 0"}  # fmt: skip
PROCESSES = ("os.getpgid(1)", "os.getsid(1)", "os.getpriority(os.PRIO_PROCESS, 1)", "os.sched_getaffinity(1)", "time.clock_gettime(~1 << 3 | 2)", "os.kill(1, 0)", "os.listdir('/proc')", "os.stat('/proc/1')")  # fmt: skip
LIBRARY = {
    "import sqlite3; sqlite3.connect(':memory:').execute('select 6 * 7').fetchall()": "[(42,)]",
    "import decimal, email.mime.text, xml.dom.minidom, ssl, lzma, bz2, unittest.mock; decimal.Decimal('1.5') * 2": "Decimal('3.0')",
    "import hashlib; hashlib.sha256(b'').hexdigest()[:8]": "'e3b0c442'",
    "import string; os.path.isfile(string.__file__) and 'string.py' in os.listdir(os.path.dirname(string.__file__))": "True",
    "len(os.sched_getaffinity(0)) > 0 and time.thread_time() > 0": "True",
}


@pytest.fixture(scope="module")
def jail():
    interpreter = ProcessInterpreter("landlock", limits=Limits(seconds=20))
    interpreter._uid = os.getuid()  # root gives it a user of its own, others cannot
    try:
        interpreter.run("import os, socket, time")
        if not {layer.split()[0] for layer in interpreter.layers} >= {"Landlock", "seccomp"}:
            pytest.skip("the kernel has not both Landlock and seccomp")
    except StartError as e:
        pytest.skip(str(e))
    yield interpreter
    interpreter.close()


@pytest.mark.parametrize("name", CHANGES)
def test_the_users_own_files_stay(jail, tmp_path, name):
    path = tmp_path / "mine"
    path.write_text("secret")
    path.chmod(0o600)
    (tmp_path / "link").symlink_to("secret")
    before = path.stat()
    run = jail.run(f"P = {str(path)!r}\n{CHANGES[name]}")
    assert not run.ok, run
    assert "secret" not in run.text
    after = path.stat()
    assert (after.st_mode, after.st_mtime_ns, after.st_nlink) == (
        before.st_mode,
        before.st_mtime_ns,
        before.st_nlink,
    )
    assert path.read_text() == "secret"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of another machine")
@pytest.mark.parametrize("number", NUMBERS)
def test_nothing_is_told_of_a_path(jail, number):
    """Neither of the user's files nor of what may be read: by number, the path is only a number."""
    code = f"import ctypes\nlibc, b = ctypes.CDLL(None), ctypes.create_string_buffer(256)\np = os.__file__.encode()\nlibc.syscall({number}, {NUMBERS[number]})"
    assert jail.run(code).value == "-1"


@pytest.mark.parametrize("code", PROCESSES)
def test_other_processes_are_not_seen(jail, code):
    run = jail.run(code)
    assert "PermissionError" in (run.error or ""), run


@pytest.mark.parametrize("code", LIBRARY)
def test_pythons_library_is_there(jail, code):
    run = jail.run(code)
    assert run.value == LIBRARY[code], run


@pytest.mark.skipif(not Path("/usr/share/zoneinfo/Europe/Berlin").exists(), reason="no zones here")
def test_time_zones_are_found(jail):
    run = jail.run("import zoneinfo; zoneinfo.ZoneInfo('Europe/Berlin').key")
    assert run.value == "'Europe/Berlin'", run


def test_stat_and_list_say_what_pythons_say(tmp_path):
    """They are used inside the jail alone, where they cannot be compared."""
    (tmp_path / "file").write_text("text")
    (tmp_path / "\udcff").mkdir()
    (tmp_path / "link").symlink_to("file")
    for number in range(3000):  # more names than one call tells
        (tmp_path / f"{number:050}").touch()
    assert sorted(lockdown.list_opened(tmp_path)) == sorted(os.listdir(tmp_path))
    for name in ("file", "\udcff", "link", "."):
        assert tuple(lockdown.stat_opened(tmp_path / name)) == tuple(os.stat(tmp_path / name))
    with pytest.raises(OSError):
        lockdown.stat_opened(tmp_path / "link", follow_symlinks=False)
    with pytest.raises(FileNotFoundError):
        lockdown.stat_opened(tmp_path / "none")
    with pytest.raises(NotADirectoryError):
        lockdown.list_opened(tmp_path / "file")


def test_options_of_sockets_are_refused(jail):
    code = "a, b = socket.socketpair()\na.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 28)"
    assert not jail.run(code).ok
    loop = "import asyncio\nasync def f(): return 42\nasyncio.run(f())"
    assert jail.run(loop).value == "42"


def test_interpreters_have_a_user_each():
    made = {ProcessInterpreter("landlock")._uid for _ in range(20)}
    assert len(made) == 20
    assert all(0x7F00_0000 <= uid < 1 << 31 for uid in made)
