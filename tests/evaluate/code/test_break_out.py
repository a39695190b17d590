"""Programs that want out. Each says what it got done; it passes if that is nothing."""

import os
import socket
import subprocess
import sys
import textwrap
import time

import psutil
import pytest

ATTEMPT = """
done = []

def attempt(name, action):
    try:
        done.append((name, str(action())[:100]))
    except (OSError, MemoryError, ValueError, ImportError, AttributeError):
        pass
    return None

def f(*arguments):
{body}
    return done
"""


@pytest.fixture
def attempts(run):
    """What a program got done of what it tried."""

    def attempts(body: str, *arguments: object, **bounds: int) -> None:
        solution = ATTEMPT.format(body=textwrap.indent(textwrap.dedent(body), "    "))
        outcome = run(solution, f"found = f(*{arguments!r})\nassert found == [], found", **bounds)
        assert outcome.passed, outcome

    return attempts


def test_files_are_not_read(attempts, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("the answers")
    attempts(
        """
        import os, pathlib, shutil
        secret, = arguments
        box = os.getcwd()
        places = [secret, "/etc/passwd", "/etc/hostname", "/proc/self/environ", "/proc/1/cmdline"]
        places += ["/proc/self/mem", "/proc/kcore", "/dev/mem", "/dev/vda", "/sys/kernel"]
        for place in places:
            attempt(place, lambda: open(place, "rb").read(10))
            attempt("list " + place, lambda: os.listdir(place))
            attempt("by a path upwards", lambda: open(box + "/.." * 9 + place, "rb").read(10))
            link = "link" + str(len(os.listdir(box)))
            os.symlink(place, link)
            attempt("by a link to " + place, lambda: open(link, "rb").read(10))
            attempt("by a hard link to " + place, lambda: os.link(place, link + "hard"))
            attempt("copy " + place, lambda: shutil.copy(place, box))
        for number in range(3, 1024):
            attempt("files that are open", lambda: os.fchdir(number))
        """,
        str(secret),
    )


def test_files_are_not_written(attempts, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("whole")
    tmp_path.chmod(0o777)
    victim.chmod(0o666)
    attempts(
        """
        import os, shutil, sys
        folder, = arguments
        victim = folder + "/victim"
        for place in (victim, folder + "/new", "/etc/new", "/new", os.__file__, "/usr/lib/new"):
            attempt(place, lambda: open(place, "ab").write(b"through"))
            attempt("by a new link", lambda: os.symlink(place, place + ".link"))
            attempt("folder", lambda: os.mkdir(place + ".folder"))
        os.symlink(victim, "link")
        attempt("by a link", lambda: open("link", "w").write("through"))
        attempt("remove", lambda: os.remove(victim))
        attempt("rename", lambda: os.rename(victim, folder + "/other"))
        attempt("mode", lambda: os.chmod(victim, 0))
        attempt("cut", lambda: os.truncate(victim, 0))
        attempt("times", lambda: os.utime(victim, (0, 0)))
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree("/", ignore_errors=True)
        attempt("device", lambda: os.mknod("device", 0o20666, os.makedev(1, 1)))
        """,
        str(tmp_path),
    )
    assert victim.read_text() == "whole"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["temporary", "victim"]


def test_its_own_folder_can_be_used_and_destroyed(run):
    solution = """
import os, shutil, tempfile
def f(x):
    with tempfile.NamedTemporaryFile("w+") as file:
        file.write("text")
        file.seek(0)
        assert file.read() == "text"
    os.makedirs("a/b")
    open("a/b/c", "w").write("x")
    assert os.path.expanduser("~") == os.getcwd()
    os.mkdir("locked", 0)
    shutil.rmtree(os.getcwd(), ignore_errors=True)
    return x + 1
"""
    assert run(solution).passed


def test_no_socket_is_reached(attempts, tmp_path):
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        socket.socket(socket.AF_UNIX) as path,
        socket.socket(socket.AF_UNIX) as abstract,
    ):
        udp.bind(("127.0.0.1", 0))
        path.bind(str(tmp_path / "socket"))
        abstract.bind(f"\0controlllm-test-{os.getpid()}")
        for one in (path, abstract):
            one.listen()
        udp.settimeout(0)
        attempts(
            """
            import socket
            tcp, udp, path, abstract = arguments
            def connect(family, kind, address):
                one = socket.socket(family, kind)
                one.settimeout(1)
                one.connect(address)
                one.send(b"through")
            attempt("tcp", lambda: connect(socket.AF_INET, socket.SOCK_STREAM, tcp))
            attempt("tcp", lambda: connect(socket.AF_INET, socket.SOCK_STREAM, ("192.0.2.1", 80)))
            attempt("udp", lambda: connect(socket.AF_INET, socket.SOCK_DGRAM, udp))
            attempt("unix", lambda: connect(socket.AF_UNIX, socket.SOCK_STREAM, path))
            attempt("abstract", lambda: connect(socket.AF_UNIX, socket.SOCK_STREAM, abstract))
            attempt("raw", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW))
            attempt("netlink", lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW))
            attempt("serve", lambda: socket.create_server(("127.0.0.1", 0)))
            attempt("names", lambda: socket.getaddrinfo("example.org", 80))
            """,
            tcp.getsockname(),
            udp.getsockname(),
            path.getsockname(),
            "\0" + abstract.getsockname()[1:].decode(),
        )
        with pytest.raises(BlockingIOError):
            udp.recv(1)


def test_no_process_is_made(attempts):
    attempts(
        """
        import multiprocessing, os, pty, subprocess, sys
        attempt("fork", lambda: os.fork() or os._exit(0))
        attempt("forkpty", lambda: pty.fork())
        attempt("spawn", lambda: os.posix_spawn(sys.executable, [sys.executable], {}))
        attempt("exec", lambda: os.execv(sys.executable, [sys.executable, "-c", "pass"]))
        attempt("run", lambda: subprocess.run("true"))
        attempt("pool", lambda: multiprocessing.Process(target=print).start())
        attempt("session", os.setsid)
        attempt("group", lambda: os.setpgid(0, 0))
        while len(done) < 5:  # a fork bomb
            if attempt("bomb", os.fork) is None:
                break
        """
    )


def test_threads_are_bounded(run):
    """By their number, or for root, whom that does not bind, by their stacks in memory."""
    solution = """
import _thread, time
def f(x):
    for count in range(100_000):
        try:
            _thread.start_new_thread(time.sleep, (1000,))
        except (RuntimeError, MemoryError):
            return count
"""
    most = 8 if os.geteuid() else 200
    assert run(solution, f"assert 1 <= f(1) <= {most}", processes=8).passed


def test_other_processes_are_out_of_reach(attempts):
    attempts(
        """
        import ctypes, os, signal
        libc = ctypes.CDLL(None, use_errno=True)
        def called(*arguments):
            if libc.syscall(*map(ctypes.c_long, arguments)) == -1:
                raise OSError
        me = os.getpid()
        for process in (*arguments, os.getppid() if os.getppid() > 1 else arguments[0], -1):
            for number in (0, signal.SIGTERM, signal.SIGKILL):
                attempt("signal", lambda: os.kill(process, number))
            attempt("trace", lambda: called(101, 0x4206, process, 0, 0))
            attempt("limits", lambda: __import__("resource").prlimit(process, 7))
            attempt("memory", lambda: open(f"/proc/{process}/mem", "rb"))
            attempt("priority", lambda: os.setpriority(os.PRIO_PROCESS, process, 19))
        attempt("pidfd", lambda: os.pidfd_open(arguments[0]))
        attempt("group", lambda: os.killpg(os.getpgrp() or 1, signal.SIGKILL))
        attempt("see", lambda: [n for n in os.listdir("/proc") if n.isdigit() and int(n) != me])
        """,
        os.getpid(),
    )


def test_no_privileges(attempts):
    attempts(
        """
        import ctypes, os, resource
        libc = ctypes.CDLL(None, use_errno=True)
        def called(name, *arguments):
            if getattr(libc, name)(*arguments) == -1:
                raise OSError
        attempt("user", lambda: os.setuid(0) if os.getuid() else os.setuid(12345))
        attempt("root", lambda: os.chroot("."))
        attempt("namespace", lambda: called("unshare", 0x10000000))
        attempt("mount", lambda: called("mount", b"none", b"/", None, 1 << 18, None))
        attempt("host name", lambda: called("sethostname", b"mine", 4))
        attempt("clock", lambda: __import__("time").clock_settime(0, 0))
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        attempt("memory", lambda: resource.setrlimit(resource.RLIMIT_AS, (hard, 2 * hard)))
        attempt("io_uring", lambda: called("syscall", 425, 8, b"\\0" * 120))
        attempt("shared memory", lambda: called("shmget", 0, 4096, 0o1600))
        attempt("mode", lambda: os.chmod(os.getcwd(), 0o777))
        open("file", "w").write("text")
        attempt("empty", lambda: os.open("file", os.O_RDONLY | os.O_TRUNC))
        attempt("cut", lambda: os.truncate("file", 0))
        attempt("watch", lambda: called("inotify_add_watch", libc.inotify_init(), b".", 0xFFF))
        attempt("kernel's log", lambda: called("klogctl", 3, b"\\0" * 100, 100))
        attempt("keys", lambda: called("syscall", 250, 0, -3, 1))
        """
    )


@pytest.mark.parametrize(
    "body",
    ["bytearray(8 << 30)", "[bytearray(1 << 24) for _ in range(1000)]", "'x' * (1 << 40)"],
)
def test_memory_is_bounded(run, body):
    outcome = run(f"def f(x):\n    y = {body}\n    return x + 1", memory=256 << 20)
    assert (outcome.passed, outcome.reason) == (False, "memory")


def test_the_disk_is_bounded(run):
    solution = """
def f(x):
    written = 0
    try:
        for n in range(64):
            with open(f"file{n}", "wb", buffering=0) as file:
                for _ in range(64):
                    written += file.write(b"x" * (1 << 18))
    except OSError:
        pass
    return written
"""
    outcome = run(solution, "found = f(1)\nassert 0 < found <= 1 << 22, found", disk=1 << 22)
    assert outcome.passed, outcome


@pytest.mark.parametrize(
    "body",
    [
        "while True: pass",
        "import time; time.sleep(1000)",
        "import signal\n    [signal.signal(n, signal.SIG_IGN) for n in range(1, 32) "
        "if n not in (9, 19)]\n    while True: pass",
        "import threading, time\n    threading.Thread(target=time.sleep, args=(1000,)).start()\n"
        "    while True: pass",
        "return 7 ** 10 ** 9",
    ],
)
def test_endless_programs_are_ended(run, body):
    outcome = run(f"def f(x):\n    {body}", seconds=0.5)
    assert (outcome.passed, outcome.reason) == (False, "time ran out")
    assert outcome.seconds >= 0.5


def test_nothing_is_left_running(run):
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    solution = """
import threading, time
threading.Thread(target=time.sleep, args=(1000,)).start()
def f(x):
    return x + 1
"""
    assert run(solution).passed
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before


KILLED = """
import sys
from controlllm.evaluate.code import Program, SandboxSettings, run_program
solution = "import time\\ndef f():\\n    print('here', flush=True)\\n    time.sleep(1000)"
run_program(Program("slow", solution, "f()", ("f",)), 1000, SandboxSettings())
"""


def test_nothing_is_left_running_by_one_that_is_killed(walls, tmp_path):
    environment = os.environ | {"TMPDIR": str(tmp_path)}  # where it leaves its folders
    parent = subprocess.Popen([sys.executable, "-c", KILLED], env=environment)
    try:
        processes = []
        while len(processes) < 6 and parent.poll() is None:  # three for solution and tests each
            processes = psutil.Process(parent.pid).children(recursive=True)
            time.sleep(0.05)
    finally:
        parent.kill()
        parent.wait()
    _, alive = psutil.wait_procs(processes, timeout=60)
    assert len(processes) == 6
    assert alive == []


def test_a_gigabyte_of_output_is_neither_kept_nor_read(run):
    before = psutil.Process().memory_info().rss
    solution = "import os\ndef f(x):\n    while True: os.write(1 + x % 2, b'x' * (1 << 20))"
    outcome = run(solution)
    assert (outcome.passed, outcome.reason) == (False, "too much output")
    assert len(outcome.output) == 1 << 16
    assert psutil.Process().memory_info().rss - before < 64 << 20


def test_a_crash_is_named(run):
    outcome = run("import ctypes\ndef f(x):\n    ctypes.string_at(0)")
    assert (outcome.passed, outcome.reason) == (False, "crashed by signal SIGSEGV")
