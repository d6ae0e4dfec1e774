"""Records that the bridge at URL writes and Confluent's deserialisers read, and the other way round: URL SERVERS AVRO JSON PROTOBUF (topics)."""

import json
import sys

from bridge import call, consume, kind, produce, read
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.schema_registry.json_schema import JSONDeserializer, JSONSerializer
from confluent_kafka.schema_registry.protobuf import ProtobufDeserializer, ProtobufSerializer
from confluent_kafka.serialization import MessageField, SerializationContext
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, timestamp_pb2

url, servers, avro_topic, json_topic, protobuf_topic = sys.argv[1:]
registry = SchemaRegistryClient({"url": url})


def context(topic, field=MessageField.VALUE):
    return SerializationContext(topic, field)


# Avro: every kind of value.
schema = {
    "type": "record",
    "name": "Order",
    "namespace": "shop",
    "fields": [
        {"name": "id", "type": "long"},
        {"name": "by", "type": ["null", "string", {"type": "record", "name": "User", "fields": [{"name": "name", "type": "string"}]}]},
        {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["SMALL", "LARGE"]}},
        {"name": "hash", "type": {"type": "fixed", "name": "Hash", "size": 3}},
        {"name": "raw", "type": "bytes"},
        {"name": "counts", "type": {"type": "map", "values": "int"}},
        {"name": "ratios", "type": {"type": "array", "items": "double"}},
        {"name": "single", "type": "float"},
        {"name": "paid", "type": "boolean"},
        {"name": "before", "type": ["null", "Order"]},
    ],
}
text = json.dumps(schema)


def order(number, by, before=None):
    return {
        "id": number, "by": by, "kind": "LARGE", "hash": b"\x00a\xff", "raw": b"\x00\xff\x80", "counts": {"a": 1, "ö": -2},
        "ratios": [0.1, -1.5e300, 3.0], "single": 0.5, "paid": True, "before": before,
    }


def order_json(number, by, before=None):
    return {
        "id": number, "by": by, "kind": "LARGE", "hash": "\x00a\xff", "raw": "\x00\xff\x80", "counts": {"a": 1, "ö": -2},
        "ratios": [0.1, -1.5e300, 3.0], "single": 0.5, "paid": True, "before": before,
    }


in_python = [order(2**53 + 1, None), order(-1, "Ada"), order(3, {"name": "Bob"}, order(0, None))]
in_json = [
    order_json(2**53 + 1, None),
    order_json(-1, {"string": "Ada"}),
    order_json(3, {"shop.User": {"name": "Bob"}}, {"shop.Order": order_json(0, None)}),
]
body = {"key_schema": '"string"', "value_schema": text, "records": [{"key": f"k{at}", "value": value} for at, value in enumerate(in_json)]}
answer = call(url, "POST", f"/topics/{avro_topic}", body, kind("avro"))
assert registry.get_latest_version(f"{avro_topic}-value").schema_id == answer["value_schema_id"], answer
assert registry.get_latest_version(f"{avro_topic}-key").schema_id == answer["key_schema_id"], answer
by_id = {"value_schema_id": answer["value_schema_id"], "records": [{"value": in_json[0]}, {"value": None}]}
assert call(url, "POST", f"/topics/{avro_topic}", by_id, kind("avro"))["value_schema_id"] == answer["value_schema_id"]
messages = consume(servers, avro_topic, 5)
deserializer = AvroDeserializer(registry)
assert [deserializer(message.value(), context(avro_topic)) for message in messages] == [*in_python, in_python[0], None]
assert [deserializer(message.key(), context(avro_topic, MessageField.KEY)) for message in messages] == ["k0", "k1", "k2", None, None]
serializer = AvroSerializer(registry, text)
written = [serializer(value, context(avro_topic)) for value in in_python]
# The same bytes, to the last.
assert written == [message.value() for message in messages[:3]]
keys = [AvroSerializer(registry, '"string"')(f"p{at}", context(avro_topic, MessageField.KEY)) for at in range(3)]
produce(servers, avro_topic, written, keys)
records = read(url, avro_topic, "avro", 8)
assert [record["value"] for record in records] == [*in_json, in_json[0], None, *in_json], records
assert [record["key"] for record in records] == ["k0", "k1", "k2", None, None, "p0", "p1", "p2"], records

# JSON Schema.
schema = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "title": "Item",
    "type": "object",
    "properties": {"id": {"type": "integer"}, "tags": {"type": "array", "items": {"type": "string"}}},
    "required": ["id"],
    "additionalProperties": False,
}
text = json.dumps(schema)
items = [{"id": 2**53 + 1, "tags": ["a", "ö\n"]}, {"id": -1}]
call(url, "POST", f"/topics/{json_topic}", {"value_schema": text, "records": [{"value": item} for item in items]}, kind("jsonschema"))
deserializer = JSONDeserializer(text)
assert [deserializer(message.value(), context(json_topic)) for message in consume(servers, json_topic, 2)] == items
serializer = JSONSerializer(text, registry)
produce(servers, json_topic, [serializer(item, context(json_topic)) for item in items])
assert [record["value"] for record in read(url, json_topic, "jsonschema", 4)] == items + items

# Protobuf: classes made from a descriptor, the third of them within the first.
file = descriptor_pb2.FileDescriptorProto(name="orders.proto", package="shop", syntax="proto3", dependency=["google/protobuf/timestamp.proto"])
field = descriptor_pb2.FieldDescriptorProto
top = file.message_type.add(name="Order")
top.field.add(name="order_id", number=1, type=field.TYPE_INT64, label=field.LABEL_OPTIONAL)
top.field.add(name="names", number=2, type=field.TYPE_STRING, label=field.LABEL_REPEATED)
top.field.add(name="at", number=3, type=field.TYPE_MESSAGE, type_name=".google.protobuf.Timestamp", label=field.LABEL_OPTIONAL)
top.field.add(name="line", number=4, type=field.TYPE_MESSAGE, type_name=".shop.Order.Line", label=field.LABEL_OPTIONAL)
line = top.nested_type.add(name="Line")
line.field.add(name="raw", number=1, type=field.TYPE_BYTES, label=field.LABEL_OPTIONAL)
second = file.message_type.add(name="Second")
second.field.add(name="yes", number=1, type=field.TYPE_BOOL, label=field.LABEL_OPTIONAL)
pool = descriptor_pool.DescriptorPool()
pool.AddSerializedFile(timestamp_pb2.DESCRIPTOR.serialized_pb)
pool.Add(file)
Order, Line, Second = (message_factory.GetMessageClass(pool.FindMessageTypeByName(f"shop.{name}")) for name in ["Order", "Order.Line", "Second"])
settings = {"use.deprecated.format": False}
text = """syntax = "proto3";
package shop;
import "google/protobuf/timestamp.proto";
message Order {
  int64 order_id = 1;
  repeated string names = 2;
  google.protobuf.Timestamp at = 3;
  Line line = 4;
  message Line { bytes raw = 1; }
}
message Second { bool yes = 1; }
"""
value = {"orderId": str(2**53 + 1), "names": ["a", "ö"], "at": "2021-02-05T19:14:42Z", "line": {"raw": "AP8="}}
empty = {"orderId": "0", "names": []}
call(url, "POST", f"/topics/{protobuf_topic}", {"value_schema": text, "records": [{"value": value}, {"value": {}}]}, kind("protobuf"))
messages = consume(servers, protobuf_topic, 2)
first, blank = (ProtobufDeserializer(Order, settings)(message.value(), context(protobuf_topic)) for message in messages)
assert (first.order_id, list(first.names), first.line.raw) == (2**53 + 1, ["a", "ö"], b"\x00\xff"), first
assert first.at.ToJsonString() == "2021-02-05T19:14:42Z" and blank == Order(), (first, blank)
written = [ProtobufSerializer(type(one), registry, settings)(one, context(protobuf_topic)) for one in [first, Order(), Line(raw=b"\x00\xff"), Second(yes=True)]]
produce(servers, protobuf_topic, written)
values = [record["value"] for record in read(url, protobuf_topic, "protobuf", 6)]
assert values == [value, empty, value, empty, {"raw": "AP8="}, {"yes": True}], values
