"""Registers, looks up, evolves and deletes schemas, and writes and reads values of each type, on the registry at URL."""

import json
import struct
import sys

from confluent_kafka.schema_registry import Schema, SchemaReference, SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.schema_registry.error import SchemaRegistryError
from confluent_kafka.schema_registry.json_schema import JSONDeserializer, JSONSerializer
from confluent_kafka.schema_registry.protobuf import ProtobufDeserializer, ProtobufSerializer
from confluent_kafka.serialization import MessageField, SerializationContext
from google.protobuf import wrappers_pb2

url = sys.argv[1]
client = SchemaRegistryClient({"url": url})


def fresh():
    """A client that has cached nothing."""
    return SchemaRegistryClient({"url": url})


def refused(code, call, *arguments):
    try:
        call(*arguments)
    except SchemaRegistryError as error:
        assert error.error_code == code, error
        return str(error)
    raise AssertionError(f"{call} was not refused with {code}")


def value(topic):
    return SerializationContext(topic, MessageField.VALUE)


# Avro, with a reference.
user = {
    "type": "record",
    "name": "User",
    "namespace": "shop",
    "fields": [{"name": "name", "type": "string"}, {"name": "age", "type": ["null", "int"], "default": None}],
}
written = {"name": "Ada", "age": 36}
data = AvroSerializer(client, json.dumps(user))(written, value("users"))
assert data[0] == 0
(number,) = struct.unpack(">I", data[1:5])
assert fresh().get_schema(number).schema_type == "AVRO"
assert AvroDeserializer(fresh())(data, value("users")) == written
latest = fresh().get_latest_version("users-value")
assert (latest.version, latest.schema_id) == (1, number)
assert fresh().lookup_schema("users-value", Schema(json.dumps(user), "AVRO")).schema_id == number

order = {"type": "record", "name": "Order", "namespace": "shop", "fields": [{"name": "by", "type": "shop.User"}]}
using = Schema(json.dumps(order), "AVRO", [SchemaReference("shop.User", "users-value", 1)])
data = AvroSerializer(client, using)({"by": written}, value("orders"))
assert AvroDeserializer(fresh())(data, value("orders")) == {"by": written}

# A newer reader, and one that does not fit.
newer = json.loads(json.dumps(user))
newer["fields"].append({"name": "mail", "type": "string", "default": "?"})
assert client.test_compatibility("users-value", Schema(json.dumps(newer), "AVRO"))
second = client.register_schema("users-value", Schema(json.dumps(newer), "AVRO"))
assert second != number
assert fresh().get_versions("users-value") == [1, 2]
del newer["fields"][-1]["default"]
newer["fields"][-1]["name"] = "phone"
assert not client.test_compatibility("users-value", Schema(json.dumps(newer), "AVRO"))
message = refused(40901, client.register_schema, "users-value", Schema(json.dumps(newer), "AVRO"))
assert "READER_FIELD_MISSING_DEFAULT_VALUE" in message, message

# Settings.
client.set_compatibility("users-value", "FULL_TRANSITIVE")
assert client.get_compatibility("users-value") == "FULL_TRANSITIVE"
assert client.get_compatibility() == "BACKWARD"

# JSON Schema.
schema = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "title": "Item",
    "type": "object",
    "properties": {"id": {"type": "integer"}, "tags": {"type": "array", "items": {"type": "string"}}},
    "required": ["id"],
    "additionalProperties": False,
}
item = {"id": 7, "tags": ["a", "b"]}
data = JSONSerializer(json.dumps(schema), client)(item, value("items"))
assert JSONDeserializer(json.dumps(schema))(data, value("items")) == item
schema["properties"]["price"] = {"type": "number"}
assert client.test_compatibility("items-value", Schema(json.dumps(schema), "JSON"))
schema["properties"]["id"]["type"] = "string"
assert not client.test_compatibility("items-value", Schema(json.dumps(schema), "JSON"))

# Protobuf: the client sends what its classes describe, as a serialised descriptor.
text = wrappers_pb2.StringValue(value="Ada")
data = ProtobufSerializer(wrappers_pb2.StringValue, client, {"use.deprecated.format": False})(text, value("names"))
read = ProtobufDeserializer(wrappers_pb2.StringValue, {"use.deprecated.format": False})(data, value("names"))
assert read == text
assert fresh().get_latest_version("names-value").schema.schema_type == "PROTOBUF"

# Deletions.
assert sorted(fresh().get_subjects()) == ["items-value", "names-value", "orders-value", "users-value"]
assert client.delete_version("users-value", 2) == 2
assert client.delete_subject("items-value") == [1]
assert client.delete_subject("items-value", permanent=True) == [1]
refused(40401, fresh().get_versions, "items-value")
refused(40403, fresh().get_schema, 9999)
