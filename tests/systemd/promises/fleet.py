"""Behind a balancer: health checks, a drain, and a stop that is announced."""

import time

from bench import SERVICE, SOCKET, drain, equal, has, line, promise, shell, until

HEALTH = "tcp-echo-health.socket"


def health(box):
    """What a health check is answered."""
    with box.connect(port=9108) as client:
        return drain(client).decode()


def begin(box, text=""):
    """Starts the service with the health socket that the package has as an example."""
    if text:
        box.configure(text)
    box.example(HEALTH)
    box.run(f"systemctl start {SOCKET} {HEALTH}")
    box.serves()


@promise([shell(f"sed -i s/^Service=.*// /usr/share/doc/tcp-echo/examples/{HEALTH}; "
                f"cp /usr/lib/systemd/system/{SERVICE} /etc/systemd/system/tcp-echo-health.service"),
          shell(f"sed -i s/^FileDescriptorName=.*// /usr/share/doc/tcp-echo/examples/{HEALTH}")])
def a_health_socket_answers_and_closes_with_the_other_sockets(box):
    begin(box)
    equal(health(box), "up ready\n", "the answer")
    box.run(f"systemctl stop {SERVICE}")
    equal(health(box), "up ready\n", "the answer of the service that the check has started")
    box.serves()
    box.run(f"systemctl stop {SERVICE}")
    box.run(f"systemctl stop {SOCKET} {HEALTH}")
    box.refuses(port=9108)
    box.refuses()


@promise(line(SERVICE, ("FileDescriptorStoreMax=16", "FileDescriptorStoreMax=0")))
def a_drain_lasts_over_a_restart_and_ends_with_undrain(box):
    begin(box)
    with box.connect() as client:
        client.sendall(b"a")
        equal(client.recv(1), b"a", "before")
        box.run("tcp-echo drain")
        # A signal is acted on at once, but the command does not wait for that.
        until(lambda: health(box) == "up drain\n", "the answer is up drain")
        has(box.status(), "drained: ", "the status")
        box.run(f"systemctl restart {SERVICE}")
        equal(health(box), "up drain\n", "the answer after a restart")
        client.sendall(b"b")
        equal(client.recv(1), b"b", "after the restart")
        box.run(f"tcp-echo undrain {SERVICE}")
        until(lambda: health(box) == "up ready\n", "the answer is up ready again")
    box.run(f"systemctl stop {SOCKET} {HEALTH} {SERVICE}")
    status, text = box.try_("tcp-echo drain")
    equal(status, 69, f"the status without a daemon ({text})")


# Each of these lines alone lets the daemon send messages.
@promise(line(SERVICE, ("NotifyAccess=exec", "Type=exec"), ("WatchdogSec=10s", ""),
              ("FileDescriptorStoreMax=16", "")))
def a_lame_duck_is_served_to_its_end_although_it_is_longer_than_the_unit_allows(box):
    box.write(f"/etc/systemd/system/{SERVICE}.d/short.conf", "[Service]\nTimeoutStopSec=1s\n")
    begin(box, "[limits]\nlame-duck = '4s'\n")
    with box.connect() as client:
        client.sendall(b"a")
        equal(client.recv(1), b"a", "before")
        began = time.monotonic()
        stop = box.begin(f"systemctl stop {SERVICE}")
        while time.monotonic() - began < 3.5:
            time.sleep(0.25)
            equal(health(box), "up drain\n", "the answer in the lame duck")
            client.sendall(b"b")
            equal(client.recv(1), b"b", "in the lame duck")
            box.serves()
        equal(box.state(SERVICE), "deactivating", "the service")
        has(box.status(), "lame duck: ", "the status")
        equal(drain(client), b"", "the end")
        equal(stop.wait(20), 0, "systemctl stop")
        assert time.monotonic() - began >= 4, "the stop began early"
    equal(box.show(SERVICE, "Result"), "success", "the result")
