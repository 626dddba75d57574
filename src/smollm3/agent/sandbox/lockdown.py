"""The innermost layers, which the interpreter of the model's code puts on itself before that code.

Landlock: files beneath the given paths, nothing else; no TCP, no signals to others. seccomp: only
the system calls that a Python program needs; among those that it does not are all that make a
process, a socket or a namespace, load a program or look into another process.

This text is run inside the sandbox, so it imports the standard library only. Neither layer needs
privileges; what the kernel lacks is left out, and `lock` says what is in force.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import resource
import struct
import sys
from collections.abc import Iterator, Sequence
from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)

# Landlock (linux/landlock.h). Its three system calls have one number on all machines.
_CREATE, _ADD, _RESTRICT = 444, 445, 446
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = (1 << bit for bit in range(4))
_TRUNCATE = 1 << 14
_READ = _READ_FILE | _READ_DIR
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE
# Access rights to files known to each version; later versions know those of the fifth.
_FILE_RIGHTS = (0, 13, 14, 15, 15, 16)

_SECCOMP_MODE_FILTER = 2
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _PR_CAP_AMBIENT = 38, 22, 47
_CLONE_THREAD = 0x10000
ALLOW, KILL, REFUSE = 0x7FFF0000, 0x80000000, 0x00050000  # what a filter returns

# machine: (AUDIT_ARCH, column of SYSCALLS)
MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
# struct stat of the kernel, and which of its fields Python's stat_result begins with
_STAT = {
    "x86_64": ("=QQQIIIIQqqqqQqQqQ", (3, 1, 0, 2, 4, 5, 8, 11, 13, 15)),
    "aarch64": ("=QQIIIIQQqiiqqQqQqQ", (2, 1, 0, 3, 4, 5, 8, 12, 14, 16)),
}
# name: number on x86_64, on aarch64 (None: not there). What CPython, glibc and musl call.
# fmt: off
SYSCALLS = {
    "read": (0, 63), "write": (1, 64), "open": (2, None), "close": (3, 57), "stat": (4, None),
    "fstat": (5, 80), "lstat": (6, None), "poll": (7, None), "lseek": (8, 62), "mmap": (9, 222),
    "mprotect": (10, 226), "munmap": (11, 215), "brk": (12, 214), "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "ioctl": (16, 29), "pread64": (17, 67),
    "pwrite64": (18, 68), "readv": (19, 65), "writev": (20, 66), "access": (21, None),
    "pipe": (22, None), "select": (23, None), "sched_yield": (24, 124), "mremap": (25, 216),
    "msync": (26, 227), "mincore": (27, 232), "madvise": (28, 233), "dup": (32, 23),
    "dup2": (33, None), "pause": (34, None), "nanosleep": (35, 101), "getitimer": (36, 102),
    "alarm": (37, None), "setitimer": (38, 103), "getpid": (39, 172), "sendfile": (40, 71),
    "socketpair": (53, 199), "sendto": (44, 206), "recvfrom": (45, 207), "shutdown": (48, 210),
    "getsockname": (51, 204), "getpeername": (52, 205),
    "getsockopt": (55, 209), "clone": (56, 220), "exit": (60, 93), "wait4": (61, 260),
    "waitid": (247, 95), "kill": (62, 129), "uname": (63, 160), "fcntl": (72, 25),
    "flock": (73, 32), "fsync": (74, 82), "fdatasync": (75, 83), "truncate": (76, 45),
    "ftruncate": (77, 46), "getdents": (78, None), "getcwd": (79, 17), "chdir": (80, 49),
    "fchdir": (81, 50), "rename": (82, None), "mkdir": (83, None), "rmdir": (84, None),
    "creat": (85, None), "link": (86, None), "unlink": (87, None), "symlink": (88, None),
    "readlink": (89, None), "chmod": (90, None), "fchmod": (91, 52), "umask": (95, 166),
    "gettimeofday": (96, 169), "getrlimit": (97, 163), "getrusage": (98, 165), "sysinfo": (99, 179),
    "times": (100, 153), "getuid": (102, 174), "getgid": (104, 176), "geteuid": (107, 175),
    "getegid": (108, 177), "getppid": (110, 173), "getpgrp": (111, None), "getpgid": (121, 155),
    "getsid": (124, 156), "getgroups": (115, 158), "getresuid": (118, 148), "getresgid": (120, 150),
    "rt_sigpending": (127, 136), "rt_sigtimedwait": (128, 137), "rt_sigsuspend": (130, 133),
    "sigaltstack": (131, 132), "utime": (132, None), "utimes": (235, None), "statfs": (137, 43),
    "fstatfs": (138, 44), "getpriority": (140, 141), "sched_getaffinity": (204, 123),
    "gettid": (186, 178), "time": (201, None), "futex": (202, 98), "getdents64": (217, 61),
    "set_tid_address": (218, 96), "fadvise64": (221, 223), "clock_gettime": (228, 113),
    "clock_getres": (229, 114), "clock_nanosleep": (230, 115), "exit_group": (231, 94),
    "epoll_create": (213, None), "epoll_create1": (291, 20), "epoll_ctl": (233, 21),
    "epoll_wait": (232, None), "epoll_pwait": (281, 22), "epoll_pwait2": (441, 441),
    "tgkill": (234, 131), "openat": (257, 56), "mkdirat": (258, 34), "newfstatat": (262, 79),
    "unlinkat": (263, 35), "renameat": (264, 38), "renameat2": (316, 276), "linkat": (265, 37),
    "symlinkat": (266, 36), "readlinkat": (267, 78), "fchmodat": (268, 53), "faccessat": (269, 48),
    "faccessat2": (439, 439), "pselect6": (270, 72), "ppoll": (271, 73),
    "set_robust_list": (273, 99), "get_robust_list": (274, 100), "utimensat": (280, 88),
    "fallocate": (285, 47), "eventfd": (284, None), "eventfd2": (290, 19), "dup3": (292, 24),
    "pipe2": (293, 59), "getrandom": (318, 278), "statx": (332, 291), "rseq": (334, 293),
    "copy_file_range": (326, 285), "close_range": (436, 436), "getcpu": (309, 168),
    "membarrier": (324, 283), "preadv": (295, 69), "pwritev": (296, 70), "preadv2": (327, 286),
    "pwritev2": (328, 287), "prlimit64": (302, 261), "getxattr": (191, 8), "lgetxattr": (192, 9),
    "fgetxattr": (193, 10), "listxattr": (194, 11), "llistxattr": (195, 12),
    "flistxattr": (196, 13),
}
# fmt: on
# By a path: told of it, which Landlock never governs, or changed (`truncate` since Linux 6.2 only)
_OF_PATHS = (
    *("stat", "lstat", "newfstatat", "statx", "access", "faccessat", "faccessat2", "statfs"),
    *("readlink", "readlinkat", "getxattr", "lgetxattr", "listxattr", "llistxattr", "chdir"),
    *("chmod", "fchmod", "fchmodat", "utime", "utimes", "utimensat", "truncate", "creat"),
    *("rename", "renameat", "renameat2", "link", "linkat", "symlink", "symlinkat"),
    *("unlink", "unlinkat", "rmdir", "mkdir", "mkdirat"),
)
_O_PATH = 0x200000  # opens any path, to ask `fstat` about it
# Known to programs, so the refusal should read "not permitted"; all else is "not implemented",
# which makes a C library fall back on older calls.
# fmt: off
FORBIDDEN = {
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281),
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201),
    "accept": (43, 202), "accept4": (288, 242), "sendmsg": (46, 211), "ptrace": (101, 117),
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39),
    "pivot_root": (155, 41), "chroot": (161, 51), "setuid": (105, 146), "setgid": (106, 144),
    "setresuid": (117, 147), "setresgid": (119, 149), "setgroups": (116, 159),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138), "memfd_create": (319, 279), "mknod": (133, None),
    "setsockopt": (54, 208), "mknodat": (259, 33), "bpf": (321, 280), "keyctl": (250, 219),
}
# fmt: on
# ioctl: TCGETS and TIOCGWINSZ ("is it a terminal"), FIONREAD, FIONBIO, FIOCLEX, FIONCLEX
_IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5451, 0x5450)
# fcntl: without F_SETOWN and its like, by which the kernel signals others; without F_SETPIPE_SZ
_FCNTLS = (*range(8), 36, 37, 38, 1030, 1032)


def lock(config: dict[str, Any]) -> list[str]:
    """Put on all that there is for this kind of jail; what is in force, as text for people.

    config: kind; read, write (paths beneath which files can be read, or also written); memory,
    folder (bytes), files, threads, cpu_seconds.
    """
    if config["kind"] == "bubblewrap":
        limit_folder(config["write"][0], config["folder"], config["files"])
        drop_capabilities()
    limit(config)
    if config["kind"] == "none":
        return []
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    layers = []
    alone = config["kind"] != "landlock"
    if not alone and platform.machine() in MACHINES:
        import_without_stat()
    abi = restrict_files(config["read"], config["write"])
    if abi:
        layers.append(f"Landlock {abi}")
    if filter_calls(alone):
        layers.append("seccomp")
    return layers


def limit(config: dict[str, Any]) -> None:
    """Here and not outside: in a user namespace of its own, only its own threads count. Without
    one, all of the user's do."""
    limits = {
        "AS": config["memory"],
        "CPU": config["cpu_seconds"],
        "FSIZE": config["folder"],
        "NOFILE": 64,
        "CORE": 0,
        "NPROC": config["threads"],
    }
    if config["kind"] == "landlock":
        limits["NPROC"] += threads_of(os.getuid())
    elif config["kind"] == "none":
        del limits["NPROC"]
    for name, value in limits.items():
        which = getattr(resource, f"RLIMIT_{name}", None)
        if which is not None:
            hard = resource.getrlimit(which)[1]
            lowered = value if hard < 0 else min(value, hard)
            resource.setrlimit(which, (lowered, lowered))


def threads_of(user: int) -> int:
    """How many threads a user has on this computer, as far as can be seen."""
    count = 0
    for process in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # it has ended
            if os.stat(f"/proc/{process}").st_uid == user:
                count += len(os.listdir(f"/proc/{process}/task"))
    return count


def restrict_files(read: Sequence[str], write: Sequence[str]) -> int:
    """The version of Landlock in force, 0 where there is none."""
    abi: int = _libc.syscall(_CREATE, None, ctypes.c_size_t(0), 1)
    if abi < 1:
        return 0
    handled = (1 << _FILE_RIGHTS[min(abi, 5)]) - 1
    # handled_access_fs, handled_access_net (4: bind and connect of TCP), scoped (6: abstract
    # sockets, signals); older kernels know a shorter structure
    fields = [handled] + [3] * (abi >= 4) + [3] * (abi >= 6)
    rules = struct.pack(f"={len(fields)}Q", *fields)
    ruleset = _libc.syscall(_CREATE, rules, ctypes.c_size_t(len(rules)), 0)
    if ruleset < 0:
        return 0
    for paths, rights in ((read, _READ), (write, handled & ~_EXECUTE)):
        for path in paths:
            try:
                place = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except OSError:
                continue
            rights_here = rights if os.path.isdir(path) else rights & _OF_FILES
            rule = struct.pack("=Qi", rights_here & handled, place)
            added = _libc.syscall(_ADD, ruleset, 1, rule, 0)
            os.close(place)
            if added:
                raise OSError(ctypes.get_errno(), f"landlock_add_rule {path}")
    restricted = _libc.syscall(_RESTRICT, ruleset, 0) == 0
    os.close(ruleset)
    return abi if restricted else 0


def import_without_stat() -> None:
    """Python's library is found, and imported, by questions about what was opened, which Landlock
    governs. Where the C library asks `fstat` by `newfstatat` (glibc 2.33 to 2.38), which is
    refused, it loads no program either: so those of the library are loaded now."""
    for folder in sys.path:
        if os.path.basename(folder) == "lib-dynload":
            for name in os.listdir(folder):
                if not name.startswith(("_test", "_xx", "xx")):
                    with contextlib.suppress(OSError):
                        ctypes.CDLL(os.path.join(folder, name))
    for name in ("os", "posix"):
        module: Any = sys.modules[name]
        module.stat = module.fstat = stat_opened
        module.listdir = list_opened


@contextlib.contextmanager
def _opened(path: Any, flags: int = 0, dir_fd: int | None = None) -> Iterator[int]:
    if isinstance(path, int):
        yield path
        return
    place = os.open(path, os.O_NONBLOCK | os.O_CLOEXEC | flags, dir_fd=dir_fd)
    try:
        yield place
    finally:
        os.close(place)


def _call(name: str, *arguments: Any) -> int:
    number = SYSCALLS[name][MACHINES[platform.machine()][1]]
    result: int = _libc.syscall(number, *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def stat_opened(
    path: Any, *, dir_fd: int | None = None, follow_symlinks: bool = True
) -> os.stat_result:
    """`os.stat` of what can be opened."""
    data = ctypes.create_string_buffer(256)
    with _opened(path, 0 if follow_symlinks else os.O_NOFOLLOW, dir_fd) as place:
        _call("fstat", place, data)
    form, order = _STAT[platform.machine()]
    fields = struct.unpack_from(form, data)
    return os.stat_result([fields[at] for at in order])


def list_opened(path: Any = ".") -> list[str]:
    """`os.listdir` of what can be opened."""
    names = []
    data = ctypes.create_string_buffer(1 << 16)
    with _opened(path, os.O_DIRECTORY) as place:
        while size := _call("getdents64", place, data, ctypes.c_size_t(len(data))):
            at = 0
            while at < size:  # struct linux_dirent64: inode, offset, length of this, kind, name
                length = struct.unpack_from("=H", data, at + 16)[0]
                names.append(os.fsdecode(data.raw[at + 19 : at + length].split(b"\0")[0]))
                at += length
    return [name for name in names if name not in (".", "..")]


def filter_calls(alone: bool) -> bool:
    """Whether the filter is in force."""
    program = program_for(platform.machine(), os.getpid(), alone)
    if program is None:
        return False

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]

    given = Program(len(program) // 8, program)
    return _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(given)) == 0


def drop_capabilities() -> None:
    """Bubblewrap leaves one to us, to mount our folder."""
    _prctl(_PR_CAP_AMBIENT, 4)  # PR_CAP_AMBIENT_CLEAR_ALL
    header = struct.pack("=Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
    _libc.capset(header, bytes(24))


def limit_folder(path: str, size: int, files: int) -> None:
    """Give the tmpfs at `path` a limit on its files, where we may."""
    flags = 0x20 | 0x2 | 0x4 | 0x8  # MS_REMOUNT, MS_NOSUID, MS_NODEV, MS_NOEXEC
    options = f"size={size},nr_inodes={files}".encode()
    _libc.mount(None, path.encode(), None, ctypes.c_ulong(flags), options)


def _prctl(option: int, *arguments: int) -> int:
    padded = [*arguments, 0, 0, 0, 0][:4]
    result: int = _libc.prctl(option, *map(ctypes.c_ulong, padded))
    return result


# The filter: a program of classic BPF over struct seccomp_data {int nr; u32 arch; u64 ip, args[6]}.
_LOAD, _EQUAL, _AND, _RETURN, _AT_LEAST, _ANY_BIT = 0x20, 0x15, 0x54, 0x06, 0x35, 0x45


def _op(code: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
    return struct.pack("=HBBI", code, then, otherwise, value)


def _argument(index: int, high: bool = False) -> bytes:
    return _op(_LOAD, 16 + 8 * index + 4 * high)  # both machines are little-endian


def _one_of(index: int, values: Sequence[int]) -> bytes:
    """Allow where the argument is one of the values, refuse elsewhere."""
    body = _argument(index, high=True) + _op(_EQUAL, 0, 0, len(values) + 1) + _argument(index)
    for place, value in enumerate(values):
        body += _op(_EQUAL, value, len(values) - place, 0)
    return body + _op(_RETURN, REFUSE | errno.EPERM) + _op(_RETURN, ALLOW)


def _bit(index: int, bit: int, is_set: bool = True) -> bytes:
    """Allow where the bit is set (or is not) in the argument, refuse elsewhere."""
    return (
        _argument(index)
        + _op(_ANY_BIT, bit, is_set, not is_set)
        + _op(_RETURN, REFUSE | errno.EPERM)
        + _op(_RETURN, ALLOW)
    )


def program_for(machine: str, pid: int, alone: bool = True) -> bytes | None:
    """The filter for a process, None for a machine that we do not know. alone: it is in namespaces
    with files and processes of its own; otherwise it has none to change, and calls are refused that
    tell of paths, change what is there, or tell of other processes."""
    if machine not in MACHINES:
        return None
    arch, column = MACHINES[machine]
    conditions = {
        "clone": _bit(0, _CLONE_THREAD),  # threads, not processes
        "kill": _one_of(0, (pid,)),
        "tgkill": _one_of(0, (pid,)),
        "prlimit64": _one_of(0, (0, pid)),
        "ioctl": _one_of(1, _IOCTLS),
        "fcntl": _one_of(1, _FCNTLS),
        "socketpair": _one_of(0, (1,)),  # AF_UNIX: event loops wake themselves by one
        "getsockopt": _one_of(1, (1,)),  # SOL_SOCKET
        "sendto": _one_of(4, (0,)),  # only to the other end
    }
    allow = _op(_RETURN, ALLOW)
    refuse = _op(_RETURN, REFUSE | errno.EPERM)
    program = _op(_LOAD, 4) + _op(_EQUAL, arch, 1, 0) + _op(_RETURN, KILL) + _op(_LOAD, 0)
    if not alone:
        conditions |= dict.fromkeys((*_OF_PATHS, "get_robust_list"), refuse)
        conditions |= {"open": _bit(1, _O_PATH, False), "openat": _bit(2, _O_PATH, False)}
        conditions |= dict.fromkeys(
            ("getpgid", "getsid", "sched_getaffinity"), _one_of(0, (0, pid))
        )
        conditions["getpriority"] = _one_of(1, (0, pid))
        # A negative clock is the processor time of a process.
        clocks = ("clock_gettime", "clock_getres", "clock_nanosleep")
        conditions |= dict.fromkeys(clocks, _one_of(0, range(12)))
    bodies = [(n[column], conditions.get(name, allow)) for name, n in SYSCALLS.items()]
    bodies += [(n[column], refuse) for n in FORBIDDEN.values()]
    for number, body in bodies:
        if number is not None:
            program += _op(_EQUAL, number, 0, len(body) // 8) + body
    return program + _op(_RETURN, REFUSE | errno.ENOSYS)
