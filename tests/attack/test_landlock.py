"""The kind of jail without namespaces: what Landlock does not govern is refused all the same.

The code runs as the very user whose files these are, which is the worst case.
"""

import os

import pytest

from smollm3.agent.sandbox import Limits, StartError
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
}


@pytest.fixture(scope="module")
def jail():
    interpreter = ProcessInterpreter("landlock", limits=Limits(seconds=20))
    interpreter._uid = os.getuid()  # root gives it a user of its own, others cannot
    try:
        interpreter.run("import os, socket")
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


def test_options_of_sockets_are_refused(jail):
    code = "a, b = socket.socketpair()\na.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 28)"
    assert not jail.run(code).ok
    loop = "import asyncio\nasync def f(): return 42\nasyncio.run(f())"
    assert jail.run(loop).value == "42"


def test_interpreters_have_a_user_each():
    made = {ProcessInterpreter("landlock")._uid for _ in range(20)}
    assert len(made) == 20
    assert all(0x7F00_0000 <= uid < 1 << 31 for uid in made)
