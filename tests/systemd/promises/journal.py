"""The journal: what it has, how it is searched, and that it never delays the service."""

import re
import time

from bench import (CLOSED, CONFIG, COUNTERS, KERNEL, LISTENING, LOST, SERVICE, MOVED, equal, has,
                   line, promise, shell, until)

EXEC = "ExecStart=/usr/bin/tcp-echo"
JOURNALD = "systemd-journald.service"


@promise(line(SERVICE, (EXEC, EXEC + " --log-format text")))
def the_end_of_a_connection_is_logged_with_fields_that_can_be_searched(box):
    box.start()
    with box.connect() as client:
        port = client.getsockname()[1]
    box.serves(host="::1")
    until(lambda: len(box.journal(f"MESSAGE_ID={CLOSED}")) == 2, "both ends are logged")
    for match in (f"ECHO_PEER=127.0.0.1:{port}", "ECHO_REASON=peer-closed ECHO_LOCAL=127.0.0.1:7", "ECHO_SENT=0"):
        equal(len(box.journal(match)), 1, match)
    entry = box.journal("'ECHO_LOCAL=[::1]:7'", f"MESSAGE_ID={CLOSED}")[0]
    found = {name: entry.get(name) for name in (
        "ECHO_LISTENER", "ECHO_RECEIVED", "ECHO_SENT", "ECHO_OWED", "ECHO_REASON", "PRIORITY",
        "SYSLOG_IDENTIFIER")}
    equal(found, {"ECHO_LISTENER": "tcp-echo", "ECHO_RECEIVED": "5", "ECHO_SENT": "5", "ECHO_OWED": "0",
                  "ECHO_REASON": "peer-closed", "PRIORITY": "6", "SYSLOG_IDENTIFIER": "tcp-echo"}, "fields")
    assert int(entry["ECHO_DURATION_USEC"]) > 0 and int(entry["ECHO_CONNECTION"]) > 0, "no duration or number"


@promise([shell("rm /usr/lib/systemd/catalog/tcp-echo.catalog; journalctl --update-catalog"),
          shell("sed -i s/@ECHO_PEER@/@ECHO_OTHER@/ /usr/lib/systemd/catalog/tcp-echo.catalog;"
                "journalctl --update-catalog")])
def journalctl_x_explains_the_end_of_a_connection(box):
    box.start()
    with box.connect() as client:
        peer = "{}:{}".format(*client.getsockname())
    box.events(CLOSED)
    text = box.run(f"journalctl -q --no-pager -x -o short MESSAGE_ID={CLOSED}")
    explained = "\n".join(text for text in text.splitlines() if text.startswith("░░"))
    has(text, "░░", "journalctl -x")
    has(explained, peer, "the explanation")
    equal(re.findall(r"@\w+@", explained), [], "fields that were not filled in")


@promise(line(SERVICE, (EXEC, EXEC + " --log off")))
def usr1_reports_the_counters_and_the_queues_of_the_sockets(box):
    box.start()
    box.serves()
    box.run("systemctl kill -s USR1 tcp-echo")
    entry = box.events(COUNTERS)[0]
    equal((entry["ECHO_ACCEPTED"], entry["ECHO_SENT"]), ("1", "5"), "counters")
    equal(sorted(entry["ECHO_QUEUES"].split(", ")),
          [f"{host}:7 0 of 4096 waiting and 0 dropped" for host in ("127.0.0.1", "[::1]")], "queues")


@promise([line(SERVICE, ("ProcSubset=pid", "ProcSubset=all"), ("ProtectProc=invisible", "")),
          shell("echo 1000 > /proc/sys/net/core/somaxconn")])
def what_the_sandbox_hides_is_not_logged_and_what_the_socket_knows_is(box):
    box.start()
    box.serves()
    has(box.events(KERNEL)[0]["MESSAGE"], "its settings cannot be seen from here", "the kernel's settings")
    equal([name for name in box.events(KERNEL)[0] if name.startswith("ECHO_")], [], "fields of the kernel")
    for entry in box.events(LISTENING):
        has(entry["ECHO_OPTIONS"], "backlog=4096", "options of the listener")


@promise(line(SERVICE, (EXEC, EXEC + " --log off")))
def journald_may_be_restarted_and_no_entry_is_lost(box):
    box.start()
    for number in range(60):
        if number in (20, 40):
            box.run(f"systemctl restart {JOURNALD}")
        box.serves()
        time.sleep(0.02)
    until(lambda: len(box.journal(f"MESSAGE_ID={CLOSED}")) == 60, "sixty ends are logged", 5)


@promise([line(SERVICE, (EXEC, EXEC + " --log off")),
          line(SERVICE, (EXEC, "ExecStart=/bin/sh -c '(while sleep 0.1; do read -r x < /etc/freeze; kill -$$x $$$$; "
                               "done) 2>/dev/null & exec /usr/bin/tcp-echo'"))])
def a_frozen_journald_does_not_stop_the_echo_and_what_is_lost_is_counted(box):
    box.write(CONFIG, "[log]\nconnection-rate = 1000000\n")
    box.start()
    box.serves()
    box.events(CLOSED)
    journald = box.pid(JOURNALD)
    box.run(f"kill -STOP {journald}; echo STOP > /etc/freeze")
    try:
        # With a byte each, as connections without any are summed up.
        for _ in range(3000):
            with box.connect(timeout=5) as client:
                client.sendall(b"x")
                client.recv(1)
        with box.connect(timeout=5) as client:
            client.sendall(b"still")
            equal(client.recv(5), b"still", "the echo beside a frozen journald")
    finally:
        box.run(f"echo CONT > /etc/freeze; kill -CONT {journald}")
    lost = until(lambda: box.journal(f"MESSAGE_ID={LOST}"), "the count of what was lost", 10)

    def accounted():
        count = sum(int(entry["ECHO_COUNT"]) for entry in box.journal(f"MESSAGE_ID={LOST}"))
        return len(box.journal(f"MESSAGE_ID={CLOSED}")) + count == 3002

    until(accounted, "logged and lost ends make 3002", 10)
    assert int(lost[0]["ECHO_COUNT"]) > 0, "nothing lost"


@promise(line(SERVICE, ("LogRateLimitIntervalSec=1s", "LogRateLimitIntervalSec=30s"),
              ("LogRateLimitBurst=1000000", "LogRateLimitBurst=500")))
def at_level_trace_the_journal_takes_every_entry(box):
    box.edit(SERVICE, f"[Service]\nExecStart=\n{EXEC} --log trace\n")
    box.start()
    with box.connect() as client:
        for _ in range(2000):
            client.sendall(b"x")
            equal(client.recv(1), b"x", "the echo")
            # Not faster than the daemon's own queue for the log is emptied.
            time.sleep(0.001)
    until(lambda: len(box.journal(f"MESSAGE_ID={MOVED}")) >= 2000, "two thousand turns are logged", 5)
