"""What the benchmarks share: servers on one processor, clients on another, what they use of the system, a table."""

import contextlib
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
SCRIPT = f"benches/{pathlib.Path(sys.argv[0]).name}"
SERVER, CLIENT = (0, 1)
BROWSER = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\n"
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n"
    b"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n"
    b"Accept-Language: en-US,en;q=0.5\r\n\r\n"
)
rows = []


def row(what, measured, unit, goal=None, reached=None):
    verdict = "" if reached is None else ("reached" if reached else "NOT reached")
    rows.append((what, f"{measured} {unit}".strip(), goal or "", verdict))
    print(f"  {what}: {measured} {unit} {f'({goal}: {verdict})' if goal else ''}", file=sys.stderr)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def connect(port, source=None):
    s = socket.create_connection(("127.0.0.1", port), timeout=10, source_address=source and (source, 0))
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return s


def ask(connection, request):
    """Sends a request and reads one answer; gives its status."""
    return exchange(connection, request)[0]


def fetch(connection, request):
    """Sends a request and reads one answer; gives its body."""
    return exchange(connection, request)[1]


def exchange(connection, request):
    connection.sendall(request)
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += received(connection)
    head, _, body = answer.partition(b"\r\n\r\n")
    length = next(int(l.split(b":")[1]) for l in head.lower().split(b"\r\n") if l.startswith(b"content-length:"))
    while len(body) < length:
        body += received(connection)
    return int(head.split(b" ", 2)[1]), body


def received(connection):
    data = connection.recv(65536)
    if not data:
        raise ConnectionError("closed")
    return data


def until(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"{SCRIPT}: a server did not come up")
        time.sleep(0.005)


def answers(port, request):
    try:
        with connect(port) as c:
            return ask(c, request)
    except OSError:
        return None


def pinned(cpus):
    return lambda: os.sched_setaffinity(0, cpus)


@contextlib.contextmanager
def running(command, cwd, port, request=BROWSER, cpus=frozenset({SERVER})):
    process = subprocess.Popen(
        command, cwd=cwd, preexec_fn=pinned(cpus), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        until(lambda: answers(port, request))
        yield process.pid
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()


def status(pid, field):
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise KeyError(field)


def family(pid):
    children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid] + [descendant for child in children for descendant in family(int(child))]


def processor_time(pid):
    """Of the process and its children, all threads, in seconds."""
    tasks = (task for p in family(pid) for task in pathlib.Path(f"/proc/{p}/task").iterdir())
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def require(packages):
    """Ends the script where a program is missing, or a processor; `packages` is where programs come from, by name."""
    missing = [name for name in packages if not shutil.which(name)]
    if missing:
        install = " ".join(sorted({packages[name] for name in missing}))
        sys.exit(f"{SCRIPT}: {', '.join(missing)} missing: apt-get install {install}")
    if len(os.sched_getaffinity(0)) < 2:
        sys.exit(f"{SCRIPT}: two processors are needed, one for the servers and one for the clients")


def static_program(given=None):
    """The path of the static program, which is built if none is given."""
    if given is None:
        build = subprocess.run([ROOT / "deploy/build-static"], stdout=subprocess.PIPE, text=True, check=True)
        given = build.stdout.split()[-1]
    return str(ROOT / given)


def print_table():
    header = ("what", "measured", "goal", "")
    widths = [max(len(line[column]) for line in [header, *rows]) for column in range(4)]
    for line in [header, tuple("-" * width for width in widths), *rows]:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |")
