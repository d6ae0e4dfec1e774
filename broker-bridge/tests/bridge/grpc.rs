//! What gRPC has beside producing and plain consuming, on a real broker: settings, partitions, groups and access control lists; where a stream
//! reads; formats.

use std::{collections::BTreeMap, time::Duration};

use proto::{
    control::v1::{
        Acl, AddPartitionsRequest, AlterBrokerConfigsRequest, AlterTopicConfigsRequest, BrokersRequest, ConfigEntry, CreateAclsRequest,
        CreateTopicRequest, DeleteAclsRequest, DescribeBrokerConfigsRequest, DescribeGroupRequest, DescribeTopicConfigsRequest,
        ListAclsRequest, ListReassignmentsRequest, ListReplicasRequest, ReplicaAssignment, TopicPartition,
    },
    data::v1::{
        Ack, BeginTransactionRequest, ConsumeRequest, ConsumeResponse, Credit, Encoding, EndTransactionRequest, GetPositions, Position,
        ProduceRequest, Record, Seek, Start, Subscribe, TransactionProduceRequest, consume_request::Request, start::At,
    },
};
use serde_json::{Value, json};
use service_kit::kafka::{self, KafkaConfig};
use tokio::{sync::mpsc, time::timeout};
use tonic::{Code, Status, Streaming};

use crate::{
    Client,
    cluster::Cluster,
    eventually, message,
    process::{self, Bridge, servers, unique},
    registry::Registry,
    subscribed,
};

const PATIENCE: Duration = Duration::from_secs(30);

/// Brokers learn of what the controller has a moment later.
#[track_caller]
fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code, message: &str) {
    let status = answer.unwrap_err();
    assert!(status.code() == code && status.message().contains(message), "{message:?}: {status}");
}

fn value<'a>(configs: &'a [ConfigEntry], name: &str) -> Option<&'a ConfigEntry> {
    configs.iter().find(|config| config.name == name)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_manages_topics_settings_groups_and_access_control_lists() {
    let bridge = Bridge::start(&servers()).await;
    let client = Client::of(&bridge).await;
    let mut control = client.control();
    let admin = kafka::admin(&KafkaConfig::new(servers())).await.unwrap();
    let broker = control.brokers(BrokersRequest {}).await.unwrap().into_inner().brokers[0].id;

    // Replicas where the caller wants them, then more partitions.
    let name = unique("topic");
    let place = |partition: i32, brokers: Vec<i32>| ReplicaAssignment { partition, brokers };
    let new = |assignments| CreateTopicRequest { name: name.clone(), assignments, ..CreateTopicRequest::default() };
    refused(control.create_topic(new(vec![place(0, vec![999])])).await, Code::InvalidArgument, "999");
    refused(control.create_topic(new(vec![place(0, vec![broker]); 2])).await, Code::InvalidArgument, "partition 0 twice");
    let created = control.create_topic(new(vec![place(0, vec![broker]), place(1, vec![broker])])).await.unwrap().into_inner();
    let topic = created.topic.unwrap();
    assert_eq!((topic.partitions, topic.replication, created.config["retention.ms"].as_str()), (2, 1, "604800000"));
    let more = |partitions: u32| AddPartitionsRequest { topic: name.clone(), partitions };
    assert_eq!(control.add_partitions(more(4)).await.unwrap().into_inner().topic.unwrap().partitions, 4);
    assert_eq!(admin.topic(&name).await.unwrap().partitions.len(), 4);
    refused(control.add_partitions(more(2)).await, Code::InvalidArgument, "4");
    refused(control.add_partitions(AddPartitionsRequest { topic: unique("none"), partitions: 2 }).await, Code::NotFound, "does not exist");
    let replicas = control.list_replicas(ListReplicasRequest { broker }).await.unwrap().into_inner().replicas;
    let own = replicas.iter().filter(|replica| replica.topic == name && replica.is_leader && replica.in_sync);
    assert_eq!(own.map(|replica| replica.partition).collect::<Vec<_>>(), [0, 1, 2, 3]);
    refused(control.list_replicas(ListReplicasRequest { broker: 99 }).await, Code::NotFound, "no broker 99");
    let moved = control.list_reassignments(ListReassignmentsRequest { topic: name.clone() }).await.unwrap().into_inner();
    assert!(moved.reassignments.is_empty(), "{moved:?}");

    settings(&client, &bridge, &name, broker).await;
    lists(&client, &bridge).await;

    // A group with a member.
    let group = unique("group");
    let subscribe = Subscribe { group: group.clone(), topics: vec![name.clone()], credit: 10, ..Subscribe::default() };
    let mut stream = Stream::of(&client, subscribe).await;
    eventually("it has its partitions", async || !stream.positions(GET).await.is_empty()).await;
    let described = control.describe_group(DescribeGroupRequest { group: group.clone() }).await.unwrap().into_inner();
    let member = &described.members[0];
    assert!(described.coordinator == Some(broker) && !member.client_id.is_empty() && member.instance_id.is_empty(), "{described:?}");
    assert!(member.assignment.contains(&TopicPartition { topic: name.clone(), partition: 3 }) && member.assignment.len() == 4);
    let told = process::millrace(&bridge, &["group", "describe", &group]).await;
    assert!(told.contains(&member.id) && told.contains("0,1,2,3"), "{told}");
    drop(stream);
    client.delete_topic(&name).await;
    bridge.stop().await;
}

async fn settings(client: &Client, bridge: &Bridge, topic: &str, broker: i32) {
    let mut control = client.control();
    let admin = kafka::admin(&KafkaConfig::new(servers())).await.unwrap();
    let in_kafka = async |setting: &str| {
        let found = admin.topic_config(topic).await.unwrap();
        found.into_iter().find(|entry| entry.name == setting).and_then(|entry| entry.value).unwrap_or_default()
    };
    let alter = |set: &[(&str, &str)], delete: &[&str], dry_run: bool| AlterTopicConfigsRequest {
        topic: topic.to_owned(),
        set: set.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        delete: delete.iter().map(|name| (*name).to_owned()).collect(),
        dry_run,
    };
    control.alter_topic_configs(alter(&[("segment.ms", "60000")], &[], true)).await.unwrap();
    control.alter_topic_configs(alter(&[("retention.ms", "7000"), ("max.message.bytes", "2048")], &[], false)).await.unwrap();
    eventually("Kafka has the new values", async || {
        in_kafka("retention.ms").await == "7000" && in_kafka("max.message.bytes").await == "2048"
    })
    .await;
    assert_ne!(in_kafka("segment.ms").await, "60000", "a dry run changes nothing");
    let told = process::millrace(bridge, &["topic", "alter", topic, "--set", "retention.ms=9000", "--delete", "max.message.bytes"]).await;
    assert!(told.contains(&format!("topic {topic}")), "{told}");
    eventually("Kafka has them", async || in_kafka("retention.ms").await == "9000" && in_kafka("max.message.bytes").await != "2048").await;
    let told = process::millrace(bridge, &["topic", "config", topic]).await;
    assert!(told.contains("retention.ms") && told.contains("DYNAMIC_TOPIC_CONFIG") && !told.contains("DEFAULT_CONFIG"), "{told}");
    let described = DescribeTopicConfigsRequest { topics: vec![topic.to_owned()] };
    let found = control.describe_topic_configs(described).await.unwrap().into_inner().topics.remove(0).configs;
    let retention = value(&found, "retention.ms").unwrap();
    assert!(!retention.is_default && retention.synonyms[0].value.as_deref() == Some("9000"), "{retention:?}");
    assert!(value(&found, "max.message.bytes").unwrap().is_default);
    let all = control.describe_topic_configs(DescribeTopicConfigsRequest::default()).await.unwrap().into_inner().topics;
    assert!(all.iter().any(|one| one.topic == topic && value(&one.configs, "cleanup.policy").is_some()));
    for (wrong, told) in [
        (alter(&[("retention.ms", "x")], &[], false), "retention.ms"),
        (alter(&[("bogus", "1")], &[], false), "bogus"),
        (alter(&[("a", "b")], &["a"], false), "in set and in delete"),
        (alter(&[], &[], false), "set and delete are empty"),
    ] {
        refused(control.alter_topic_configs(wrong).await, Code::InvalidArgument, told);
    }
    let unknown = AlterTopicConfigsRequest { topic: unique("none"), ..alter(&[("retention.ms", "7000")], &[], false) };
    refused(control.alter_topic_configs(unknown).await, Code::NotFound, "does not exist");

    // Of one broker, and of all.
    const SETTING: &str = "log.cleaner.io.buffer.load.factor";
    let of = |broker: Option<i32>, value: Option<&str>| AlterBrokerConfigsRequest {
        broker,
        set: value.map(|value| (SETTING.to_owned(), value.to_owned())).into_iter().collect(),
        delete: if value.is_none() { vec![SETTING.to_owned()] } else { Vec::new() },
        dry_run: false,
    };
    let found = async |broker: Option<i32>| {
        let found = client.control().describe_broker_configs(DescribeBrokerConfigsRequest { broker }).await.unwrap().into_inner().configs;
        value(&found, SETTING).map(|config| (config.value.clone().unwrap_or_default(), config.source.clone()))
    };
    let is = |value: &str, source: &str| Some((value.to_owned(), source.to_owned()));
    control.alter_broker_configs(of(None, Some("0.7"))).await.unwrap();
    control.alter_broker_configs(of(Some(broker), Some("0.8"))).await.unwrap();
    eventually("the broker's own", async || found(Some(broker)).await == is("0.8", "DYNAMIC_BROKER_CONFIG")).await;
    eventually("that of all", async || found(None).await == is("0.7", "DYNAMIC_DEFAULT_BROKER_CONFIG")).await;
    control.alter_broker_configs(of(Some(broker), None)).await.unwrap();
    eventually("that of all holds", async || found(Some(broker)).await == is("0.7", "DYNAMIC_DEFAULT_BROKER_CONFIG")).await;
    control.alter_broker_configs(of(None, None)).await.unwrap();
    eventually("the default holds", async || found(Some(broker)).await == is("0.9", "DEFAULT_CONFIG")).await;
    refused(control.alter_broker_configs(of(Some(99), Some("0.8"))).await, Code::NotFound, "no broker 99");
}

fn acl(name: &str, operation: &str) -> Acl {
    Acl {
        resource_type: "topic".into(),
        resource_name: name.into(),
        pattern_type: "PREFIXED".into(),
        principal: "User:alice".into(),
        host: "*".into(),
        operation: operation.into(),
        permission: "ALLOW".into(),
    }
}

async fn lists(client: &Client, bridge: &Bridge) {
    let (mut control, name) = (client.control(), unique("acl"));
    let create = |operations: &[&str]| CreateAclsRequest { acls: operations.iter().map(|operation| acl(&name, operation)).collect() };
    control.create_acls(create(&["READ", "WRITE"])).await.unwrap();
    let words = ["acl", "create", "--topic", &name, "--prefixed", "--principal", "User:alice", "--operation", "alter-configs"];
    process::millrace(bridge, &words).await;
    let filter = Some(Acl { resource_name: name.clone(), ..Acl::default() });
    let found = async || client.control().list_acls(ListAclsRequest { filter: filter.clone() }).await.unwrap().into_inner().acls;
    eventually("three entries", async || found().await.len() == 3).await;
    let first = Acl { resource_type: "TOPIC".into(), ..acl(&name, "READ") };
    assert_eq!(found().await[0], first);
    let words = ["acl", "list", "--topic", &name];
    assert!(process::millrace(bridge, &words).await.contains("ALTER_CONFIGS"));
    for (wrong, told) in [
        (create(&["READ", "ANY"]), "operation cannot be ANY"),
        (create(&["FLY"]), "IDEMPOTENT_WRITE"),
        (create(&[]), "acls is empty"),
        (CreateAclsRequest { acls: vec![Acl { resource_type: "CLUSTER".into(), ..acl(&name, "ALTER") }] }, "kafka-cluster"),
    ] {
        refused(control.create_acls(wrong).await, Code::InvalidArgument, told);
    }
    let unsaid = DeleteAclsRequest { filter: filter.clone() };
    refused(control.delete_acls(unsaid).await, Code::InvalidArgument, "resource_type cannot be unspecified");
    let deleted = control.delete_acls(DeleteAclsRequest { filter: Some(acl(&name, "READ")) }).await.unwrap().into_inner().acls;
    assert_eq!(deleted, [first]);
    let told = process::millrace(bridge, &["acl", "delete", "--topic", &name, "--prefixed", "--yes"]).await;
    assert!(told.contains("WRITE") && told.contains("ALTER_CONFIGS"), "{told}");
    eventually("none is left", async || found().await.is_empty()).await;
}

/// `authorizer.class.name` is not set there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn access_control_lists_are_refused_where_the_brokers_keep_none() {
    let cluster = Cluster::start_with(1, &[]);
    let bridge = Bridge::start(&cluster.servers).await;
    let mut control = Client::of(&bridge).await.control();
    let told = "authorizer.class.name is not set";
    refused(control.list_acls(ListAclsRequest::default()).await, Code::InvalidArgument, told);
    refused(control.create_acls(CreateAclsRequest { acls: vec![acl("t", "READ")] }).await, Code::InvalidArgument, told);
    refused(control.delete_acls(DeleteAclsRequest { filter: Some(acl("t", "READ")) }).await, Code::InvalidArgument, told);
    let (code, told) = process::millrace_exits(&bridge, &["acl", "list"]).await;
    assert!(code == 1 && told.contains("authorizer.class.name"), "{code} {told}");
    bridge.stop().await;
}

const GET: Request = Request::GetPositions(GetPositions {});

/// A stream, and what was read of it beside what was asked for.
struct Stream {
    requests: mpsc::Sender<ConsumeRequest>,
    batches: Streaming<ConsumeResponse>,
    last: u64,
}

impl Stream {
    async fn of(client: &Client, subscribe: Subscribe) -> Self {
        let (requests, batches) = subscribed(client, subscribe).await;
        Self { requests, batches, last: 0 }
    }

    async fn say(&self, request: Request) {
        self.requests.send(message(request)).await.unwrap();
    }

    async fn next(&mut self) -> Result<ConsumeResponse, Status> {
        let next = timeout(PATIENCE, self.batches.message()).await.expect("nothing comes")?.expect("the stream has ended");
        self.last = self.last.max(next.batch);
        Ok(next)
    }

    /// As many records; topic, partition and offset.
    async fn records(&mut self, count: usize) -> Vec<(String, i32, i64)> {
        let mut places = Vec::new();
        while places.len() < count {
            let batch = self.next().await.unwrap();
            assert!(batch.positions.is_none(), "{batch:?}");
            places.extend(batch.records.into_iter().map(|record| (record.topic, record.partition.unwrap(), record.offset)));
        }
        places.sort();
        places
    }

    /// The answer to this, which asks for positions; nothing is to come before it.
    async fn positions(&mut self, asked: Request) -> Vec<Position> {
        self.say(asked).await;
        let answer = self.next().await.unwrap();
        assert!(answer.batch == 0 && answer.records.is_empty(), "{answer:?}");
        answer.positions.unwrap().positions
    }

    async fn ack(&self) {
        self.say(Request::Ack(Ack { batch: self.last })).await;
    }
}

fn at(topic: &str, partition: i32, at: Option<At>) -> Start {
    Start { topic: topic.to_owned(), partition, at }
}

fn position(topic: &str, partition: i32, position: i64, committed: Option<i64>) -> Position {
    Position { topic: topic.to_owned(), partition, position: Some(position), committed }
}

fn seek(topic: &str, places: &[(i32, At)]) -> Request {
    Request::Seek(Seek { partitions: places.iter().map(|(partition, place)| at(topic, *partition, Some(*place))).collect() })
}

fn span(topic: &str, partition: i32, offsets: std::ops::Range<i64>) -> Vec<(String, i32, i64)> {
    offsets.map(|offset| (topic.to_owned(), partition, offset)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grpc_stream_reads_where_it_is_told() {
    let bridge = Bridge::start(&servers()).await;
    let client = Client::of(&bridge).await;
    let (topic, group) = (client.create_topic(2).await, unique("group"));
    let values = (0..20).map(|n| Record { partition: Some(n / 10), value: Some(n.to_string().into()), ..Record::default() });
    let all = ProduceRequest { topic: topic.clone(), records: values.collect(), ..ProduceRequest::default() };
    client.data().produce(all).await.unwrap();
    let assigned = |assign: Vec<Start>, credit: u32| Subscribe { group: group.clone(), assign, credit, ..Subscribe::default() };

    // Partitions by name, each from its own place; the group's offsets move by acks all the same.
    let places = vec![at(&topic, 0, Some(At::Beginning(true))), at(&topic, 1, Some(At::Offset(7)))];
    let mut stream = Stream::of(&client, assigned(places, 1_000)).await;
    assert_eq!(stream.records(13).await, [span(&topic, 0, 0..10), span(&topic, 1, 7..10)].concat());
    assert_eq!(stream.positions(GET).await, [position(&topic, 0, 10, None), position(&topic, 1, 10, None)]);
    stream.ack().await;
    assert_eq!(stream.positions(GET).await, [position(&topic, 0, 10, Some(10)), position(&topic, 1, 10, Some(10))]);

    // What was sent before a seek is not acked by an ack that follows it; what follows moves the group back.
    let back = stream.positions(seek(&topic, &[(0, At::Offset(4)), (1, At::Beginning(true))])).await;
    assert_eq!(back, [position(&topic, 0, 4, Some(10)), position(&topic, 1, 0, Some(10))]);
    assert_eq!(stream.records(16).await, [span(&topic, 0, 4..10), span(&topic, 1, 0..10)].concat());
    stream.positions(seek(&topic, &[(0, At::Offset(2))])).await;
    stream.ack().await;
    assert_eq!(stream.records(8).await, span(&topic, 0, 2..10));
    let end = stream.positions(seek(&topic, &[(0, At::Beginning(true)), (1, At::End(true))])).await;
    assert_eq!(end, [position(&topic, 0, 0, Some(10)), position(&topic, 1, 10, Some(10))]);
    assert_eq!(stream.records(10).await, span(&topic, 0, 0..10));
    stream.positions(seek(&topic, &[(0, At::Offset(3))])).await;
    // Unacked until the end: the next stream begins where the last ack was.
    stream.say(seek(&topic, &[(9, At::Offset(0))])).await;
    refused(until_error(&mut stream).await, Code::FailedPrecondition, "does not have");
    let mut stream = Stream::of(&client, assigned(vec![at(&topic, 0, Some(At::Offset(2)))], 3)).await;
    assert_eq!(stream.records(3).await, span(&topic, 0, 2..5));
    stream.ack().await;
    assert_eq!(stream.positions(GET).await, [position(&topic, 0, 5, Some(5))], "the group goes back");
    drop(stream);
    let mut stream = Stream::of(&client, assigned(vec![at(&topic, 0, None)], 1_000)).await;
    assert_eq!(stream.records(5).await, span(&topic, 0, 5..10), "without a place: the group's");
    drop(stream);

    // Members of a group seek, too, once they have partitions.
    let subscribe = Subscribe { group: unique("group"), topics: vec![topic.clone()], credit: 1_000, ..Subscribe::default() };
    let mut stream = Stream::of(&client, subscribe).await;
    eventually("it has both partitions", async || stream.positions(GET).await.len() == 2).await;
    stream.positions(seek(&topic, &[(0, At::Offset(8)), (1, At::Offset(9))])).await;
    assert_eq!(stream.records(3).await, [span(&topic, 0, 8..10), span(&topic, 1, 9..10)].concat());
    drop(stream);

    let wrong = Subscribe { group: group.clone(), topics: vec![topic.clone()], credit: 1, ..Subscribe::default() };
    for (wrong, code, told) in [
        (Subscribe { topics: vec![], ..wrong.clone() }, Code::InvalidArgument, "only one of them"),
        (Subscribe { topic_pattern: "x".into(), ..wrong.clone() }, Code::InvalidArgument, "only one of them"),
        (Subscribe { assign: vec![at(&topic, 0, None)], ..wrong.clone() }, Code::InvalidArgument, "only one of them"),
        (Subscribe { isolation_level: "serializable".into(), ..wrong.clone() }, Code::InvalidArgument, "read_committed"),
        (Subscribe { format: "thrift".into(), ..wrong.clone() }, Code::InvalidArgument, "jsonschema"),
        (assigned(vec![at(&topic, 0, Some(At::Offset(-1)))], 1), Code::InvalidArgument, "is no place"),
        (assigned(vec![at(&topic, 7, None)], 1), Code::NotFound, "it has 0 to 1"),
    ] {
        refused(Stream::of(&client, wrong).await.next().await, code, told);
    }
    transactions_and_patterns(&client).await;
    client.delete_topic(&topic).await;
    bridge.stop().await;
}

async fn until_error(stream: &mut Stream) -> Result<ConsumeResponse, Status> {
    loop {
        stream.next().await?;
    }
}

async fn transactions_and_patterns(client: &Client) {
    let base = unique("topic");
    let topic = |name: &str| format!("{base}-{name}");
    for name in ["a", "b", "other"] {
        client.control().create_topic(CreateTopicRequest { name: topic(name), partitions: 1, ..Default::default() }).await.unwrap();
    }
    let mut data = client.data();
    let record = |value: &str| Record { value: Some(value.to_owned().into()), ..Record::default() };
    for (value, commit) in [("kept", true), ("lost", false)] {
        let transaction_id = data.begin_transaction(BeginTransactionRequest::default()).await.unwrap().into_inner().transaction_id;
        let (records, topic) = (vec![record(value)], topic("a"));
        let written = TransactionProduceRequest { transaction_id: transaction_id.clone(), topic, records, encoding: None };
        data.transaction_produce(written).await.unwrap();
        data.end_transaction(EndTransactionRequest { transaction_id, commit }).await.unwrap();
    }
    for name in ["a", "b", "other"] {
        let last = ProduceRequest { topic: topic(name), records: vec![record("last")], ..ProduceRequest::default() };
        data.produce(last).await.unwrap();
    }
    // Reads until the last records of `a` and `b` are there.
    let values = async |isolation_level: &str| {
        let mut stream = Stream::of(
            client,
            Subscribe {
                group: unique("group"),
                topic_pattern: format!("{base}-[ab]$"),
                isolation_level: isolation_level.to_owned(),
                auto_offset_reset: "earliest".into(),
                credit: 100,
                ..Subscribe::default()
            },
        )
        .await;
        let mut seen: BTreeMap<String, Vec<String>> = BTreeMap::new();
        while seen.values().filter(|values| values.last().is_some_and(|value| value == "last")).count() < 2 {
            for record in stream.next().await.unwrap().records {
                seen.entry(record.topic).or_default().push(String::from_utf8(record.value.unwrap().to_vec()).unwrap());
            }
        }
        seen
    };
    let of = |a: &[&str]| {
        let a = a.iter().map(|value| (*value).to_owned()).collect::<Vec<_>>();
        BTreeMap::from([(topic("a"), a), (topic("b"), vec!["last".to_owned()])])
    };
    assert_eq!(values("read_committed").await, of(&["kept", "last"]));
    assert_eq!(values("").await, of(&["kept", "lost", "last"]));
    for name in ["a", "b", "other"] {
        client.delete_topic(&topic(name)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_writes_and_reads_json_in_the_formats_of_the_registry() {
    let registry = Registry::new();
    let bridge = registry.replica().await;
    let client = Client::of(&bridge).await;
    let topic = client.create_topic(2).await;
    let schema = json!({"type": "record", "name": "User", "fields": [{"name": "name", "type": "string"}, {"name": "age", "type": "int"}]});
    let encoding = Encoding { format: "avro".into(), value_schema: Some(schema.to_string()), ..Encoding::default() };
    let user = |text: &str| Record { partition: Some(0), value: Some(text.to_owned().into()), ..Record::default() };
    let request = |encoding: &Encoding, records: Vec<Record>| ProduceRequest {
        topic: topic.clone(),
        records,
        encoding: Some(encoding.clone()),
        ..ProduceRequest::default()
    };
    let mut data = client.data();
    let written = data.produce(request(&encoding, vec![user(r#"{"name":"Ann","age":7}"#)])).await.unwrap().into_inner();
    assert_eq!((written.results[0].offset, written.results[0].error.as_str()), (0, ""));
    // Registered under the topic's subject, as over HTTP; by id from then on, and in one transaction.
    let url = format!("{}/subjects/{topic}-value/versions/1", client.base);
    let registered: Value = client.http.get(url).send().await.unwrap().json().await.unwrap();
    let id = i32::try_from(registered["id"].as_i64().unwrap()).unwrap();
    let by_id = Encoding { format: "avro".into(), value_schema_id: Some(id), ..Encoding::default() };
    data.produce_atomically(request(&by_id, vec![user(r#"{"name":"Bob","age":8}"#)])).await.unwrap();
    for (wrong, code, told) in [
        (request(&by_id, vec![user("{")]), Code::InvalidArgument, "records[0].value is not JSON"),
        (request(&by_id, vec![user(r#"{"name":1}"#)]), Code::InvalidArgument, "does not fit schema"),
        (request(&Encoding { value_schema_id: None, ..by_id.clone() }, vec![user("1")]), Code::InvalidArgument, "value_schema_id"),
        (request(&Encoding { format: "thrift".into(), ..Encoding::default() }, vec![]), Code::InvalidArgument, "encoding.format"),
        (ProduceRequest { topic: unique("none"), ..request(&encoding, vec![user("{}")]) }, Code::NotFound, "does not exist"),
    ] {
        refused(data.produce(wrong).await, code, told);
    }
    // Bytes stay bytes.
    let plain = Record { partition: Some(1), value: Some(vec![b'x'].into()), ..Record::default() };
    data.produce(ProduceRequest { topic: topic.clone(), records: vec![plain], ..ProduceRequest::default() }).await.unwrap();

    let from = |format: &str, partitions: &[i32]| Subscribe {
        group: unique("group"),
        assign: partitions.iter().map(|partition| at(&topic, *partition, Some(At::Beginning(true)))).collect(),
        format: format.to_owned(),
        credit: 100,
        ..Subscribe::default()
    };
    let values = async |subscribe: Subscribe| {
        let mut stream = Stream::of(&client, subscribe).await;
        let mut values = Vec::new();
        while values.len() < 2 {
            values.extend(stream.next().await.unwrap().records.into_iter().map(|record| record.value.unwrap()));
        }
        values
    };
    let shown = values(from("avro", &[0])).await;
    let users: Vec<Value> = shown.iter().map(|value| serde_json::from_slice(value).unwrap()).collect();
    assert_eq!(users, [json!({"name": "Ann", "age": 7}), json!({"name": "Bob", "age": 8})]);
    let raw = values(from("", &[0])).await;
    assert!(raw[0].starts_with(&[&[0][..], &id.to_be_bytes()].concat()) && raw[0].len() == 5 + 5, "{raw:?}");

    // What the format cannot show blocks its partition, which is said; alone it ends the stream.
    refused(Stream::of(&client, from("avro", &[1])).await.next().await, Code::InvalidArgument, "so format avro cannot show it");
    let mut stream = Stream::of(&client, Subscribe { credit: 1, ..from("avro", &[0, 1]) }).await;
    let mut blocked = Vec::new();
    for _ in 0..2 {
        let batch = stream.next().await.unwrap();
        assert_eq!(batch.records.len(), 1);
        blocked.extend(batch.blocked.into_iter().map(|at| at.partition));
        stream.say(Request::Credit(Credit { records: 1 })).await;
    }
    assert!(blocked.iter().all(|partition| *partition == 1), "{blocked:?}");

    client.delete_topic(&topic).await;
    bridge.stop().await;
    registry.remove().await;
}
