//! The bridge: produce, consume, topics.

use std::{fs, sync::Arc};

use integration_tests::{
    eventually, kafka,
    process::Process,
    secured::{Acl, By, Secured},
    unique,
};
use serde_json::{Value, json};

use super::{WAIT, grant_all, needed, says, told};

const ENV: [(&str, &str); 3] =
    [("MILLRACE_CONTROL__LISTEN", "127.0.0.1:0"), ("MILLRACE_HTTP__LISTEN", "127.0.0.1:0"), ("MILLRACE_REGISTRY__LISTEN", "127.0.0.1:0")];
pub(super) const JSON: &str = "application/vnd.kafka.json.v2+json";
const REGISTRY: &str = "application/vnd.schemaregistry.v1+json";
pub(super) const V2: &str = "application/vnd.kafka.v2+json";

pub(super) struct Bridge {
    kafka: Arc<Secured>,
    principal: String,
    pub(super) process: Process,
    base: String,
    /// Name and password that are sent along.
    caller: Option<(String, String)>,
    http: reqwest::Client,
    _dir: tempfile::TempDir,
}

impl Bridge {
    async fn start(by: By, sessions: &str) -> Self {
        Self::start_with(by, sessions, "").await
    }

    /// `more`: further sections of its configuration.
    pub(super) async fn start_with(by: By, sessions: &str, more: &str) -> Self {
        let bridge = Self::start_unready(by, sessions, more, &[]).await;
        bridge.ready().await;
        bridge
    }

    async fn ready(&self) {
        eventually(WAIT, "the bridge is ready", || async {
            let answer = self.http.get(format!("{}/ready", self.base)).send().await.map_err(|error| error.to_string())?;
            if answer.status().is_success() { Ok(()) } else { Err(answer.text().await.unwrap_or_default()) }
        })
        .await;
    }

    /// It listens. `variables`: of its environment.
    async fn start_unready(by: By, sessions: &str, more: &str, variables: &[(&str, &str)]) -> Self {
        let kafka = Secured::shared();
        let dir = tempfile::tempdir().expect("a temporary folder");
        let mut text = format!(
            "{more}\n[kafka]\nbootstrap_servers = {:?}\n[consume]\nsessions_topic = {sessions:?}\n[offsets]\npath = {:?}\n[topics]\nmetadata_age = \"0s\"\n[kafka.properties]\n",
            kafka.at(by),
            dir.path().join("offsets")
        );
        for (key, value) in kafka.settings(by, "bridge") {
            text.push_str(&format!("{key:?} = {value:?}\n"));
        }
        let config = dir.path().join("bridge.toml");
        fs::write(&config, text).expect("the configuration");
        let variables = [&ENV[..], variables].concat();
        let mut process = Process::start("millrace-bridge", dir.path(), &["serve", "--config", &config.to_string_lossy()], &variables);
        let base = format!("http://{}", process.address("http").await);
        let http = reqwest::Client::new();
        Self { kafka, principal: Secured::principal(by, "bridge"), process, base, caller: None, http, _dir: dir }
    }

    /// From now on as somebody who logs in to Kafka so.
    pub(super) fn log_in(&mut self, name: &str, password: &str) {
        self.caller = Some((name.to_owned(), password.to_owned()));
        self.principal = Secured::principal(By::Scram, name);
    }

    pub(super) async fn ask(&self, method: reqwest::Method, path: &str, content: &str, body: Option<Value>) -> Result<Value, String> {
        self.ask_under(method, path, content, body, None).await
    }

    /// `key`: of an idempotent request.
    pub(super) async fn ask_under(
        &self,
        method: reqwest::Method,
        path: &str,
        content: &str,
        body: Option<Value>,
        key: Option<&str>,
    ) -> Result<Value, String> {
        let url = if path.starts_with("http") { path.to_owned() } else { format!("{}{path}", self.base) };
        let mut request = self.http.request(method, url).header("accept", if content == V2 { JSON } else { content });
        if let Some((name, password)) = &self.caller {
            request = request.basic_auth(name, Some(password));
        }
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        if let Some(body) = body {
            request = request.header("content-type", content).body(body.to_string());
        }
        let answer = request.send().await.map_err(|error| error.to_string())?;
        let status = answer.status();
        let text = answer.text().await.map_err(|error| error.to_string())?;
        let value: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
        // A record's own error comes with 200.
        let failed =
            value["offsets"].as_array().and_then(|all| all.iter().find(|one| !one["error"].is_null())).map(|one| one["error"].to_string());
        match failed {
            Some(error) => Err(error),
            None if status.is_success() => Ok(value),
            // The message as it stands: JSON would have escaped its quotes.
            None => Err(format!("{status}: {}", value["message"].as_str().unwrap_or(&text))),
        }
    }

    pub(super) async fn text(&self, path: &str) -> String {
        let mut request = self.http.get(format!("{}{path}", self.base));
        if let Some((name, password)) = &self.caller {
            request = request.basic_auth(name, Some(password));
        }
        request.send().await.expect("an answer").text().await.expect("a text")
    }

    /// Gives out a record of a topic once, has it rejected, and put aside into another topic.
    pub(super) async fn rejected(&self, group: &str, from: &str, to: &str) -> Result<(), String> {
        kafka::produce(&self.kafka.bootstrap, from, 1, ["1".to_owned()]);
        let settings = json!({"format": "json", "auto.offset.reset": "earliest", "delivery": "acknowledged", "delivery.attempts.max": 1,
            "dead.letter.topic": to});
        let created = self.ask(reqwest::Method::POST, &format!("/consumers/{group}"), V2, Some(settings)).await?;
        let instance = created["base_uri"].as_str().ok_or("no base_uri")?.to_owned();
        let fetch = async || self.ask(reqwest::Method::GET, &format!("{instance}/records?timeout=2000"), JSON, None).await;
        let work = async {
            self.ask(reqwest::Method::POST, &format!("{instance}/subscription"), V2, Some(json!({"topics": [from]}))).await?;
            for _ in 0..5 {
                let records = fetch().await?;
                let given: Vec<Value> = records
                    .as_array()
                    .into_iter()
                    .flatten()
                    .map(|record| json!({"topic": from, "partition": 0, "offset": record["offset"]}))
                    .collect();
                if !given.is_empty() {
                    let reject = json!({"reject": given});
                    self.ask(reqwest::Method::POST, &format!("{instance}/acknowledgements"), "application/json", Some(reject)).await?;
                    return fetch().await.map(drop);
                }
            }
            Err("no records".to_owned())
        };
        let done = work.await;
        let removed = self.ask(reqwest::Method::DELETE, &instance, V2, None).await;
        done.and(removed.map(drop))
    }

    /// Takes the entry away: the call says so and names it. Gives it back: the call does its work.
    pub(super) async fn without<T>(&self, acl: &Acl, call: impl AsyncFn() -> Result<T, String>) -> T {
        self.kafka.revoke(&self.principal, acl);
        self.misses(acl, &call).await;
        self.kafka.grant(&self.principal, acl);
        eventually(WAIT, &format!("it works with {acl:?}"), || call()).await
    }

    /// As [`Self::without`], of an entry that was not granted before: one that comes later may bring it with it.
    pub(super) async fn at_last<T>(&self, acl: &Acl, call: impl AsyncFn() -> Result<T, String>) {
        self.misses(acl, &call).await;
        self.kafka.grant(&self.principal, acl);
        eventually(WAIT, &format!("it works with {acl:?}"), || call()).await;
    }

    pub(super) async fn misses<T>(&self, acl: &Acl, call: impl AsyncFn() -> Result<T, String>) {
        eventually(WAIT, &format!("{acl:?} is missed"), || async {
            match call().await {
                Ok(_) => Err("it works".to_owned()),
                // The registry's own trouble is not the caller's.
                Err(said)
                    if said.starts_with("403") || said.starts_with("500") || !said.starts_with(|first: char| first.is_ascii_digit()) =>
                {
                    if says(&said, &self.principal, acl) {
                        Ok(())
                    } else {
                        Err(said)
                    }
                }
                Err(said) => Err(said),
            }
        })
        .await;
    }
}

async fn produce(by: By) {
    let mut bridge = Bridge::start(by, "").await;
    let topic = unique("produce");
    kafka::create_topic(&bridge.kafka.bootstrap, &topic, 1).await;
    let acls = needed("bridge: produce", &[("TOPIC", &topic)]);
    grant_all(&bridge.kafka, &bridge.principal, &acls);
    let (path, body) = (format!("/topics/{topic}"), json!({"records": [{"value": 1}]}));
    let call = async || bridge.ask(reqwest::Method::POST, &path, JSON, Some(body.clone())).await;
    eventually(WAIT, "it is written", call).await;
    for acl in &acls {
        bridge.without(acl, call).await;
    }
    assert!(kafka::texts(&bridge.kafka.bootstrap, &topic).len() > acls.len());
    bridge.process.stop().await;
}

#[tokio::test]
async fn producing_by_scram_says_what_it_lacks_and_goes_on() {
    produce(By::Scram).await;
}

#[tokio::test]
async fn producing_by_certificate_says_what_it_lacks_and_goes_on() {
    produce(By::Certificate).await;
}

/// An instance that comes, reads and goes.
pub(super) async fn consumed(bridge: &Bridge, group: &str, topic: &str) -> Result<(), String> {
    let settings = json!({"format": "json", "auto.offset.reset": "earliest", "auto.commit.enable": false});
    let created = bridge.ask(reqwest::Method::POST, &format!("/consumers/{group}"), V2, Some(settings)).await?;
    let instance = created["base_uri"].as_str().ok_or("no base_uri")?.to_owned();
    let work = async {
        bridge.ask(reqwest::Method::POST, &format!("{instance}/subscription"), V2, Some(json!({"topics": [topic]}))).await?;
        for _ in 0..5 {
            let records = bridge.ask(reqwest::Method::GET, &format!("{instance}/records?timeout=2000"), JSON, None).await?;
            if records.as_array().is_some_and(|records| !records.is_empty()) {
                return bridge.ask(reqwest::Method::POST, &format!("{instance}/offsets"), V2, None).await.map(drop);
            }
        }
        Err("no records".to_owned())
    };
    let done = work.await;
    let removed = bridge.ask(reqwest::Method::DELETE, &instance, V2, None).await;
    done.and(removed.map(drop))
}

async fn consume(by: By) {
    let (topic, group, sessions) = (unique("consume"), unique("group"), unique("sessions"));
    let mut bridge = Bridge::start(by, &sessions).await;
    kafka::create_topic(&bridge.kafka.bootstrap, &topic, 1).await;
    let names = [("TOPIC", topic.as_str()), ("GROUP", &group), ("SESSIONS", &sessions)];
    // What is asked for once, when the topic of the instances is opened.
    let opening = |acl: &Acl| ["CREATE", "DESCRIBE_CONFIGS"].contains(&acl.operation.as_str());
    let (opening, acls): (Vec<Acl>, Vec<Acl>) = needed("bridge: consume", &names).into_iter().partition(opening);
    grant_all(&bridge.kafka, &bridge.principal, &acls);
    let call = async || {
        kafka::produce(&bridge.kafka.bootstrap, &topic, 1, ["1".to_owned()]);
        consumed(&bridge, &group, &topic).await
    };
    for acl in &opening {
        bridge.misses(acl, call).await;
        bridge.kafka.grant(&bridge.principal, acl);
    }
    eventually(WAIT, "it works with everything", call).await;
    for acl in &acls {
        bridge.without(acl, call).await;
    }
    bridge.process.stop().await;
}

#[tokio::test]
async fn consuming_by_scram_says_what_it_lacks_and_goes_on() {
    consume(By::Scram).await;
}

#[tokio::test]
async fn consuming_by_certificate_says_what_it_lacks_and_goes_on() {
    consume(By::Certificate).await;
}

#[tokio::test]
async fn offsets_in_kafka_by_scram_say_what_they_lack_and_go_on() {
    let (topic, group, offsets) = (unique("kept"), unique("group"), unique("offsets"));
    let variables = [("MILLRACE_OFFSETS__STORE", "kafka"), ("MILLRACE_OFFSETS__KAFKA_TOPIC", offsets.as_str())];
    let mut bridge = Bridge::start_unready(By::Scram, "", "", &variables).await;
    kafka::create_topic(&bridge.kafka.bootstrap, &topic, 1).await;
    let id = format!("millrace-offsets-{group}");
    let names = [("OFFSETS", offsets.as_str()), ("TOPIC", &topic), ("GROUP", &group), ("ID", &id)];
    let acls = needed("bridge: offsets in Kafka", &names);
    let (own, rest): (Vec<Acl>, Vec<Acl>) = acls.iter().cloned().partition(|acl| acl.name == offsets);
    grant_all(&bridge.kafka, &bridge.principal, &rest);
    let call = async || {
        kafka::produce(&bridge.kafka.bootstrap, &topic, 1, ["1".to_owned()]);
        consumed(&bridge, &group, &topic).await
    };
    // Without a store there is no bridge that could be asked; without WRITE it has nothing to list yet.
    for acl in own.iter().filter(|acl| acl.operation != "WRITE") {
        told(&bridge.process, &bridge.principal, acl).await;
        bridge.kafka.grant(&bridge.principal, acl);
    }
    bridge.ready().await;
    for acl in own.iter().filter(|acl| acl.operation == "WRITE") {
        bridge.at_last(acl, call).await;
    }
    // In one transaction with the offsets of the topic is the group's epoch, under the store's own.
    let mut both = [topic.as_str(), offsets.as_str()];
    both.sort_unstable();
    // What the store lacks is 500 or, where its writer ended over it, 503.
    for acl in acls.iter().filter(|acl| acl.name != offsets || acl.operation == "READ") {
        bridge.kafka.revoke(&bridge.principal, acl);
        eventually(WAIT, &format!("{acl:?} is missed"), || async {
            let Err(said) = call().await else { return Err("it works".to_owned()) };
            let joined = Acl { name: both.join(", "), ..acl.clone() };
            if says(&said, &bridge.principal, acl) || says(&said, &bridge.principal, &joined) { Ok(()) } else { Err(said) }
        })
        .await;
        bridge.kafka.grant(&bridge.principal, acl);
        eventually(WAIT, &format!("it works with {acl:?}"), call).await;
    }
    bridge.process.stop().await;
}

async fn topics(by: By) {
    let mut bridge = Bridge::start(by, "").await;
    let topic = unique("admin");
    let acls = needed("bridge: topics", &[("TOPIC", &topic)]);
    let clusters = bridge.ask(reqwest::Method::GET, "/v3/clusters", "application/json", None).await.expect("the clusters");
    let cluster = clusters["data"][0]["cluster_id"].as_str().expect("its id").to_owned();
    let all = format!("/v3/clusters/{cluster}/topics");
    for acl in &acls {
        let call = async || match acl.operation.as_str() {
            "CREATE" => {
                let body = json!({"topic_name": topic, "partitions_count": 1, "replication_factor": 1});
                bridge.ask(reqwest::Method::POST, &all, "application/json", Some(body)).await
            }
            "ALTER_CONFIGS" => {
                let (path, body) = (format!("{all}/{topic}/configs/retention.ms"), json!({"value": "3600000"}));
                bridge.ask(reqwest::Method::PUT, &path, "application/json", Some(body)).await
            }
            "ALTER" => {
                let body = json!({"partitions_count": 3});
                bridge.ask(reqwest::Method::PATCH, &format!("{all}/{topic}"), "application/json", Some(body)).await
            }
            "DESCRIBE" => bridge.ask(reqwest::Method::GET, &format!("/topics/{topic}/partitions"), V2, None).await,
            "DESCRIBE_CONFIGS" => bridge.ask(reqwest::Method::GET, &format!("/topics/{topic}"), V2, None).await,
            "DELETE" => bridge.ask(reqwest::Method::DELETE, &format!("{all}/{topic}"), "application/json", None).await,
            other => panic!("what needs {other}?"),
        };
        bridge.at_last(acl, call).await;
    }
    eventually(WAIT, "the topic is gone", || async {
        if kafka::exists(&bridge.kafka.bootstrap, &topic) { Err("it is there".to_owned()) } else { Ok(()) }
    })
    .await;
    bridge.process.stop().await;
}

#[tokio::test]
async fn topics_by_scram_say_what_is_lacking() {
    topics(By::Scram).await;
}

#[tokio::test]
async fn topics_by_certificate_say_what_is_lacking() {
    topics(By::Certificate).await;
}

async fn access_control_lists(by: By) {
    let mut bridge = Bridge::start(by, "").await;
    let acls = needed("bridge: access control lists", &[("kafka-cluster", "kafka-cluster")]);
    let clusters = bridge.ask(reqwest::Method::GET, "/v3/clusters", "application/json", None).await.expect("the clusters");
    let path = format!("/v3/clusters/{}/acls", clusters["data"][0]["cluster_id"].as_str().expect("its id"));
    let name = unique("acl");
    for acl in &acls {
        let call = async || match acl.operation.as_str() {
            "ALTER" => {
                let body = json!({"resource_type": "TOPIC", "resource_name": name, "pattern_type": "LITERAL", "principal": "User:somebody", "host": "*",
                    "operation": "READ", "permission": "ALLOW"});
                bridge.ask(reqwest::Method::POST, &path, "application/json", Some(body)).await
            }
            "DESCRIBE" => bridge.ask(reqwest::Method::GET, &path, "application/json", None).await,
            other => panic!("what needs {other}?"),
        };
        bridge.at_last(acl, call).await;
    }
    let listed = bridge.ask(reqwest::Method::GET, &path, "application/json", None).await.expect("the list");
    assert!(listed["data"].as_array().is_some_and(|all| all.iter().any(|acl| acl["resource_name"] == name.as_str())), "{listed}");
    acls.iter().for_each(|acl| bridge.kafka.revoke(&bridge.principal, acl));
    bridge.process.stop().await;
}

#[tokio::test]
async fn access_control_lists_by_scram_say_what_is_lacking() {
    access_control_lists(By::Scram).await;
}

#[tokio::test]
async fn access_control_lists_by_certificate_say_what_is_lacking() {
    access_control_lists(By::Certificate).await;
}

async fn transactions(by: By) {
    let id = unique("transactions");
    let mut bridge = Bridge::start_with(by, "", &format!("[transactions]\nid = {id:?}")).await;
    let (topic, group) = (unique("atomic"), unique("group"));
    kafka::create_topic(&bridge.kafka.bootstrap, &topic, 1).await;
    let writer = format!("{id}-0");
    let acls = needed("bridge: transactions", &[("TOPIC", topic.as_str()), ("ID", &writer), ("GROUP", &group)]);
    grant_all(&bridge.kafka, &bridge.principal, &acls);
    let call = async || {
        let begun = bridge.ask(reqwest::Method::POST, "/transactions", JSON, Some(json!({}))).await?;
        let place = begun["base_uri"].as_str().ok_or("no base_uri")?.to_owned();
        let records = json!({"records": [{"topic": topic, "value": 1}]});
        let offsets = json!({"group": group, "offsets": [{"topic": topic, "partition": 0, "offset": 0}]});
        let work = async {
            bridge.ask(reqwest::Method::POST, &format!("{place}/records"), JSON, Some(records)).await?;
            bridge.ask(reqwest::Method::POST, &format!("{place}/offsets"), JSON, Some(offsets)).await?;
            bridge.ask(reqwest::Method::POST, &format!("{place}/commit"), JSON, None).await.map(drop)
        };
        let done = work.await;
        if done.is_err() {
            drop(bridge.ask(reqwest::Method::POST, &format!("{place}/abort"), JSON, None).await);
        }
        done
    };
    eventually(WAIT, "it is committed", call).await;
    for acl in &acls {
        bridge.without(acl, call).await;
    }
    bridge.process.stop().await;
}

#[tokio::test]
async fn transactions_by_scram_say_what_they_lack_and_go_on() {
    transactions(By::Scram).await;
}

#[tokio::test]
async fn idempotency_keys_by_scram_say_what_they_lack_and_go_on() {
    let (id, results) = (unique("keyed"), unique("results"));
    let more = format!("[transactions]\nid = {id:?}\n[produce]\ndedup_topic = {results:?}\ndedup_partitions = 1\ntimeout = \"5s\"");
    let mut bridge = Bridge::start_with(By::Scram, "", &more).await;
    let topic = unique("keyed");
    kafka::create_topic(&bridge.kafka.bootstrap, &topic, 1).await;
    let (claims, lanes) = (format!("{results}_claims"), [format!("{id}-key-0"), format!("{id}-key-1")]);
    let mut acls: Vec<Acl> = Vec::new();
    for lane in &lanes {
        let names = [("TOPIC", topic.as_str()), ("RESULTS", &results), ("CLAIMS", &claims), ("ID", lane)];
        acls.extend(needed("bridge: idempotency keys", &names).into_iter().filter(|acl| !acls.contains(acl)).collect::<Vec<_>>());
    }
    // What is asked for once, when the topics are made and read.
    let (opening, acls): (Vec<Acl>, Vec<Acl>) = acls.into_iter().partition(|acl| acl.resource == "topic" && acl.name != topic);
    let path = format!("/topics/{topic}");
    let call = async || {
        let body = json!({"records": [{"value": 1}]});
        bridge.ask_under(reqwest::Method::POST, &path, JSON, Some(body), Some(&unique("key"))).await
    };
    grant_all(&bridge.kafka, &bridge.principal, &acls);
    for acl in &opening {
        bridge.misses(acl, call).await;
        bridge.kafka.grant(&bridge.principal, acl);
    }
    eventually(WAIT, "it is written", call).await;
    for acl in acls.iter().filter(|acl| acl.name == topic) {
        bridge.without(acl, call).await;
    }
    bridge.process.stop().await;
}

#[tokio::test]
async fn the_registry_by_scram_says_what_it_lacks_and_goes_on() {
    let (schemas, id) = (unique("schemas"), unique("registry"));
    let mut bridge = Bridge::start_with(By::Scram, "", &format!("[registry]\ntopic = {schemas:?}\ntransactional_id = {id:?}")).await;
    let acls = needed("bridge: registry", &[("SCHEMAS", schemas.as_str()), ("ID", &id)]);
    let (opening, acls): (Vec<Acl>, Vec<Acl>) =
        acls.into_iter().partition(|acl| ["CREATE", "DESCRIBE_CONFIGS"].contains(&acl.operation.as_str()));
    grant_all(&bridge.kafka, &bridge.principal, &acls);
    let call = async || {
        let schema =
            json!({"schema": format!("{{\"type\": \"enum\", \"name\": \"{}\", \"symbols\": [\"A\"]}}", unique("E").replace('-', "_"))});
        bridge.ask(reqwest::Method::POST, &format!("/subjects/{}/versions", unique("s")), REGISTRY, Some(schema)).await
    };
    for acl in &opening {
        bridge.misses(acl, call).await;
        bridge.kafka.grant(&bridge.principal, acl);
    }
    eventually(WAIT, "a schema is registered", call).await;
    for acl in &acls {
        bridge.without(acl, call).await;
    }
    bridge.process.stop().await;
}
