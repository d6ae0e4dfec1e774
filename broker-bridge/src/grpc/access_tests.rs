//! Object-level access over gRPC, generated from the protocol definition: every method with every field that names a thing, behind the real guard
//! and with the real handlers. Alice has her own topics and groups; what is Bob's she neither changes nor sees, and is not told whether it is there.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use axum::{Router, body::Body, http::Request};
use http_body_util::BodyExt as _;
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, MethodDescriptor, Value};
use service_kit::kafka::TopicPartition;
use tokio::time::timeout;
use tower::ServiceExt as _;

use super::{Services, routes};
use crate::{
    auth::{
        Access, METHODS, guard_grpc,
        tests::{Kept, as_caller, key_of, known},
    },
    config,
    lag::Resets,
    lint::Linter,
    testing::{self, FakeKafka, MemoryOffsets},
};

const SERVICES: [&str; 2] = ["millrace.control.v1.Bridge", "millrace.data.v1.BridgeData"];

/// Of which only one may be given.
const ALTERNATIVES: &[(&str, &[&str])] = &[("Subscribe", &["topics", "topic_pattern", "assign"])];

/// Texts that name nothing that belongs to anybody. A new text is either here or named in [`Owner::name`].
const NO_NAMES: &[&str] = &[
    "batch_id",
    "key",
    "error",
    "metadata",
    "reason",
    "auto_offset_reset",
    "isolation_level",
    "format",
    "key_schema",
    "value_schema",
    "delete",
    // Of access control lists, which are the cluster's.
    "resource_type",
    "resource_name",
    "pattern_type",
    "principal",
    "host",
    "operation",
    "permission",
];

const CONTENT: &str = "application/grpc";
const OK: i32 = 0;
const NOT_FOUND: i32 = 5;
const DENIED: i32 = 7;
const UNKNOWN_CALLER: i32 = 16;

/// A path of field names.
type Leaf = Vec<String>;

/// Whose names a message has.
#[derive(Clone, Copy)]
struct Owner<'a> {
    topic: &'a str,
    group: &'a str,
    transaction: &'a str,
}

impl Owner<'_> {
    /// What a text field of this name is filled with; `None` where it names nothing.
    fn name(self, field: &FieldDescriptor) -> Option<String> {
        let of_topic = field.parent_message().name().contains("Topic");
        match field.name() {
            "topic" | "topics" | "dead_letter_topic" | "like" => Some(self.topic.to_owned()),
            "name" if of_topic => Some(self.topic.to_owned()),
            "topic_pattern" => Some(format!("{}.*", self.topic)),
            "group" => Some(self.group.to_owned()),
            "transaction_id" => Some(self.transaction.to_owned()),
            other => {
                assert!(NO_NAMES.contains(&other), "{} is a new text: does it name something that belongs to somebody?", field.full_name());
                None
            }
        }
    }
}

/// What is asked of a stream has no meaning before it is subscribed.
fn is_asked(field: &FieldDescriptor) -> bool {
    !field.is_map() && (field.parent_message().name() != "ConsumeRequest" || field.name() == "subscribe")
}

/// Every text in a message that names something.
fn leaves(message: &MessageDescriptor, any: Owner<'_>) -> Vec<Leaf> {
    let mut found = Vec::new();
    for field in message.fields().filter(is_asked) {
        match field.kind() {
            Kind::String if any.name(&field).is_some() => found.push(vec![field.name().to_owned()]),
            Kind::Message(inner) => {
                let name = field.name().to_owned();
                found.extend(leaves(&inner, any).into_iter().map(|leaf| [vec![name.clone()], leaf].concat()));
            }
            _ => {}
        }
    }
    found
}

/// A message with everything in it, of `own`; at the leaf, of `other`.
fn filled(message: &MessageDescriptor, own: Owner<'_>, leaf: &[String], other: Owner<'_>) -> DynamicMessage {
    let mut made = DynamicMessage::new(message.clone());
    let alternatives = ALTERNATIVES.iter().find(|(name, _)| *name == message.name()).map_or(&[][..], |(_, fields)| fields);
    let chosen = alternatives.iter().find(|name| leaf.first().is_some_and(|first| first == *name)).or(alternatives.first());
    let mut oneofs = BTreeSet::new();
    for field in message.fields().filter(is_asked) {
        let is_other = leaf.first().is_some_and(|first| first == field.name());
        if alternatives.contains(&field.name()) && chosen.is_some_and(|chosen| *chosen != field.name()) {
            continue;
        }
        if let Some(oneof) = field.containing_oneof()
            && !oneofs.insert(oneof.name().to_owned())
        {
            continue;
        }
        let value = match field.kind() {
            Kind::String if field.name() == "delete" => Some(Value::String("retention.ms".to_owned())),
            Kind::String => (if is_other && leaf.len() == 1 { other } else { own }).name(&field).map(Value::String),
            Kind::Message(inner) => {
                let mut inside = filled(&inner, own, if is_other { &leaf[1..] } else { &[] }, other);
                // The request's topic is that of records without one.
                if field.name() == "records" && leaf == ["topic"] {
                    inside.clear_field_by_name("topic");
                }
                Some(Value::Message(inside))
            }
            Kind::Bytes => Some(Value::Bytes("1".into())),
            Kind::Bool => Some(Value::Bool(field.name() != "dry_run")),
            Kind::Int32 if !matches!(field.name(), "partition" | "key_schema_id" | "value_schema_id") => Some(Value::I32(1)),
            Kind::Uint32 => Some(Value::U32(1)),
            Kind::Int64 if field.name() != "retention_ms" => Some(Value::I64(0)),
            _ => None,
        };
        let Some(value) = value else { continue };
        made.set_field(&field, if field.is_list() { Value::List(vec![value]) } else { value });
    }
    made
}

struct World {
    kafka: FakeKafka,
    store: MemoryOffsets,
    services: Services,
    router: Router,
    alice: String,
    bob: String,
}

const POLICY: &str = "[principals.alice]\nallow = [\"all topic alices-*\", \"all group alices-*\", \"all subject *\"]\n[principals.bob]\nallow = [\"all topic bobs-*\", \"all group bobs-*\"]\n[principals.root]\nallow = [\"all\"]\n";

impl World {
    async fn new() -> Self {
        let kept = Kept::new(POLICY, &["alice", "bob", "root"]);
        let (kafka, store) = (FakeKafka::default(), MemoryOffsets::default());
        for owner in ["alices", "bobs"] {
            kafka.add_topic(&format!("{owner}-topic"), 1);
            kafka.append(&format!("{owner}-topic"), 0, 3);
            kafka.set_committed(&format!("{owner}-group"), &[(TopicPartition::new(format!("{owner}-topic"), 0), 1)]);
        }
        let (topics, lag) = (testing::topics_with(&kafka, &store), testing::lag(&kafka, store.clone()));
        let services = Services {
            produce: testing::produce(&kafka),
            transactions: testing::transactions(&kafka),
            sessions: testing::sessions(&kafka, &store, config::Consume::default()),
            resets: Resets {
                lag: lag.clone(),
                topics: topics.clone(),
                kafka: kafka.connection(),
                store: Arc::new(store.clone()),
                clients: Arc::new(kafka.clone()),
            },
            linter: Linter { topics: topics.clone(), lag: lag.clone(), clients: Arc::new(kafka.clone()) },
            topics,
            lag,
            kafka: kafka.connection(),
            registry: testing::registry(&kafka),
            consume: config::Consume::default(),
            shutdown: Default::default(),
        };
        let begin = async |who: &str| as_caller(known(&kept.auth, who).await, services.transactions.begin(None)).await.unwrap().id;
        let (alice, bob) = (begin("alice").await, begin("bob").await);
        let router = guard_grpc(kept.auth.clone(), routes(services.clone()).into_axum_router());
        Self { kafka, store, services, router, alice, bob }
    }

    fn alices(&self) -> Owner<'_> {
        Owner { topic: "alices-topic", group: "alices-group", transaction: &self.alice }
    }

    fn bobs(&self) -> Owner<'_> {
        Owner { topic: "bobs-topic", group: "bobs-group", transaction: &self.bob }
    }

    /// Everything that a call could change.
    fn everything(&self) -> String {
        format!("{} {:?} {}", self.kafka.everything(), self.store, self.services.sessions.count())
    }

    /// Code, message and the answer's bytes; `None` where the stream goes on.
    async fn call(&self, path: &str, key: Option<&str>, message: &DynamicMessage) -> Option<(i32, String, Vec<u8>)> {
        let message = message.encode_to_vec();
        let framed = [&[0][..], &u32::try_from(message.len()).unwrap().to_be_bytes(), &message].concat();
        let mut request = Request::post(path).header("content-type", CONTENT).header("te", "trailers");
        if let Some(key) = key {
            request = request.header("x-api-key", key);
        }
        let (head, body) = self.router.clone().oneshot(request.body(Body::from(framed)).unwrap()).await.unwrap().into_parts();
        let body = timeout(Duration::from_secs(5), body.collect()).await.ok()?.unwrap();
        let trailers = body.trailers().cloned().unwrap_or_default();
        let said = |name: &str| {
            let value = trailers.get(name).or(head.headers.get(name)).map(|value| value.to_str().unwrap().to_owned());
            value.map(|value| percent_decoded(&value))
        };
        let code = said("grpc-status").unwrap().parse().unwrap();
        Some((code, said("grpc-message").unwrap_or_default(), body.to_bytes().to_vec()))
    }
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = text.bytes();
    let mut out = Vec::new();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let digits = [bytes.next().unwrap(), bytes.next().unwrap()];
                out.push(u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap());
            }
            byte => out.push(byte),
        }
    }
    String::from_utf8(out).unwrap()
}

fn methods() -> Vec<(String, MethodDescriptor)> {
    let pool = DescriptorPool::decode(proto::FILE_DESCRIPTOR_SET).unwrap();
    let services: Vec<_> = pool.services().filter(|service| SERVICES.contains(&service.full_name())).collect();
    assert_eq!(services.len(), SERVICES.len());
    let methods = services.iter().flat_map(|service| {
        let name = service.full_name().to_owned();
        service.methods().map(move |method| (format!("/{name}/{}", method.name()), method)).collect::<Vec<_>>()
    });
    methods.collect()
}

#[tokio::test]
async fn nobody_changes_or_sees_what_is_somebody_elses_by_any_method() {
    let world = World::new().await;
    let (alices, bobs) = (world.alices(), world.bobs());
    let absent = Owner { topic: "bobs-other", group: "bobs-none", transaction: "bobs-none" };
    let (alice, before) = (key_of("alice"), world.everything());
    let (mut fields, mut calls) = (0, 0);
    for (path, method) in methods() {
        let access = METHODS.iter().find(|(declared, _)| *declared == path).map(|(_, access)| *access).unwrap();
        let input = method.input();
        // Without credentials, and with wrong ones: nobody, whatever is asked.
        for key in [None, Some("a guess")] {
            let (code, ..) = world.call(&path, key, &filled(&input, bobs, &[], bobs)).await.unwrap();
            assert_eq!(code, UNKNOWN_CALLER, "{path} as {key:?}");
            calls += 1;
        }
        // Nothing is named, so lists are asked for: what is Bob's is in none.
        let (code, message, answer) = world.call(&path, Some(&alice), &DynamicMessage::new(input.clone())).await.unwrap();
        if matches!(access, Access::Cluster(_)) {
            assert_eq!(code, DENIED, "{path}: {message}");
        }
        let seen = String::from_utf8_lossy(&answer).contains("bobs-");
        assert!(!seen, "{path} shows what is Bob's: {code} {message} {:?}", String::from_utf8_lossy(&answer));
        for leaf in leaves(&input, alices) {
            let (code, message, _) = world.call(&path, Some(&alice), &filled(&input, alices, &leaf, bobs)).await.unwrap();
            let is_transaction = leaf.last().is_some_and(|last| last == "transaction_id");
            assert!(code == DENIED, "{path} with Bob's {leaf:?}: {code} {message}");
            let (nothing, told, _) = world.call(&path, Some(&alice), &filled(&input, alices, &leaf, absent)).await.unwrap();
            // Ids of transactions cannot be guessed.
            if is_transaction {
                assert_eq!(nothing, NOT_FOUND, "{path} {leaf:?}: {told}");
            } else {
                let told = told.replace(absent.topic, bobs.topic).replace(absent.group, bobs.group);
                assert_eq!((nothing, told), (code, message), "{path} tells whether there is one: {leaf:?}");
            }
            assert_eq!(world.everything(), before, "{path} with Bob's {leaf:?} changed something");
            (fields, calls) = (fields + 1, calls + 2);
        }
        assert_eq!(world.everything(), before, "{path} changed something");
    }
    assert!(fields >= 30 && calls >= 120, "{fields} fields in {calls} calls");
}

/// The same messages are good ones: who may do everything is refused by none for want of a right, and Alice by none with her own names.
#[tokio::test]
async fn who_may_passes_with_the_same_messages() {
    for (path, method) in methods() {
        let access = METHODS.iter().find(|(declared, _)| *declared == path).map(|(_, access)| *access).unwrap();
        let world = World::new().await;
        let input = method.input();
        for (who, owner) in [("alice", world.alices()), ("root", world.bobs())] {
            let answer = world.call(&path, Some(&key_of(who)), &filled(&input, owner, &[], owner)).await;
            let (code, message, _) = answer.unwrap_or((OK, String::new(), Vec::new()));
            let refused = code == DENIED && !message.contains("belongs to another principal");
            let expected = matches!(access, Access::Cluster(_)) && who == "alice";
            assert_eq!(refused, expected, "{path} as {who}: {code} {message}");
            assert_ne!(code, UNKNOWN_CALLER, "{path} as {who}");
        }
    }
}
