"""Starting: what starts the service, when, and what is logged when it cannot start."""

import re
import time

from bench import (CONFIG, LISTENING, REPOSITORY, SERVICE, SOCKET, STANDALONE, START_FAILED, UNITS,
                   Change, equal, has, line, promise, shell, until)


@promise(line(SOCKET, ("Documentation=man:tcp-echo(8)", "Wants=tcp-echo.service")))
def nothing_runs_before_the_first_caller_which_starts_the_service(box):
    box.start()
    equal(box.state(SOCKET), "active", "the socket")
    equal(box.state(SERVICE), "inactive", "the service before the first caller")
    equal(box.journal(), [], "the journal before the first caller")
    begin = time.monotonic()
    box.serves()
    box.figure("first connection to first echo", f"{(time.monotonic() - begin) * 1000:.0f} ms")
    equal(box.state(SERVICE), "active", "the service after the first caller")


@promise(line(SOCKET, ("ListenStream=127.0.0.1:7", "ListenStream=127.0.0.1:8")))
def printf_hi_through_nc_to_localhost_7_gives_hi(box):
    box.start()
    equal(box.run("printf hi | nc -N -4 localhost 7"), "hi", "nc -4")
    equal(box.run("printf hi | nc -N localhost 7"), "hi", "nc")


@promise(line(SOCKET, ("ListenStream=127.0.0.1:7", "ListenStream=0.0.0.0:7")))
def it_listens_on_port_7_of_loopback_and_nowhere_else(box):
    box.start()
    listening = box.run("ss -ltnH").splitlines()
    equal(sorted(text.split()[3] for text in listening), ["127.0.0.1:7", "[::1]:7"], "ss -ltn")


@promise([line(SOCKET, ("FileDescriptorName=tcp-echo", "")),
          shell("sed -i '/FileDescriptorName=/d' /usr/share/doc/tcp-echo/examples/tcp-echo-unix.socket"),
          shell("sed -i '/SocketMode=/d' /usr/share/doc/tcp-echo/examples/tcp-echo-unix.socket")])
def ipv4_ipv6_and_a_unix_socket_of_another_unit_are_distinguished_by_name(box):
    box.example("tcp-echo-unix.socket")
    box.run("systemctl start tcp-echo.socket tcp-echo-unix.socket")
    for host in ("127.0.0.1", "::1", "/run/tcp-echo.sock"):
        box.serves(host=host)
    found = {(entry["ECHO_LISTENER"], entry["ECHO_LOCAL"]) for entry in box.events(LISTENING)}
    equal(found, {("tcp-echo", "127.0.0.1:7"), ("tcp-echo", "[::1]:7"), ("unix", "unix:/run/tcp-echo.sock")},
          "listeners")
    equal(box.run("stat -c %a /run/tcp-echo.sock"), "660", "the mode of the Unix socket")


@promise(line(STANDALONE, ("Type=notify", "Type=exec")))
def the_service_is_active_only_when_it_listens(box):
    late = "/bin/sh -c 'sleep 1; exec /usr/bin/tcp-echo --listen localhost:7'"
    box.edit(STANDALONE, f"[Service]\nExecStart=\nExecStart={late}\n")
    box.run(f"systemctl start --no-block {STANDALONE}")
    until(lambda: box.pid(STANDALONE) > 0, "a process")
    equal(box.state(STANDALONE), "activating", "before it listens")
    box.refuses()
    until(lambda: box.state(STANDALONE) == "active", "the service is active")
    box.serves()


@promise(line(SERVICE, ("NotifyAccess=exec", "NotifyAccess=none\nType=simple"),
              ("WatchdogSec=10s", "")))
def systemctl_status_shows_listeners_connections_and_bytes(box):
    box.start()
    box.serves()
    wanted = 'Status: "2 listeners, 0 connections, 5 B echoed'
    until(lambda: wanted in box.run("systemctl status tcp-echo"), f"systemctl status with {wanted}")


@promise([line(SERVICE, ("RestartPreventExitStatus=2 69 77 78", "")),
          shell("printf '#!/bin/sh\\nexit 78\\n' > /usr/bin/tcp-echo")])
def a_broken_configuration_is_reported_once_and_not_tried_again(box):
    box.write(CONFIG, "[limits]\nno-such-key = 1\n")
    box.run(f"systemctl start --no-block {SERVICE}")
    until(lambda: box.state(SERVICE) == "failed", "the service is failed")
    equal(box.show(SERVICE, "ExecMainStatus"), "78", "the exit status")
    time.sleep(1)
    found = box.events(START_FAILED)
    equal(len(found), 1, "attempts")
    has(found[0]["MESSAGE"], "/etc/tcp-echo/config.toml: TOML parse error at line 2, column 1", "the message")


def no_limits(box):
    """Lets both units try for ever."""
    box.write(f"/etc/systemd/system/{SOCKET}.d/z.conf", "[Socket]\nTriggerLimitBurst=30000\n")
    box.write(f"/etc/systemd/system/{SERVICE}.d/z.conf", "[Unit]\nStartLimitBurst=30000\n")
    box.run("systemctl daemon-reload")


@promise(Change("no limit of starts", no_limits))
def callers_of_a_broken_service_end_in_a_closed_port_and_the_readme_knows_the_way_back(box):
    shipped = box.file(CONFIG).read_text()
    box.write(CONFIG, "[limits]\nno-such-key = 1\n")
    box.start()
    with box.connect():
        until(lambda: box.state(SOCKET) == "failed", "the socket gives up", 100)
    box.refuses()
    box.write(CONFIG, shipped)
    way = re.search(r"`(systemctl reset-failed [^`]*)`", (REPOSITORY / "README.md").read_text())
    box.run(way[1])
    box.serves()


def forget(box):
    """The link that makes it come back."""
    box.write(f"{UNITS}/{SOCKET}", box.file(f"{UNITS}/{SOCKET}").read_text().replace("sockets.target", "rescue.target"))


@promise(Change(f"{SOCKET}: WantedBy=sockets.target -> WantedBy=rescue.target", forget))
def an_enabled_socket_comes_back_after_a_reboot(box):
    box.run(f"systemctl enable --now {SOCKET}")
    box.serves()
    box.begin("systemctl reboot")
    box.wait_for_boot()
    equal(box.state(SOCKET), "active", "the socket after the reboot")
    equal(box.state(SERVICE), "inactive", "the service after the reboot")
    box.serves()


@promise([shell("sed -i 's/^Accept=yes/Accept=no/' /usr/share/doc/tcp-echo/examples/tcp-echo-accept.socket"),
          shell("sed -i 's/^ExecStart=.*/ExecStart=-\\/bin\\/true/' "
                "'/usr/share/doc/tcp-echo/examples/tcp-echo-accept@.service'")])
def the_example_with_accept_yes_has_a_process_for_each_connection_and_leaves_no_unit(box):
    box.example("tcp-echo-accept.socket")
    box.example("tcp-echo-accept@.service")
    box.run("systemctl start tcp-echo-accept.socket")
    units = "systemctl list-units --all --no-legend --plain 'tcp-echo-accept@*.service'"
    with box.connect() as one, box.connect() as other:
        for client in (one, other):
            client.sendall(b"a")
            equal(client.recv(1), b"a", "the echo")
        equal(len(box.run(units).splitlines()), 2, "units")
    until(lambda: not box.run(units), "no unit of a connection that is over")
    box.serves()
