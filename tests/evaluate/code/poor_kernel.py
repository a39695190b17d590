"""Runs something as on a kernel, or in a container, that refuses what walls are built of.

    python tests/evaluate/code/poor_kernel.py walls unshare,landlock unshare
    python tests/evaluate/code/poor_kernel.py pytest unshare tests/evaluate/code/test_break_out.py

A seccomp filter on this process and its children gives the answers that such a kernel would give.
"""

import ctypes
import json
import os
import sys

import pytest

from controlllm.common.errors import ConfigError
from controlllm.evaluate.code import check_walls
from controlllm.evaluate.code.inside import seccomp
from controlllm.evaluate.code.inside.libc import MACHINE, prctl

_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_ALLOW, _ERROR = 0x7FFF0000, 0x00050000
_UNSHARE, _PRCTL = {"x86_64": (272, 157), "aarch64": (97, 167)}[MACHINE]
_LANDLOCK, _SET_SECCOMP, _NUMBER, _FIRST = 444, 22, 0, 16
_EPERM, _EINVAL, _ENOSYS = 1, 22, 38
REFUSED = {
    "unshare": [(_EQUAL, 0, 1, _UNSHARE), (_RETURN, 0, 0, _ERROR | _EPERM)],
    "users": [  # user namespaces; root may make the others
        (_EQUAL, 0, 4, _UNSHARE),
        (_LOAD, 0, 0, _FIRST),
        (_ANY_BIT, 0, 1, 0x10000000),
        (_RETURN, 0, 0, _ERROR | _EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ],
    "landlock": [(_EQUAL, 0, 1, _LANDLOCK), (_RETURN, 0, 0, _ERROR | _ENOSYS)],
    "seccomp": [
        (_EQUAL, 0, 4, _PRCTL),
        (_LOAD, 0, 0, _FIRST),
        (_EQUAL, 0, 1, _SET_SECCOMP),
        (_RETURN, 0, 0, _ERROR | _EINVAL),
        (_RETURN, 0, 0, _ALLOW),
    ],
}


def refuse(names: list[str]) -> None:
    """From now on the kernel refuses these."""
    lines = [(_LOAD, 0, 0, _NUMBER), *(line for name in names for line in REFUSED[name])]
    lines.append((_RETURN, 0, 0, _ALLOW))
    array = (seccomp._Filter * len(lines))(*[seccomp._Filter(*line) for line in lines])
    prctl(38, 1)  # no new privileges
    prctl(22, 2, ctypes.byref(seccomp._Program(len(lines), array)))


def walls() -> dict[str, object]:
    """What stands, and what is said where not all do."""
    found = check_walls()
    try:
        found.require()
        said = ""
    except ConfigError as error:
        said = str(error)
    built, through = list(found.built), dict(found.through)
    return {"built": built, "through": through, "refused": dict(found.refused), "said": said}


def main(what: str, *rest: str) -> int:
    """Run pytest on one such kernel, or print the walls of several, a line of JSON each."""
    if what == "pytest":
        refuse(rest[0].split(","))
        return pytest.main(["-q", "-n0", "-p", "no:cacheprovider", *rest[1:]])
    for names in rest:
        sys.stdout.flush()
        if (child := os.fork()) == 0:
            refuse(names.split(","))
            print(json.dumps({names: walls()}), flush=True)
            os._exit(0)
        os.waitpid(child, 0)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
