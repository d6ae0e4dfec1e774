"""What the scripts beside it have in common: requests to a bridge, and the topics behind it."""

import json
import time
import urllib.request

from confluent_kafka import Consumer, Producer


def kind(name):
    return f"application/vnd.kafka.{name}.v2+json"


def call(at, method, path, body=None, content_type="application/vnd.kafka.v2+json", accept=None):
    """Asks the bridge at a URL; a path may be a whole one."""
    address = path if path.startswith("http") else at + path
    request = urllib.request.Request(address, method=method, data=None if body is None else json.dumps(body).encode())
    request.add_header("content-type", content_type)
    if accept:
        request.add_header("accept", accept)
    with urllib.request.urlopen(request) as answer:
        text = answer.read()
    return json.loads(text) if text else None


def produce(servers, topic, values, keys=None):
    producer = Producer({"bootstrap.servers": servers})
    for at, value in enumerate(values):
        producer.produce(topic, value=value, key=keys[at] if keys else None)
    assert producer.flush(30) == 0


def consume(servers, topic, count):
    """The first records of the topic as they lie in Kafka."""
    consumer = Consumer({"bootstrap.servers": servers, "group.id": f"{topic}-python", "auto.offset.reset": "earliest"})
    consumer.subscribe([topic])
    found, end = [], time.monotonic() + 30
    while len(found) < count:
        assert time.monotonic() < end, f"{len(found)} of {count} records came"
        message = consumer.poll(1.0)
        if message is not None:
            assert message.error() is None, message.error()
            found.append(message)
    consumer.close()
    return found


def read(at, topic, name, count):
    """The first records of the topic through the bridge at a URL."""
    base = call(at, "POST", f"/consumers/{topic}-rest", {"format": name, "auto.offset.reset": "earliest"})["base_uri"]
    call(at, "POST", f"{base}/subscription", {"topics": [topic]})
    found, end = [], time.monotonic() + 30
    while len(found) < count:
        assert time.monotonic() < end, f"{len(found)} of {count} records came"
        found += call(at, "GET", f"{base}/records?timeout=1000", accept=kind(name))
    call(at, "DELETE", base)
    return found
