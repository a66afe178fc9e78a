#!/usr/bin/env python3
"""Thousands of connections to a box, each of which checks every byte that comes back.

It is a process of its own, so that a promise may wait while it goes on, and so that it has
descriptors and a processor for itself.  It enters the network of the box before it makes its
sockets; it takes commands, one a line, on its standard input, and answers each with a report (JSON)
on its standard output.

Every connection has its own pattern: the byte at a position of its stream is the byte at that
position, and an offset, of one long random text with a prime as its period.  So a byte that is lost,
doubled, or of another connection is found, and to check a piece is one memcmp.

The kinds of connections:

    stream   sends a message, waits for the echo, and sends again in its turn; up to a hundred of
             them are *probes*: in the state "loud" they always have a window of bytes in flight
    idle     sends rarely
    half     sent something more than the kernel holds, then its FIN, and reads only in the end
    stalled  sends until nothing more fits, and reads only in the end

A *gap* is the longest time for which a connection that is owed something got nothing.  A probe is
always owed something in the state "loud", so its gap around an event is what the event costs a
client; median and worst are those of the probes, `longest` is that of all.
"""

import collections
import json
import os
import random
import resource
import select
import socket
import statistics
import subprocess
import sys
import threading
import time
import types

import box as boxes

# The pattern: a prime, so that no size of a buffer or window divides it.
PERIOD = 1048573

# Bytes that one call sends or receives at most.
LARGEST = 65536

PATTERN = random.Random(862).randbytes(PERIOD)
PATTERN += PATTERN[:LARGEST]
VIEW = memoryview(PATTERN)

# What one message has, by the number of the connection.
SIZES = (1, 17, 300, 1460, 3000, 9000, 40000)

# What a half-closed connection sends: more than fits into the kernel's buffers on the way back.
HALVES = (150_000, 180_000, 210_000, 240_000)

# Messages a second of all that are no loud probes, so that the machine has time for the daemon.
RATE = 4000

# Probes at most: these alone use a whole processor.
PROBES = 100

# Seconds between two rounds of messages.
TICK = 0.01

# Seconds after which a connection that is full is taken for full, and those after which one is late.
FULL = 0.5
LATE = 60

# A segment as on an Ethernet, and small buffers for those that do not read: with the large segments
# of loopback the kernel would hold megabytes for each.
SEGMENT = 1400
SMALL = 8192


class Client:
    """One connection: the positions of its stream, and its kind."""

    __slots__ = ("number", "kind", "socket", "offset", "size", "sent", "wanted", "received", "since",
                 "gap", "mask", "reads", "last", "over")

    def __init__(self, number, kind):
        self.number = number
        self.kind = kind
        self.offset = number * 7919 % PERIOD
        self.size = SIZES[number % len(SIZES)]
        # Positions: what was sent, what shall be sent, what came back.
        self.sent = self.wanted = self.received = 0
        self.since = self.gap = 0.0
        self.mask = 0
        self.reads = kind in ("probe", "stream", "idle")
        self.last = self.over = False

    def connect(self):
        """Connects; one in eight over IPv6."""
        host = "::1" if self.number % 8 == 7 else "127.0.0.1"
        self.socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not self.reads:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
        if self.kind == "stalled":
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
        self.socket.settimeout(boxes.PATIENCE)
        self.socket.connect((host, 7))
        self.socket.setblocking(False)

    def is_answered(self):
        """Whether everything that it was to send came back."""
        return self.over or self.received == self.wanted


def kinds(size, only):
    """The kind of each connection, mixed."""
    few = 0 if only == "speakers" else size // 20
    rest = size - 2 * few
    idle = rest * 4 // 9
    probes = min(PROBES, rest - idle)
    found = (["stalled"] * few + ["half"] * few + ["idle"] * idle + ["probe"] * probes
             + ["stream"] * (rest - idle - probes))
    random.Random(size).shuffle(found)
    return found


class Driver:
    """The connections, in a process of their own: one thread, one epoll."""

    def __init__(self, size, only):
        self.poll = select.epoll()
        self.clients = [Client(number, kind) for number, kind in enumerate(kinds(size, only))]
        self.speakers = [client for client in self.clients if client.reads]
        self.turns = collections.deque(self.speakers)
        self.by_number = {}
        self.counts = collections.Counter()
        self.problems = []
        # What the connections do: talking, loud, or still.
        self.state = "talking"
        self.now = self.ticked = time.monotonic()

    def connect(self):
        """All connections, one after the other."""
        for client in self.clients:
            client.connect()
            self.now = time.monotonic()
            self.by_number[client.socket.fileno()] = client
            self.poll.register(client.socket, 0)
            if client.kind == "stalled":
                client.wanted = 1 << 40
            elif client.kind == "half":
                client.wanted, client.last = HALVES[client.number % len(HALVES)], True
            self.push(client)

    def end(self, client, how, words):
        """A connection is over; `how` counts it."""
        self.counts[how] += 1
        client.over = True
        if how != "finished":
            self.problems.append(f"{client.kind} {client.number}: {words}, {client.sent} sent, {client.received} back")
        self.poll.unregister(client.socket)
        del self.by_number[client.socket.fileno()]
        client.socket.close()

    def watch(self, client):
        """Registers the events that the connection waits for."""
        mask = ((select.EPOLLIN if client.reads else 0)
                | (select.EPOLLOUT if client.sent < client.wanted else 0))
        if mask != client.mask:
            client.mask = mask
            self.poll.modify(client.socket, mask)

    def send_more(self, client, size):
        """Lets a connection send so many more bytes."""
        if client.received == client.sent:
            client.since = time.monotonic()
        client.wanted += size
        self.push(client)

    def push(self, client):
        """Sends what is to be sent, as far as it fits."""
        try:
            while client.sent < client.wanted:
                start = (client.offset + client.sent) % PERIOD
                client.sent += client.socket.send(VIEW[start:start + min(LARGEST, client.wanted - client.sent)])
                client.since = client.since if client.reads else self.now
            if client.last:
                client.socket.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            pass
        except OSError as error:
            self.end(client, "reset", error.strerror)
            return
        self.watch(client)

    def pull(self, client):
        """Takes what came back, and checks it."""
        try:
            data = client.socket.recv(LARGEST)
        except BlockingIOError:
            return
        except OSError as error:
            self.end(client, "reset", error.strerror)
            return
        if not data:
            whole = client.received == client.sent
            how = "finished" if whole and client.last and client.sent == client.wanted else "ended" if whole else "cut"
            self.end(client, how, "end of stream")
            return
        here = (client.offset + client.received) % PERIOD
        client.received += len(data)
        if client.received > client.sent or not PATTERN.startswith(data, here):
            self.end(client, "mismatches", "other bytes than were sent")
            return
        self.counts["bytes"] += len(data)
        client.gap = max(client.gap, self.now - client.since)
        client.since = self.now
        if self.state == "loud" and client.kind == "probe":
            client.wanted = client.received + client.size
            self.push(client)

    def start_messages(self):
        """Lets the next connections send a message."""
        quota = int(RATE * min(self.now - self.ticked, 5 * TICK))
        self.ticked = self.now
        for _ in range(min(quota, len(self.turns))):
            client = self.turns[0]
            self.turns.rotate(-1)
            if client.is_answered() and not client.over and (client.kind != "idle" or random.random() < 0.1):
                self.send_more(client, client.size)

    def step(self, ready=()):
        """One round; returns the commands that came meanwhile."""
        words = []
        found = self.poll.poll(TICK, len(self.clients) + 1)
        # The time at which they all were ready: the time of this process in a round is no gap.
        self.now = time.monotonic()
        for number, events in found:
            client = self.by_number.get(number)
            if number == 0:
                words = os.read(0, 4096).decode().split() or ["gone"]
            elif not client:
                continue
            elif events & select.EPOLLERR:
                code = client.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                self.end(client, "reset", os.strerror(code))
            else:
                if events & select.EPOLLOUT:
                    self.push(client)
                if not client.over and events & (select.EPOLLIN | select.EPOLLHUP):
                    self.pull(client)
        if self.state in ("talking", "loud") and self.now - self.ticked >= TICK:
            self.start_messages()
        return words

    def until(self, condition):
        """Goes on until the condition holds for all connections; the others are late."""
        end = time.monotonic() + LATE
        waiting = self.clients
        while waiting and time.monotonic() < end:
            if "gone" in self.step():
                sys.exit(1)
            waiting = [client for client in waiting if not client.over and not condition(client)]
        self.counts["late"] += len(waiting)
        self.problems += [f"{client.kind} {client.number}: late, {client.sent} sent, {client.received} back"
                          for client in waiting]

    def is_settled(self, client):
        """Whether nothing is in flight that should not be."""
        return (client.is_answered() if client.reads else
                client.sent == client.wanted if client.kind == "half" else self.now - client.since > FULL)

    def report(self):
        """What was seen; the gaps begin anew."""
        gaps = [client.gap for client in self.clients if client.kind == "probe"] or [0]
        longest = max([client.gap for client in self.speakers] or [0])
        found = {"open": len(self.by_number), **{name: self.counts[name] for name in (
            "finished", "ended", "cut", "reset", "mismatches", "late", "bytes")}}
        found.update(median=statistics.median(gaps), worst=max(gaps), longest=longest, problems=self.problems[:10])
        for client in self.clients:
            client.gap = 0.0
        print(json.dumps(found), flush=True)

    def begin(self):
        """Connects all; each gets one echo, or is full."""
        self.connect()
        self.echo_once()
        self.state = "talking"
        self.report()

    def echo_once(self):
        """Lets every connection that reads send once and get the echo."""
        self.state = "still"
        for client in self.speakers:
            if not client.over:
                self.send_more(client, client.size)
        self.until(self.is_settled)

    def loud(self):
        """The probes keep their windows full, from now on."""
        self.state = "loud"
        for client in self.speakers:
            client.gap = 0.0
            if client.kind == "probe" and not client.over and client.is_answered():
                self.send_more(client, client.size)
        self.report()

    def settle(self):
        """Waits for everything in flight; then each connection gets one more echo, and is still."""
        self.state = "still"
        self.until(self.is_settled)
        gaps = [client.gap for client in self.clients]
        self.echo_once()
        for client, gap in zip(self.clients, gaps):
            client.gap = gap
        self.report()

    def finish(self):
        """Lets every connection read the rest, then send and get the end of the stream."""
        self.state = "still"
        for client in list(self.by_number.values()):
            client.reads = True
            if not client.last:
                client.last, client.wanted = True, client.sent
            self.push(client)
        self.until(lambda client: client.over)
        self.report()

    def run(self):
        """Takes commands until its standard input ends."""
        self.begin()
        self.poll.register(0, select.EPOLLIN)
        while True:
            for word in self.step():
                if word == "gone":
                    return
                {"loud": self.loud, "look": self.report, "settle": self.settle, "finish": self.finish}[word]()


class Clients:
    """The process of many connections, as a promise uses it, in a with statement."""

    def __init__(self, box, size, only="all"):
        self.size = size
        self.process = subprocess.Popen(
            [sys.executable, "-B", __file__, str(box.leader), str(size), only],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def __enter__(self):
        try:
            self.whole(self.read_report(), "at the beginning")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def read_report(self):
        """The next report."""
        text = self.process.stdout.readline()
        if not text:
            raise AssertionError(f"the process of the connections has ended: {self.process.stderr.read()[-500:]}")
        report = types.SimpleNamespace(**json.loads(text))
        report.dropped = report.ended + report.cut + report.reset
        return report

    def ask(self, word):
        """Sends a command; returns the report."""
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        return self.read_report()

    def loud(self):
        """Makes the probes stream without a pause, and gaps begin anew."""
        return self.ask("loud")

    def look(self):
        """The report of this moment."""
        return self.ask("look")

    def settle(self, what="after it"):
        """Waits for all echoes; fails unless every connection is open and every byte was right."""
        return self.whole(self.ask("settle"), what)

    def finish(self):
        """Ends all connections; fails unless each got every byte and the end of the stream."""
        report = self.whole(self.ask("finish"), "in the end", left=0)
        assert report.finished == self.size, f"{report.finished} of {self.size} came to a good end"
        return report

    def whole(self, report, what, left=None):
        """Fails unless no connection was dropped, was late or got wrong bytes."""
        wrong = report.dropped or report.mismatches or report.late or report.open != (self.size if left is None else left)
        assert not wrong, (
            f"of {self.size} connections {what}: {report.open} open, {report.mismatches} with wrong bytes, "
            f"{report.ended} ended, {report.cut} cut off, {report.reset} reset, {report.late} late: "
            + "; ".join(report.problems[:3]))
        return report


class Caller:
    """Connects again and again in a thread, beside what a promise does; for a with statement."""

    # Seconds between two calls.
    PAUSE = 0.002

    def __init__(self, box):
        self.box = box
        self.over = threading.Event()
        self.served, self.refused, self.cut = 0, [], []
        self.longest = 0.0
        self.thread = threading.Thread(target=self.call, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()

    def call(self):
        """One connection after the other."""
        while not self.over.wait(self.PAUSE):
            begin = time.monotonic()
            try:
                client = self.box.connect()
            except OSError as error:
                self.refused.append(error)
                continue
            with client:
                try:
                    client.sendall(b"hello")
                    client.shutdown(socket.SHUT_WR)
                    data = b"".join(iter(lambda: client.recv(64), b""))
                    if data == b"hello":
                        self.served += 1
                    else:
                        self.cut.append(data)
                except OSError as error:
                    self.cut.append(error)
            self.longest = max(self.longest, time.monotonic() - begin)

    def check(self, least=20, may_be_cut=False):
        """Fails if a caller was refused, or was cut off where that may not be.

        A crash ends connections that are not preserved yet."""
        assert not self.refused, f"{len(self.refused)} refused beside {self.served} served: {self.refused[:3]}"
        assert may_be_cut or not self.cut, f"{len(self.cut)} cut off beside {self.served} served: {self.cut[:3]}"
        assert self.served >= least, f"{self.served} callers only"


def main():
    """The process of the connections: crowd.py LEADER SIZE all|speakers."""
    leader, size, only = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    boxes.enter(leader)
    Driver(size, only).run()


if __name__ == "__main__":
    main()
