"""Schemas that refer to others, and schemas that change: written by Confluent's serialisers and read by bridges, and the other way round. What one bridge registers
the other one knows: URL OTHER-URL SERVERS AVRO JSON PROTOBUF (topics)."""

import json
import sys
import urllib.error

from bridge import call, consume, kind, produce, read
from confluent_kafka.schema_registry import Schema, SchemaReference, SchemaRegistryClient, header_schema_id_serializer
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.schema_registry.error import SchemaRegistryError
from confluent_kafka.schema_registry.json_schema import JSONDeserializer, JSONSerializer
from confluent_kafka.schema_registry.protobuf import ProtobufDeserializer, ProtobufSerializer
from confluent_kafka.serialization import MessageField, SerializationContext
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

url, other, servers, avro_topic, json_topic, protobuf_topic = sys.argv[1:]


def registry(at=url):
    """A client that has cached nothing."""
    return SchemaRegistryClient({"url": at})


def context(topic, headers=None):
    return SerializationContext(topic, MessageField.VALUE, headers)


def written(topic, count):
    """The first values of the topic as they lie in Kafka."""
    return [message.value() for message in consume(servers, topic, count)]


def seen(topic, name, count):
    """The first values of the topic through the other bridge."""
    return [record["value"] for record in read(other, topic, name, count)]


# Avro: an order whose buyer is a type of another subject.
user = {"type": "record", "name": "User", "namespace": "shop", "fields": [{"name": "name", "type": "string"}]}
order = {"type": "record", "name": "Order", "namespace": "shop", "fields": [{"name": "id", "type": "int"}, {"name": "by", "type": "shop.User"}]}
users = f"{avro_topic}-users"
client = registry()
client.register_schema(users, Schema(json.dumps(user), "AVRO"))
using = Schema(json.dumps(order), "AVRO", [SchemaReference("shop.User", users, 1)])
first, second = {"id": 1, "by": {"name": "Ada"}}, {"id": 2, "by": {"name": "Bob"}}
produce(servers, avro_topic, [AvroSerializer(client, using)(first, context(avro_topic))])
latest = registry(other).get_latest_version(f"{avro_topic}-value")
assert [(one.name, one.subject, one.version) for one in latest.schema.references] == [("shop.User", users, 1)], latest
# What is referred to stays.
try:
    client.delete_version(users, 1)
    raise AssertionError("a schema that another one refers to was deleted")
except SchemaRegistryError as error:
    assert error.error_code == 42206, error
answer = call(other, "POST", f"/topics/{avro_topic}", {"value_schema_id": latest.schema_id, "records": [{"value": second}]}, kind("avro"))
assert answer["value_schema_id"] == latest.schema_id, answer

# The order gets a note. Who knows only the old schema reads the new records, and the other way round.
newer = {**order, "fields": [*order["fields"], {"name": "note", "type": "string", "default": "none"}]}
newer = Schema(json.dumps(newer), "AVRO", using.references)
assert client.test_compatibility(f"{avro_topic}-value", newer)
third = {"id": 3, "by": {"name": "Eve"}, "note": "thanks"}
fixed = AvroSerializer(client, newer)
produce(servers, avro_topic, [fixed(third, context(avro_topic))])
assert registry(other).get_versions(f"{avro_topic}-value") == [1, 2]
data = written(avro_topic, 3)
assert [AvroDeserializer(registry(), newer)(value, context(avro_topic)) for value in data] == [{**first, "note": "none"}, {**second, "note": "none"}, third]
assert [AvroDeserializer(registry(other), using)(value, context(avro_topic)) for value in data] == [first, second, {"id": 3, "by": third["by"]}]
assert seen(avro_topic, "avro", 3) == [first, second, third]
# One that does not fit is refused, and nothing is written.
broken = Schema(json.dumps({**order, "fields": [{"name": "number", "type": "int"}]}), "AVRO")
assert not registry(other).test_compatibility(f"{avro_topic}-value", broken)
try:
    AvroSerializer(registry(other), broken)({"number": 1}, context(avro_topic))
    raise AssertionError("an incompatible schema was registered")
except SchemaRegistryError as error:
    assert (error.http_status_code, error.error_code) == (409, 40901), error
assert registry().get_versions(f"{avro_topic}-value") == [1, 2]
# Nothing registered, the newest taken; the id as a GUID in a header.
newest = AvroSerializer(registry(other), conf={"auto.register.schemas": False, "use.latest.version": True, "schema.id.serializer": header_schema_id_serializer})
headers = []
data = newest(third, context(avro_topic, headers))
assert len(headers) == 1 and data[0] != 0, (headers, data)
assert AvroDeserializer(registry())(data, context(avro_topic, headers)) == third

# JSON Schema: a basket of items that another subject describes.
item = {"$schema": "http://json-schema.org/draft-07/schema#", "title": "Item", "type": "object", "properties": {"id": {"type": "integer"}}, "required": ["id"], "additionalProperties": False}
basket = {**item, "title": "Basket", "properties": {"items": {"type": "array", "items": {"$ref": "item.json"}}}, "required": ["items"]}
items = f"{json_topic}-items"
client.register_schema(items, Schema(json.dumps(item), "JSON"))
using = Schema(json.dumps(basket), "JSON", [SchemaReference("item.json", items, 1)])
full, empty = {"items": [{"id": 1}, {"id": 2}]}, {"items": []}
produce(servers, json_topic, [JSONSerializer(using, client)(full, context(json_topic))])
number = registry(other).get_latest_version(f"{json_topic}-value").schema_id
call(other, "POST", f"/topics/{json_topic}", {"value_schema_id": number, "records": [{"value": empty}]}, kind("jsonschema"))
assert [JSONDeserializer(using, schema_registry_client=registry())(value, context(json_topic)) for value in written(json_topic, 2)] == [full, empty]
assert seen(json_topic, "jsonschema", 2) == [full, empty]
# What the item's schema does not allow, neither side writes.
wrong = {"items": [{"id": "one"}]}
try:
    call(other, "POST", f"/topics/{json_topic}", {"value_schema_id": number, "records": [{"value": wrong}]}, kind("jsonschema"))
    raise AssertionError("a value that its schema does not allow was written")
except urllib.error.HTTPError as error:
    assert error.code == 422 and "id" in json.load(error)["message"], error

# Protobuf: a message that has one of another file.
pool = descriptor_pool.DescriptorPool()
field = descriptor_pb2.FieldDescriptorProto
file = descriptor_pb2.FileDescriptorProto(name=f"{protobuf_topic}-user.proto", package="shop", syntax="proto3")
file.message_type.add(name="User").field.add(name="name", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
pool.Add(file)
file = descriptor_pb2.FileDescriptorProto(name="order.proto", package="shop", syntax="proto3", dependency=[f"{protobuf_topic}-user.proto"])
message = file.message_type.add(name="Order")
message.field.add(name="id", number=1, type=field.TYPE_INT32, label=field.LABEL_OPTIONAL)
message.field.add(name="by", number=2, type=field.TYPE_MESSAGE, type_name=".shop.User", label=field.LABEL_OPTIONAL)
pool.Add(file)
Order, User = (message_factory.GetMessageClass(pool.FindMessageTypeByName(f"shop.{name}")) for name in ["Order", "User"])
settings = {"use.deprecated.format": False}
one, two = Order(id=1, by=User(name="Ada")), Order(id=2, by=User(name="Bob"))
produce(servers, protobuf_topic, [ProtobufSerializer(Order, client, settings)(one, context(protobuf_topic))])
latest = registry(other).get_latest_version(f"{protobuf_topic}-value")
assert [one.name for one in latest.schema.references] == [f"{protobuf_topic}-user.proto"], latest
call(other, "POST", f"/topics/{protobuf_topic}", {"value_schema_id": latest.schema_id, "records": [{"value": {"id": 2, "by": {"name": "Bob"}}}]}, kind("protobuf"))
deserializer = ProtobufDeserializer(Order, settings, registry())
assert [deserializer(value, context(protobuf_topic)) for value in written(protobuf_topic, 2)] == [one, two]
assert seen(protobuf_topic, "protobuf", 2) == [{"id": 1, "by": {"name": "Ada"}}, {"id": 2, "by": {"name": "Bob"}}]
