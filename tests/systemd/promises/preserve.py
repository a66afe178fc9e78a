"""What happens to connections and callers when the daemon hangs, dies or is replaced.

The socket outlives it, so callers wait.  Its connections outlive it too, in the manager's
descriptor store: over a restart, an upgrade or a crash many clients (crowd.py) go on, with every
byte right.  Where that is not possible, it is reported, and the service goes on."""

import json
import re
import time

from bench import (RESTORED, HANDED_OVER, PRESERVING, PREDECESSOR_DROPPED, NOT_PRESERVING, PRESERVE_FAILED, SERVICE,
                   SOCKET, STANDALONE, UPGRADE, Change, equal, has, later, line, package, promise, until)
from crowd import Caller, Clients

STORE = "FileDescriptorStoreMax=16"
SIGNAL = "RestartKillSignal=SIGUSR2"
LIMIT = "LimitNOFILE=262144"

# Changes that prevent preservation: promises about connections that survive have to fail with them.
NO_STORE = line(SERVICE, (STORE, ""))
NO_SIGNAL = line(SERVICE, (SIGNAL, ""))

FORGOTTEN = Change("the configuration is forgotten", lambda box: setattr(box, "configure", lambda text: None))

# The descriptors in the store: the state file, and both ends of the descriptor queue.
STORED = 3

# Kills it as soon as it is active again.
STORM = f"""
    for i in $(seq 50); do
        before=$pid
        looks=0
        until [ "$state" = active ] && [ "$pid" != "$before" ] && [ "$pid" != 0 ]; do
            eval "$(systemctl show -p MainPID -p ActiveState {SERVICE} | sed 's/MainPID/pid/; s/ActiveState/state/')"
            looks=$((looks + 1))
            [ $looks -lt 1000 ] && [ "$state" != failed ] || exit 1
        done
        kill -KILL $pid
    done"""


def preserved(box):
    """How many connections are preserved, by the status; None: preservation is off."""
    status = box.status()
    if found := re.search(r"; (\d+) connections? preserved", status):
        return int(found[1])
    return None if "preservation off" in status else 0


def wait_until_preserved(box, count):
    """Waits until so many connections are preserved, or preservation is off."""
    until(lambda: (found := preserved(box)) is None or found >= count,
          lambda: f"{count} connections are preserved, in {box.status()!r}")


def stored(box):
    """Descriptors in the manager's store."""
    return int(box.show(SERVICE, "NFileDescriptorStore"))


def effort(box):
    """Milliseconds of processor time that the manager has used."""
    with open(f"/proc/{box.leader}/schedstat") as text:
        return int(text.read().split()[0]) / 1e6


def milliseconds(report):
    """The median and the worst gap of the clients, for the report."""
    return f"{report.median * 1000:.0f} / {report.worst * 1000:.0f} ms"


def survives(box, event, crash=False, called=True):
    """Fails unless all clients go on over an event; returns their report."""
    box.start()
    box.serves()
    with Clients(box, box.connections) as clients, Caller(box) as caller:
        if crash:
            wait_until_preserved(box, box.connections)
        pid = box.pid()
        clients.loud()
        event(pid)
        report = clients.settle()
        assert box.pid() not in (0, pid), "the old process goes on"
        clients.finish()
    if called:
        caller.check(may_be_cut=crash)
    until(lambda: box.state(SERVICE) == "active", "the service is active")
    box.serves()
    return report


def other(box, pid):
    """Waits until another process is ready."""
    until(lambda: box.pid() not in (0, pid) and box.state(SERVICE) == "active", "another process")


def manager_said(box, text):
    """Fails unless the manager has logged this."""
    has("\n".join(entry["MESSAGE"] for entry in box.journal("_PID=1")), text, "the journal")


def unlimited(box):
    """Allows more starts than the limit for manual ones does."""
    box.write(f"/etc/systemd/system/{SERVICE}.d/limit.conf", "[Unit]\nStartLimitIntervalSec=0\n")
    box.run("systemctl daemon-reload")


def all_end(clients, size):
    """Waits until all connections have ended, and fails unless it was in good order."""
    report = until(lambda: (found := clients.look()).open == 0 and found, "all connections have ended")
    equal((report.ended, report.cut, report.reset, report.mismatches), (size, 0, 0, 0), "ended, cut, reset, wrong")


@promise(line(SERVICE, ("WatchdogSec=10s", "")))
def a_daemon_that_hangs_is_replaced_and_waiting_callers_are_served(box):
    box.start()
    box.serves()
    pid = box.pid()
    box.run(f"kill -STOP {pid}")
    begin = time.monotonic()
    with box.connect(timeout=30) as waiting:
        waiting.sendall(b"w")
        equal(waiting.recv(1), b"w", "the echo for a waiting caller")
    box.figure("wait for a daemon that hung (WatchdogSec=10s)", f"{time.monotonic() - begin:.1f} s")
    assert box.pid() != pid, "the same process"
    manager_said(box, "Watchdog timeout")


@promise(line(SERVICE, ("Restart=on-failure", "Restart=no")))
def a_daemon_that_is_killed_is_replaced_without_a_caller(box):
    box.start()
    box.serves()
    pid = box.pid()
    box.run(f"kill -KILL {pid}")
    other(box, pid)
    box.serves()


@promise(line(SOCKET, ("Documentation=man:tcp-echo(8)", "PartOf=tcp-echo.service\nFlushPending=yes")))
def callers_in_the_queue_of_a_killed_daemon_are_served_by_the_next(box):
    box.start()
    box.serves()
    pid = box.pid()
    box.run(f"kill -STOP {pid}")
    waiting = [box.connect() for _ in range(50)]
    for client in waiting:
        client.sendall(b"w")
    box.run(f"kill -KILL {pid}")
    for client in waiting:
        equal(client.recv(1), b"w", "the echo for a waiting caller")
        client.close()


@promise([line(SERVICE, ("StartLimitBurst=200", "StartLimitBurst=5")),
          line(SOCKET, ("TriggerLimitBurst=120", "TriggerLimitBurst=30"))])
def fifty_crashes_in_a_row_do_not_close_the_port(box):
    box.start()
    box.serves()
    with Caller(box) as caller:
        box.run(STORM)
    caller.check(may_be_cut=True)
    box.serves()
    equal(box.state(SOCKET), "active", "the socket")


@promise(line(SOCKET, ("Documentation=man:tcp-echo(8)", "PartOf=tcp-echo.service")))
def no_caller_is_refused_while_the_service_restarts(box):
    box.start()
    box.serves()
    sockets = box.sockets()
    with Caller(box) as caller:
        for _ in range(10):
            box.run(f"systemctl restart {SERVICE}")
    # Each restart delays one caller.
    caller.check(least=10)
    equal(box.sockets(), sockets, "the sockets, which were never closed")


@promise([NO_STORE, NO_SIGNAL])
def over_a_restart_no_connection_and_no_byte_is_lost(box):
    survives(box, lambda pid: box.run(f"systemctl restart {SERVICE}"))
    over, restored = box.events(HANDED_OVER)[0], box.events(RESTORED)[0]
    assert int(over["ECHO_PRESERVED"]) >= box.connections, f"preserved {over['ECHO_PRESERVED']}"
    equal(over["ECHO_PRESERVED"], over["ECHO_OPEN"], "connections that were handed over")
    equal((restored["ECHO_RESTORED"], restored["ECHO_OF"]), (over["ECHO_PRESERVED"],) * 2, "connections that were restored")


# An upgrade brings its own unit.
@promise([NO_STORE, package("newer", "sed -i /^RestartKillSignal/d usr/lib/systemd/system/tcp-echo.service")])
def over_an_upgrade_of_the_package_no_connection_and_no_byte_is_lost(box):
    survives(box, lambda pid: box.run(UPGRADE))
    has(box.run("dpkg-query -W tcp-echo"), "+newer", "the version")
    equal(box.show(SERVICE, "NRestarts"), "0", "automatic restarts")


@promise([NO_STORE, NO_SIGNAL])
def over_a_reexecution_of_the_manager_and_a_restart_no_connection_is_lost(box):
    survives(box, lambda pid: box.run(f"systemctl daemon-reexec && systemctl restart {SERVICE}"))
    equal(stored(box), STORED, "descriptors in the store")


@promise([NO_STORE, NO_SIGNAL])
def over_a_restart_of_the_socket_no_connection_is_lost(box):
    # The listeners are closed for a moment, so callers may be refused.
    survives(box, lambda pid: box.run(f"systemctl restart {SOCKET}"), called=False)


@promise(NO_STORE)
def a_daemon_that_is_killed_takes_no_connection_and_no_byte_with_it(box):
    report = survives(box, lambda pid: (box.run(f"kill -KILL {pid}"), other(box, pid)), crash=True)
    box.figure(f"gap after SIGKILL, {box.connections} connections, median / worst", milliseconds(report))


@promise([NO_STORE, line(SERVICE, ("StartLimitBurst=200", "StartLimitBurst=20")),
          line(SOCKET, ("TriggerLimitBurst=120", "TriggerLimitBurst=30"))])
def fifty_kills_as_soon_as_it_is_there_again_take_no_connection_and_no_byte(box):
    begin = time.monotonic()
    report = survives(box, lambda pid: box.run(STORM), crash=True)
    assert int(box.show(SERVICE, "NRestarts")) >= 50, "fewer restarts than kills"
    box.figure(f"longest gap in a storm of 50 SIGKILLs, {box.connections} connections, median / worst",
               f"{milliseconds(report)}, {report.bytes / 1e6:.0f} MB checked in {time.monotonic() - begin:.0f} s")


@promise([NO_STORE, later(SERVICE, "[Service]\nWatchdogSec=0\n")])
def a_daemon_that_hangs_takes_no_connection_and_no_byte_with_it(box):
    box.edit(SERVICE, "[Service]\nWatchdogSec=1s\n")

    def hang(pid):
        box.run(f"kill -STOP {pid}")
        other(box, pid)
    survives(box, hang, crash=True)
    manager_said(box, "Watchdog timeout")


@promise(NO_STORE)
def a_daemon_that_aborts_takes_no_connection_and_no_byte_with_it(box):
    survives(box, lambda pid: (box.run(f"kill -ABRT {pid}"), other(box, pid)), crash=True)
    manager_said(box, "status=6/ABRT")


@promise(NO_STORE)
def with_several_workers_a_restart_and_a_kill_take_no_connection_and_no_byte(box):
    box.configure("workers = 4\n")

    def twice(pid):
        box.run(f"systemctl restart {SERVICE}")
        next_pid = box.pid()
        equal(box.run(f"ls /proc/{next_pid}/task | wc -l"), "5", "threads: four loops and the log")
        box.run(f"kill -KILL {next_pid}")
        other(box, next_pid)
    survives(box, twice, crash=True)


@promise(line(STANDALONE, (STORE, "")))
def connections_of_the_standalone_unit_survive_too(box):
    box.run(f"systemctl start {STANDALONE}")
    with Clients(box, 100) as clients:
        clients.loud()
        box.run(f"systemctl restart {STANDALONE}")
        clients.settle()
        clients.finish()
    box.serves()


def restart(box, times=1):
    """Restarts; returns the milliseconds of processor time that one takes of the manager."""
    before = effort(box)
    box.run(f"for i in $(seq {times}); do systemctl restart {SERVICE}; done")
    return (effort(box) - before) / times


@promise([NO_STORE, NO_SIGNAL], alone=True)
def what_a_restart_costs_a_hundred_clients_and_many(box):
    box.start()
    box.serves()
    # The sandbox takes time, too.
    box.figure("processor time of the manager for a restart, no connection", f"{restart(box, 5):.0f} ms")
    for count in dict.fromkeys((100, box.connections)):
        with Clients(box, count) as clients:
            wait_until_preserved(box, count)
            clients.loud()
            time.sleep(1)
            usual = clients.look()
            restart(box)
            report = clients.settle()
            spent = restart(box, 5)
            clients.settle("after five more")
            clients.finish()
        box.figure(f"gap at a restart, {count} connections, median / worst",
                   f"{milliseconds(report)}, without {milliseconds(usual)}")
        box.figure(f"processor time of the manager for a restart, {count} connections", f"{spent:.0f} ms")
        assert report.longest < 5, f"a client waited {report.longest:.1f} s"
    until(lambda: box.journal(f"MESSAGE_ID={PRESERVING}"), "the journal says that connections are preserved")


def holdings(box):
    """What a daemon and the manager hold: descriptors and, in KiB, memory."""
    pid = box.pid()
    status = dict(re.findall(r"^(\w+):\s*(\d+) kB$", box.run(f"cat /proc/{pid}/status"), re.M))
    manager = dict(re.findall(r"^(\w+):\s*(\d+) kB$", box.run("cat /proc/1/status"), re.M))
    return {"descriptors": int(box.run(f"ls /proc/{pid}/fd | wc -l")), "stored": stored(box),
            "memory": int(status["VmRSS"]), "manager": int(manager["VmRSS"])}


@promise([NO_STORE, NO_SIGNAL], alone=True)
def what_the_client_holds_goes_on_over_a_hundred_restarts_and_each_pause_is_the_servers(box):
    unlimited(box)
    box.start()
    box.serves()
    holding = box.begin("echo $$ > /run/holding; "
                        "exec tcp-echo probe localhost --hold 1h --connections 100 --json")
    try:
        wait_until_preserved(box, 100)
        for _ in range(100):
            box.run(f"systemctl restart {SERVICE}")
    finally:
        box.run("kill -INT $(cat /run/holding)")
    said, _ = holding.communicate(timeout=60)
    summary = json.loads(said.splitlines()[-1])
    equal((summary["ended"], summary["wrong"]), (0, 0), f"what ended and what was wrong, of {summary}")
    assert set(summary["pauses"]) <= {"server-or-proxy"}, f"pauses: {summary['pauses']}"
    equal(holding.returncode, 0, "the status of the client")
    box.figure("worst echo of 100 held conversations over 100 restarts", f"{summary['worst_us'] / 1000:.0f} ms")


@promise(NO_STORE, alone=True)
def after_many_restarts_everything_is_as_after_one(box):
    unlimited(box)
    box.start()
    box.serves()
    with Clients(box, 100, only="speakers") as clients:
        box.run(f"systemctl restart {SERVICE}")
        clients.settle()
        once, before = holdings(box), effort(box)
        for done in range(0, box.restarts, 10):
            clients.loud()
            box.run(f"for i in $(seq {min(10, box.restarts - done)}); do systemctl restart {SERVICE}; done")
            clients.settle(f"after {done + 10} restarts")
        spent, many = effort(box) - before, holdings(box)
        clients.finish()
    box.figure(f"after {box.restarts} restarts as after one", f"{once} -> {many}")
    box.figure("processor time of the manager for a restart, 100 connections, mean", f"{spent / box.restarts:.1f} ms")
    equal(once["stored"], STORED, "descriptors in the store")
    for name in ("descriptors", "stored"):
        equal(many[name], once[name], f"{name} after {box.restarts} restarts")
    for name in ("memory", "manager"):
        assert many[name] < once[name] + 4096, f"{name} went from {once[name]} to {many[name]} KiB"


@promise([NO_STORE, line(SERVICE, (SIGNAL, "KillSignal=SIGUSR2"))])
def a_stop_hands_nothing_over_and_empties_the_store(box):
    # With it the store outlives a stop, where systemd knows it.
    box.edit(SERVICE, "[Service]\nFileDescriptorStorePreserve=yes\n")
    box.start()
    box.serves()
    with Clients(box, 100, only="speakers") as clients:
        clients.settle("before")
        # An older manager is asked only when there is a connection to preserve.
        until(lambda: stored(box) == STORED, "the state file and the descriptor queue are in the store")
        box.run(f"systemctl stop {SERVICE}")
        all_end(clients, 100)
    equal(stored(box), 0, "descriptors in the store")
    equal(box.journal(f"MESSAGE_ID={HANDED_OVER}"), [], "hand-overs")
    box.serves()


def drains(box, reason=None, size=100):
    """Fails unless a restart ends all connections in good order, after the reason was logged."""
    with Clients(box, size, only="speakers") as clients, Caller(box) as caller:
        clients.settle("before")
        if reason:
            reports_that_nothing_is_preserved(box, reason)
        box.run(f"systemctl restart {SERVICE}")
        all_end(clients, size)
    caller.check(least=1)
    box.serves()


def reports_that_nothing_is_preserved(box, reason):
    """Fails unless journal and status say why connections are not preserved."""
    until(lambda: re.search(f"; preservation off: .*{reason}", box.status()),
          lambda: f"preservation off: ... {reason}, in {box.status()!r}", 5)
    has(box.events(NOT_PRESERVING)[-1]["MESSAGE"], reason, "the journal")
    # systemd 252 does not say how much room there is, and closes what has none after it has answered:
    # then a later event has to correct an earlier one.
    last = box.journal(f"MESSAGE_ID={PRESERVING}", f"MESSAGE_ID={NOT_PRESERVING}")[-1]
    equal(last["MESSAGE_ID"], NOT_PRESERVING, "the last event about it")
    if box.suite != "bookworm":
        equal(box.journal(f"MESSAGE_ID={PRESERVING}"), [], "events that connections are preserved")


@promise(later(SERVICE, f"[Service]\n{SIGNAL}\n"))
def without_the_signal_of_a_restart_it_is_a_stop_that_drains(box):
    box.edit(SERVICE, "[Service]\nRestartKillSignal=SIGTERM\n")
    box.start()
    box.serves()
    drains(box)
    equal(box.journal(f"MESSAGE_ID={HANDED_OVER}"), [], "hand-overs")


@promise(later(SERVICE, f"[Service]\n{STORE}\n"))
def without_a_store_this_is_reported_and_a_restart_drains(box):
    box.edit(SERVICE, "[Service]\nFileDescriptorStoreMax=0\n")
    box.start()
    box.serves()
    drains(box, "descriptor store")


@promise(later(SERVICE, f"[Service]\n{STORE}\n"))
def with_a_store_that_is_too_small_this_is_reported_and_a_restart_drains(box):
    box.edit(SERVICE, "[Service]\nFileDescriptorStoreMax=2\n")
    box.start()
    box.serves()
    # Which of the descriptors finds no room is not always the same.
    for _ in range(5):
        drains(box, "descriptor store")


@promise(FORGOTTEN)
def with_preservation_switched_off_a_restart_drains(box):
    box.configure("preserve-connections = false\n")
    box.start()
    box.serves()
    drains(box, "configuration")
    equal(stored(box), 0, "descriptors in the store")


@promise(FORGOTTEN)
def a_next_process_without_preservation_drains_the_connections_and_reports_it(box):
    box.start()
    box.serves()
    with Clients(box, 100, only="speakers") as clients:
        clients.settle("before")
        box.configure("preserve-connections = false\n")
        box.run(f"systemctl restart {SERVICE}")
        all_end(clients, 100)
    has(box.events(PREDECESSOR_DROPPED)[0]["MESSAGE"], "preserve-connections", "the journal")
    equal(stored(box), 0, "descriptors in the store")
    box.serves()


# The kernel counts descriptors in flight by user, and all boxes are one user for it.
@promise(later(SERVICE, f"[Service]\n{LIMIT}\n"), alone=True)
def connections_that_do_not_fit_in_flight_are_reported_and_the_service_goes_on(box):
    box.edit(SERVICE, "[Service]\nLimitNOFILE=2048\n")
    box.configure("[limits]\nmax-connections = 2000\n")
    box.start()
    box.serves()
    with Clients(box, 1500, only="speakers") as clients:
        # These enter the descriptor queue and end; their descriptors stay in it.
        for _ in range(2):
            passing = [box.connect() for _ in range(400)]
            until(lambda: (preserved(box) or 0) >= 1900 or box.journal(f"MESSAGE_ID={PRESERVE_FAILED}"), "a queue with all of them")
            for client in passing:
                client.close()
            until(lambda: (preserved(box) or 0) < 1900, "the connections that ended are no longer preserved")
        entry = box.events(PRESERVE_FAILED)[0]
        assert int(entry["ECHO_COUNT"]) > 0 and entry["ERRNO"], f"count and errno in {entry['MESSAGE']}"
        equal(box.state(SERVICE), "active", "the service")
        clients.settle("without room in flight")
        box.serves()
        box.run(f"systemctl restart {SERVICE}")
        report = clients.look()
        equal(report.mismatches, 0, "connections with wrong bytes")
        box.figure("of 1500 connections that did not fit in flight survived a restart", report.open)
    box.serves()
    until(lambda: "preserved" in box.status() or "preservation off" in box.status(), "the status says whether connections are preserved")
