"""Starts each pod's program with the pod's own arguments and files, on free ports of this machine and without a broker.

Shows that the command line is understood, that the ConfigMap is accepted key by key, that the control port answers although Kafka is
away, that metrics are where the annotations say, and that SIGTERM ends the process well inside the pod's grace. Programs come from CARGO_TARGET_DIR, or ~/.cache/millrace/target.
"""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

import validate

TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR") or pathlib.Path.home() / ".cache/millrace/target") / "debug"
# Wrong configuration, as every service says it.
CONFIG_ERROR = 78


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def here(text, folder):
    """The pod's paths, ports and peers, as they are on this machine."""
    text = re.sub(r"0\.0\.0\.0:\d+", "127.0.0.1:0", text)
    text = re.sub(r"^(\S+\.port = )\d+$", lambda match: match[1] + str(free_port()), text, flags=re.M)
    text = text.replace("0.0.0.0", "127.0.0.1").replace("kafka:9092", f"127.0.0.1:{free_port()}")
    return text.replace("/etc/millrace", f"{folder}/etc").replace("/var/lib/millrace", f"{folder}/data")


class Pod:
    def __init__(self, service, folder, change=lambda file, text: text):
        documents = validate.build(validate.BASE / service)
        program = TARGET / f"millrace-{service}"
        assert program.exists(), f"{program} is not built: cargo build --workspace --bins"
        self.annotations = validate.workload(documents)["spec"]["template"]["metadata"]["annotations"]
        self.ports = {str(port["containerPort"]): port["name"] for port in validate.container(documents)["ports"]}
        self.grace = validate.pod(documents)["terminationGracePeriodSeconds"]
        for part in ("etc", "data"):
            (folder / part).mkdir()
        for name, text in validate.of(documents, "ConfigMap")["data"].items():
            (folder / "etc" / name).write_text(change(name, here(text, folder)))
        arguments = [here(word, folder) for word in validate.container(documents)["args"]]
        self.addresses, self.log = folder / "addresses.json", folder / "log"
        environment = {"PATH": os.environ["PATH"], "MILLRACE_ADDRESS_FILE": str(self.addresses)}
        with self.log.open("w") as log:
            self.process = subprocess.Popen([program, *arguments], cwd=folder / "data", stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)

    def tail(self):
        return self.log.read_text()[-2000:]

    def listening(self, seconds=60):
        """The bound addresses, once all are."""
        end = time.monotonic() + seconds
        while not self.addresses.exists():
            assert self.process.poll() is None, f"ended with {self.process.returncode} before it listened:\n{self.tail()}"
            assert time.monotonic() < end, f"did not listen within {seconds} s:\n{self.tail()}"
            time.sleep(0.05)
        return json.loads(self.addresses.read_text())


def starts(service):
    with tempfile.TemporaryDirectory() as folder:
        pod = Pod(service, pathlib.Path(folder))
        try:
            addresses = pod.listening()
            status = subprocess.run(
                [TARGET / "millrace", "status", service, f"--{service}", addresses["control"], "--output", "json"], capture_output=True, text=True
            )
            assert status.returncode == 0, f"{status.stdout}{status.stderr}{pod.tail()}"
            assert json.loads(status.stdout)["services"][0]["details"]["program"] == f"millrace-{service}", status.stdout
            # Listeners have the names of the pod's ports.
            listener = addresses[pod.ports[pod.annotations["prometheus.io/port"]]]
            with urllib.request.urlopen(f"http://{listener}{pod.annotations['prometheus.io/path']}", timeout=10) as page:
                assert "# TYPE millrace_" in page.read().decode(), "what the annotations name is no Prometheus page"
            pod.process.send_signal(signal.SIGTERM)
            code = pod.process.wait(timeout=pod.grace)
            assert code == 0, f"ended with {code} after SIGTERM:\n{pod.tail()}"
        except OSError as error:
            raise AssertionError(f"metrics: {error}\n{pod.tail()}") from error
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"did not end within its grace of {pod.grace} s:\n{pod.tail()}") from error
        finally:
            pod.process.kill()


def refuses(service):
    """The same pod with one key misspelt: what the test above would let through is not let through."""
    with tempfile.TemporaryDirectory() as folder:
        change = lambda name, text: text.replace("log_format", "log_fromat") if name.endswith(".toml") else text
        pod = Pod(service, pathlib.Path(folder), change)
        try:
            code = pod.process.wait(timeout=60)
            assert code == CONFIG_ERROR and "log_fromat" in pod.tail(), f"ended with {code}:\n{pod.tail()}"
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"runs with a key that does not exist:\n{pod.tail()}") from error
        finally:
            pod.process.kill()


def main():
    passed, failed = 0, []
    for service in validate.SERVICES:
        for name, check in ((f"{service}: the pod's program starts, answers and drains", starts), (f"{service}: a misspelt key is refused", refuses)):
            try:
                check(service)
                passed += 1
            except AssertionError as error:
                failed.append(name)
                print(f"FAILED {name}\n  {error}")
    print(f"pods: {passed} passed, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
