"""Checks what stands in several files of packaging/kubernetes: facts.py BUILT FOLDER.

BUILT is what kustomize has built.  The configuration goes into FOLDER, as the pod has it."""

import pathlib
import re
import sys
import tomllib

import yaml

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


def seconds(span):
    """The value of a span of the configuration that is whole seconds or minutes."""
    number, unit = re.fullmatch(r"(\d+)(s|min)", span).groups()
    return int(number) * {"s": 1, "min": 60}[unit]


def equal(found, wanted, what):
    """Ends with a message unless both are the same."""
    if found != wanted:
        sys.exit(f"facts: {what}: {wanted} expected, {found} found")


def main(built, folder):
    """Checks them."""
    kinds = {}
    for thing in yaml.safe_load_all(open(built)):
        kinds.setdefault(thing["kind"], []).append(thing)
    (deployment,), (budget,), (files,) = kinds["Deployment"], kinds["PodDisruptionBudget"], kinds["ConfigMap"]
    template = deployment["spec"]["template"]
    pod = template["spec"]
    (container,) = pod["containers"]

    # The image.
    cargo = tomllib.loads((REPOSITORY / "Cargo.toml").read_text())
    equal(container["image"].rpartition(":")[2], cargo["package"]["version"], "the tag of the image")
    user = re.search(r'"User":"(\d+):(\d+)"', (REPOSITORY / "packaging/oci/build").read_text()).groups()
    equal((str(pod["securityContext"]["runAsUser"]), str(pod["securityContext"]["runAsGroup"])), user, "the user")

    # The configuration, where the daemon looks for it.
    (mount,), (volume,) = container["volumeMounts"], pod["volumes"]
    equal((mount["name"], volume["configMap"]["name"]), (volume["name"], files["metadata"]["name"]), "the volume")
    equal(mount["mountPath"], "/etc/tcp-echo/config.toml.d", "the place of the configuration")
    folder = pathlib.Path(folder)
    (folder / "config.toml.d").mkdir(exist_ok=True)
    text = (REPOSITORY / "packaging/oci/config.toml").read_text()
    (folder / "config.toml").write_text(text)
    merged = tomllib.loads(text)
    for name, text in sorted(files["data"].items()):
        (folder / "config.toml.d" / name).write_text(text)
        for table, keys in tomllib.loads(text).items():
            merged[table] = {**merged.get(table, {}), **keys} if isinstance(keys, dict) else keys

    # Its ports.
    addresses = {name: listener["address"] for name, listener in merged["listener"].items()}
    if "metrics" in merged:
        addresses["metrics"] = merged["metrics"]["address"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    equal({name: f"*:{port}" for name, port in ports.items()}, addresses, "the ports")
    equal(container["readinessProbe"]["tcpSocket"]["port"], "health", "the port of the readiness probe")
    for service in kinds["Service"]:
        equal(service["spec"]["selector"], template["metadata"]["labels"], "what a Service selects")
        for port in service["spec"]["ports"]:
            equal(port["targetPort"] in ports, True, f"the port {port['targetPort']} of a Service")
    for spec in (deployment["spec"], budget["spec"]):
        equal(spec["selector"]["matchLabels"], template["metadata"]["labels"], "what is selected")
    for monitor in kinds.get("ServiceMonitor", []):
        wanted = monitor["spec"]["selector"]["matchLabels"]
        (service,) = [service for service in kinds["Service"] if service["metadata"]["labels"] == wanted]
        equal([end["port"] for end in monitor["spec"]["endpoints"]],
              [port["name"] for port in service["spec"]["ports"]], "the port of the ServiceMonitor")

    # The end of a pod, and of a node.
    stop = (container["lifecycle"]["preStop"]["sleep"]["seconds"] + seconds(merged["limits"]["stop-timeout"])
            + seconds(merged.get("lame-duck", merged["limits"].get("lame-duck", "0s"))))
    equal(pod["terminationGracePeriodSeconds"] > stop, True, f"terminationGracePeriodSeconds > {stop}")
    equal(deployment["spec"]["replicas"] > budget["spec"]["maxUnavailable"], True, "a pod that is left")


if __name__ == "__main__":
    main(*sys.argv[1:])
