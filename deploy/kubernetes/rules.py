"""What must hold for a set of Kubernetes documents. Facts in, problems out; nothing is read or run here.

Three layers: Kubernetes' own schemas (strict: an unknown field is a problem), the Pod Security level "restricted",
and what Millrace asks of every workload: identity, probes, resources, time to drain, and a configuration that fits the pod.
"""

import ipaddress
import re

import kubernetes_validate

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

KUBERNETES = "1.37"
WORKLOADS = ("Deployment", "StatefulSet")
# What "restricted" leaves of the volume kinds.
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}


def problems(documents):
    """Every problem, each beginning with the document it is in."""
    found = []
    for document in documents:
        name = f"{document.get('kind')}/{document.get('metadata', {}).get('name')}"
        found += [f"{name}: {problem}" for problem in schema(document)]
        if document.get("kind") == "Namespace" and document["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce") != "restricted":
            found.append(f"{name}: does not enforce the restricted level")
        if document.get("kind") in WORKLOADS:
            pod = document["spec"]["template"]["spec"]
            found += [f"{name}: {problem}" for check in (restricted, contained) for problem in check(pod)]
            found += [f"{name}: {problem}" for problem in workload(document, documents)]
    return found


def schema(document):
    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        yield f"schema: {'.'.join(map(str, error.path))}: {error.message[:200]}"
    except kubernetes_validate.SchemaNotFoundError as error:
        yield f"schema: {error.message}"


def containers(pod):
    for group in ("initContainers", "containers", "ephemeralContainers"):
        yield from pod.get(group, [])


def restricted(pod):
    """The Pod Security Standard "restricted", which contains "baseline"."""
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(field):
            yield f"restricted: {field} must not be set"
    for volume in pod.get("volumes", []):
        for kind in set(volume) - {"name"} - VOLUMES:
            yield f"restricted: volume {volume['name']} is a {kind}"
    pod_context = pod.get("securityContext", {})
    if pod_context.get("sysctls"):
        yield "restricted: sysctls must not be set"
    for container in containers(pod):
        name, own = container["name"], container.get("securityContext", {})

        def effective(field):
            return own.get(field, pod_context.get(field))

        if own.get("privileged"):
            yield f"restricted: {name} is privileged"
        if own.get("allowPrivilegeEscalation") is not False:
            yield f"restricted: {name} does not set allowPrivilegeEscalation: false"
        if effective("runAsNonRoot") is not True:
            yield f"restricted: {name} does not set runAsNonRoot: true"
        if effective("runAsUser") == 0:
            yield f"restricted: {name} runs as user 0"
        if (effective("seccompProfile") or {}).get("type") not in ("RuntimeDefault", "Localhost"):
            yield f"restricted: {name} has no seccomp profile"
        capabilities = own.get("capabilities", {})
        if "ALL" not in capabilities.get("drop", []):
            yield f"restricted: {name} does not drop ALL capabilities"
        if set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
            yield f"restricted: {name} adds capabilities"
        if own.get("procMount", "Default") != "Default":
            yield f"restricted: {name} sets procMount"
        selinux = effective("seLinuxOptions") or {}
        if selinux.get("user") or selinux.get("role") or selinux.get("type", "container_t") not in ("container_t", "container_init_t", "container_kvm_t", "container_engine_t"):
            yield f"restricted: {name} sets seLinuxOptions"
        if (effective("appArmorProfile") or {}).get("type") == "Unconfined":
            yield f"restricted: {name} is unconfined by AppArmor"
        if (effective("windowsOptions") or {}).get("hostProcess"):
            yield f"restricted: {name} is a host process"
        for port in container.get("ports", []):
            if port.get("hostPort"):
                yield f"restricted: {name} takes host port {port['hostPort']}"
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            for kind in ("httpGet", "tcpSocket"):
                if container.get(probe, {}).get(kind, {}).get("host"):
                    yield f"restricted: {name}'s {probe} names a host"


def contained(pod):
    """What goes beyond "restricted": nothing to write but what is mounted, no token, bounded resources, native probes."""
    if pod.get("automountServiceAccountToken") is not False:
        yield "token: the pod does not set automountServiceAccountToken: false"
    context = pod.get("securityContext", {})
    for field in ("runAsUser", "runAsGroup", "fsGroup"):
        if not isinstance(context.get(field), int) or context[field] == 0:
            yield f"identity: {field} is no number above 0"
    volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
    for volume in volumes.values():
        if "emptyDir" in volume and not (volume["emptyDir"] or {}).get("sizeLimit"):
            yield f"resources: emptyDir {volume['name']} has no sizeLimit"
    for container in containers(pod):
        name = container["name"]
        if container.get("securityContext", {}).get("readOnlyRootFilesystem") is not True:
            yield f"files: {name} does not set readOnlyRootFilesystem: true"
        tmp = [mount for mount in container.get("volumeMounts", []) if mount["mountPath"] == "/tmp"]
        if not tmp or "emptyDir" not in volumes.get(tmp[0]["name"], {}):
            yield f"files: {name} has no emptyDir at /tmp"
        requests, limits = (container.get("resources", {}).get(side, {}) for side in ("requests", "limits"))
        if not requests.get("cpu"):
            yield f"resources: {name} requests no cpu"
        if not limits.get("memory") or limits.get("memory") != requests.get("memory"):
            yield f"resources: {name}'s memory limit is not its request"
        if re.search(r"(:latest|^[^:@]+)$", container.get("image", "")):
            yield f"image: {name} has no fixed tag or digest"
        control = [port["containerPort"] for port in container.get("ports", []) if port.get("name") == "control"]
        for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
            grpc = container.get(kind, {}).get("grpc")
            if not grpc:
                yield f"probes: {name} has no {kind} by gRPC"
            elif [grpc.get("port")] != control:
                yield f"probes: {name}'s {kind} does not ask the control port"
        # A pod that has lost Kafka must leave the endpoints; killed for it, it would not come back any healthier.
        asked = {kind: (container.get(f"{kind}Probe", {}).get("grpc") or {}).get("service", "") for kind in ("startup", "liveness", "readiness")}
        if (asked["startup"], asked["liveness"], asked["readiness"]) != ("liveness", "liveness", ""):
            yield f"probes: {name} must ask `liveness` for startup and liveness, and the whole service for readiness"


def seconds(text):
    """`20s`, `1m30s`: as service configurations write durations."""
    units = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}
    parts = re.findall(r"(\d+)(ms|s|m|h)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"{text!r} is no duration")
    return sum(int(number) * units[unit] for number, unit in parts)


def workload(document, documents):
    """The documents that belong to a workload, and the configuration it mounts."""
    spec, name = document["spec"], document["metadata"]["name"]
    pod, labels = spec["template"]["spec"], spec["template"]["metadata"].get("labels", {})
    container = pod["containers"][0]

    def named(kind, wanted):
        return next((other for other in documents if other["kind"] == kind and other["metadata"]["name"] == wanted), None)

    def selects(selector):
        return bool(selector) and all(labels.get(key) == value for key, value in selector.items())

    if not selects(spec["selector"].get("matchLabels")):
        yield "selector: does not match the pod's labels"
    account = named("ServiceAccount", pod.get("serviceAccountName"))
    if account is None:
        yield f"identity: there is no ServiceAccount {pod.get('serviceAccountName')}"
    elif account.get("automountServiceAccountToken") is not False:
        yield "token: the ServiceAccount does not set automountServiceAccountToken: false"
    services = [other for other in documents if other["kind"] == "Service" and selects(other["spec"].get("selector"))]
    if not services:
        yield "service: none selects the pod"
    ports = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
    for port in (port for service in services for port in service["spec"]["ports"]):
        if port.get("targetPort") not in ports:
            yield f"service: port {port['name']} targets {port.get('targetPort')}, which the pod does not have"
    budgets = [other for other in documents if other["kind"] == "PodDisruptionBudget" and selects(other["spec"]["selector"].get("matchLabels"))]
    if not budgets:
        yield "disruption: no PodDisruptionBudget selects the pod"
    policies = [other for other in documents if other["kind"] == "NetworkPolicy" and selects(other["spec"]["podSelector"].get("matchLabels"))]
    if not any(set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"} for policy in policies):
        yield "network: no NetworkPolicy covers both ways"
    for policy in policies:
        for port in (port for rule in policy["spec"].get("ingress", []) for port in rule.get("ports", [])):
            if port["port"] not in ports:
                yield f"network: the policy opens {port['port']}, which the pod does not have"
    if document["kind"] == "StatefulSet":
        governing = named("Service", spec["serviceName"])
        if governing is None or governing["spec"].get("clusterIP") != "None":
            yield f"service: {spec['serviceName']} is not a headless Service"
        if not spec.get("volumeClaimTemplates"):
            yield "volume: a StatefulSet without volumeClaimTemplates keeps nothing"

    # Volumes and the files in them.
    claimed = {claim["metadata"]["name"] for claim in spec.get("volumeClaimTemplates", [])}
    volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
    files = {}
    for mount in container.get("volumeMounts", []):
        if mount["name"] not in claimed | set(volumes):
            yield f"volume: {mount['name']} is mounted and not there"
        source = volumes.get(mount["name"], {}).get("configMap")
        if source:
            config = named("ConfigMap", source["name"])
            if config is None:
                yield f"config: there is no ConfigMap {source['name']}"
            else:
                files.update({f"{mount['mountPath']}/{file}": text for file, text in config["data"].items()})
    for path in (path for word in container.get("args", []) for path in re.findall(r"/etc/\S+", word)):
        if path not in files:
            yield f"config: the arguments name {path}, which is not mounted"
    if not any(path.endswith(".toml") for path in files):
        yield "config: no TOML file is mounted"
    for path, text in files.items():
        if path.endswith(".toml"):
            try:
                yield from configuration(path, tomllib.loads(text), document, ports)
            except (tomllib.TOMLDecodeError, ValueError) as error:
                yield f"config: {path}: {error}"


def configuration(path, config, document, ports):
    """Does the configuration fit the pod that reads it?"""
    pod = document["spec"]["template"]["spec"]
    grace = pod.get("terminationGracePeriodSeconds", 30)
    sleep = pod["containers"][0].get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    drain = seconds(config.get("shutdown", {}).get("deadline", "20s"))
    if not sleep:
        yield "shutdown: no preStop sleep; the pod would refuse connections that are still sent to it"
    if grace < sleep + drain + 5:
        yield f"shutdown: {grace} s of grace are too short for {sleep} s preStop, {drain:g} s drain and 5 s to spare"
    if "control" not in config:
        yield f"config: {path} has no [control]; loopback cannot be probed"
    for section, keys in config.items():
        listen = keys.get("listen") if isinstance(keys, dict) else None
        # An empty one is switched off.
        if not listen:
            continue
        host, port = listen.rsplit(":", 1)
        if ipaddress.ip_address(host.strip("[]")).is_loopback:
            yield f"config: {path}: [{section}] listens on loopback, where nothing outside the pod arrives"
        if int(port) not in ports.values():
            yield f"config: {path}: [{section}] listens on {port}, which is no port of the pod"
        if section == "control" and ports.get("control") != int(port):
            yield f"config: {path}: [control] listens on {port}, and the probes ask {ports.get('control')}"
    if config.get("limits", {}).get("allow_plaintext") is not True:
        yield f"config: {path}: without [limits] allow_plaintext the service refuses to listen off loopback"
    if config.get("offsets", {}).get("store") == "sled":
        if document["spec"].get("replicas") != 1 or document["spec"].get("strategy", {}).get("type") != "Recreate":
            yield "offsets: the embedded store serves one process; replicas must be 1 and the strategy Recreate"
    elif "offsets" in config:
        env = {variable["name"] for variable in pod["containers"][0].get("env", [])}
        if "MILLRACE_HTTP__ADVERTISED" not in env and not config.get("http", {}).get("advertised"):
            yield "offsets: replicas hand requests on to each other, and nobody resolves a pod's name; set MILLRACE_HTTP__ADVERTISED to its address"
