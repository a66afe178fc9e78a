"""The package: install, upgrade, remove, purge, and what the administrator's changes come to."""

from bench import (CONFIG, METRICS, SERVICE, SOCKET, STANDALONE, UNITS, UPGRADE, equal, has, package, promise,
                   shell, until)
from crowd import Caller

INSTALL = "apt-get install -q -y /deb/tcp-echo.deb"


@promise([package("tcp-echo", "rm usr/lib/systemd/system-preset/*"),
          package("tcp-echo", "mkdir -p etc/systemd/system/multi-user.target.wants",
                  f"ln -s {UNITS}/{STANDALONE} etc/systemd/system/multi-user.target.wants/")], bare=True)
def a_first_installation_neither_enables_nor_starts_anything(box):
    box.run(INSTALL)
    for unit in (SOCKET, SERVICE, STANDALONE, METRICS):
        equal(box.state(unit), "inactive", f"the state of {unit}")
        has("disabled static", box.try_(f"systemctl is-enabled {unit}")[1].strip(), f"{unit} is")
    equal(box.run("ss -ltnH"), "", "listeners")
    box.start()
    box.serves()


@promise(package("tcp-echo", "printf '#!/bin/sh\\nset -e\\nsystemctl daemon-reload\\n' > DEBIAN/postinst"), bare=True)
def an_installation_without_a_running_systemd_does_not_fail(box):
    # As in the making of an image: nothing of systemd is to be seen.
    said = box.run(f"unshare -m sh -c 'mount -t tmpfs tmpfs /run; {INSTALL}' 2>&1")
    has(box.run("dpkg-query -W -f '${Status}' tcp-echo"), "ok installed", f"the package, after {said}")
    equal(box.run("systemctl is-enabled tcp-echo.socket || true"), "disabled", "the socket")


@promise(package("tcp-echo", "printf '#!/bin/sh\\nset -e\\ndeb-systemd-helper enable tcp-echo.socket\\n' > DEBIAN/postinst"),
         bare=True)
def an_installation_where_systemd_is_not_installed_enables_nothing(box):
    # deb-systemd-helper asks the presets through systemctl only.
    systemctl = box.run("command -v systemctl").strip()
    box.run(f"mv {systemctl} {systemctl}.away; {INSTALL}; mv {systemctl}.away {systemctl}; systemctl daemon-reload")
    has(box.run("dpkg-query -W -f '${Status}' tcp-echo"), "ok installed", "the package")
    equal(box.run("find /etc/systemd/system -lname '*tcp-echo*'"), "", "links that enable a unit")
    for unit in (SOCKET, STANDALONE, METRICS):
        equal(box.try_(f"systemctl is-enabled {unit}")[1].strip(), "disabled", f"{unit} is")


@promise([package("newer", "sed -i '2i systemctl restart tcp-echo.socket' DEBIAN/postinst"),
          package("newer", "printf '#!/bin/sh\\nexit 0\\n' > DEBIAN/postinst")])
def an_upgrade_refuses_no_caller_and_brings_the_new_version(box):
    box.start()
    sockets = box.sockets()
    with box.connect() as connected, Caller(box) as caller:
        connected.sendall(b"a")
        equal(connected.recv(1), b"a", "the connected client before")
        pid = box.pid()
        # One in the queue: it is accepted when the daemon goes on.
        box.run(f"kill -STOP {pid}")
        waiting = box.connect()
        waiting.sendall(b"w")
        box.run(UPGRADE)
        equal(waiting.recv(1), b"w", "the echo for a waiting caller")
        waiting.close()
        connected.sendall(b"b")
        equal(connected.recv(1), b"b", "the connected client afterwards, which goes on")
    caller.check(least=1)
    equal(box.sockets(), sockets, "the sockets, which were never closed")
    has(box.run("dpkg-query -W tcp-echo"), "+newer", "the version")
    until(lambda: box.state(SERVICE) == "active", "the service is active")
    # Not by the watchdog, later.
    equal(box.show(SERVICE, "NRestarts"), "0", "restarts by systemd's own will")
    assert box.pid() not in (0, pid), "the old process goes on"
    box.serves()


@promise(package("newer", "printf '#!/bin/sh\\nsystemctl start tcp-echo.service\\n' > DEBIAN/postinst"))
def an_upgrade_starts_nothing_that_was_stopped(box):
    box.run(UPGRADE)
    for unit in (SOCKET, SERVICE, STANDALONE):
        equal(box.state(unit), "inactive", f"the state of {unit}")
    equal(box.try_(f"systemctl is-enabled {SOCKET}")[1].strip(), "disabled", f"{SOCKET} is")


@promise(package("newer", "printf '#!/bin/sh\\nsystemctl disable tcp-echo.socket\\n' > DEBIAN/postinst"))
def an_upgrade_keeps_what_was_enabled(box):
    box.run(f"systemctl enable --now {SOCKET}")
    box.run(UPGRADE)
    equal(box.try_(f"systemctl is-enabled {SOCKET}")[1].strip(), "enabled", f"{SOCKET} is")
    equal(box.state(SOCKET), "active", "the socket")


@promise(package("newer", "echo '# new' >> etc/tcp-echo/config.toml", "sed -i /config.toml/d DEBIAN/conffiles"))
def a_local_edit_of_the_configuration_outlasts_an_upgrade(box):
    edited = box.file(CONFIG).read_text() + "\n# edited\n"
    box.write(CONFIG, edited)
    box.run(UPGRADE)
    equal(box.file(CONFIG).read_text(), edited, "the configuration")


@promise(shell("printf '#!/bin/sh\\nexit 0\\n' > /var/lib/dpkg/info/tcp-echo.prerm"))
def a_removal_closes_the_port_and_keeps_the_configuration(box):
    box.start()
    box.serves()
    box.run("apt-get remove -q -y tcp-echo")
    box.refuses()
    assert box.file(CONFIG).exists(), "the configuration is gone"
    box.run(INSTALL)
    box.start()
    box.serves()


@promise(package("newer", "printf '#!/bin/sh\\nexit 0\\n' > DEBIAN/prerm"))
def a_removal_stops_the_standalone_unit_too_and_an_upgrade_restarts_it(box):
    box.run(f"systemctl start {STANDALONE}")
    box.serves()
    pid = box.pid(STANDALONE)
    box.run(UPGRADE)
    assert box.pid(STANDALONE) not in (0, pid), "the old process goes on"
    box.serves()
    box.run("apt-get remove -q -y tcp-echo")
    box.refuses()


@promise([shell("printf '#!/bin/sh\\nexit 0\\n' > /var/lib/dpkg/info/tcp-echo.postrm"),
          shell(f"mkdir -p /etc/systemd/system/multi-user.target.wants; ln -s {UNITS}/{SERVICE} "
                "/etc/systemd/system/multi-user.target.wants/"),
          shell("sed -i /config.toml.d/d /var/lib/dpkg/info/tcp-echo.postrm; "
                "sed -i 's/purge ]; then/purge ]; then :/' /var/lib/dpkg/info/tcp-echo.postrm")])
def a_purge_leaves_nothing(box):
    box.configure("[limits]\nidle-timeout = \"1h\"\n")
    box.run(f"systemctl enable --now {SOCKET}")
    box.serves()
    box.run("apt-get purge -q -y tcp-echo")
    box.refuses()
    left = box.run("find / -xdev '(' -path /proc -o -path /deb -o -path /var/log -o -path /var/lib/dpkg/info -o "
                   "-path /var/cache -o -path /tmp ')' -prune -o -name '*tcp-echo*' -print; "
                   "find /etc /var/lib/systemd /run/systemd -lname '*tcp-echo*'")
    equal(left, "", "what is left")
    equal(box.run("systemctl list-units --all --no-legend 'tcp-echo*'"), "", "units that are left")


@promise(shell("sed -i 's/^Depends:.*/Depends: libc6 (>= 2.41)/' /var/lib/dpkg/status"))
def the_package_needs_no_c_library_newer_than_that_of_debian_12(box):
    depends = box.run("dpkg-query -W -f '${Depends}' tcp-echo")
    versions = [part.partition(">=")[2].strip(" )") for part in depends.split(",") if "libc6" in part]
    for version in versions:
        box.run(f"dpkg --compare-versions {version} le 2.36")


@promise(shell("rm -r /usr/share/doc/tcp-echo/examples"))
def binary_units_configuration_and_examples_are_where_they_belong(box):
    for path in ("/usr/bin/tcp-echo", CONFIG, f"{UNITS}/{SOCKET}", f"{UNITS}/{SERVICE}", f"{UNITS}/{STANDALONE}",
                 "/usr/share/doc/tcp-echo/examples/tcp-echo@.service", "/usr/share/doc/tcp-echo/copyright",
                 "/usr/share/man/man8/tcp-echo.8.gz", "/usr/share/man/man5/tcp-echo.toml.5.gz",
                 "/usr/share/man/man1/tcp-echo-ping.1.gz", "/usr/share/man/man1/tcp-echo-probe.1.gz", "/usr/share/doc/tcp-echo/docs/ping-summary.schema.json",
                 "/usr/lib/systemd/catalog/tcp-echo.catalog", f"{UNITS}/{METRICS}",
                 "/usr/share/tcp-echo/grafana/tcp-echo.json", "/usr/share/tcp-echo/prometheus/tcp-echo.rules.yml"):
        assert box.file(path).exists(), f"{path} is not there"
    equal(box.run("dpkg -L tcp-echo | grep ^/lib/ || true"), "", "files below /lib")
