"""System calls that a program under test has no use for are refused by the kernel (seccomp).

No other programs and processes (threads are fine), no sockets but pairs, no signals to others, no
tracing, no shared memory by number, no namespaces and mounts, none of the kernel's larger
interfaces (BPF, io_uring, keys). Of files, no change of modes, owners and times, no watching, no
emptying of one that is not open for writing: Landlock does not look at these, or not everywhere.
It needs no privileges and works in containers; where it cannot be had (an architecture without a
table here), the self-test of the walls says what stays open.
"""

import ctypes
import os

from .libc import MACHINE, prctl

__all__ = ["refuse_calls"]

_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_COMMON = {
    "pidfd_send_signal": 424, "io_uring_setup": 425, "io_uring_enter": 426,
    "io_uring_register": 427, "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431,
    "fsmount": 432, "fspick": 433, "pidfd_open": 434, "pidfd_getfd": 438, "process_madvise": 440,
    "mount_setattr": 442, "fchmodat2": 452, "setxattrat": 463, "removexattrat": 466,
}  # fmt: skip
_REFUSED = {
    "x86_64": {
        "shmget": 29, "shmat": 30, "shmctl": 31, "socket": 41, "fork": 57, "vfork": 58,
        "execve": 59, "semget": 64, "semop": 65, "semctl": 66, "msgget": 68, "msgsnd": 69,
        "msgrcv": 70, "msgctl": 71, "truncate": 76, "chmod": 90, "fchmod": 91, "chown": 92,
        "fchown": 93, "lchown": 94, "ptrace": 101, "syslog": 103, "setpgid": 109, "setsid": 112,
        "rt_sigqueueinfo": 129, "utime": 132, "setpriority": 141, "sched_setparam": 142,
        "sched_setscheduler": 144, "pivot_root": 155, "chroot": 161, "mount": 165, "umount2": 166,
        "init_module": 175, "setxattr": 188, "lsetxattr": 189, "fsetxattr": 190, "removexattr": 197,
        "lremovexattr": 198, "fremovexattr": 199, "tkill": 200, "sched_setaffinity": 203,
        "semtimedop": 220, "utimes": 235, "mq_open": 240, "mq_unlink": 241, "add_key": 248,
        "request_key": 249, "keyctl": 250, "ioprio_set": 251, "inotify_add_watch": 254,
        "migrate_pages": 256, "fchownat": 260, "futimesat": 261, "fchmodat": 268, "unshare": 272,
        "move_pages": 279, "utimensat": 280, "rt_tgsigqueueinfo": 297, "perf_event_open": 298,
        "fanotify_init": 300, "name_to_handle_at": 303, "open_by_handle_at": 304, "setns": 308,
        "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312, "finit_module": 313,
        "sched_setattr": 314, "bpf": 321, "execveat": 322, "userfaultfd": 323,
    },
    "aarch64": {
        "setxattr": 5, "lsetxattr": 6, "fsetxattr": 7, "removexattr": 14, "lremovexattr": 15,
        "fremovexattr": 16, "inotify_add_watch": 27, "ioprio_set": 30, "umount2": 39, "mount": 40,
        "pivot_root": 41, "truncate": 45, "chroot": 51, "fchmod": 52, "fchmodat": 53,
        "fchownat": 54, "fchown": 55, "utimensat": 88, "unshare": 97, "init_module": 105,
        "syslog": 116, "ptrace": 117, "sched_setparam": 118, "sched_setscheduler": 119,
        "sched_setaffinity": 122, "tkill": 130, "rt_sigqueueinfo": 138, "setpriority": 140,
        "setpgid": 154, "setsid": 157, "mq_open": 180, "mq_unlink": 181, "msgget": 186,
        "msgctl": 187, "msgrcv": 188, "msgsnd": 189, "semget": 190, "semctl": 191,
        "semtimedop": 192, "semop": 193, "shmget": 194, "shmctl": 195, "shmat": 196, "socket": 198,
        "add_key": 217, "request_key": 218, "keyctl": 219, "execve": 221, "migrate_pages": 238,
        "move_pages": 239, "rt_tgsigqueueinfo": 240, "perf_event_open": 241, "fanotify_init": 262,
        "name_to_handle_at": 264, "open_by_handle_at": 265, "setns": 268, "process_vm_readv": 270,
        "process_vm_writev": 271, "kcmp": 272, "finit_module": 273, "sched_setattr": 274,
        "bpf": 280, "execveat": 281, "userfaultfd": 282,
    },
}  # fmt: skip
_BY_ARGUMENT = {
    "x86_64": {"ioctl": 16, "clone": 56, "kill": 62, "fcntl": 72, "prctl": 157, "tgkill": 234,
               "prlimit64": 302},
    "aarch64": {"fcntl": 25, "ioctl": 29, "kill": 129, "tgkill": 131, "prctl": 167, "clone": 220,
                "prlimit64": 261},
}  # fmt: skip
_MISSING = {"clone3": 435, "openat2": 437}
"""The C library does without these; what they are to do stands in memory, where no filter looks."""
_THREAD = 0x00010000
_READ_ONLY, _TRUNCATE, _MODE = 0, 0x200, 0x3
_OWNERS = (8, 10, 15)
"""`fcntl`: F_SETOWN, F_SETSIG and F_SETOWN_EX send signals by way of a file."""
_TERMINALS = (0x5412, 0x8901, 0x8902)
"""`ioctl`: TIOCSTI types into a terminal; FIOSETOWN and SIOCSPGRP are F_SETOWN."""
_PDEATHSIG, _DUMPABLE = 1, 4

_LOAD, _EQUAL, _ANY_BIT, _AT_LEAST, _AND, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x54, 0x06
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOSYS = 1, 38
_NUMBER, _ARCH, _FIRST, _SECOND, _THIRD = 0, 4, 16, 24, 32
"""Where `struct seccomp_data` holds them (the low halves, on little-endian machines)."""

_OPENS = {"x86_64": {2: _SECOND, 257: _THIRD}, "aarch64": {56: _THIRD}}
"""`open` and `openat`, with the argument that holds the flags."""
_Line = tuple[int, int, int, int]


class _Filter(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_uint16), ("yes", ctypes.c_uint8), ("no", ctypes.c_uint8),
        ("value", ctypes.c_uint32),
    )  # fmt: skip


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("lines", ctypes.POINTER(_Filter)))


def refuse_calls() -> None:
    """Refuse them for this process and what it makes, for good. Needs `no_new_privs`.

    Raises:
        OSError: this kernel or this architecture cannot.
    """
    if MACHINE not in _ARCHITECTURE:
        raise OSError(_ENOSYS, f"no table of system calls for {MACHINE}")
    lines = _lines(os.getpid())
    array = (_Filter * len(lines))(*[_Filter(*line) for line in lines])
    program = _Program(len(lines), array)
    prctl(22, 2, ctypes.byref(program))


def _lines(own: int) -> list[_Line]:
    """The filter: a call that is named is refused, or looked at by an argument; others are let."""
    by_argument = _BY_ARGUMENT[MACHINE]
    lines: list[_Line] = [
        (_LOAD, 0, 0, _ARCH),
        (_EQUAL, 1, 0, _ARCHITECTURE[MACHINE]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    if MACHINE == "x86_64":  # calls of 32-bit pointers have numbers of their own
        lines += [(_AT_LEAST, 0, 1, 0x40000000), (_RETURN, 0, 0, _KILL)]
    for number in [*_REFUSED[MACHINE].values(), *_COMMON.values()]:
        lines += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERROR | _EPERM)]
    for number in _MISSING.values():
        lines += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERROR | _ENOSYS)]
    for number, flags in _OPENS[MACHINE].items():
        lines += _unless_truncating(number, flags)
    lines += _only(by_argument["clone"], _FIRST, _ANY_BIT, _THREAD)
    lines += _only(by_argument["kill"], _FIRST, _EQUAL, own)
    lines += _only(by_argument["tgkill"], _FIRST, _EQUAL, own)
    lines += _only(by_argument["prlimit64"], _FIRST, _EQUAL, 0)
    lines += _never(by_argument["prctl"], _FIRST, (_PDEATHSIG, _DUMPABLE))
    lines += _never(by_argument["fcntl"], _SECOND, _OWNERS)
    lines += _never(by_argument["ioctl"], _SECOND, _TERMINALS)
    return [*lines, (_RETURN, 0, 0, _ALLOW)]


def _only(number: int, argument: int, test: int, value: int) -> list[_Line]:
    """A call that is let only if the test of an argument holds."""
    return [
        (_EQUAL, 0, 4, number),
        (_LOAD, 0, 0, argument),
        (test, 1, 0, value),
        (_RETURN, 0, 0, _ERROR | _EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]


def _never(number: int, argument: int, values: tuple[int, ...]) -> list[_Line]:
    """A call that is let unless an argument has one of the values."""
    tests = [(_EQUAL, len(values) - at, 0, value) for at, value in enumerate(values)]
    end: list[_Line] = [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _ERROR | _EPERM)]
    return [(_EQUAL, 0, 1 + len(tests) + len(end), number), (_LOAD, 0, 0, argument), *tests, *end]


def _unless_truncating(number: int, flags: int) -> list[_Line]:
    """A call that opens a file, but not one that empties it without the right to write."""
    return [
        (_EQUAL, 0, 5, number),
        (_LOAD, 0, 0, flags),
        (_AND, 0, 0, _TRUNCATE | _MODE),
        (_EQUAL, 0, 1, _TRUNCATE | _READ_ONLY),
        (_RETURN, 0, 0, _ERROR | _EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]
