"""What a promise is, and what it may ask a box.

A promise is a function with a name that is a sentence about the installed package; it takes a box and
raises AssertionError, with what it saw, when the sentence is not true.  Each gets a box of its
own in which the package is installed, as `apt install` leaves it: nothing enabled, nothing
started.  `@promise(bare=True)` gives a box without the package, `alone=True` one beside which no
other runs.

What would make the sentence false stands beside it, as `broken_by`: one or several changes to the
box.  `run --broken` makes each of them and expects the promise to fail: a promise that cannot
fail says nothing.
"""

import fcntl
import json
import pathlib
import re
import socket
import struct
import subprocess
import termios
import time

from box import Box, Trouble
# The promises import these from here.
from event_ids import (CLOSED, COUNTERS, HANDED_OVER, KERNEL, LISTENING, LOST, MOVED, NOT_PRESERVING,  # noqa: F401
                       PREDECESSOR_DROPPED, PRESERVE_FAILED, PRESERVING, RELOADED, RESTORED, START_FAILED)

UNITS = "/usr/lib/systemd/system"
SOCKET = "tcp-echo.socket"
SERVICE = "tcp-echo.service"
STANDALONE = "tcp-echo-standalone.service"
METRICS = "tcp-echo-metrics.socket"
CONFIG = "/etc/tcp-echo/config.toml"
UPGRADE = "apt-get install -q -y /deb/newer.deb"
REPOSITORY = pathlib.Path(__file__).resolve().parents[2]

# Releases of Debian that are tried unless others are named.
SUITES = ["bookworm", "trixie"]

# The exit status of a bench that was skipped.
SKIPPED = 77

# Microseconds since the boot: the old process has ended, the next one is forked, executed, ready.
STAMPS = ["InactiveEnterTimestampMonotonic", "ExecMainStartTimestampMonotonic",
          "ExecMainHandoffTimestampMonotonic", "ActiveEnterTimestampMonotonic"]

# Seconds within which something that is about to happen has happened.
SOON = 20

PROMISES = []


def package_file(given=None):
    """The package that was given, or the one of packaging/build-deb, which prints its path as the last line."""
    if given:
        return pathlib.Path(given)
    built = subprocess.run([REPOSITORY / "packaging/build-deb"], stdout=subprocess.PIPE, text=True)
    if built.returncode != 0:
        raise Trouble(f"packaging/build-deb ended with {built.returncode}")
    return REPOSITORY / built.stdout.strip().splitlines()[-1]


def promise(broken_by, bare=False, alone=False):
    """Marks a promise; `broken_by` is one change to a box, or a list of them.

    One that measures, or that fills something which boxes share, has the machine `alone`."""
    def mark(function):
        function.sentence = function.__name__.replace("_", " ")
        function.theme = function.__module__.rpartition(".")[2]
        function.bare = bare
        function.alone = alone
        function.broken_by = broken_by if isinstance(broken_by, list) else [broken_by]
        PROMISES.append(function)
        return function
    return mark


class Change:
    """Something to break, and how to call it."""

    def __init__(self, words, act):
        self.words = words
        self.act = act


def line(unit, *pairs):
    """Replaces lines of a unit; a new line may be several, or none."""
    def act(box):
        path = f"{UNITS}/{unit}"
        text = box.file(path).read_text()
        for old, new in pairs:
            assert f"\n{old}\n" in text, f"{unit} has no line {old}"
            text = text.replace(f"\n{old}\n", f"\n{new}\n" if new else "\n")
        box.write(path, text)
        box.run("systemctl daemon-reload")
    words = "; ".join(f"{old} -> {new.replace(chr(10), ' + ') or 'nothing'}" for old, new in pairs)
    return Change(f"{unit}: {words}", act)


def later(unit, text):
    """Overrides everything that a promise itself edits in a unit."""
    def act(box):
        box.write(f"/etc/systemd/system/{unit}.d/z.conf", text)
        box.run("systemctl daemon-reload")
    return Change(f"{unit}: afterwards {text.strip().replace(chr(10), ' ')}", act)


def shell(command):
    """Runs a command in the box."""
    return Change(command, lambda box: box.run(command))


def package(which, *commands):
    """A change to a package file: shell commands in its unpacked tree."""
    script = (f"rm -rf /tmp/tree; dpkg-deb -R /deb/{which}.deb /tmp/tree; cd /tmp/tree; {'; '.join(commands)}; "
              f"dpkg-deb -b /tmp/tree /tmp/{which}.deb; mount --bind /tmp/{which}.deb /deb/{which}.deb")
    return Change(f"{which}.deb: {'; '.join(commands)}", lambda box: box.run(script))


def equal(found, wanted, what):
    """Fails unless both are the same."""
    assert found == wanted, f"{what}: {wanted!r} expected, {found!r} found"


def has(text, part, what):
    """Fails unless the text has the part."""
    assert part in text, f"{what}: no {part!r} in {text!r}"


def until(condition, what, seconds=SOON):
    """Waits until a condition holds; returns its value.  `what`, a text or a function that
    returns one, is the complaint otherwise."""
    end = time.monotonic() + seconds
    while True:
        if value := condition():
            return value
        assert time.monotonic() < end, f"{what() if callable(what) else what}: not within {seconds} s"
        time.sleep(0.02)


def drain(client):
    """Everything until the end of the stream."""
    parts = []
    while part := client.recv(1 << 20):
        parts.append(part)
    return b"".join(parts)


def fill(client):
    """Sends without reading until nothing more fits; returns what was sent, and how many bytes of it
    the other side has acknowledged, part of which it still owes.  How many fit is the kernel's choice."""
    client.settimeout(0.5)
    sent = bytearray()
    number = 0
    while True:
        part = b"%015d\n" % number * 4096
        number += 1
        try:
            while part:
                count = client.send(part)
                sent += part[:count]
                part = part[count:]
        except TimeoutError:
            client.settimeout(20)
            queued, unread = (struct.unpack("i", fcntl.ioctl(client, request, bytes(4)))[0]
                              for request in (termios.TIOCOUTQ, termios.FIONREAD))
            arrived = len(sent) - queued
            assert arrived > unread, f"{arrived} bytes had arrived, {unread} had come back: nothing is owed"
            return bytes(sent), arrived


def readme(title):
    """The drop-in that the README shows for `systemctl edit` of a unit."""
    text = (REPOSITORY / "README.md").read_text()
    found = re.search(rf"```ini\n# systemctl edit {re.escape(title)}\n(.*?)```", text, re.S)
    assert found, f"the README shows no drop-in for {title}"
    return found[1]


class System(Box):
    """A box, and what promises ask it in the package's words."""

    # Connections of one promise, and restarts in a row (run --connections, run --restarts).
    connections = 1000
    restarts = 100

    def start(self):
        """Starts the socket, which is the first step in the README."""
        self.run(f"systemctl start {SOCKET}")

    def show(self, unit, name):
        """A property of a unit."""
        return self.run(f"systemctl show --value -p {name} '{unit}'")

    def state(self, unit):
        """active, activating, inactive, failed, ..."""
        return self.show(unit, "ActiveState")

    def pid(self, unit=SERVICE):
        """The process id of a daemon in the box."""
        return int(self.show(unit, "MainPID"))

    def edit(self, unit, text):
        """What `systemctl edit` does."""
        self.write(f"/etc/systemd/system/{unit}.d/override.conf", text)
        self.run("systemctl daemon-reload")

    def configure(self, text):
        """An administrator's own file beside the configuration."""
        self.write(f"{CONFIG}.d/50-own.toml", text)

    def restarted(self, unit=SERVICE):
        """The parts of the last restart, in milliseconds: from the end of the old process to the fork of the
        next one, from there to its exec, and from there to READY=1.  Before 256 systemd does not say when
        the exec was: then the second is None, and the third begins at the fork."""
        said = self.run(f"systemctl show -p {','.join(STAMPS)} {unit}")
        stamps = {name: int(value) for name, _, value in (text.partition("=") for text in said.splitlines())}
        ended, forked, executed, ready = (stamps.get(name) for name in STAMPS)
        return ((forked - ended) / 1000, executed and (executed - forked) / 1000,
                (ready - (executed or forked)) / 1000)

    def status(self):
        """The status of the daemon, as systemctl status shows it."""
        return self.show(SERVICE, "StatusText")

    def example(self, name):
        """Installs an example that the package ships, as its first lines say."""
        path = f"/usr/share/doc/tcp-echo/examples/{name}"
        self.run(f"cp {path} /etc/systemd/system/{name} && systemctl daemon-reload")

    def echo(self, data=b"hi", **where):
        """What comes back for these bytes over a connection of their own."""
        with self.connect(**where) as client:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            return drain(client)

    def serves(self, **where):
        """Fails unless the echo works there."""
        equal(self.echo(b"hello", **where), b"hello", f"the echo {where or ''}")

    def refuses(self, **where):
        """Fails unless the port is closed."""
        try:
            self.connect(**where).close()
        except ConnectionRefusedError:
            return
        raise AssertionError(f"a socket listens {where}")

    def sockets(self):
        """The listening sockets themselves: address and inode of each."""
        return sorted((text.split()[3], re.search(r"ino:\d+", text)[0]) for text in self.run("ss -ltneH").splitlines())

    def journal(self, *matches, unit=SERVICE):
        """Entries of the journal, as dictionaries."""
        said = self.run(f"journalctl --sync; journalctl -q -o json --no-pager -a -u '{unit}' "
                        + " ".join(matches))
        return [json.loads(text) for text in said.splitlines()]

    def events(self, message_id, *matches, unit=SERVICE):
        """The entries of one event, of which there is at least one soon."""
        return until(lambda: self.journal(f"MESSAGE_ID={message_id}", *matches, unit=unit),
                     f"an event {message_id} {matches}")

    def figure(self, name, value):
        """Something to print in the end."""
        self.figures.append((name, value))

    def evidence(self):
        """The last entries of the journal about the package."""
        _, said = self.try_("journalctl -q --no-pager -o short-precise -n 12 -u 'tcp-echo*'")
        return said
