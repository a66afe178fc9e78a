"""Reloading: synchronous, whole or not at all, and without an effect on open connections."""

import time

from bench import CONFIG, RELOADED, SERVICE, equal, has, line, promise, until

CHECK = "ExecReload=/usr/bin/tcp-echo check --config-only"
RELOAD = "ExecReload=/usr/bin/tcp-echo reload"


@promise(line(SERVICE, (RELOAD, "ExecReload=/bin/sh -c 'kill -HUP $MAINPID'")))
def a_reload_returns_when_the_daemon_has_done_it_and_not_before(box):
    box.start()
    box.serves()
    # A daemon that answers late: the signal waits until it goes on.
    for late in (0.05, 0.05, 0.05, 1):
        before = len(box.journal(f"MESSAGE_ID={RELOADED}"))
        box.run(f"kill -STOP {box.pid()}")
        reload = box.begin("systemctl reload tcp-echo")
        until(lambda: box.state(SERVICE) == "reloading" or reload.poll() is not None, "the reload begins")
        time.sleep(late)
        equal(reload.poll(), None, f"the reload before the daemon knows of it, {late} s late")
        box.run(f"kill -CONT {box.pid()}")
        equal(reload.wait(20), 0, "the reload")
        equal(len(box.journal(f"MESSAGE_ID={RELOADED}")), before + 1, "reloads logged when it returns")


@promise([line(SERVICE, (CHECK, "")), line(SERVICE, ("ExecStart=/usr/bin/tcp-echo", "ExecStart=/usr/bin/tcp-echo\n"
                                                     "ExecReload=/bin/sh -c 'kill $MAINPID'"))])
def a_broken_configuration_fails_the_reload_and_leaves_the_service_running(box):
    box.start()
    with box.connect() as client:
        client.sendall(b"a")
        equal(client.recv(1), b"a", "before")
        pid = box.pid()
        box.write(CONFIG, "[limits]\nno-such-key = 1\n")
        status, _ = box.try_("systemctl reload tcp-echo")
        equal(status, 1, "the status of the reload")
        equal(box.pid(), pid, "the process")
        equal(box.state(SERVICE), "active", "the service")
        has("\n".join(entry["MESSAGE"] for entry in box.journal()), "no-such-key", "the journal")
        client.sendall(b"b")
        equal(client.recv(1), b"b", "the connection afterwards")
    box.serves()


@promise([line(SERVICE, (RELOAD, "ExecReload=/bin/true")),
          line(SERVICE, (RELOAD, "ExecReload=/bin/systemctl --no-block restart tcp-echo"))])
def a_reload_brings_new_limits_without_touching_a_connection(box):
    box.start()
    with box.connect() as client:
        client.sendall(b"a")
        equal(client.recv(1), b"a", "before")
        box.write(CONFIG, "[limits]\nmax-connections = 1\n")
        box.run("systemctl reload tcp-echo")
        client.sendall(b"b")
        equal(client.recv(1), b"b", "the connection afterwards")
        with box.connect(timeout=0.5) as waiting:
            waiting.sendall(b"c")
            try:
                raise AssertionError(f"a second connection is served: {waiting.recv(1)!r}")
            except TimeoutError:
                pass
            client.close()
            waiting.settimeout(20)
            equal(waiting.recv(1), b"c", "the one that waited")
