"""The sandbox: what the service may not do, and that it can say so."""

import re

from bench import (CONFIG, SERVICE, SOCKET, STANDALONE, START_FAILED, equal, has, line, promise,
                   shell, until)

EXAMPLES = ("tcp-echo@.socket", "tcp-echo@.service", "tcp-echo-unix.socket")


@promise(line(SERVICE, ("PrivateUsers=yes", "PrivateUsers=no")))
def the_exposure_of_the_service_is_0_2_at_most(box):
    box.start()
    for unit, most in ((SERVICE, 0.2), (STANDALONE, 1.5)):
        text = box.run(f"systemd-analyze security --no-pager {unit}")
        found = float(re.search(r"Overall exposure level for \S+: ([0-9.]+)", text)[1])
        box.figure(f"exposure of {unit}", found)
        assert found <= most, f"{unit}: {found}:\n" + "\n".join(t for t in text.splitlines() if t.startswith("✗"))


@promise([line(SERVICE, ("PrivateUsers=yes", "PrivateUser=yes")),
          shell("sed -i s/SocketMode/SocketMod/ /usr/share/doc/tcp-echo/examples/tcp-echo-unix.socket"),
          line(STANDALONE, ("ProcSubset=all", "ProcSubset=some"))])
def systemd_analyze_verify_finds_nothing(box):
    for name in EXAMPLES:
        box.example(name)
    units = " ".join([SOCKET, SERVICE, STANDALONE, *EXAMPLES]).replace("@.", "@7007.")
    # Only warnings about these units: other packages' units have warnings of their own.
    said = box.try_(f"systemd-analyze verify --man=no {units}")[1]
    equal([text for text in said.splitlines() if "tcp-echo" in text], [], "systemd-analyze verify")


@promise([line(SERVICE, ("PrivateNetwork=yes", "PrivateNetwork=no")),
          line(SERVICE, ("DynamicUser=yes", "DynamicUser=no")),
          line(SERVICE, ("CapabilityBoundingSet=", "CapabilityBoundingSet=CAP_CHOWN"), ("PrivateUsers=yes", "")),
          line(SERVICE, ("LimitCORE=0", ""))])
def the_daemon_has_no_privilege_no_network_and_leaves_no_core(box):
    box.start()
    box.serves()
    pid = box.pid()
    status = dict(re.findall(r"^(\w+):\s*(.*)$", box.run(f"cat /proc/{pid}/status"), re.M))
    for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb"):
        equal(int(status[name], 16), 0, name)
    equal((status["NoNewPrivs"], status["Seccomp"]), ("1", "2"), "NoNewPrivs, Seccomp")
    assert int(status["Uid"].split()[0]) > 60000, f"the user is {status['Uid']}"
    other = box.run(f"readlink /proc/{pid}/ns/net /proc/1/ns/net").split()
    assert other[0] != other[1], "it has the network of the host"
    has(box.run(f"cat /proc/{pid}/net/dev"), "lo:", "its network")
    equal(len(box.run(f"tail -n +3 /proc/{pid}/net/dev").splitlines()), 1, "its interfaces")
    core = re.search(r"Max core file size +(\d+|unlimited) +(\d+|unlimited)", box.run(f"cat /proc/{pid}/limits"))
    equal(core.groups(), ("0", "0"), "the limit of core files")


@promise([line(SERVICE, ("RestrictAddressFamilies=AF_UNIX", "")),
          line(SERVICE, ("RestartPreventExitStatus=2 69 77 78", "RestartPreventExitStatus=2 78"))])
def it_cannot_listen_by_itself_and_reports_what_to_do(box):
    box.write(CONFIG, '[listener.own]\naddress = "127.0.0.1:9999"\n')
    box.run(f"systemctl start --no-block {SERVICE}")
    until(lambda: box.state(SERVICE) in ("failed", "active"), "the start is over")
    has(box.events(START_FAILED)[0]["MESSAGE"], STANDALONE, "the message")


@promise(shell(f"chmod 600 {CONFIG}"))
def the_configuration_is_readable_for_the_service_also_after_an_edit_that_renames(box):
    box.run(f"cp -p {CONFIG} {CONFIG}.new; sed -i 's/^#max-connections = .*/max-connections = 7/' {CONFIG}.new; "
            f"mv {CONFIG}.new {CONFIG}")
    box.start()
    box.serves()
    assert box.journal("ECHO_MAX_CONNECTIONS=7"), "it did not start with the edited configuration"
    box.run("systemctl reload tcp-echo")


@promise([line(SERVICE, ("ProtectSystem=strict", "ProtectSystem=no"), ("PrivateTmp=yes", ""), ("DynamicUser=yes", "User=mail")),
          line(SERVICE, ("ConfigurationDirectory=tcp-echo", "ConfigurationDirectory=tcp-echo\nStateDirectory=tcp-echo"))])
def the_service_can_write_nowhere_that_lasts(box):
    box.start()
    box.serves()
    pid = box.pid()
    uid = box.run(f"stat -c %u /proc/{pid}")
    _, said = box.try_(f"nsenter -t {pid} -m setpriv --reuid {uid} --regid {uid} --clear-groups "
                       "find / -type d ( -path /proc -o -path /sys -o -path /dev ) -prune -o "
                       "-type d -writable -print 2>/dev/null".replace("(", "'('").replace(")", "')'"))
    found = {path for path in said.splitlines() if not path.startswith("/run/host")}
    # Its own folders, removed with it; the lock folder is for all users, in memory.
    assert found <= {"/tmp", "/var/tmp", "/run/lock"}, f"it can write to {sorted(found)}"
