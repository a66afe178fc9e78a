"""The metrics of the packaged service, as a Prometheus of Debian reads them."""

import contextlib
import http.client
import json
import shutil
import subprocess
import urllib.error
import urllib.request

from bench import CONFIG, METRICS, SERVICE, SOCKET, UNITS, equal, has, line, promise, shell, until

PORT = 9107

# Below /usr/share in the package.
RULES = "/usr/share/tcp-echo/prometheus/tcp-echo.rules.yml"


def get(box, path, port=PORT):
    """The status and the body of a response in the box."""
    with box.network():
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except (OSError, http.client.HTTPException) as error:
            return 0, str(error)


def value(box, sample):
    """The value of a sample, which is named with its labels."""
    status, text = get(box, "/metrics")
    equal(status, 200, "the status of /metrics")
    for found in text.splitlines():
        if found.startswith(sample + " "):
            return float(found.rpartition(" ")[2])
    raise AssertionError(f"no {sample} in {text}")


@contextlib.contextmanager
def prometheus(box, rules):
    """The Prometheus of this machine in the network of the box, which asks five times a second."""
    assert shutil.which("prometheus"), "apt-get install prometheus"
    folder = box.path / "prometheus"
    folder.mkdir()
    (folder / "rules.yml").write_text(rules)
    (folder / "prometheus.yml").write_text(json.dumps({
        "global": {"scrape_interval": "200ms", "scrape_timeout": "200ms", "evaluation_interval": "200ms"},
        "rule_files": ["rules.yml"],
        "scrape_configs": [{"job_name": "tcp-echo", "static_configs": [{"targets": [f"127.0.0.1:{PORT}"]}]}]}))
    command = ["nsenter", "-t", str(box.leader), "-n", "prometheus", f"--config.file={folder}/prometheus.yml",
               f"--storage.tsdb.path={folder}/data", "--web.listen-address=127.0.0.1:9090"]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *command], stdin=subprocess.DEVNULL,
                                   stdout=log, stderr=subprocess.STDOUT)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def asked(box, path):
    """What Prometheus answers, or nothing."""
    status, text = get(box, path, port=9090)
    return json.loads(text)["data"] if status == 200 else None


def firing(box):
    """The names of the alerts that fire."""
    return {alert["labels"]["alertname"] for alert in (asked(box, "/api/v1/alerts") or {"alerts": []})["alerts"]
            if alert["state"] == "firing"}


@promise([line(METRICS, ("FileDescriptorName=metrics", "FileDescriptorName=other")),
          shell(f"sed -i 's/>= 0.9/>= 9/' {RULES}")])
def prometheus_scrapes_it_through_its_socket_and_an_alert_fires(box):
    box.write(CONFIG, "[limits]\nmax-connections = 3\n")
    box.run(f"systemctl start {METRICS} {SOCKET}")
    rules = "".join(text for text in box.file(RULES).open() if "for:" not in text)
    with prometheus(box, rules):
        up = lambda: (asked(box, "/api/v1/query?query=up") or {"result": []})["result"]
        until(lambda: up() and up()[0]["value"][1] == "1", lambda: f"the service is up for Prometheus: {up()}")
        near = "TcpEchoNearLimit"
        clients = []
        for _ in range(3):
            assert near not in firing(box), f"the alert fires with {len(clients)} connections"
            clients.append(box.connect())
            clients[-1].sendall(b"a")
            equal(clients[-1].recv(1), b"a", "an echo")
        until(lambda: near in firing(box), lambda: f"the alert fires: {firing(box)}")
        for client in clients:
            client.close()
        until(lambda: near not in firing(box), lambda: f"the alert ends: {firing(box)}")


@promise(line(METRICS, ("FileDescriptorName=metrics", "FileDescriptorName=other")))
def metrics_and_health_are_served_although_the_service_has_no_network(box):
    box.start()
    box.serves()
    status, _ = get(box, "/healthz")
    equal(status, 0, "the status without the socket")
    with box.connect() as client:
        client.sendall(b"a")
        equal(client.recv(1), b"a", "an echo before")
        # As the socket unit says.
        text = box.file(f"{UNITS}/{METRICS}").read_text()
        for command in [text.partition("#     ")[2].split("\n#     ")[number].split("\n")[0] for number in range(3)]:
            box.run(command)
    equal(get(box, "/healthz"), (200, "ok\n"), "the response to /healthz")
    box.serves()
    ended = "tcp_echo_connections_ended_total{reason=\"peer-closed\"}"
    until(lambda: value(box, ended) == 1.0, "one connection has ended since the stop")
    here, there = (box.run(f"readlink /proc/{pid}/ns/net") for pid in ("1", box.pid(SERVICE)))
    assert here != there, "the service is in the network of the host"
    # It goes on over a kill, and so does what it counts.
    until(lambda: value(box, "tcp_echo_preservation{state=\"preserving\"}") == 1.0, "preservation")
    accepted = value(box, "tcp_echo_connections_accepted_total")
    pid = box.pid(SERVICE)
    box.run(f"kill -KILL {pid}")
    until(lambda: box.pid(SERVICE) not in (0, pid), "the next process")
    until(lambda: get(box, "/healthz")[0] == 200, "health after a kill")
    assert value(box, "tcp_echo_connections_accepted_total") >= accepted > 0, "the counter began anew"
    has(get(box, "/metrics")[1], "tcp_echo_preservation{state=", "the metrics")
