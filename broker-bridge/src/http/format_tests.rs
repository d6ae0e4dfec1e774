//! The formats with schemas over HTTP, with a registry that knows a few.

use serde_json::{Value, json};

use super::tests::Bridge;
use crate::config::Compat;

const USER: &str =
    r#"{"type":"record","name":"User","namespace":"shop","fields":[{"name":"name","type":"string"},{"name":"age","type":["null","int"]}]}"#;
const ITEM: &str = r#"{"type":"object","title":"Item","properties":{"id":{"type":"integer"}},"required":["id"]}"#;
const PROTO: &str = r#"syntax = "proto3"; package shop; message Name { string text = 1; }"#;

/// Ids 1 to 4: a key, and values of each type.
fn bridge() -> Bridge {
    let bridge = Bridge::new(Compat::Confluent);
    bridge.registry.hold(&[
        ("t-key", 1, 1, "AVRO", r#""string""#),
        ("t-value", 1, 2, "AVRO", USER),
        ("t-value", 2, 3, "JSON", ITEM),
        ("t-value", 3, 4, "PROTOBUF", PROTO),
        ("shop.User", 1, 2, "AVRO", USER),
        ("other", 1, 5, "AVRO", r#""long""#),
    ]);
    bridge
}

#[tokio::test]
async fn values_go_in_and_out_with_their_schemas() {
    for (format, ids, value, shown) in [
        ("avro", json!({"value_schema_id": 2}), json!({"name": "Ada", "age": {"int": 36}}), None),
        ("avro", json!({"value_schema": USER}), json!({"name": "Ada", "age": null}), None),
        ("jsonschema", json!({"value_schema_id": 3}), json!({"id": 1, "more": [1.5]}), None),
        ("protobuf", json!({"value_schema_id": 4}), json!({}), Some(json!({"text": ""}))),
    ] {
        let bridge = bridge();
        let mut body = ids;
        body["records"] = json!([{"value": value}, {"value": null, "partition": 0}]);
        let answer = bridge.produce("/topics/t", format, &body.to_string()).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        let id = answer.json()["value_schema_id"].as_i64().unwrap();
        assert_eq!(answer.json()["key_schema_id"], Value::Null);
        let written = bridge.kafka.records("t").into_iter().rev().find_map(|record| record.value).unwrap();
        assert_eq!(written[..5], [&[0][..], &(id as i32).to_be_bytes()].concat());

        let base = bridge.consumer(&format!(r#"{{"format":"{format}","auto.offset.reset":"earliest"}}"#)).await;
        let content_type = format!("application/vnd.kafka.{format}.v2+json");
        let answer = bridge.call("GET", &format!("{base}/records?timeout=1000"), &[("accept", &content_type)], "").await;
        assert_eq!((answer.status, answer.headers["content-type"].to_str().unwrap()), (200, content_type.as_str()), "{}", answer.text);
        let records = answer.json();
        assert_eq!((&records[0]["value"], &records[1]["value"]), (&shown.unwrap_or(value), &Value::Null), "{records}");
    }
    let bridge = bridge();
    let both = json!({"key_schema_id": 1, "value_schema_id": 2, "records": [{"key": "k", "value": {"name": "A", "age": null}}]});
    let answer = bridge.produce("/topics/t", "avro", &both.to_string()).await.json();
    assert_eq!((&answer["key_schema_id"], &answer["value_schema_id"]), (&json!(1), &json!(2)));
    // Formats without schemas take no notice of them.
    assert_eq!(bridge.produce("/topics/t", "json", r#"{"value_schema_id":99,"records":[{"value":1}]}"#).await.status, 200);
}

#[tokio::test]
async fn what_does_not_fit_its_schema_is_refused_with_the_codes_of_the_rest_proxy() {
    let bridge = bridge();
    let refused = async |format: &str, body: Value, status: u16, code: u32, message: &str| {
        bridge.produce("/topics/t", format, &body.to_string()).await.fails(status, code, message);
    };
    let records = |value: Value| json!([{"value": value}]);
    refused(
        "avro",
        json!({"records": [{"key": 1}]}),
        422,
        42201,
        "Request includes keys but does not include key schema; send key_schema or key_schema_id",
    )
    .await;
    refused(
        "protobuf",
        json!({"records": records(json!(1)), "key_schema_id": 1}),
        422,
        42207,
        "schema 1 is AVRO, and PROTOBUF is asked for",
    )
    .await;
    refused("jsonschema", json!({"records": records(json!(1))}), 422, 42202, "value_schema_id").await;
    refused(
        "avro",
        json!({"records": records(json!(1)), "value_schema_id": 2, "value_schema": USER}),
        400,
        400,
        "either value_schema or value_schema_id",
    )
    .await;
    refused(
        "avro",
        json!({"records": records(json!({"name": 1})), "value_schema_id": 2}),
        422,
        42203,
        "Conversion of JSON to Object failed: records[0].value does not fit schema 2: at name: expected string, found 1",
    )
    .await;
    refused("jsonschema", json!({"records": records(json!({"id": "x"})), "value_schema_id": 3}), 422, 42203, "at id: ").await;
    refused("protobuf", json!({"records": records(json!({"text": 1})), "value_schema_id": 4}), 422, 42203, "at text: ").await;
    refused(
        "avro",
        json!({"records": records(json!(1)), "value_schema": "{\"type\":\"recrod\"}"}),
        422,
        42205,
        "Invalid schema: Error when parsing raw schema. format = AVRO: ",
    )
    .await;
    refused("protobuf", json!({"records": records(json!(1)), "value_schema": "message {"}), 422, 42205, "format = PROTOBUF").await;
    refused("jsonschema", json!({"records": records(json!(1)), "value_schema": "{"}), 422, 42205, "format = JSON").await;
    refused(
        "avro",
        json!({"records": records(json!(1)), "value_schema_id": 99}),
        422,
        42207,
        "Error serializing message. Error when fetching schema by id. schemaId = 99\nSchema 99 not found; error code: 40403",
    )
    .await;
    refused(
        "avro",
        json!({"records": records(json!(1)), "value_schema_id": 5}),
        422,
        42207,
        "Error when fetching schema version. subject = t-value, schema id = 5\nSchema not found; error code: 40403",
    )
    .await;
    refused("avro", json!({"records": records(json!(1)), "value_schema_id": "2"}), 422, 422, "invalid type").await;
    // The topic comes first: nothing is registered for one that is not there.
    bridge
        .produce("/topics/none", "avro", &json!({"records": records(json!(1)), "value_schema": USER}).to_string())
        .await
        .fails(404, 40401, "none");
    assert!(bridge.kafka.values("t").is_empty(), "nothing was written");
}

#[tokio::test]
async fn a_record_that_cannot_be_read_blocks_its_partition_until_a_seek() {
    let value = |id: u8, rest: &[u8]| [&[0, 0, 0, 0, id][..], rest].concat();
    for (bytes, expected) in [
        (b"no schema".to_vec(), "does not begin with a zero and the id of a schema"),
        (value(99, &[0]), "cannot be read: schema 99 is not in the registry"),
        (value(4, &[0]), "was written with schema 4, which is PROTOBUF"),
        (value(2, &[6, b'A']), "does not fit schema 2: at name: it breaks off: 3 bytes are needed, 1 are left"),
    ] {
        let bridge = bridge();
        bridge.kafka.append_value("t", &value(2, &[2, b'A', 0]));
        bridge.kafka.append_value("t", &bytes);
        bridge.kafka.append_value("t", &value(2, &[2, b'B', 0]));
        let base = bridge.consumer(r#"{"format":"avro","auto.offset.reset":"earliest"}"#).await;
        let records = format!("{base}/records?timeout=1000");
        let first = bridge.get(&records).await;
        assert_eq!((first.json()[0]["value"]["name"].as_str(), first.headers["millrace-blocked"].to_str().unwrap()), (Some("A"), "t-0"));
        let blocked = bridge.get(&format!("{base}/records?timeout=0")).await;
        blocked.fails(408, 40801, &format!("the value of t-0 at offset 1 {expected}"));
        assert!(
            !blocked.headers.contains_key("retry-after")
                && blocked.json()["message"].as_str().unwrap().contains("so format avro cannot show it")
        );
        assert_eq!(bridge.post(&format!("{base}/positions"), r#"{"offsets":[{"topic":"t","partition":0,"offset":2}]}"#).await.status, 204);
        assert_eq!(bridge.get(&records).await.json()[0]["value"], json!({"name": "B", "age": null}));
    }
}

#[tokio::test]
async fn batches_with_schemas_are_given_again_and_what_cannot_be_read_is_a_dead_letter() {
    let value = |id: u8, rest: &[u8]| [&[0, 0, 0, 0, id][..], rest].concat();
    let bridge = bridge();
    bridge.kafka.add_topic("dead", 1);
    for value in [value(2, &[2, b'A', 0]), value(99, &[0]), value(2, &[2, b'B', 0])] {
        bridge.kafka.append_value("t", &value);
    }
    let base =
        bridge.consumer(r#"{"format":"avro","auto.offset.reset":"earliest","delivery":"acknowledged","dead.letter.topic":"dead"}"#).await;
    let records = format!("{base}/records?timeout=20");
    let first = bridge.get(&records).await;
    let names: Vec<Value> = first.json().as_array().unwrap().iter().map(|record| record["value"]["name"].clone()).collect();
    assert_eq!((names, first.headers["millrace-blocked"].to_str().unwrap()), (vec![json!("A"), json!("B")], "t-0"));
    let batch = first.headers["millrace-batch"].to_str().unwrap();
    let again = bridge.get(&records).await;
    assert_eq!((&again.text, again.headers["millrace-batch"].to_str().unwrap()), (&first.text, batch), "byte for byte");
    assert_eq!(bridge.get(&format!("{records}&acknowledge={batch}")).await.text, "[]");
    let dead = bridge.kafka.records("dead");
    assert_eq!((dead.len(), dead[0].value.as_deref()), (1, Some(&value(99, &[0])[..])));
    let reason = dead[0].headers.iter().find(|(name, _)| name == "millrace.dead-letter.reason").unwrap().1.clone().unwrap();
    assert!(String::from_utf8(reason.to_vec()).unwrap().contains("schema 99 is not in the registry"));
}

#[tokio::test]
async fn v3_finds_the_schema_in_every_way() {
    let bridge = bridge();
    let v3 = async |data: Value| {
        let answer = bridge
            .call(
                "POST",
                "/v3/clusters/fake/topics/t/records",
                &[("content-type", "application/json")],
                &json!({"value": data}).to_string(),
            )
            .await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer.json()
    };
    let user = json!({"name": "A", "age": null});
    for (data, expected) in [
        (
            json!({"schema_id": 2, "data": user}),
            json!({"type": "AVRO", "subject": "t-value", "schema_id": 2, "schema_version": 1, "size": 8}),
        ),
        (
            json!({"schema_version": 1, "data": user}),
            json!({"type": "AVRO", "subject": "t-value", "schema_id": 2, "schema_version": 1, "size": 8}),
        ),
        (
            json!({"type": "AVRO", "schema": USER, "data": user}),
            json!({"type": "AVRO", "subject": "t-value", "schema_id": 2, "schema_version": 1, "size": 8}),
        ),
        (
            json!({"type": "AVRO", "schema": USER, "subject_name_strategy": "RECORD_NAME", "data": user}),
            json!({"type": "AVRO", "subject": "shop.User", "schema_id": 2, "schema_version": 1, "size": 8}),
        ),
        (
            json!({"schema_id": 2, "subject_name_strategy": "RECORD_NAME", "data": user}),
            json!({"type": "AVRO", "subject": "shop.User", "schema_id": 2, "schema_version": 1, "size": 8}),
        ),
        (
            json!({"subject": "other", "data": 1}),
            json!({"type": "AVRO", "subject": "other", "schema_id": 5, "schema_version": 1, "size": 6}),
        ),
        (
            json!({"type": "JSONSCHEMA", "schema_id": 3, "data": {"id": 1}}),
            json!({"type": "JSONSCHEMA", "subject": "t-value", "schema_id": 3, "schema_version": 2, "size": 13}),
        ),
        // Nothing said: the newest of the topic's subject.
        (json!({"data": {"text": "x"}}), json!({"type": "PROTOBUF", "subject": "t-value", "schema_id": 4, "schema_version": 3, "size": 9})),
        (json!({"data": null}), json!({"type": "PROTOBUF", "subject": "t-value", "schema_id": 4, "schema_version": 3, "size": 0})),
    ] {
        let receipt = v3(data.clone()).await;
        assert_eq!((&receipt["error_code"], &receipt["value"]), (&json!(200), &expected), "{data}: {receipt}");
    }
    for (data, code, message) in [
        (
            json!({"schema_id": 2, "data": {"name": 1}}),
            400,
            "Bad Request: value.data does not fit schema 2: at name: expected string, found 1",
        ),
        (
            json!({"schema_id": 2, "schema_version": 1, "data": user}),
            400,
            "Only one of 'schema_id', 'schema_version' or 'schema' can be used.",
        ),
        (
            json!({"subject": "other", "subject_name_strategy": "TOPIC_NAME", "data": 1}),
            400,
            "Only one of 'subject_name_strategy' or 'subject'",
        ),
        (json!({"subject_name_strategy": "NONE", "data": 1}), 400, "is none of TOPIC_NAME"),
        (
            json!({"subject_name_strategy": "RECORD_NAME", "data": 1}),
            400,
            "Cannot use schema_subject_strategy=RECORD_NAME without schema_id or schema.",
        ),
        (json!({"schema": USER, "data": user}), 400, "needs a 'type'"),
        (json!({"type": "JSON", "schema_id": 2, "data": 1}), 400, "'type=JSON' cannot be used with 'schema_id'."),
        (json!({"type": "XML", "data": 1}), 400, "AVRO, JSONSCHEMA, PROTOBUF"),
        (json!({"type": "AVRO", "schema": "{", "data": 1}), 42205, "Invalid schema"),
        (json!({"schema_version": 9, "data": user}), 400, "Schema does not exist for subject: t-value, version: 9"),
        (
            json!({"subject": "none", "data": user}),
            42207,
            "Error when fetching latest schema version. subject = none\nSubject 'none' not found.; error code: 40401",
        ),
        (json!({"type": "PROTOBUF", "schema_id": 2, "data": 1}), 42207, "schema 2 is AVRO, and PROTOBUF is asked for"),
        (json!({"type": "AVRO", "schema": "\"int\"", "subject_name_strategy": "RECORD_NAME", "data": 1}), 42207, "it must be a record"),
    ] {
        let receipt = v3(data.clone()).await;
        assert_eq!(receipt["error_code"], code, "{data}: {receipt}");
        assert!(receipt["message"].as_str().unwrap().contains(message), "{message:?} is not in {receipt}");
    }
    let batch =
        json!({"entries": [{"id": "1", "value": {"schema_id": 2, "data": user}}, {"id": "2", "value": {"schema_id": 2, "data": 1}}]});
    let answer = bridge
        .call("POST", "/v3/clusters/fake/topics/t/records:batch", &[("content-type", "application/json")], &batch.to_string())
        .await
        .json();
    assert_eq!((&answer["successes"][0]["value"]["schema_id"], &answer["failures"][0]["id"]), (&json!(2), &json!("2")), "{answer}");
}
