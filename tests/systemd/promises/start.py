"""Starting: who starts the service, when, and what is said when it cannot."""

import time

from bench import (CONFIG, SERVICE, SOCKET, STANDALONE, START_FAILED, UNITS, equal, has, line, promise,
                   shell, until)


@promise(line(SOCKET, ("Documentation=man:tcp-echo(8)", "Wants=tcp-echo.service")))
def nothing_runs_before_the_first_caller_who_starts_the_service(box):
    box.start()
    equal(box.state(SOCKET), "active", "the socket")
    equal(box.state(SERVICE), "inactive", "the service before the first caller")
    equal(box.journal(), [], "the journal before the first caller")
    begin = time.monotonic()
    box.serves()
    box.figure("first connection to first echo", f"{(time.monotonic() - begin) * 1000:.0f} ms")
    equal(box.state(SERVICE), "active", "the service after the first caller")


@promise(line(SOCKET, ("ListenStream=127.0.0.1:7", "")))
def printf_hi_through_nc_to_localhost_7_gives_hi(box):
    box.start()
    equal(box.run("printf hi | nc -N -4 localhost 7"), "hi", "nc -4")
    equal(box.run("printf hi | nc -N localhost 7"), "hi", "nc")


@promise(line(SOCKET, ("ListenStream=127.0.0.1:7", "ListenStream=0.0.0.0:7")))
def it_listens_on_port_7_of_loopback_and_nowhere_else(box):
    box.start()
    listening = box.run("ss -ltnH").splitlines()
    equal(sorted(text.split()[3] for text in listening), ["127.0.0.1:7", "[::1]:7"], "ss -ltn")


@promise(line(SERVICE, ("NotifyAccess=exec", "NotifyAccess=none\nType=simple"),
              ("WatchdogSec=10s", "")))
def systemctl_status_shows_listeners_connections_and_bytes(box):
    box.start()
    box.serves()
    wanted = 'Status: "2 listeners, 0 connections, 5 B echoed"'
    until(lambda: wanted in box.run("systemctl status tcp-echo"), f"systemctl status with {wanted}")


@promise(line(SERVICE, ("RestartPreventExitStatus=2 78", "")))
def a_broken_configuration_is_said_once_and_not_tried_again(box):
    box.write(CONFIG, "[limits]\nno-such-key = 1\n")
    box.run(f"systemctl start --no-block {SERVICE}")
    until(lambda: box.state(SERVICE) == "failed", "the service is failed")
    equal(box.show(SERVICE, "ExecMainStatus"), "78", "the exit status")
    time.sleep(1)
    equal(len(box.told(START_FAILED)), 1, "attempts")
    has(box.told(START_FAILED)[0]["MESSAGE"], "no-such-key", "the message")
