"""Stopping: no connection is cut off, and the next caller is served."""

import time

from bench import SERVICE, SOCKET, drain, equal, fill, line, promise, shell, until


@promise([line(SERVICE, ("TimeoutStopSec=30s", "TimeoutStopSec=30s\nKillSignal=SIGKILL")),
          line(SERVICE, ("TimeoutStopSec=30s", "TimeoutStopSec=500ms"), ("NotifyAccess=exec", "Type=exec"),
               ("WatchdogSec=10s", ""))])
def a_stop_echoes_what_had_arrived_then_ends_every_connection(box):
    box.start()
    with box.connect() as owed, box.connect() as idle:
        sent, arrived = fill(owed)
        idle.sendall(b"done")
        equal(idle.recv(4), b"done", "the idle one's echo")
        stop = box.begin(f"systemctl stop {SERVICE}")
        equal(drain(idle), b"", "the idle one's end")
        # Longer than a wrong time-out, and less than stop-timeout.
        time.sleep(1.5)
        back = drain(owed)
        assert sent.startswith(back), "other bytes came back than were sent"
        assert len(back) >= arrived, f"{arrived} bytes had arrived, {len(back)} came back"
        equal(stop.wait(20), 0, "systemctl stop")
    equal(box.show(SERVICE, "Result"), "success", "the result")


@promise(line(SOCKET, ("Documentation=man:tcp-echo(8)", "PartOf=tcp-echo.service")))
def after_a_stop_of_the_service_the_next_caller_starts_it_again(box):
    box.start()
    box.serves()
    box.run(f"systemctl stop {SERVICE}")
    equal(box.state(SERVICE), "inactive", "the service")
    box.serves()


@promise(shell("printf '[Unit]\\nDescription=x\\n[Socket]\\nListenStream=127.0.0.1:7\\n"
               "Service=tcp-echo.service\\nFileDescriptorName=x\\n[Install]\\nWantedBy=sockets.target' "
               "> /etc/systemd/system/x.socket; sed -i s/^ListenStream=127.*// /usr/lib/systemd/system/tcp-echo.socket;"
               "systemctl daemon-reload; systemctl start x.socket"))
def a_stop_of_socket_and_service_closes_the_port(box):
    box.start()
    box.serves()
    box.run(f"systemctl stop {SOCKET} {SERVICE}")
    until(lambda: box.state(SERVICE) == "inactive", "the service has ended")
    box.refuses()
    box.refuses(host="::1")
