"""Makes something to ask for on the bridge at URL, tells schemathesis its names, and runs it. The seed and the number of requests are fixed."""

import json
import pathlib
import subprocess
import sys
import tempfile

import requests

url, *options = sys.argv[1:]
V2 = "application/vnd.kafka.v2+json"
SCHEMA = {"schema": json.dumps({"type": "record", "name": "R", "fields": [{"name": "a", "type": "string"}]})}


def call(method, path, body=None, kind=V2):
    answer = requests.request(method, url + path, data=None if body is None else json.dumps(body), headers={"content-type": kind}, timeout=30)
    assert answer.ok, f"{method} {path}: {answer.status_code} {answer.text}"
    return answer.json() if answer.text else None


# What only deletions are given must not be what the others are given.
kept, doomed = ["orders", "bills"], [f"doomed-{number}" for number in range(8)]
for topic in [*kept, *doomed]:
    call("POST", "/admin/topics", {"topic_name": topic, "partitions_count": 2})
records = [{"key": "a", "value": {"a": 1}, "partition": number} for number in range(2)]
for topic in kept:
    call("POST", f"/topics/{topic}", {"records": records}, "application/vnd.kafka.json.v2+json")
for instance in ["reading", "assigned", "empty", *doomed]:
    call("POST", "/consumers/shop", {"name": instance, "format": "json", "auto.offset.reset": "earliest"})
call("POST", "/consumers/shop/instances/reading/subscription", {"topics": ["orders"]})
while not call("GET", "/consumers/shop/instances/reading/records?timeout=200"):
    pass
call("POST", "/consumers/shop/instances/reading/offsets")
call("POST", "/consumers/shop/instances/assigned/assignments", {"partitions": [{"topic": "bills", "partition": 0}, {"topic": "bills", "partition": 1}]})
for subject in ["orders-value", "bills-value", *doomed]:
    registered = call("POST", f"/subjects/{subject}/versions", SCHEMA, "application/vnd.schemaregistry.v1+json")
cluster = call("GET", "/v3/clusters")["data"][0]["cluster_id"]
member = call("GET", f"/v3/clusters/{cluster}/consumer-groups/shop/consumers")["data"][0]["consumer_id"]
transactions = [call("POST", "/transactions", {}, "application/json")["transaction_id"] for _ in range(8)]

dictionaries = {
    "cluster": [cluster],
    "topic": kept,
    "topics": ["orders", "orders,bills"],
    "group": ["shop"],
    "instance": ["reading", "assigned", "empty"],
    "member": [member],
    "partition": [0, 1],
    "broker": [1],
    "subject": ["orders-value", "bills-value"],
    "version": ["1", "latest"],
    "id": [registered["id"]],
    "guid": [registered["guid"]],
    "setting": ["retention.ms", "log.retention.ms"],
    "doomed": doomed,
    "open": transactions[:4],
    "ended": transactions[4:],
    "module": ["default"],
}
parameters = {
    "path.cluster": "cluster",
    "path.topic": "topic",
    "path.group": "group",
    "path.consumer": "group",
    "path.instance": "instance",
    "path.partition": "partition",
    "path.broker": "broker",
    "path.subject": "subject",
    "path.version": "version",
    "path.id": "id",
    "path.guid": "guid",
    "path.name": "setting",
    "path.transaction": "open",
    "body.topic": "topic",
    "body.records[*].topic": "topic",
    "body.offsets[*].topic": "topic",
    "body.partitions[*].topic": "topic",
    "body.offsets[*].partition": "partition",
    "body.partitions[*].partition": "partition",
    "body.topics[*]": "topic",
    "body.schema": "schema",
}
dictionaries["schema"] = [SCHEMA["schema"], '"string"']
# Method and path → what is asked of other things than elsewhere.
apart = {
    "DELETE /v3/clusters/{cluster}/topics/{topic}": {"path.topic": "doomed"},
    "DELETE /consumers/{group}/instances/{instance}": {"path.instance": "doomed"},
    "DELETE /consumers/{group}/instances/{instance}/subscription": {"path.instance": "doomed"},
    "DELETE /subjects/{subject}": {"path.subject": "doomed"},
    "DELETE /subjects/{subject}/versions/{version}": {"path.subject": "doomed"},
    "PUT /mode/{subject}": {"path.subject": "doomed"},
    "POST /transactions/{transaction}/commit": {"path.transaction": "ended"},
    "POST /transactions/{transaction}/abort": {"path.transaction": "ended"},
    "GET /v3/config/storage/{name}": {"path.name": "module"},
    "GET /v3/config/evaluator/{name}": {"path.name": "module"},
    "GET /v3/config/consumer/{name}": {"path.name": "module"},
}
for path in ["", "/assignments", "/assignments/{topic}/partitions/{partition}"]:
    apart[f"GET /v3/clusters/{{cluster}}/consumer-groups/{{group}}/consumers/{{consumer}}{path}"] = {"path.consumer": "member"}


def bound(names):
    return {name: {"dictionary": dictionary, "probability": 0.8} for name, dictionary in names.items()}


def toml(value):
    """A value on one line; JSON is nearly that."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(name)} = {toml(part)}" for name, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(toml(part) for part in value) + "]"
    return json.dumps(value)


# What has no end is tested elsewhere; and one registry in which nothing may be written is enough.
left_out = ["GET /consumers/{group}/stream", "PUT /mode"]
operations = [{"include-name": name, "parameters": bound(names)} for name, names in apart.items()]
operations += [{"include-name": name, "enabled": False} for name in left_out]
off = {"enabled": False}
# The registry passes over what it does not know, as others do.
operations.append({"include-tag": "registry", "checks": {"negative_data_rejection": off}})
no_names_of_answers = {"extra-data-sources": {"responses": False}}
config = {
    "seed": 5,
    "workers": 2,
    "continue-on-failure": True,
    "request-timeout": 20.0,
    "suppress-health-check": ["all"],
    "dictionaries": {name: {"values": values} for name, values in dictionaries.items()},
    "parameters": bound(parameters),
    "operations": operations,
    "generation": {"max-examples": 3, "no-shrink": True, "database": "none"},
    "phases": {
        "examples": off,
        "stateful": off,
        "coverage": {**no_names_of_answers, "generate-duplicate-query-parameters": False, "unexpected-methods": ["PATCH"]},
        "fuzzing": no_names_of_answers,
    },
    # What the document allows may be refused: it does not say which topics there are. The other checks hold: no 5xx; status, content type, headers and
    # body of each answer are those of the document; what it does not allow is refused.
    "checks": {"positive_data_acceptance": off},
}
with tempfile.TemporaryDirectory() as folder:
    file = pathlib.Path(folder) / "schemathesis.toml"
    file.write_text("".join(f"{name} = {toml(value)}\n" for name, value in config.items()))
    st = pathlib.Path(sys.executable).with_name("st")
    ran = subprocess.run([st, "--config-file", file, "run", f"{url}/openapi", "--no-color", *options], cwd=folder)
sys.exit(ran.returncode)
