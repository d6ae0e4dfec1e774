"""topics.yaml is YAML to everyone and lines to `apply`: both must read the same, and the numbers must make sense.

`apply` is run against a stand-in for `millrace` that writes down how it was called.
"""

import importlib.machinery
import importlib.util
import os
import pathlib
import subprocess
import sys
import tempfile

import yaml

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
FIELDS = ("name", "partitions", "replication", "min_isr", "retention")

STAND_IN = """#!/bin/sh
printf '%s\\n' "$*" >>"$CALLS"
case "$1 $2" in
  "topic list") [ -z "$DOWN" ] || exit 2; printf '{"topics": [{"name": "logs_topic"}]}' ;;
esac
"""


def load():
    sys.dont_write_bytecode = True
    loader = importlib.machinery.SourceFileLoader("apply", str(HERE / "apply"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("apply", loader))
    loader.exec_module(module)
    return module


def problems(topics):
    names = [topic["name"] for topic in topics]
    if len(set(names)) != len(names):
        yield "a topic is listed twice"
    for topic in topics:
        name = topic.get("name")
        if set(topic) != set(FIELDS):
            yield f"{name}: the fields are {sorted(topic)}"
            continue
        if not topic["partitions"] >= 1:
            yield f"{name}: no partitions"
        # With as many copies required as there are, one broker's restart stops every producer.
        if not 1 <= topic["min_isr"] < topic["replication"]:
            yield f"{name}: min_isr must be below replication"


def run(words, down=""):
    with tempfile.TemporaryDirectory() as folder:
        stand_in, calls = pathlib.Path(folder) / "millrace", pathlib.Path(folder) / "calls"
        stand_in.write_text(STAND_IN)
        stand_in.chmod(0o755)
        calls.touch()
        environment = {**os.environ, "MILLRACE": str(stand_in), "CALLS": str(calls), "DOWN": down}
        ran = subprocess.run([HERE / "apply", *words], capture_output=True, text=True, env=environment)
        return ran.returncode, calls.read_text().splitlines()


def main():
    passed, failed = 0, []

    def test(name, holds, seen=""):
        nonlocal passed
        if holds:
            passed += 1
        else:
            failed.append(name)
            print(f"FAILED {name}\n  {seen}")

    apply = load()
    text = (HERE / "topics.yaml").read_text()
    topics = yaml.safe_load(text)["topics"]
    found = list(problems(topics))
    test("the topics make sense", not found, found)
    test("a min_isr as large as the replication is found", any("min_isr" in problem for problem in problems([{**topics[0], "min_isr": 3}])))
    test("a topic that is listed twice is found", any("twice" in problem for problem in problems(topics + topics)))
    read = [dict(zip(FIELDS, topic)) for topic in apply.topics(text)]
    test("apply reads what a YAML parser reads", read == topics, read)
    base = (ROOT / "deploy/kubernetes/base/collector/agent.conf").read_text()
    written = [line.split("=")[1].strip() for line in base.splitlines() if line.startswith("agent.sinks.kafka.kafka.topic")]
    test("the base's topic is among them", bool(written) and set(written) <= {topic["name"] for topic in topics}, written)

    code, calls = run([])
    expected = ["topic list --output json", "topic create access_log --partitions=2 --replication=3 --min-isr=2 --retention=1d"]
    test("only what is missing is created", (code, calls) == (0, expected), calls)
    code, calls = run(["--one-broker", "--dry-run"])
    test("a cluster of one gets one copy", calls[-1:] == ["topic create access_log --partitions=2 --replication=1 --min-isr=1 --retention=1d --dry-run"], calls)
    code, calls = run([], down="yes")
    test("nothing is created when the bridge is away", (code, calls) == (2, ["topic list --output json"]), (code, calls))
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write("topics:\n  - name: logs\n")
        file.flush()
        code, calls = run([file.name])
        test("a line that is not understood creates nothing", (code, calls) == (1, []), (code, calls))
    test("a wrong flag is a usage error", run(["--force"])[0] == 64)
    print(f"topics: {passed} passed, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
