"""The parts of the jail by themselves: the filter of system calls, the worker, what is shown."""

import contextlib
import errno
import json
import os
import socket
import struct
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smollm3.agent import sandbox
from smollm3.agent.sandbox import (
    Function,
    Limits,
    RunOutput,
    Sandbox,
    StartError,
    lockdown,
    process,
)
from smollm3.agent.sandbox.layout import layout
from smollm3.agent.sandbox.run import Shown
from smollm3.errors import UserError

PID = 4321
# One module without its package, which would import torch.
LOAD = f"""
import importlib.util, sys
def load(name):
    spec = importlib.util.spec_from_file_location("smollm3.agent.sandbox." + name, {sandbox.__path__[0]!r} + "/" + name + ".py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
"""
HEADERS = {
    "x86_64": "/usr/include/x86_64-linux-gnu/asm/unistd_64.h",
    "aarch64": "/usr/include/asm-generic/unistd.h",
}


def decide(program, machine, number, arguments):
    """What the kernel would do: our own reading of classic BPF."""
    arch = lockdown.MACHINES[machine][0]
    data = struct.pack("=iIQ6Q", number - (number >= 1 << 31) * (1 << 32), arch, 0, *arguments)
    ops = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]
    at = value = 0
    while True:
        code, then, otherwise, k = ops[at]
        at += 1
        if code == 0x20:
            [value] = struct.unpack_from("=I", data, k)
        elif code == 0x06:
            return k
        else:
            test = {0x15: value == k, 0x45: bool(value & k)}[code]
            at += then if test else otherwise


@pytest.mark.parametrize("machine", list(lockdown.MACHINES))
class TestFilter:
    def verdict(self, machine, name, *arguments):
        table = lockdown.SYSCALLS | lockdown.FORBIDDEN
        number = table[name][lockdown.MACHINES[machine][1]]
        program = lockdown.program_for(machine, PID)
        return decide(program, machine, number, (*arguments, 0, 0, 0, 0, 0, 0)[:6])

    def test_what_is_known_and_what_is_not(self, machine):
        column = lockdown.MACHINES[machine][1]
        allowed = {n[column] for n in lockdown.SYSCALLS.values()} - {None}
        refused = {n[column] for n in lockdown.FORBIDDEN.values()} - {None}
        assert not allowed & refused
        program = lockdown.program_for(machine, PID)
        assert len(program) // 8 < 4096  # the kernel's limit
        for number in [*range(600), 1 << 30, (1 << 30) + 57, (1 << 32) - 1]:
            verdict = decide(program, machine, number, (PID, 0, 0, 0, 0, 0))
            if number in refused:
                assert verdict == lockdown.REFUSE | errno.EPERM
            elif number not in allowed:
                assert verdict == lockdown.REFUSE | errno.ENOSYS

    def test_another_machines_calls_kill(self, machine):
        program = lockdown.program_for(machine, PID)
        other = next(m for m in lockdown.MACHINES if m != machine)
        assert decide(program, other, 0, (0,) * 6) == lockdown.KILL

    @pytest.mark.parametrize(
        ("name", "arguments", "allowed"),
        [
            ("clone", (0x3D0F00,), True),
            ("clone", (17,), False),
            ("clone", (0x10000011,), False),  # CLONE_NEWUSER
            ("kill", (PID, 9), True),
            ("kill", (1, 9), False),
            ("kill", (0, 9), False),
            ("kill", (2**64 - 1, 9), False),
            ("kill", ((1 << 32) + PID, 9), False),
            ("tgkill", (PID, 1, 9), True),
            ("tgkill", (1, 1, 9), False),
            ("prlimit64", (0, 7), True),
            ("prlimit64", (1, 7), False),
            ("ioctl", (0, 0x5401), True),
            ("ioctl", (0, 0x5412), False),  # TIOCSTI: typing for the user
            ("fcntl", (0, 2), True),
            ("fcntl", (0, 8), False),  # F_SETOWN
            ("fcntl", (0, 15), False),
            ("socketpair", (1,), True),
            ("socketpair", (2,), False),
            ("sendto", (3, 0, 0, 0, 0), True),
            ("sendto", (3, 0, 0, 0, 0x7FFF00000000), False),
            ("sendto", (3, 0, 0, 0, 16), False),
            ("read", (0,), True),
            ("execve", (0,), False),
            ("socket", (1,), False),
        ],
    )
    def test_arguments(self, machine, name, arguments, allowed):
        expected = lockdown.ALLOW if allowed else lockdown.REFUSE | errno.EPERM
        assert self.verdict(machine, name, *arguments) == expected

    @pytest.mark.parametrize(
        ("name", "arguments", "allowed"),
        [
            ("newfstatat", (), False),
            ("truncate", (), False),  # Landlock knows it since Linux 6.2
            ("renameat2", (), False),
            ("mkdirat", (), False),
            ("openat", (2**64 - 100, 0, 0), True),
            ("openat", (2**64 - 100, 0, 0x200000), False),  # O_PATH
            ("openat", (2**64 - 100, 0, 0x280000), False),
            ("fstat", (3,), True),
            ("getpgid", (0,), True),
            ("getpgid", (PID,), True),
            ("getpgid", (1,), False),
            ("getpriority", (0, 1), False),
            ("get_robust_list", (1,), False),
            ("clock_gettime", (1,), True),
            ("clock_gettime", (2**64 - 6,), False),  # the processor time of process 0
            ("clock_gettime", (2**32 - 6,), False),
        ],
    )
    def test_without_files_and_processes_of_its_own(self, machine, name, arguments, allowed):
        number = lockdown.SYSCALLS[name][lockdown.MACHINES[machine][1]]
        program = lockdown.program_for(machine, PID, alone=False)
        assert len(program) // 8 < 4096
        expected = lockdown.ALLOW if allowed else lockdown.REFUSE | errno.EPERM
        assert decide(program, machine, number, (*arguments, *[0] * 6)[:6]) == expected

    @given(number=st.integers(0, 2**32 - 1), arguments=st.tuples(*[st.integers(0, 2**64 - 1)] * 6))
    def test_no_call_passes_that_is_not_listed(self, machine, number, arguments):
        column = lockdown.MACHINES[machine][1]
        program = lockdown.program_for(machine, PID)
        if decide(program, machine, number, arguments) == lockdown.ALLOW:
            assert number in {n[column] for n in lockdown.SYSCALLS.values()}

    def test_numbers_are_the_kernels(self, machine):
        header = Path(HEADERS[machine])
        if not header.exists():
            pytest.skip(f"{header} is not installed")
        numbers = {}
        for line in header.read_text().splitlines():
            words = line.split()
            if len(words) == 3 and words[0] == "#define" and words[2].isdigit():
                for prefix in ("__NR3264_", "__NR_"):
                    if words[1].startswith(prefix):
                        numbers[words[1].removeprefix(prefix)] = int(words[2])
        numbers.setdefault("newfstatat", numbers.get("fstatat"))
        column = lockdown.MACHINES[machine][1]
        for name, both in (lockdown.SYSCALLS | lockdown.FORBIDDEN).items():
            assert numbers.get(name) == both[column], name


def test_other_machines_have_no_filter():
    assert lockdown.program_for("riscv64", PID) is None


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's layers")
class TestLockdown:
    def locked(self, code, tmp_path, **config):
        """What `code` prints in a process that locked itself; it can write its working folder, so
        what was run there can be recorded."""
        defaults = {
            "kind": "namespaces",
            "read": [
                sys.prefix,
                sys.base_prefix,
                "/usr",
                "/lib",
                "/lib64",
                str(Path.cwd()),
                "/nowhere",
            ],
            "write": [str(Path.cwd()), str(tmp_path), "/dev/null"],
            "memory": 4 << 30,
            "folder": 64 << 20,
            "files": 100,
            "threads": 100,
            "cpu_seconds": 60,
        }
        program = (
            LOAD
            + f"import json\nlockdown = load('lockdown')\nprint(json.dumps(lockdown.lock({defaults | config!r})))\n"
        )
        return subprocess.run(
            [sys.executable, "-c", program + textwrap.dedent(code)],
            capture_output=True,
            text=True,
            check=False,
        )

    def test_layers(self, tmp_path):
        done = self.locked("open('/etc/passwd')", tmp_path)
        layers = json.loads(done.stdout.splitlines()[0])
        names = [layer.split()[0] for layer in layers]
        if "Landlock" in names:
            assert "PermissionError" in done.stderr
        done = self.locked(
            "import os\ntry: os.fork()\nexcept PermissionError: print('refused')", tmp_path
        )
        if "seccomp" in names:
            assert done.stdout.splitlines()[1] == "refused"

    def test_limits(self, tmp_path):
        code = """
            import resource
            print(resource.getrlimit(resource.RLIMIT_AS)[0] >> 30, resource.getrlimit(resource.RLIMIT_CPU))
            print(resource.getrlimit(resource.RLIMIT_CORE), resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        """
        done = self.locked(code, tmp_path)
        assert done.stdout.splitlines()[1:] == ["4 (60, 60)", "(0, 0) 64"]

    def test_where_all_of_the_users_threads_count(self, tmp_path):
        code = "import resource; print(resource.getrlimit(resource.RLIMIT_NPROC)[0])"
        done = self.locked(code, tmp_path, kind="landlock", threads=7)
        assert int(done.stdout.splitlines()[1]) >= 8
        assert lockdown.threads_of(os.getuid()) >= len(os.listdir("/proc/self/task"))

    def test_none_means_none(self, tmp_path):
        done = self.locked("print(bool(open('/etc/passwd').read()))", tmp_path, kind="none")
        assert done.stdout.splitlines() == ["[]", "True"]

    def test_capabilities_go(self, tmp_path):
        code = "print([line for line in open('/proc/self/status') if line.startswith(('CapEff', 'CapPrm'))])"
        folder = {
            "write": [str(Path.cwd()), "/proc", str(tmp_path)],
            "read": [
                sys.prefix,
                sys.base_prefix,
                "/usr",
                "/lib",
                "/lib64",
                "/proc",
                str(Path.cwd()),
            ],
        }
        folder["write"] = [str(tmp_path), str(Path.cwd())]
        done = self.locked(code, tmp_path, kind="bubblewrap", **folder)
        assert eval(done.stdout.splitlines()[1]) == [
            "CapPrm:\t0000000000000000\n",
            "CapEff:\t0000000000000000\n",
        ]


class TestWorker:
    """The worker without a jail, spoken to over its pipes."""

    @pytest.fixture
    def worker(self):
        program = LOAD + "load('worker').main(lambda config: ['a layer'])"
        process = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        yield process
        process.stdin.close()
        assert process.wait(10) == 0  # it leaves with its host
        process.stdout.close()

    def say(self, worker, **message):
        data = json.dumps(message).encode()
        worker.stdin.write(len(data).to_bytes(4, "big") + data)
        worker.stdin.flush()

    def hear(self, worker):
        return json.loads(worker.stdout.read(int.from_bytes(worker.stdout.read(4), "big")))

    def start(self, worker):
        functions = [{"name": "host", "description": "Does."}]
        self.say(worker, functions=functions, output=1000, longest=10_000)
        assert self.hear(worker) == {"ready": ["a layer"]}

    def run(self, worker, code, seconds=5):
        self.say(worker, run=code, seconds=seconds, name="<run 1>")
        return self.hear(worker)

    def test_a_session(self, worker):
        self.start(worker)
        assert self.run(worker, "import sys\nx = 1\nprint('é', file=sys.stderr)\nx") == {
            "out": "é\n",
            "value": "1",
            "error": None,
        }
        assert self.run(worker, "x = None\nx") == {"out": "", "value": None, "error": None}
        assert self.run(worker, "if 1: pass") == {"out": "", "value": None, "error": None}
        assert self.run(worker, "'y' * 2000")["value"].endswith("yyy'")
        assert len(self.run(worker, "'y' * 2000")["value"]) < 1100
        printed = self.run(worker, "for i in range(3000): print(i)")["out"]
        assert printed.startswith("0\n1\n")
        assert printed.endswith("2999\n")
        assert "bytes left out" in printed
        assert self.run(worker, "raise SystemExit(3)")["error"].endswith("SystemExit: 3")
        assert self.run(worker, "raise SystemExit")["error"] is None
        assert self.run(worker, "host.__doc__, host.__name__, input")["value"].startswith(
            "('Does.', 'host'"
        )
        assert "EOFError" in self.run(worker, "input()")["error"]
        nested = self.run(
            worker,
            "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    raise ValueError('x') from e",
        )
        assert "ZeroDivisionError" in nested["error"]
        assert "worker" not in nested["error"]
        awful = "class E(Exception):\n    def __str__(self): raise MemoryError\n    __repr__ = __str__\nraise E"
        assert "E" in self.run(worker, awful)["error"]

    def test_calls(self, worker):
        self.start(worker)
        self.say(worker, run="host(1, b=[2])", seconds=5, name="<run 1>")
        assert self.hear(worker) == {"call": "host", "args": [1], "kwargs": {"b": [2]}}
        self.say(worker, value={"c": 3})
        assert self.hear(worker)["value"] == "{'c': 3}"
        self.say(worker, run="host()", seconds=5, name="<run 2>")
        self.hear(worker)
        self.say(worker, error="no luck")
        assert self.hear(worker)["error"].endswith("RuntimeError: no luck")
        assert "must be JSON values" in self.run(worker, "host({1, 2})")["error"]
        assert "too many to hand over" in self.run(worker, "host('x' * 20000)")["error"]

    def test_time(self, worker):
        self.start(worker)
        assert (
            "TimeIsUp: not done after 0.2 seconds"
            in self.run(worker, "while True: pass", 0.2)["error"]
        )
        assert self.run(worker, "1")["value"] == "1"

    def test_calls_outside_of_a_run(self, worker):
        self.start(worker)
        code = "import threading, time\ndef late():\n    time.sleep(0.1)\n    try: host()\n    except RuntimeError as e: print_later.append(str(e))\nprint_later = []\nthreading.Thread(target=late).start()"
        self.run(worker, code)
        time.sleep(0.3)
        assert "only while code is run" in self.run(worker, "print_later")["value"]


class TestShown:
    @given(st.lists(st.text(max_size=30)), st.integers(2, 40))
    def test_both_ends_are_kept(self, pieces, cap):
        shown = Shown(cap)
        for piece in pieces:
            shown.add(piece)
        text, half = "".join(pieces), cap // 2
        if len(text) <= 2 * half:
            assert shown.text == text
        else:
            assert shown.text.startswith(text[:half])
            assert shown.text.endswith(text[-half:])
            assert f"[... {len(text) - 2 * half} characters" in shown.text

    def test_of_a_run(self):
        assert RunOutput(out="a\n", value="1").text == "a\n1"
        assert RunOutput().text == "(no output)"
        assert RunOutput(ended="gone").ok is False
        assert Shown.cut(None, 10) is None


class TestFinding:
    @pytest.fixture(autouse=True)
    def _anew(self):
        sandbox.find_sandbox.cache_clear()
        yield
        sandbox.find_sandbox.cache_clear()

    def test_what_does_not_work_is_passed_over(self, monkeypatch):
        tried = []

        def probe(candidate):
            tried.append(candidate.kind)
            if candidate.kind != "monty":
                raise StartError("no")
            return candidate

        monkeypatch.setattr(sandbox, "probe", probe)
        assert sandbox.find_sandbox().kind == "monty"
        assert sandbox.find_sandbox().kind == "monty"
        assert tried[-1] == "monty"
        if sys.platform == "linux":
            assert set(tried) == {"namespaces", "bubblewrap", "landlock", "monty"}
            first = "namespaces" if os.geteuid() == 0 else "bubblewrap"
            assert tried[0] == first
        assert len(tried) == len(set(tried)) or tried.count("bubblewrap") == 2

    def test_where_nothing_works_the_mends_are_named(self, monkeypatch):
        def probe(candidate):
            raise StartError("denied here")

        monkeypatch.setattr(sandbox, "probe", probe)
        monkeypatch.setattr(sandbox.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(
            UserError, match="pydantic-monty, or, in a chat, take the risk with --unsafe-python"
        ):
            sandbox.find_sandbox()

    def test_monty_that_is_installed_in_part(self, monkeypatch):
        monty = pytest.importorskip("pydantic_monty")

        def missing(**_):
            raise FileNotFoundError("could not locate the monty binary")

        monkeypatch.setattr(monty, "Monty", missing)
        with pytest.raises(StartError, match="could not locate"):
            sandbox.probe(Sandbox("monty"))
        monkeypatch.setitem(sys.modules, "pydantic_monty", None)
        monkeypatch.delitem(sys.modules, "smollm3.agent.sandbox.monty", raising=False)
        with pytest.raises(StartError, match="pydantic_monty"):
            sandbox.probe(Sandbox("monty"))

    def test_not_linux(self, monkeypatch):
        monkeypatch.setattr(sandbox.sys, "platform", "darwin")
        assert {s.kind for s in sandbox._candidates()} <= {"monty"}
        monkeypatch.setattr(sandbox.os, "name", "nt")
        with pytest.raises(UserError, match="not on this system"):
            sandbox.unsafe_sandbox()

    def test_descriptions(self):
        assert "NOT ISOLATED" in Sandbox("none").description
        assert "small Python" in Sandbox("monty").description
        assert (
            Sandbox("bubblewrap", ("seccomp",)).description
            == "bubblewrap, seccomp; Python's standard library"
        )

    def test_a_weak_kind_is_refused(self, monkeypatch):
        class Weak:
            layers = ("Landlock 7",)

            def run(self, code):
                return RunOutput(value="42")

            def close(self):
                pass

        monkeypatch.setattr(Sandbox, "interpreter", lambda *_, **__: Weak())
        with pytest.raises(StartError, match="not both"):
            sandbox.probe(Sandbox("landlock"))
        assert sandbox.probe(Sandbox("bubblewrap")).layers == ("Landlock 7",)
        monkeypatch.setattr(Weak, "run", lambda *_: RunOutput(error="broken"))
        with pytest.raises(StartError, match="broken"):
            sandbox.probe(Sandbox("bubblewrap"))

    def test_what_does_not_start_says_why(self):
        with pytest.raises(StartError, match="does not run"):
            layout("/no/python")
        with pytest.raises(StartError, match="No such file|FileNotFound"):
            process.ProcessInterpreter("bubblewrap", bwrap="/no/bwrap").start()

    def test_layout_shows_the_interpreter_and_hides_its_packages(self):
        python = getattr(sys, "_base_executable", sys.executable)
        shown = layout(python)
        assert os.path.dirname(os.__file__) in shown.mounts or any(
            os.__file__.startswith(m + "/") for m in shown.mounts
        )
        assert not {"/", "/usr", "/etc", "/home", "/root", "/tmp", "/proc"} & set(shown.mounts)
        for hidden in shown.hidden:
            assert hidden.endswith("-packages")
        for a in shown.mounts:
            assert not any(a != b and a.startswith(b + "/") for b in shown.mounts)


class TestPipe:
    @given(
        st.binary(max_size=60) | st.binary(max_size=40).map(lambda b: struct.pack(">I", len(b)) + b)
    )
    def test_the_host_survives_any_bytes(self, data):
        """What comes is a message, or the end."""
        interpreter = process.ProcessInterpreter("none", limits=Limits(seconds=1))
        interpreter._end = lambda: 0
        interpreter._process = _Ended()
        interpreter._socket, theirs = socket.socketpair()
        with interpreter._socket, theirs:
            theirs.sendall(data)
            theirs.close()
            with contextlib.suppress(process._Ended):
                assert isinstance(interpreter._receive(1.0), dict)

    def test_a_message_that_is_too_long_is_not_read(self):
        interpreter = process.ProcessInterpreter("none")
        interpreter._process = None
        interpreter._socket, theirs = socket.socketpair()
        with interpreter._socket, theirs:
            theirs.sendall(struct.pack(">I", process._LONGEST + 1))
            with pytest.raises(process._Ended, match="broke its protocol"):
                interpreter._receive(0.1)


class _Ended:
    def wait(self, timeout):
        return 0


class TestAnswers:
    def test_calls_that_are_none(self):
        assert process._answer({"call": 1, "args": [], "kwargs": {}}, None) == {"error": "no call"}
        assert process._answer({"call": "f", "args": {}, "kwargs": {}}, None) == {
            "error": "no call"
        }
        assert (
            "no functions"
            in process._answer({"call": "f", "args": [], "kwargs": {}}, None)["error"]
        )

    def test_results_that_are_none(self):
        assert process._as_run({}) == RunOutput()
        assert process._as_run({"out": 3, "value": ["x"], "error": {}}) == RunOutput()
        assert process._as_run({"out": "\ud800"}).out == "?"

    def test_values_that_cannot_be_sent_fail_the_call(self):
        interpreter = sandbox.unsafe_sandbox().interpreter([Function("f")], Limits(seconds=2))
        try:
            assert "RuntimeError" in interpreter.run("f()", lambda *_: {1, 2}).text
            assert interpreter.run("1 + 1").value == "2"
        finally:
            interpreter.close()
