"""From where it can be reached: loopback, a network with an allow-list, and listeners of its own."""

from bench import (CONFIG, SERVICE, SOCKET, STANDALONE, Change, equal, has, later, line, promise, readme,
                   shell, until)

# An interface to a network, and a stranger's address (RFC 5737).
HERE, FRIEND, STRANGER = "192.0.2.1", "192.0.2.2", "203.0.113.9"


def net(box):
    """Gives the box addresses of a network, a friend's and a stranger's."""
    for address in (HERE, FRIEND, STRANGER):
        box.run(f"ip address add {address}/32 dev lo")


def answers(box, source):
    """Whether a caller from this source reaches the box."""
    try:
        return box.echo(b"hi", host=HERE, source=source, timeout=1.5) == b"hi"
    except TimeoutError:
        return False


def reach(box):
    """Which of the two sources reach the box."""
    return {name for name, source in (("friend", FRIEND), ("stranger", STRANGER)) if answers(box, source)}


def allow_every_address(box):
    """An allow-list that allows everything."""
    box.write(f"/etc/systemd/system/{SOCKET}.d/z.conf", "[Socket]\nIPAddressAllow=any\n")


@promise(Change(f"{SOCKET}: IPAddressAllow=any", allow_every_address))
def the_drop_in_of_the_readme_opens_it_to_a_network_and_to_no_other(box):
    net(box)
    box.edit(SOCKET, readme(SOCKET))
    box.run(f"systemctl restart {SOCKET}")
    equal(reach(box), {"friend"}, "the hosts that get an echo")
    box.serves()


@promise(Change("the change of the list is forgotten", lambda box: setattr(box, "forgetful", True)))
def an_allow_list_that_is_changed_is_in_force_after_a_restart_of_the_socket(box):
    net(box)
    box.edit(SOCKET, readme(SOCKET))
    box.run(f"systemctl restart {SOCKET}")
    equal(reach(box), {"friend"}, "the hosts that get an echo before")
    changed = readme(SOCKET).replace("192.0.2.0/24", "203.0.113.0/24")
    box.edit(SOCKET, readme(SOCKET) if hasattr(box, "forgetful") else changed)
    box.run(f"systemctl restart {SOCKET}")
    equal(reach(box), {"stranger"}, "the hosts that get an echo after")


@promise([line(STANDALONE, ("PrivateNetwork=no", "PrivateNetwork=yes")),
          line(STANDALONE, ("AmbientCapabilities=CAP_NET_BIND_SERVICE", "AmbientCapabilities="))])
def the_standalone_unit_listens_by_itself_where_the_socket_unit_would(box):
    box.run(f"systemctl start {STANDALONE}")
    for host in ("127.0.0.1", "::1"):
        box.serves(host=host)
    equal(box.state(SOCKET), "inactive", "the socket")
    box.run(f"systemctl reload {STANDALONE}")
    box.run(f"systemctl stop {STANDALONE}")
    box.refuses()


@promise([line(STANDALONE, ("RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6", "RestrictAddressFamilies=AF_UNIX AF_INET6")),
          later(STANDALONE, "[Service]\nUMask=0000\n"), later(STANDALONE, "[Service]\nSystemCallFilter=~chmod fchmodat\n"),
          line(STANDALONE, ("PrivateTmp=yes", "PrivateTmp=no"))])
def the_standalone_unit_listens_where_the_configuration_says(box):
    box.edit(STANDALONE, "[Service]\nExecStart=\nExecStart=/usr/bin/tcp-echo\n")
    box.write(CONFIG, '[listener.high]\naddress = "127.0.0.1:7007"\n'
                      '[listener.local]\naddress = "unix:/run/tcp-echo/echo.sock"\n')
    box.run(f"systemctl start {STANDALONE}")
    box.serves(port=7007)
    box.serves(host="/run/tcp-echo/echo.sock")
    # For root and the service itself, until the configuration says otherwise.
    other_user = "printf hi | setpriv --reuid nobody --clear-groups nc -N -U /run/tcp-echo/echo.sock"
    assert box.try_(other_user)[1].strip() != "hi", "another user has an echo over the Unix socket"
    box.write(CONFIG, '[listener.local]\naddress = "unix:/run/tcp-echo/echo.sock"\nmode = "0666"\n'
                      '[listener.lost]\naddress = "unix:/tmp/echo.sock"\n')
    box.run(f"systemctl restart {STANDALONE}")
    warned = [entry["MESSAGE"] for entry in box.journal("PRIORITY=4", unit=STANDALONE)]
    has("\n".join(warned), "(PrivateTmp= in the unit)", "warnings")
    equal(box.run(other_user), "hi", "a user's echo over the Unix socket")


@promise(shell("ip link add spare0 type veth peer name spare1"))
def the_standalone_unit_warns_when_no_other_host_can_reach_it(box):
    box.edit(STANDALONE, "[Service]\nExecStart=\nExecStart=/usr/bin/tcp-echo --listen *:7\n")
    box.run(f"systemctl start {STANDALONE}")
    until(lambda: box.journal(unit=STANDALONE), "the journal")
    warned = [entry["MESSAGE"] for entry in box.journal("PRIORITY=4", unit=STANDALONE)]
    has("\n".join(warned), "no interface but lo", "warnings")


@promise(shell("sed -i s/^FileDescriptorName=.*/FileDescriptorName=same/ /usr/share/doc/tcp-echo/examples/tcp-echo@.socket"))
def instances_of_the_template_have_ports_and_processes_of_their_own(box):
    box.example("tcp-echo@.socket")
    box.example("tcp-echo@.service")
    box.write(CONFIG, '[listener.7007]\ndscp = 10\n')
    box.run("systemctl enable --now tcp-echo@7007.socket tcp-echo@7008.socket")
    box.serves(port=7007)
    box.serves(port=7008, host="::1")
    one, other = (box.pid(f"tcp-echo@{port}.service") for port in (7007, 7008))
    assert one != other and one and other, f"processes {one} and {other}"
    names = {entry["ECHO_LISTENER"] for entry in box.journal(unit="tcp-echo@*") if "ECHO_PEER" in entry}
    equal(names, {"7007", "7008"}, "names of the listeners")
    # The table of 7007 is none of the other's business.
    warned = [entry["MESSAGE"] for entry in box.journal("PRIORITY=4", unit="tcp-echo@*")]
    assert not any("has no socket" in text for text in warned), f"warnings: {warned}"
    box.run("systemctl stop tcp-echo@7007.socket tcp-echo@7007.service")
    box.refuses(port=7007)
    box.serves(port=7008)


@promise(line(SOCKET, ("FreeBind=yes", "")))
def a_host_without_ipv6_has_the_ipv4_listener(box):
    with box.network():
        with open("/proc/thread-self/net/if_inet6") as text:
            assert text.read(), "the box had no IPv6 to begin with"
    box.run("nsenter -t 1 -n sh -c 'echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6'")
    box.start()
    box.serves()
    box.run(f"systemctl stop {SOCKET} {SERVICE}")
    box.run(f"systemctl start {STANDALONE}")
    box.serves()
