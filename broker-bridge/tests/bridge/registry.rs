//! The schema registry: a stranger's client, two replicas that write at once, records in the form of other registries.

use std::{process::Stdio, time::Duration};

use reqwest::Method;
use serde_json::{Value, json};
use service_kit::kafka::{self, Isolation, KafkaConfig, OutRecord, TopicPartition};
use tokio::{process::Command, time::Instant};

use super::{
    eventually,
    process::{Bridge, millrace, run, servers, text, unique},
};

const SR: &str = "application/vnd.schemaregistry.v1+json";

/// One registry: a topic and a transactional id that no other test has.
pub(crate) struct Registry {
    topic: String,
}

impl Registry {
    pub(crate) fn new() -> Self {
        Self { topic: unique("schemas") }
    }

    pub(crate) async fn replica(&self) -> Bridge {
        let variables = [("MILLRACE_REGISTRY__TOPIC", self.topic.as_str()), ("MILLRACE_REGISTRY__TRANSACTIONAL_ID", self.topic.as_str())];
        Bridge::start_with(&servers(), &variables).await
    }

    pub(crate) async fn remove(self) {
        let admin = kafka::admin(&KafkaConfig::new(servers())).await.unwrap();
        admin.delete_topic(&self.topic).await.unwrap();
    }
}

/// Runs a script with Confluent's client; the first time, that is installed.
pub(crate) async fn python(arguments: &[&str]) {
    let script = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/dev/registry/registry");
    let ran = Command::new(script).args(arguments).stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(Duration::from_secs(300), ran).await.expect("the client does not end").unwrap();
    assert!(output.status.success(), "{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
}

async fn call(bridge: &str, method: Method, path: &str, body: Option<Value>) -> (u16, Value) {
    let mut request = reqwest::Client::new().request(method, format!("http://{bridge}{path}")).header("content-type", SR);
    if let Some(body) = body {
        request = request.body(body.to_string());
    }
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    let text = response.text().await.unwrap();
    (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

async fn get(bridge: &Bridge, path: &str) -> Value {
    let (status, answer) = call(&bridge.registry, Method::GET, path, None).await;
    assert_eq!(status, 200, "{path}: {answer}");
    answer
}

#[track_caller]
fn refused((status, answer): (u16, Value), expected: u16, code: u32) {
    assert_eq!((status, &answer["error_code"]), (expected, &json!(code)), "{answer}");
    assert!(answer["message"].as_str().is_some_and(|message| !message.is_empty()));
}

fn record(fields: &[&str]) -> Value {
    let fields: Vec<Value> = fields.iter().map(|name| json!({"name": name, "type": "string"})).collect();
    json!({"schema": json!({"type": "record", "name": "R", "fields": fields}).to_string()})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn python_s_registry_client_and_serialisers_work() {
    let registry = Registry::new();
    let bridge = registry.replica().await;
    python(&["client", &format!("http://{}", bridge.registry)]).await;
    bridge.stop().await;
    registry.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subjects_versions_settings_and_deletions_are_those_of_other_registries() {
    let registry = Registry::new();
    let bridge = registry.replica().await;
    let at = bridge.registry.clone();
    let send = async |method: Method, path: &str, body: Value| call(&at, method, path, (!body.is_null()).then_some(body)).await;
    assert_eq!(get(&bridge, "/subjects").await, json!([]));
    assert_eq!(get(&bridge, "/config").await, json!({"compatibilityLevel": "BACKWARD"}));
    assert_eq!(get(&bridge, "/mode").await, json!({"mode": "READWRITE"}));
    assert_eq!(get(&bridge, "/schemas/types").await, json!(["JSON", "PROTOBUF", "AVRO"]));
    refused(send(Method::GET, "/subjects/s/versions", Value::Null).await, 404, 40401);
    refused(send(Method::GET, "/schemas/ids/1", Value::Null).await, 404, 40403);

    // The same schema has the same id, wherever it is registered.
    let (status, first) = send(Method::POST, "/subjects/s/versions", record(&["a", "b"])).await;
    assert_eq!((status, &first["id"], &first["version"]), (200, &json!(1), &json!(1)));
    for (subject, version) in [("s", 1), ("t", 1)] {
        let (status, again) = send(Method::POST, &format!("/subjects/{subject}/versions"), record(&["a", "b"])).await;
        assert_eq!((status, &again["id"], &again["version"]), (200, &json!(1), &json!(version)), "{again}");
    }
    // A reader of the new one does not find c in what the old one wrote.
    let (status, refusal) = send(Method::POST, "/subjects/s/versions", record(&["a", "c"])).await;
    assert_eq!((status, &refusal["error_code"]), (409, &json!(40901)));
    let message = refusal["message"].as_str().unwrap();
    assert!(
        message.contains("READER_FIELD_MISSING_DEFAULT_VALUE")
            && message.contains("a field of the new schema")
            && message.contains("at /fields/1', additionalInfo:'c'"),
        "{message}"
    );
    assert!(message.contains("{oldSchemaVersion: 1}") && message.contains("compatibility: 'BACKWARD'"), "{message}");
    let (_, verbose) = send(Method::POST, "/compatibility/subjects/s/versions/latest?verbose=true", record(&["a", "c"])).await;
    assert_eq!((&verbose["is_compatible"], verbose["messages"].as_array().unwrap().len()), (&json!(false), 4), "{verbose}");
    let (_, fits) = send(Method::POST, "/compatibility/subjects/s/versions", record(&["a"])).await;
    assert_eq!(fits, json!({"is_compatible": true}));

    assert_eq!(send(Method::PUT, "/config/s", json!({"compatibility": "none"})).await, (200, json!({"compatibility": "NONE"})));
    let (_, second) = send(Method::POST, "/subjects/s/versions", record(&["a", "c"])).await;
    assert_eq!((&second["id"], &second["version"]), (&json!(2), &json!(2)), "{second}");
    refused(send(Method::PUT, "/config/s", json!({"compatibility": "SOME"})).await, 422, 42203);
    refused(send(Method::GET, "/config/t", Value::Null).await, 404, 40408);
    assert_eq!(get(&bridge, "/config/t?defaultToGlobal=true").await, json!({"compatibilityLevel": "BACKWARD"}));
    let found = get(&bridge, "/subjects/s/versions/2").await;
    assert_eq!((&found["subject"], &found["version"], &found["id"]), (&json!("s"), &json!(2), &json!(2)));
    assert_eq!(get(&bridge, &format!("/schemas/guids/{}", found["guid"].as_str().unwrap())).await["schema"], found["schema"]);
    assert_eq!(get(&bridge, "/schemas/ids/1/versions").await, json!([{"subject": "s", "version": 1}, {"subject": "t", "version": 1}]));
    assert_eq!(get(&bridge, "/subjects/s/versions/1/schema").await, get(&bridge, "/schemas/ids/1/schema").await);
    let (_, looked_up) = send(Method::POST, "/subjects/s", record(&["a", "c"])).await;
    assert_eq!(looked_up["version"], 2);
    refused(send(Method::POST, "/subjects/s", record(&["z"])).await, 404, 40403);
    refused(send(Method::POST, "/subjects/nowhere", record(&["z"])).await, 404, 40401);
    refused(send(Method::GET, "/subjects/s/versions/0", Value::Null).await, 422, 42202);
    refused(send(Method::GET, "/subjects/s/versions/9", Value::Null).await, 404, 40402);
    refused(send(Method::POST, "/subjects/s/versions", json!({"schema": "{"})).await, 422, 42201);

    // References keep what they refer to.
    let using = json!({"schema": r#"{"type":"record","name":"U","fields":[{"name":"r","type":"R"}]}"#, "references": [{"name": "R", "subject": "t", "version": 1}]});
    let (status, used) = send(Method::POST, "/subjects/u/versions", using.clone()).await;
    assert_eq!(status, 200, "{used}");
    assert_eq!(get(&bridge, "/subjects/t/versions/1/referencedby").await, json!([used["id"]]));
    refused(send(Method::DELETE, "/subjects/t", Value::Null).await, 422, 42206);

    // Softly, then for good.
    assert_eq!(send(Method::DELETE, "/subjects/s/versions/1", Value::Null).await, (200, json!(1)));
    refused(send(Method::DELETE, "/subjects/s/versions/1", Value::Null).await, 404, 40406);
    refused(send(Method::DELETE, "/subjects/s/versions/2?permanent=true", Value::Null).await, 404, 40407);
    assert_eq!(get(&bridge, "/subjects/s/versions").await, json!([2]));
    assert_eq!(get(&bridge, "/subjects/s/versions?deleted=true").await, json!([1, 2]));
    assert_eq!(send(Method::DELETE, "/subjects/s", Value::Null).await, (200, json!([2])));
    refused(send(Method::DELETE, "/subjects/s", Value::Null).await, 404, 40404);
    refused(send(Method::DELETE, "/subjects/u?permanent=true", Value::Null).await, 404, 40405);
    assert_eq!(get(&bridge, "/subjects").await, json!(["t", "u"]));
    assert_eq!(get(&bridge, "/subjects?deletedOnly=true").await, json!(["s"]));
    assert_eq!(send(Method::DELETE, "/subjects/s?permanent=true", Value::Null).await, (200, json!([1, 2])));
    refused(send(Method::GET, "/config/s", Value::Null).await, 404, 40408);
    refused(send(Method::GET, "/schemas/ids/2", Value::Null).await, 404, 40403);

    // Modes.
    assert_eq!(send(Method::PUT, "/mode/u", json!({"mode": "readonly"})).await, (200, json!({"mode": "READONLY"})));
    refused(send(Method::POST, "/subjects/u/versions", record(&["n"])).await, 422, 42205);
    assert_eq!(send(Method::POST, "/subjects/u/versions", using).await.0, 200);
    refused(send(Method::PUT, "/mode/t", json!({"mode": "IMPORT"})).await, 422, 42205);
    refused(send(Method::PUT, "/mode", json!({"mode": "SOME"})).await, 422, 42204);
    assert_eq!(send(Method::PUT, "/mode/i", json!({"mode": "IMPORT"})).await.0, 200);
    let with_id = |id: i32| json!({"schema": "\"bytes\"", "id": id, "version": 5});
    let (_, imported) = send(Method::POST, "/subjects/i/versions", with_id(70)).await;
    assert_eq!((&imported["id"], &imported["version"]), (&json!(70), &json!(5)), "{imported}");
    refused(send(Method::POST, "/subjects/i/versions", json!({"schema": "\"int\"", "id": 70})).await, 422, 42205);
    refused(send(Method::POST, "/subjects/t/versions", with_id(71)).await, 422, 42205);
    assert_eq!(send(Method::DELETE, "/mode/i", Value::Null).await, (200, json!({"mode": "IMPORT"})));
    refused(send(Method::GET, "/mode/i", Value::Null).await, 404, 40409);

    // Contexts have ids of their own.
    let (_, own) = send(Method::POST, "/subjects/:.c:s/versions", record(&["x"])).await;
    assert_eq!(own["id"], 1);
    assert_eq!(get(&bridge, "/contexts").await, json!([".", ".c"]));
    assert_eq!(get(&bridge, "/subjects?subjectPrefix=:.c:").await, json!([":.c:s"]));
    assert_ne!(get(&bridge, "/schemas/ids/1?subject=:.c:s").await["schema"], get(&bridge, "/schemas/ids/1").await["schema"]);
    let (_, next) = send(Method::POST, "/subjects/v/versions", record(&["y"])).await;
    assert_eq!(next["id"], 71);

    // Normal forms.
    let with_order =
        json!({"schema": r#"{"type":"record","name":"N","fields":[{"name":"f","order":"ascending","type":{"type":"string"}}]}"#});
    let without = json!({"schema": r#"{"name":"N","type":"record","fields":[{"type":"string","name":"f"}]}"#});
    let (_, one) = send(Method::POST, "/subjects/n/versions?normalize=true", with_order).await;
    let (_, two) = send(Method::POST, "/subjects/n/versions?normalize=true", without).await;
    assert_eq!(one["id"], two["id"]);

    let (_, metrics) = call(&bridge.http, Method::GET, "/metrics", None).await;
    let metrics = metrics.as_str().unwrap();
    assert!(metrics.contains("millrace_bridge_registry_schemas"), "{metrics}");
    // The listener is counted as the others are.
    assert!(metrics.contains("millrace_listen_connections_total{listener=\"registry\"}"), "{metrics}");
    // Beside the others its paths are the same.
    for path in ["/subjects", "/schemas", "/config", "/subjects/n/versions/1"] {
        assert_eq!(call(&bridge.http, Method::GET, path, None).await.1, get(&bridge, path).await, "{path}");
    }
    bridge.stop().await;
    registry.remove().await;
}

/// By its status.
async fn said_to_be_at(bridge: &Bridge) -> String {
    let status: Value = serde_json::from_str(&millrace(bridge, &["status", "bridge", "--output", "json"]).await).unwrap();
    let facts = status["services"][0]["details"]["facts"].as_array().unwrap();
    let fact = facts.iter().find(|fact| fact["name"] == "registry");
    fact.unwrap_or_else(|| panic!("{status}"))["value"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_registry_has_a_port_of_its_own_that_is_told_and_can_be_switched_off() {
    let bridge = Bridge::start(&servers()).await;
    assert_eq!(get(&bridge, "/").await, json!({}));
    refused(call(&bridge.registry, Method::GET, "/topics", None).await, 404, 404);
    assert_eq!(said_to_be_at(&bridge).await, bridge.registry);
    assert!(bridge.log().lines().any(|line| line.contains("registry") && line.contains("listening") && line.contains(&bridge.registry)));

    // Where another process has the port already.
    let directory = tempfile::tempdir().unwrap();
    let offsets = directory.path().join("offsets").display().to_string();
    let words = ["serve", "--bootstrap-servers", &servers(), "--http-listen", "127.0.0.1:0", "--control-listen", "127.0.0.1:0"];
    let words = [&words[..], &["--registry-listen", &bridge.registry, "--offsets-path", &offsets]].concat();
    let second = run(&words, &[]).await;
    let expected = format!("cannot listen on {} (registry): address in use; set [registry] listen", bridge.registry);
    assert!(second.status.code() == Some(1) && text(&second).contains(&expected), "{}", text(&second));

    let without = Bridge::start_with(&servers(), &[("MILLRACE_REGISTRY__LISTEN", "")]).await;
    assert_eq!((without.registry.as_str(), call(&without.http, Method::GET, "/schemas/types", None).await.0), ("", 200));
    assert_eq!(said_to_be_at(&without).await, "at the same address");
    tokio::join!(bridge.stop(), without.stop());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_write_at_once_and_one_is_killed_and_nothing_is_lost_or_doubled() {
    let registry = Registry::new();
    let (one, two) = tokio::join!(registry.replica(), registry.replica());
    // Each registers its own schemas, and all that are for both; the second one is killed on the way.
    let submit = async |at: String, subject: String, name: String| {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let schema = json!({"schema": json!({"type": "fixed", "name": name, "size": 4}).to_string()});
            let sent =
                reqwest::Client::new().post(format!("http://{at}/subjects/{subject}/versions")).body(schema.to_string()).send().await;
            match sent {
                Ok(response) if response.status() == 200 => return Some(response.json::<Value>().await.unwrap()["id"].as_i64().unwrap()),
                // Its turn did not come in time, which it says: a client repeats it.
                Ok(response) if response.status() == 500 => {
                    let text = response.text().await.unwrap();
                    assert!(text.contains("50002") && Instant::now() < deadline, "{text}");
                }
                Ok(response) => panic!("{}", response.text().await.unwrap()),
                // Killed.
                Err(_) => return None,
            }
        }
    };
    let run = async |at: String, own: &'static str, most: usize| {
        let mut ids = Vec::new();
        for at_number in 0..most {
            ids.push((format!("{own}{at_number}"), submit(at.clone(), format!("{own}{at_number}"), format!("{own}{at_number}")).await));
            ids.push((format!("Both{at_number}"), submit(at.clone(), format!("both{at_number}"), format!("Both{at_number}")).await));
            if ids.iter().any(|(_, id)| id.is_none()) {
                break;
            }
        }
        ids
    };
    let kill = async {
        let deadline = Instant::now() + Duration::from_secs(60);
        // Both have written.
        let begun = |subjects: &Value| {
            let names: Vec<&str> = subjects.as_array().unwrap().iter().filter_map(Value::as_str).collect();
            names.len() >= 8 && names.iter().any(|name| name.starts_with("Two"))
        };
        while !begun(&get(&one, "/subjects").await) {
            assert!(Instant::now() < deadline, "nothing is registered");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let killed = Command::new("kill").args(["-9", &two.pid().to_string()]).status().await.unwrap();
        assert!(killed.success());
    };
    let (first, second, ()) = tokio::join!(run(one.registry.clone(), "One", 12), run(two.registry.clone(), "Two", 1_000), kill);
    assert!(first.iter().all(|(_, id)| id.is_some()));
    assert!(second.iter().any(|(_, id)| id.is_none()) && second.iter().any(|(_, id)| id.is_some()));
    let mut by_id = std::collections::BTreeMap::new();
    let mut by_name = std::collections::BTreeMap::new();
    for (name, id) in first.iter().chain(&second).filter_map(|(name, id)| Some((name, (*id)?))) {
        assert_eq!(by_id.entry(id).or_insert(name), &name, "id {id} is given twice");
        assert_eq!(*by_name.entry(name).or_insert(id), id, "{name} has two ids");
        let schema = get(&one, &format!("/schemas/ids/{id}")).await;
        assert!(schema["schema"].as_str().unwrap().contains(&format!("\"{name}\"")), "{name}: {schema}");
    }
    // A third one reads it all, and what it writes is seen by the first.
    let third = registry.replica().await;
    assert_eq!(get(&third, "/schemas").await, get(&one, "/schemas").await);
    for at in 0..5 {
        let (writer, reader) = if at % 2 == 0 { (&third, &one) } else { (&one, &third) };
        let id = submit(writer.registry.clone(), format!("seen{at}"), format!("Seen{at}")).await.unwrap();
        eventually("the other one has it", async || {
            let found = get(reader, &format!("/schemas/ids/{id}")).await;
            found["schema"].as_str().is_some_and(|schema| schema.contains(&format!("Seen{at}")))
        })
        .await;
    }
    one.stop().await;
    third.stop().await;
    registry.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_of_another_registry_are_read_and_a_topic_that_would_lose_schemas_is_refused() {
    let registry = Registry::new();
    let config = KafkaConfig::new(servers());
    let admin = kafka::admin(&config).await.unwrap();
    admin.create_topic(&registry.topic, 1, 1, &[("cleanup.policy".to_owned(), "compact".to_owned())].into(), false).await.unwrap();
    let written = [
        (r#"{"keytype":"NOOP","magic":0}"#, None),
        (r#"{"keytype":"CONFIG","magic":0}"#, Some(r#"{"compatibilityLevel":"FULL"}"#)),
        (
            r#"{"keytype":"SCHEMA","subject":"a","version":1,"magic":1}"#,
            Some(r#"{"subject":"a","version":1,"id":41,"schema":"\"string\"","deleted":false}"#),
        ),
        (
            r#"{"keytype":"SCHEMA","subject":"a","version":2,"magic":1}"#,
            Some(
                r#"{"subject":"a","version":2,"id":42,"md5":"AAAAAAAAAAAAAAAAAAAAAA==","schemaType":"JSON","schema":"{}","deleted":false,"ts":5}"#,
            ),
        ),
        (r#"{"keytype":"DELETE_SUBJECT","subject":"a","magic":0}"#, Some(r#"{"subject":"a","version":1}"#)),
        ("what is this", Some("?")),
    ];
    let records = written.iter().map(|(key, value)| OutRecord {
        topic: registry.topic.as_str().into(),
        partition: Some(0),
        key: Some((*key).into()),
        value: value.map(Into::into),
        headers: Vec::new(),
        timestamp_ms: None,
    });
    for result in kafka::producer(&config).await.unwrap().send(records.collect()).await {
        result.unwrap();
    }
    let bridge = registry.replica().await;
    assert_eq!(get(&bridge, "/config").await, json!({"compatibilityLevel": "FULL"}));
    assert_eq!(get(&bridge, "/subjects/a/versions").await, json!([2]));
    let found = get(&bridge, "/subjects/a/versions/latest").await;
    assert_eq!(
        (&found["id"], &found["schemaType"], &found["guid"]),
        (&json!(42), &json!("JSON"), &json!("00000000-0000-0000-0000-000000000000"))
    );
    assert_eq!(call(&bridge.registry, Method::POST, "/subjects/b/versions", Some(json!({"schema": "\"long\""}))).await.1["id"], 43);
    // What is written is what a registry of the other kind reads.
    let reader = kafka::range_reader(&config, Isolation::ReadCommitted).await.unwrap();
    let partition = TopicPartition::new(registry.topic.as_str(), 0);
    let end = reader.bounds(std::slice::from_ref(&partition)).await.unwrap()[&partition].latest;
    let chunks: Vec<_> = futures::StreamExt::collect(reader.read(partition, written.len() as i64, end)).await;
    let own: Vec<kafka::Record> = chunks.into_iter().flat_map(Result::unwrap).collect();
    assert_eq!(own.len(), 1);
    assert_eq!(own[0].key.as_deref(), Some(br#"{"keytype":"SCHEMA","subject":"b","version":1,"magic":1}"#.as_slice()));
    assert_eq!(
        own[0].value.as_deref(),
        Some(br#"{"subject":"b","version":1,"id":43,"schemaType":"AVRO","schema":"\"long\"","deleted":false}"#.as_slice())
    );
    bridge.stop().await;
    registry.remove().await;

    let wrong = Registry::new();
    admin.create_topic(&wrong.topic, 1, 1, &[("cleanup.policy".to_owned(), "delete".to_owned())].into(), false).await.unwrap();
    let bridge = wrong.replica().await;
    let (status, refusal) = call(&bridge.registry, Method::POST, "/subjects/b/versions", Some(json!({"schema": "\"long\""}))).await;
    assert_eq!((status, &refusal["error_code"]), (500, &json!(50001)));
    assert!(refusal["message"].as_str().unwrap().contains("cleanup.policy = delete"), "{refusal}");
    bridge.stop().await;
    wrong.remove().await;
}
