"""Builds every base with kustomize and applies the rules; then breaks the documents on purpose and asserts that each break is found."""

import copy
import os
import pathlib
import subprocess
import sys

import yaml

import rules

BASE = pathlib.Path(__file__).resolve().parent / "base"
SERVICES = ("collector", "bridge", "engine")


def build(folder):
    built = subprocess.run([os.environ["KUSTOMIZE"], "build", str(folder)], capture_output=True, text=True)
    if built.returncode:
        raise AssertionError(f"kustomize: {built.stderr.strip()}")
    return [document for document in yaml.safe_load_all(built.stdout) if document]


def of(documents, kind):
    return next(document for document in documents if document["kind"] == kind)


def workload(documents):
    return next(document for document in documents if document["kind"] in rules.WORKLOADS)


def pod(documents):
    return workload(documents)["spec"]["template"]["spec"]


def container(documents):
    return pod(documents)["containers"][0]


def config(old, new):
    def mutate(documents):
        data = of(documents, "ConfigMap")["data"]
        file = next(name for name in data if name.endswith(".toml"))
        assert old in data[file], f"{file} has no {old!r} to replace"
        data[file] = data[file].replace(old, new)

    return mutate


def drop(kind):
    return lambda documents: documents.remove(of(documents, kind))


def listen_elsewhere(documents):
    container(documents)["ports"][-1]["containerPort"] = 9999


# What is done to a good set of documents, and a word that the report must contain then.
MUTATIONS = [
    ("an unknown field in the container", lambda d: container(d).update(imagePullPolizy="Always"), "schema:"),
    ("a wrong type", lambda d: workload(d)["spec"].update(replicas="two"), "schema:"),
    ("an unknown field in the Service", lambda d: of(d, "Service")["spec"].update(ports_=[]), "schema:"),
    ("an unknown kind", lambda d: of(d, "Service").update(kind="Serwice"), "schema:"),
    ("runAsNonRoot removed", lambda d: pod(d)["securityContext"].pop("runAsNonRoot"), "runAsNonRoot"),
    ("runAsNonRoot false in the container", lambda d: container(d)["securityContext"].update(runAsNonRoot=False), "runAsNonRoot"),
    ("user 0", lambda d: pod(d)["securityContext"].update(runAsUser=0), "runs as user 0"),
    ("no numeric user", lambda d: pod(d)["securityContext"].pop("runAsUser"), "identity: runAsUser"),
    ("privileged", lambda d: container(d)["securityContext"].update(privileged=True), "is privileged"),
    ("privilege escalation left open", lambda d: container(d)["securityContext"].pop("allowPrivilegeEscalation"), "allowPrivilegeEscalation"),
    ("capabilities kept", lambda d: container(d)["securityContext"].pop("capabilities"), "drop ALL"),
    ("a capability added", lambda d: container(d)["securityContext"]["capabilities"].update(add=["NET_ADMIN"]), "adds capabilities"),
    ("no seccomp profile", lambda d: pod(d)["securityContext"].pop("seccompProfile"), "seccomp"),
    ("seccomp unconfined", lambda d: pod(d)["securityContext"].update(seccompProfile={"type": "Unconfined"}), "seccomp"),
    ("the host's network", lambda d: pod(d).update(hostNetwork=True), "hostNetwork"),
    ("a host path", lambda d: pod(d)["volumes"].append({"name": "host", "hostPath": {"path": "/"}}), "is a hostPath"),
    ("a host port", lambda d: container(d)["ports"][0].update(hostPort=80), "host port"),
    ("an init container that may do everything", lambda d: pod(d).update(initContainers=[{"name": "init", "image": "a:1"}]), "init does not drop ALL"),
    ("a writable root", lambda d: container(d)["securityContext"].update(readOnlyRootFilesystem=False), "readOnlyRootFilesystem"),
    ("no /tmp", lambda d: container(d)["volumeMounts"].pop(), "no emptyDir at /tmp"),
    ("an emptyDir without bound", lambda d: pod(d)["volumes"][-1].update(emptyDir={}), "no sizeLimit"),
    ("the token mounted", lambda d: pod(d).pop("automountServiceAccountToken"), "token: the pod"),
    ("the account's token mounted", lambda d: of(d, "ServiceAccount").update(automountServiceAccountToken=True), "token: the ServiceAccount"),
    ("no limits", lambda d: container(d)["resources"].pop("limits"), "memory limit"),
    ("no requests", lambda d: container(d)["resources"].pop("requests"), "requests no cpu"),
    ("no readiness probe", lambda d: container(d).pop("readinessProbe"), "no readinessProbe"),
    ("an HTTP probe", lambda d: container(d).update(livenessProbe={"httpGet": {"path": "/", "port": 80}}), "no livenessProbe by gRPC"),
    ("a probe on another port", lambda d: container(d)["startupProbe"]["grpc"].update(port=1), "control port"),
    ("liveness that follows readiness", lambda d: container(d)["livenessProbe"]["grpc"].pop("service"), "must ask `liveness`"),
    ("a grace as short as the drain", lambda d: pod(d).update(terminationGracePeriodSeconds=20), "shutdown: 20 s"),
    ("a drain as long as the grace", config('deadline = "20s"', 'deadline = "40s"'), "40 s drain"),
    ("no preStop", lambda d: container(d).pop("lifecycle"), "no preStop"),
    ("an image without tag", lambda d: container(d).update(image="millrace"), "no fixed tag"),
    ("the latest image", lambda d: container(d).update(image="millrace:latest"), "no fixed tag"),
    ("no account", drop("ServiceAccount"), "no ServiceAccount"),
    ("no budget", drop("PodDisruptionBudget"), "no PodDisruptionBudget"),
    ("no network policy", drop("NetworkPolicy"), "no NetworkPolicy"),
    ("no configuration", drop("ConfigMap"), "no ConfigMap"),
    ("no service", drop("Service"), "none selects the pod"),
    ("a selector for other pods", lambda d: of(d, "Service")["spec"]["selector"].update({"app.kubernetes.io/name": "other"}), "none selects the pod"),
    ("a target port by a wrong name", lambda d: of(d, "Service")["spec"]["ports"][0].update(targetPort="htpp"), "service: port"),
    ("control on loopback", config('listen = "0.0.0.0:71', 'listen = "127.0.0.1:71'), "loopback"),
    ("control on a port that nobody asks", listen_elsewhere, "is no port of the pod"),
    ("plaintext not allowed", config("allow_plaintext = true", "allow_plaintext = false"), "allow_plaintext"),
    ("a configuration that is no TOML", config("[control]", "[control"), "config:"),
    ("an argument for a file that is not there", lambda d: container(d)["args"].append("--config=/etc/millrace/other.toml"), "other.toml"),
]
# Made to the documents of one folder alone.
ONLY = {
    ".": [("a namespace that lets everything in", lambda d: of(d, "Namespace")["metadata"].pop("labels"), "does not enforce")],
    "bridge": [
        ("replicas with an embedded store", config('store = "kafka"', 'store = "sled"'), "replicas must be 1"),
        ("replicas that cannot reach each other", lambda d: container(d).pop("env"), "MILLRACE_HTTP__ADVERTISED"),
    ],
    "engine": [("nothing kept", lambda d: workload(d)["spec"].pop("volumeClaimTemplates"), "volume: data is mounted")],
    "collector": [("a Service that is not headless", lambda d: of(d, "Service")["spec"].pop("clusterIP"), "headless")],
}


def main():
    passed, failed = 0, []

    def test(name, check):
        nonlocal passed
        try:
            check()
            passed += 1
        except AssertionError as error:
            failed.append(name)
            print(f"FAILED {name}\n  {error}")

    def clean(folder):
        found = rules.problems(build(folder))
        assert not found, "\n  ".join(found)

    def caught(good, mutate, word):
        documents = copy.deepcopy(good)
        mutate(documents)
        assert documents != good, "the mutation changes nothing"
        found = rules.problems(documents)
        assert any(word in problem for problem in found), f"not found; the rules say {found or 'that all is well'}"

    for folder in (".", *SERVICES):
        test(f"base/{folder}: is well", lambda: clean(BASE / folder))
        try:
            good = build(BASE / folder)
        except AssertionError:
            continue
        # In the folder of all, most mutations would hit only the first service.
        for name, mutate, word in (MUTATIONS if folder in SERVICES else []) + ONLY[folder]:
            test(f"base/{folder}: {name} is found", lambda: caught(good, mutate, word))
    print(f"manifests: {passed} passed, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
