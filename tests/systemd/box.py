"""A box: a Debian system with a real systemd as its process 1, booted in half a second.

The root file system of a suite is made once by mmdebstrap and kept in a cache outside of the
repository.  Each box runs systemd-nspawn on an overlay of it.  The upper layer is a tmpfs in a
mount namespace of its own, so when systemd-nspawn is gone the box is gone: nothing has to be
unmounted, and nothing can be forgotten.

Nothing is polled while it boots: systemd-nspawn forwards READY=1, and tells the process id of
the box's process 1, on NOTIFY_SOCKET.  Commands then enter by nsenter(1).  Clients need no
program in the box at all: a thread of the bench enters the box's network namespace for as long
as socket(2) takes, and the socket stays there.

The way out does not depend on the bench being well.  When it is killed, the kernel sends TERM to
each box (PR_SET_PDEATHSIG); a box that outlives its time is ended by timeout(1); and the janitor,
a shell that waits for the end of a pipe, removes what is left on disk and in the cgroup tree.
"""

import contextlib
import ctypes
import fcntl
import hashlib
import itertools
import os
import pathlib
import queue
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

# What the promises need beyond a minimal Debian.
PACKAGES = ["dbus", "iproute2", "netcat-openbsd", "systemd", "systemd-sysv"]

# What the bench needs, with the packages that have it.
TOOLS = {
    "dpkg-deb": "dpkg",
    "mmdebstrap": "mmdebstrap",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "systemd-nspawn": "systemd-container",
    "unshare": "util-linux",
}

# Seconds after which a box ends by itself, whatever happens to the bench.
TTL = 900

# Seconds that a boot, or one command, may take.
PATIENCE = 90

CLONE_NEWNET = 0x40000000
LIBC = ctypes.CDLL(None, use_errno=True)

ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
    "SYSTEMD_PAGER": "",
    "DEBIAN_FRONTEND": "noninteractive",
}


class Trouble(Exception):
    """The bench itself cannot go on."""


def missing(more={}):
    """What the bench lacks here, in words, or an empty text; `more` is what it needs beside `TOOLS`."""
    tools = {**TOOLS, **more}
    lacking = [tool for tool in tools if not shutil.which(tool)]
    if lacking:
        packages = sorted({tools[tool] for tool in lacking})
        return f"{', '.join(lacking)} missing; apt-get install {' '.join(packages)}"
    if os.geteuid() != 0:
        return "it needs root: it mounts, and boots containers"
    return ""


def enter(leader):
    """This thread enters the network of a box, by its process 1."""
    there = os.open(f"/proc/{leader}/ns/net", os.O_RDONLY)
    try:
        if LIBC.setns(there, CLONE_NEWNET) != 0:
            raise Trouble("setns failed: " + os.strerror(ctypes.get_errno()))
    finally:
        os.close(there)


@contextlib.contextmanager
def network(leader):
    """This thread in the network of a box, or of another container, by its process 1."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        enter(leader)
        yield
    finally:
        LIBC.setns(home, CLONE_NEWNET)
        os.close(home)


def cache():
    """The folder that holds the root file systems."""
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "/var/cache") / "tcp-echo-bench"


def rootfs(suite, *more):
    """The root file system of a suite, made unless it is in the cache; with more packages, another one.

    The key holds the list of packages.  To have newer ones, remove the folder."""
    recipe = ["mmdebstrap", "--quiet", "--variant=minbase", "--include=" + ",".join([*PACKAGES, *more])]
    if suite in ("bullseye", "sid"):
        # Archives that are not renewed, and mirrors that lag.
        recipe.append('--aptopt=Acquire::Check-Valid-Until "false"')
    key = hashlib.sha256(repr(recipe).encode()).hexdigest()[:12]
    cache().mkdir(parents=True, exist_ok=True)
    ready = cache() / f"{suite}-{key}"
    with open(cache() / f"{suite}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if ready.exists():
            return ready
        print(f"{suite}: making a root file system in {ready}", file=sys.stderr)
        half = cache() / f"{suite}-{key}.half"
        shutil.rmtree(half, ignore_errors=True)
        made = subprocess.run([*recipe, "--format=directory", suite, str(half)],
                              stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if made.returncode != 0:
            raise Trouble(f"mmdebstrap {suite} failed:\n{made.stderr[-2000:]}")
        # With an id of its own the first boot is one like any other: presets are not applied.
        (half / "etc/machine-id").write_text(hashlib.md5(key.encode()).hexdigest() + "\n")
        # What an installed Debian has, and its packages do not.
        (half / "etc/hosts").write_text("127.0.0.1 localhost\n::1 localhost ip6-localhost\n")
        half.rename(ready)
    return ready


class Work:
    """The folder and the cgroups of one run, and the process that removes them."""

    def __init__(self):
        self.path = pathlib.Path(tempfile.mkdtemp(prefix="tcp-echo-bench."))
        self.numbers = itertools.count(1)
        self.cgroups = []
        for line in open("/proc/self/cgroup"):
            number, controllers, path = line.strip().split(":", 2)
            # Those two in which systemd keeps its units; controllers stay as they are.
            for root in (["/sys/fs/cgroup/systemd"] if controllers == "name=systemd" else
                         ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"] if number == "0" else []):
                if pathlib.Path(root, "cgroup.procs").exists():
                    parent = pathlib.Path(root + path)
                    self.cgroups.append((parent if parent.exists() else pathlib.Path(root))
                                        / self.path.name)
                    break
        for cgroup in self.cgroups:
            cgroup.mkdir()
        roots = " ".join(shlex.quote(str(path)) for path in self.cgroups)
        script = f"""
            read -r _
            for i in $(seq 200); do
                for cgroup in {roots}; do find "$cgroup" -depth -type d -exec rmdir {{}} +; done
                [ -z "$(find {roots} -maxdepth 0)" ] && break
                sleep 0.1
            done
            rm -rf {shlex.quote(str(self.path))}"""
        self.janitor = subprocess.Popen(
            ["sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True)

    def close(self):
        """Lets the janitor do his work."""
        self.janitor.stdin.close()
        self.janitor.wait()


def layer(work, suite, *commands, binds=()):
    """A layer for boxes: what the commands change in a suite, run without systemd in a chroot."""
    base, top = rootfs(suite), work.path / f"layer{next(work.numbers)}"
    top.mkdir()
    mounts = "".join(f"mkdir -p $M/root{there}; mount --bind {shlex.quote(str(here))} $M/root{there}\n"
                     for here, there in binds)
    script = f"""set -e
        M={top}.mount
        mkdir $M
        mount -t tmpfs tmpfs $M
        mkdir $M/upper $M/work $M/root
        mount -t overlay overlay -o lowerdir={base},upperdir=$M/upper,workdir=$M/work $M/root
        mount -t proc proc $M/root/proc
        {mounts}
        for command; do chroot $M/root sh -ec "$command"; done
        umount --lazy $M/root
        mkdir $M/below
        unshare -m true
        mount --bind / $M/below
        cp -a $M/upper/. $M/below{top}/
        """
    done = subprocess.run(["unshare", "-m", "sh", "-c", script, "sh", *commands],
                          stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          env=ENVIRONMENT)
    if done.returncode != 0:
        raise Trouble(f"{suite}: {commands} failed in a chroot:\n{done.stdout}{done.stderr}")
    return top, done.stdout + done.stderr


class Box:
    """A running system.  Use it in a with statement."""

    def __init__(self, work, suite, layers=(), binds=()):
        self.suite = suite
        self.path = work.path / f"box{next(work.numbers)}"
        self.path.mkdir()
        self.layers = [*layers, rootfs(suite)]
        self.binds = [f"--bind-ro={here}:{there}" for here, there in binds]
        self.cgroups = [cgroup / self.path.name for cgroup in work.cgroups]
        self.figures = []
        self.leader = None

    def __enter__(self):
        self.notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notified.bind(str(self.path / "notify"))
        self.heard = queue.SimpleQueue()
        threading.Thread(target=self.listen, daemon=True).start()
        root = self.path / "root"
        root.mkdir()
        join = ""
        for cgroup in self.cgroups:
            cgroup.mkdir()
            join += f"echo $$ > {cgroup}/cgroup.procs\n"
        # 133: the box wants to be booted again.
        nspawn = shlex.join([
            "systemd-nspawn", "--quiet", "--boot", "--directory", f"{root}/root", "--register=no",
            "--keep-unit", "--private-network", "--notify-ready=yes", "--machine", self.path.name,
            "--system-call-filter=bpf", *self.binds])
        script = f"""set -e
            {join}
            mount -t tmpfs -o size=1g tmpfs {root}
            mkdir {root}/upper {root}/work {root}/root
            mount -t overlay overlay {root}/root -o \
                lowerdir={":".join(map(str, self.layers))},upperdir={root}/upper,workdir={root}/work
            exec timeout -k 10 {TTL} sh -c {shlex.quote(f'while {nspawn}; [ $? = 133 ]; do :; done')}
            """
        # UNIFIED_CGROUP_HIERARCHY: systemd 258 and newer refuse to boot with anything else.
        self.process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", "unshare", "-m", "sh", "-c", script],
            stdin=subprocess.DEVNULL, stdout=open(self.path / "console", "wb"),
            stderr=subprocess.STDOUT,
            env={**ENVIRONMENT, "NOTIFY_SOCKET": str(self.path / "notify"),
                 "UNIFIED_CGROUP_HIERARCHY": "1"})
        try:
            self.wait_for_boot()
        except BaseException:
            self.__exit__()
            raise
        return self

    def listen(self):
        """Reads the messages of process 1, as long as the box runs.

        It says more than that it is ready, such as how long a job runs, and waits until it is heard:
        with a full queue on this side everything in the box would stand still."""
        while said := self.notified.recv(4096):
            self.heard.put(said.decode().splitlines())
        self.notified.close()

    def wait_for_boot(self):
        """Waits until process 1 reports that it is ready."""
        end = time.monotonic() + PATIENCE
        self.leader = None
        ready = False
        while not ready:
            try:
                lines = self.heard.get(timeout=0.5)
            except queue.Empty:
                if self.process.poll() is not None or time.monotonic() > end:
                    raise Trouble(f"{self.suite}: a box did not boot:\n" + self.console()) from None
                continue
            for line in lines:
                if line.startswith("X_NSPAWN_LEADER_PID="):
                    self.leader = int(line.partition("=")[2])
            # One that came before is about a reload in the box before this boot.
            ready = bool(self.leader) and "READY=1" in lines

    def __exit__(self, *_):
        # Process 1 takes everything in the box with it.
        if self.leader:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.leader, signal.SIGKILL)
        try:
            self.process.wait(1 if self.leader else 0)
        except subprocess.TimeoutExpired:
            self.process.terminate()
            self.process.wait()
        # The end of the listener.
        self.notified.shutdown(socket.SHUT_RD)

    def console(self):
        """The end of what the box has written to its console."""
        return (self.path / "console").read_text(errors="replace")[-2000:]

    def file(self, path):
        """A file in the box as a path of this side."""
        return pathlib.Path(f"/proc/{self.leader}/root{path}")

    def write(self, path, text):
        """Writes a file in the box."""
        file = self.file(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def begin(self, command, **options):
        """Begins a shell command in the box."""
        return subprocess.Popen(
            ["nsenter", "-t", str(self.leader), "-a", "sh", "-c", command],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=ENVIRONMENT, **options)

    def try_(self, command):
        """Runs a shell command in the box; returns its status and its output."""
        process = self.begin(command)
        try:
            said, _ = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            return -1, "took too long"
        return process.returncode, said

    def run(self, command):
        """Runs a shell command that must succeed; returns its output."""
        status, said = self.try_(command)
        if status != 0:
            raise AssertionError(f"`{' '.join(command.split())}` ended with {status}: {said.strip()}")
        return said.rstrip("\n")

    def network(self):
        """This thread in the network of the box."""
        return network(self.leader)

    def connect(self, host="127.0.0.1", port=7, source=None, timeout=20):
        """A client's connection to the box; a host that begins with a slash is a Unix socket."""
        family = (socket.AF_UNIX if host.startswith("/") else
                  socket.AF_INET6 if ":" in host else socket.AF_INET)
        with self.network():
            client = socket.socket(family, socket.SOCK_STREAM)
        client.settimeout(timeout)
        try:
            if source:
                client.bind((source, 0))
            client.connect(str(self.file(host)) if host.startswith("/") else (host, port))
        except BaseException:
            client.close()
            raise
        return client
