"""What happens to callers when the daemon hangs, dies or is replaced: the socket outlives it."""

import threading
import time

from bench import SERVICE, SOCKET, equal, has, line, promise, until


@promise(line(SERVICE, ("WatchdogSec=10s", "")))
def a_daemon_that_hangs_is_replaced_and_who_waits_is_served(box):
    box.start()
    box.serves()
    pid = box.pid()
    box.run(f"kill -STOP {pid}")
    begin = time.monotonic()
    with box.connect(timeout=30) as waiting:
        waiting.sendall(b"w")
        equal(waiting.recv(1), b"w", "the echo for who waited")
    box.figure("wait for a daemon that hung (WatchdogSec=10s)", f"{time.monotonic() - begin:.1f} s")
    assert box.pid() != pid, "the same process"
    has("\n".join(entry["MESSAGE"] for entry in box.journal("_PID=1")), "Watchdog timeout", "the journal")


@promise(line(SERVICE, ("Restart=on-failure", "Restart=no")))
def a_daemon_that_is_killed_is_replaced_before_anybody_asks(box):
    box.start()
    box.serves()
    pid = box.pid()
    box.run(f"kill -KILL {pid}")
    until(lambda: box.state(SERVICE) == "active" and box.pid() not in (0, pid), "another process")
    box.serves()


@promise(line(SOCKET, ("Documentation=man:tcp-echo(8)", "PartOf=tcp-echo.service\nFlushPending=yes")))
def who_waits_in_the_queue_when_the_daemon_is_killed_is_served_by_the_next(box):
    box.start()
    box.serves()
    pid = box.pid()
    box.run(f"kill -STOP {pid}")
    waiting = [box.connect() for _ in range(50)]
    for client in waiting:
        client.sendall(b"w")
    box.run(f"kill -KILL {pid}")
    for client in waiting:
        equal(client.recv(1), b"w", "the echo for who waited")
        client.close()


@promise(line(SERVICE, ("StartLimitBurst=200", "StartLimitBurst=5")))
def thirty_crashes_in_a_row_do_not_close_the_port(box):
    box.start()
    box.serves()
    for _ in range(30):
        pid = box.pid()
        box.run(f"kill -KILL {pid}")
        until(lambda: box.pid() not in (0, pid), "another process")
    box.serves()
    equal(box.state(SOCKET), "active", "the socket")


@promise(line(SOCKET, ("Documentation=man:tcp-echo(8)", "PartOf=tcp-echo.service")))
def nobody_is_refused_while_the_service_restarts(box):
    box.start()
    box.serves()
    sockets = box.sockets()
    over, refused, served = threading.Event(), [], []

    def call():
        while not over.is_set():
            try:
                with box.connect() as client:
                    served.append(client)
            except OSError as error:
                refused.append(error)

    caller = threading.Thread(target=call)
    caller.start()
    try:
        for _ in range(5):
            box.run(f"systemctl restart {SERVICE}")
    finally:
        over.set()
        caller.join()
    equal(refused, [], f"refusals beside {len(served)} callers")
    equal(box.sockets(), sockets, "the sockets, which were never closed")
    assert len(served) > 20, f"{len(served)} callers only"
