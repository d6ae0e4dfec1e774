//! Control services with fixed answers in this process, and the real binary run against them.

use std::{
    collections::HashMap,
    fs,
    net::SocketAddr,
    path::Path,
    process::{Command, Output},
    sync::{Arc, Mutex},
};

use proto::control::v1::{
    bridge_server::{Bridge, BridgeServer},
    collector_server::{Collector, CollectorServer},
    control_server::{Control, ControlServer},
    engine_server::{Engine, EngineServer},
    *,
};
use tokio::{net::TcpListener, runtime::Runtime};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server};

type Answer<T> = Result<Response<T>, Status>;

/// What arrived: the message as `{:?}` shows it, and the trace context.
#[derive(Clone, Debug)]
pub struct Call {
    pub message: String,
    pub traceparent: Option<String>,
    pub has_deadline: bool,
}

/// One fake service on a free port. It ends with the value.
pub struct Fake {
    pub address: SocketAddr,
    pub calls: Arc<Mutex<Vec<Call>>>,
    _runtime: Runtime,
}

#[derive(Clone)]
struct Answers {
    program: &'static str,
    health: Health,
    reason: &'static str,
    calls: Arc<Mutex<Vec<Call>>>,
}

impl Fake {
    pub fn collector() -> Self {
        Self::start("millrace-collector", Health::Ready, "")
    }

    pub fn bridge() -> Self {
        Self::start("millrace-bridge", Health::Degraded, "broker 2 of 3 is away since 12:00:00")
    }

    pub fn engine() -> Self {
        Self::start("millrace-engine", Health::Paused, "paused: clicks")
    }

    fn start(program: &'static str, health: Health, reason: &'static str) -> Self {
        let calls = Arc::new(Mutex::new(Vec::new()));
        let answers = Answers { program, health, reason, calls: calls.clone() };
        let runtime = Runtime::new().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        // As in a real service: the common service, and only the own one beside it.
        let mut routes = tonic::service::Routes::new(ControlServer::new(answers.clone()));
        routes = match program {
            "millrace-collector" => routes.add_service(CollectorServer::new(answers)),
            "millrace-bridge" => routes.add_service(BridgeServer::new(answers)),
            _ => routes.add_service(EngineServer::new(answers)),
        };
        runtime.spawn(Server::builder().add_routes(routes).serve_with_incoming(TcpListenerStream::new(listener)));
        Self { address, calls, _runtime: runtime }
    }

    /// The only call that arrived.
    pub fn call(&self) -> Call {
        let calls = self.calls.lock().unwrap();
        assert_eq!(calls.len(), 1, "{calls:?}");
        calls[0].clone()
    }
}

/// All three, and a port where nobody listens.
pub struct World {
    pub collector: Fake,
    pub bridge: Fake,
    pub engine: Fake,
}

impl World {
    pub fn start() -> Self {
        Self { collector: Fake::collector(), bridge: Fake::bridge(), engine: Fake::engine() }
    }

    pub fn millrace(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = millrace(words);
        command.env("MILLRACE_COLLECTOR", self.collector.address.to_string());
        command.env("MILLRACE_BRIDGE", self.bridge.address.to_string());
        command.env("MILLRACE_ENGINE", self.engine.address.to_string());
        command
    }

    /// Runs the command and compares everything a user sees with `snapshots/NAME.txt`.
    pub fn check(&self, name: &str, words: &[&str]) {
        let output = self.millrace(words);
        let mut seen = transcript(words, &output);
        for (service, fake) in [("collector", &self.collector), ("bridge", &self.bridge), ("engine", &self.engine)] {
            seen = mask(&seen, &fake.address.to_string(), service);
        }
        snapshot(name, &seen);
    }
}

/// Ports have four or five digits: the address and the padding behind it become one word of a fixed width.
pub fn mask(text: &str, address: &str, service: &str) -> String {
    let padded = format!("{:<17}", format!("<{service}>"));
    let mut masked = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(address) {
        let in_table = after.starts_with("  ");
        masked.push_str(before);
        masked.push_str(if in_table { &padded } else { padded.trim_end() });
        rest = if in_table { after.trim_start_matches(' ') } else { after };
    }
    masked + rest
}
/// The binary without what the environment of the test run may hold.
pub fn millrace(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millrace"));
    command.args(words);
    for variable in ["MILLRACE_COLLECTOR", "MILLRACE_BRIDGE", "MILLRACE_ENGINE", "TRACEPARENT", "NO_COLOR"] {
        command.env_remove(variable);
    }
    command.stdin(std::process::Stdio::null());
    command
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

pub fn transcript(words: &[&str], output: &Output) -> String {
    let code = output.status.code().unwrap();
    let mut text = format!("$ millrace {}\n{}", words.join(" "), stdout(output));
    if !output.stderr.is_empty() {
        text.push_str(&format!("--- stderr\n{}", stderr(output)));
    }
    text + &format!("--- exit {code}\n")
}

pub fn snapshot(name: &str, seen: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots").join(format!("{name}.txt"));
    if std::env::var_os("MILLRACE_BLESS").is_some() {
        fs::write(&path, seen).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert!(seen == expected, "{name} differs; MILLRACE_BLESS=1 takes what is seen\n--- expected\n{expected}--- seen\n{seen}");
}

impl Answers {
    fn note<T: std::fmt::Debug>(&self, request: &Request<T>) {
        let text = |name: &str| request.metadata().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        self.calls.lock().unwrap().push(Call {
            message: format!("{:?}", request.get_ref()),
            traceparent: text("traceparent"),
            has_deadline: text("grpc-timeout").is_some(),
        });
    }
}

#[tonic::async_trait]
impl Control for Answers {
    async fn status(&self, request: Request<StatusRequest>) -> Answer<StatusResponse> {
        self.note(&request);
        let fact = |name: &str, value: &str| Fact { name: name.into(), value: value.into() };
        Ok(Response::new(StatusResponse {
            service: self.program.into(),
            version: "0.1.0".into(),
            health: self.health.into(),
            reason: self.reason.into(),
            uptime_ms: 7_384_000,
            started_at_ms: 1_763_817_600_000,
            host: "host-a".into(),
            pid: 4242,
            memory_bytes: if self.program == "millrace-bridge" { 0 } else { 41 << 20 },
            facts: vec![fact("events/s", "12,400"), fact("channels", "1")],
        }))
    }

    async fn reload(&self, request: Request<ReloadRequest>) -> Answer<ReloadResponse> {
        self.note(&request);
        Ok(Response::new(ReloadResponse {
            changed: vec!["sink kafkaSink".into()],
            unchanged: vec!["source logSource".into(), "channel memChannel".into()],
            warnings: vec!["line 7: capacitty is no key of a memory channel; did you mean capacity?".into()],
        }))
    }

    async fn pause(&self, request: Request<PauseRequest>) -> Answer<PauseResponse> {
        self.note(&request);
        match request.get_ref().component.as_str() {
            "" => Ok(Response::new(PauseResponse { paused: vec!["a".into(), "b".into()] })),
            "a" => Ok(Response::new(PauseResponse { paused: vec!["a".into()] })),
            other => Err(Status::not_found(format!("no component {other}; there are a and b"))),
        }
    }

    async fn resume(&self, request: Request<ResumeRequest>) -> Answer<ResumeResponse> {
        self.note(&request);
        Ok(Response::new(ResumeResponse { resumed: vec![] }))
    }

    async fn drain(&self, request: Request<DrainRequest>) -> Answer<DrainResponse> {
        self.note(&request);
        let drained = self.program != "millrace-bridge";
        Ok(Response::new(DrainResponse { drained, remaining: if drained { 0 } else { 12_000 } }))
    }

    async fn set_log_level(&self, request: Request<SetLogLevelRequest>) -> Answer<SetLogLevelResponse> {
        self.note(&request);
        Ok(Response::new(SetLogLevelResponse { previous: "info".into(), current: request.into_inner().filter }))
    }

    async fn effective_config(&self, request: Request<EffectiveConfigRequest>) -> Answer<EffectiveConfigResponse> {
        self.note(&request);
        let text = "[control]\nlisten = \"127.0.0.1:7102\"\n\n[kafka]\n\"sasl.password\" = \"***\"\n";
        Ok(Response::new(EffectiveConfigResponse { format: "toml".into(), text: text.into() }))
    }
}

#[tonic::async_trait]
impl Collector for Answers {
    type TapStream = tokio_stream::Iter<std::vec::IntoIter<Result<TapResponse, Status>>>;

    async fn tap(&self, request: Request<TapRequest>) -> Answer<Self::TapStream> {
        self.note(&request);
        if request.get_ref().limit == 9_999 {
            return Err(Status::resource_exhausted("8 taps are open already; end one, or raise [tap] taps_max"));
        }
        let started = TapStarted { components: vec!["source.logSource".into()], unmatched: vec!["nginx".into()] };
        let event = |direction: TapDirection, body: &[u8], body_bytes, passed_over| TapEvent {
            component: "source.logSource".into(),
            direction: direction.into(),
            headers: [("host".to_owned(), "web 1".to_owned()), ("level".to_owned(), "ERROR".to_owned())].into(),
            body: body.to_vec(),
            body_bytes,
            passed_over,
        };
        let all = [
            tap_response::What::Started(started),
            tap_response::What::Event(event(TapDirection::In, b"GET /a \"x\"", 10, 0)),
            tap_response::What::Event(event(TapDirection::Out, b"\x1b[31mred\xff", 12_345, 1_200)),
        ];
        let all: Vec<_> = all.into_iter().map(|what| Ok(TapResponse { what: Some(what) })).collect();
        Ok(Response::new(tokio_stream::iter(all)))
    }

    async fn components(&self, request: Request<ComponentsRequest>) -> Answer<ComponentsResponse> {
        self.note(&request);
        let component =
            |kind: ComponentKind, name: &str, class: &str, state: ComponentState, error: &str, counters: &[(&str, f64)]| Component {
                kind: kind.into(),
                name: name.into(),
                r#type: class.into(),
                state: state.into(),
                error: error.into(),
                channels: if kind == ComponentKind::Channel { vec![] } else { vec!["memChannel".into()] },
                counters: counters.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect(),
            };
        Ok(Response::new(ComponentsResponse {
            components: vec![
                component(
                    ComponentKind::Source,
                    "logSource",
                    "exec",
                    ComponentState::Running,
                    "",
                    &[("EventReceivedCount", 1_240.0), ("EventAcceptedCount", 1_234.0)],
                ),
                component(
                    ComponentKind::Channel,
                    "memChannel",
                    "memory",
                    ComponentState::Running,
                    "",
                    &[("ChannelSize", 1_250.0), ("ChannelFillPercentage", 12.5)],
                ),
                component(
                    ComponentKind::Sink,
                    "kafkaSink",
                    "org.apache.flume.sink.kafka.KafkaSink",
                    ComponentState::Failed,
                    "no broker of kafka1:9092 answers\n\u{1b}[31mretrying",
                    &[("EventDrainSuccessCount", 1_000_000.0), ("EventDrainAttemptCount", 1_000_000.0)],
                ),
            ],
        }))
    }
}

fn config(name: &str, value: Option<&str>, source: &str) -> ConfigEntry {
    let is_default = source == "DEFAULT_CONFIG";
    ConfigEntry { name: name.into(), value: value.map(str::to_owned), is_default, source: source.into(), ..ConfigEntry::default() }
}

fn acl(operation: &str) -> Acl {
    Acl {
        resource_type: "TOPIC".into(),
        resource_name: "logs_".into(),
        pattern_type: "PREFIXED".into(),
        principal: "User:spark".into(),
        host: "*".into(),
        operation: operation.into(),
        permission: "ALLOW".into(),
    }
}

fn topic(name: &str, partitions: u32, replication: u32) -> Topic {
    Topic { name: name.into(), partitions, replication, under_replicated: 0, offline: 0, internal: false }
}

fn advice(consumers: u32, producers: u32, busy: &str) -> Advice {
    let mut partitions = consumers.max(producers) * 2;
    let mut reasons = vec![format!("max({consumers} consumers, {producers} producers) × 2 = {partitions}")];
    if !busy.is_empty() {
        partitions = 16;
        reasons.push(format!("16 for the 800000 records/s that are measured into {busy:?}"));
    }
    reasons.push("min(3, 3 brokers) = 3 copies".into());
    Advice { partitions, replication: 3, min_insync_replicas: 2, reasons }
}

#[tonic::async_trait]
impl Bridge for Answers {
    async fn list_topics(&self, request: Request<ListTopicsRequest>) -> Answer<ListTopicsResponse> {
        self.note(&request);
        let mut topics = vec![
            topic("logs_topic", 6, 3),
            Topic { under_replicated: 2, ..topic("clicks", 12, 3) },
            Topic { under_replicated: 1, offline: 1, ..topic("iot", 1, 1) },
        ];
        if request.get_ref().include_internal {
            topics.push(Topic { internal: true, ..topic("__consumer_offsets", 50, 3) });
        }
        Ok(Response::new(ListTopicsResponse { topics }))
    }

    async fn describe_topic(&self, request: Request<DescribeTopicRequest>) -> Answer<DescribeTopicResponse> {
        self.note(&request);
        let name = &request.get_ref().name;
        if name != "logs_topic" {
            return Err(Status::not_found(format!("no topic {name}; `millrace topic list` shows what there is")));
        }
        let partition = |id: i32, leader: i32, isr: &[i32], end: i64| Partition {
            id,
            leader,
            replicas: vec![1, 2, 3],
            isr: isr.to_vec(),
            begin_offset: 0,
            end_offset: end,
        };
        Ok(Response::new(DescribeTopicResponse {
            topic: Some(Topic { under_replicated: 2, offline: 1, ..topic(name, 3, 3) }),
            partitions: vec![partition(0, 1, &[1, 2, 3], 1_048_576), partition(1, 2, &[2], 17), partition(2, -1, &[], 0)],
            config: HashMap::from([("retention.ms".into(), "604800000".into()), ("min.insync.replicas".into(), "2".into())]),
        }))
    }

    async fn create_topic(&self, request: Request<CreateTopicRequest>) -> Answer<CreateTopicResponse> {
        self.note(&request);
        let request = request.into_inner();
        if request.name == "logs_topic" {
            return Err(Status::already_exists("topic logs_topic exists; describe it, or choose another name"));
        }
        let advice = advice(request.consumers, request.producers, &request.like);
        let given = |value: u32, else_: u32| if value == 0 { else_ } else { value };
        let mut config = request.config;
        if request.retention_ms > 0 {
            config.insert("retention.ms".into(), request.retention_ms.to_string());
        }
        config.insert("min.insync.replicas".into(), given(request.min_insync_replicas, 2).to_string());
        Ok(Response::new(CreateTopicResponse {
            topic: Some(topic(&request.name, given(request.partitions, advice.partitions), given(request.replication, 3))),
            config,
            advice: Some(advice),
        }))
    }

    async fn delete_topic(&self, request: Request<DeleteTopicRequest>) -> Answer<DeleteTopicResponse> {
        self.note(&request);
        Ok(Response::new(DeleteTopicResponse {}))
    }

    async fn advise_topic(&self, request: Request<AdviseTopicRequest>) -> Answer<AdviseTopicResponse> {
        self.note(&request);
        let AdviseTopicRequest { consumers, producers, topic } = request.into_inner();
        Ok(Response::new(AdviseTopicResponse { advice: Some(advice(consumers, producers, &topic)) }))
    }

    async fn add_partitions(&self, request: Request<AddPartitionsRequest>) -> Answer<AddPartitionsResponse> {
        self.note(&request);
        let AddPartitionsRequest { topic: name, partitions } = request.into_inner();
        Ok(Response::new(AddPartitionsResponse { topic: Some(topic(&name, partitions, 3)) }))
    }

    async fn describe_topic_configs(&self, request: Request<DescribeTopicConfigsRequest>) -> Answer<DescribeTopicConfigsResponse> {
        self.note(&request);
        let topics = request.into_inner().topics.into_iter().map(|topic| TopicConfigs {
            topic,
            configs: vec![
                config("cleanup.policy", Some("delete"), "DEFAULT_CONFIG"),
                config("retention.ms", Some("604800000"), "DYNAMIC_TOPIC_CONFIG"),
            ],
        });
        Ok(Response::new(DescribeTopicConfigsResponse { topics: topics.collect() }))
    }

    async fn alter_topic_configs(&self, request: Request<AlterTopicConfigsRequest>) -> Answer<AlterTopicConfigsResponse> {
        self.note(&request);
        Ok(Response::new(AlterTopicConfigsResponse {}))
    }

    async fn describe_broker_configs(&self, request: Request<DescribeBrokerConfigsRequest>) -> Answer<DescribeBrokerConfigsResponse> {
        self.note(&request);
        let secret = ConfigEntry { sensitive: true, ..config("ssl.key.password", None, "STATIC_BROKER_CONFIG") };
        let configs = vec![config("log.cleaner.backoff.ms", Some("15000"), "DYNAMIC_DEFAULT_BROKER_CONFIG"), secret];
        Ok(Response::new(DescribeBrokerConfigsResponse { configs }))
    }

    async fn alter_broker_configs(&self, request: Request<AlterBrokerConfigsRequest>) -> Answer<AlterBrokerConfigsResponse> {
        self.note(&request);
        Ok(Response::new(AlterBrokerConfigsResponse {}))
    }

    async fn list_replicas(&self, request: Request<ListReplicasRequest>) -> Answer<ListReplicasResponse> {
        self.note(&request);
        Ok(Response::new(ListReplicasResponse::default()))
    }

    async fn list_reassignments(&self, request: Request<ListReassignmentsRequest>) -> Answer<ListReassignmentsResponse> {
        self.note(&request);
        Ok(Response::new(ListReassignmentsResponse::default()))
    }

    async fn describe_group(&self, request: Request<DescribeGroupRequest>) -> Answer<DescribeGroupResponse> {
        self.note(&request);
        let at = |partition: i32| TopicPartition { topic: "logs_topic".into(), partition };
        let member = |id: &str, instance_id: &str, assignment: Vec<TopicPartition>| GroupMember {
            id: id.into(),
            instance_id: instance_id.into(),
            client_id: "spark".into(),
            assignment,
        };
        Ok(Response::new(DescribeGroupResponse {
            group: Some(group()),
            coordinator: Some(2),
            members: vec![member("spark-group-0", "", vec![at(0), at(1)]), member("spark-group-1", "one", vec![])],
        }))
    }

    async fn list_acls(&self, request: Request<ListAclsRequest>) -> Answer<ListAclsResponse> {
        self.note(&request);
        Ok(Response::new(ListAclsResponse { acls: vec![acl("READ"), acl("WRITE")] }))
    }

    async fn create_acls(&self, request: Request<CreateAclsRequest>) -> Answer<CreateAclsResponse> {
        self.note(&request);
        Ok(Response::new(CreateAclsResponse {}))
    }

    async fn delete_acls(&self, request: Request<DeleteAclsRequest>) -> Answer<DeleteAclsResponse> {
        self.note(&request);
        Ok(Response::new(DeleteAclsResponse { acls: vec![acl("READ")] }))
    }

    async fn list_groups(&self, request: Request<ListGroupsRequest>) -> Answer<ListGroupsResponse> {
        self.note(&request);
        Ok(Response::new(ListGroupsResponse { groups: vec![group()] }))
    }

    async fn group_lag(&self, request: Request<GroupLagRequest>) -> Answer<GroupLagResponse> {
        self.note(&request);
        let lag = |partition: i32, committed: i64, lag: i64, member: &str| PartitionLag {
            topic: "logs_topic".into(),
            partition,
            committed,
            end_offset: 1_048_576,
            lag,
            member: member.into(),
            pace: (committed >= 0).then_some(pace()),
            status: if committed < 0 { "" } else { "WARN" }.into(),
        };
        Ok(Response::new(GroupLagResponse {
            group: Some(group()),
            total_lag: 1_049_600,
            pace: Some(pace()),
            status: "WARN".into(),
            partitions: vec![lag(0, 1_047_552, 1_024, "spark-group-0"), lag(1, -1, 1_048_576, "")],
        }))
    }

    async fn group_lags(&self, request: Request<GroupLagsRequest>) -> Answer<GroupLagsResponse> {
        self.note(&request);
        let lag = |group: Group, total_lag: i64| GroupLagResponse {
            pace: (total_lag > 0).then_some(pace()),
            status: if total_lag > 0 { "WARN" } else { "" }.into(),
            group: Some(group),
            total_lag,
            partitions: vec![],
        };
        let idle = Group { id: "idle".into(), state: "Empty".into(), members: 0, protocol: String::new() };
        Ok(Response::new(GroupLagsResponse { groups: vec![lag(group(), 1_049_600), lag(idle, 0)] }))
    }

    async fn reset_offsets(&self, request: Request<ResetOffsetsRequest>) -> Answer<ResetOffsetsResponse> {
        self.note(&request);
        if request.get_ref().group == "busy" {
            return Err(Status::failed_precondition("group \"busy\" is Stable with 1 member; stop it, then try again"));
        }
        let to = match request.get_ref().to {
            Some(reset_offsets_request::To::Offset(offset)) => offset,
            _ => 0,
        };
        let change = |partition: i32, from: Option<i64>| OffsetChange { partition, from, to, end_offset: 1_048_576 };
        Ok(Response::new(ResetOffsetsResponse { partitions: vec![change(0, Some(1_047_552)), change(1, None)] }))
    }

    async fn brokers(&self, request: Request<BrokersRequest>) -> Answer<BrokersResponse> {
        self.note(&request);
        let broker = |id: i32, controller: bool, log_bytes: i64| Broker {
            id,
            host: format!("kafka{id}"),
            port: 9092,
            controller,
            partitions: 40,
            leaders: 14,
            log_bytes,
            preferred: 16,
            leader_imbalance: 0.125,
            rack: "a".into(),
        };
        let problem = |partition: i32, kind: &str, leader: i32, isr: Vec<i32>| PartitionProblem {
            topic: "logs_topic".into(),
            partition,
            kind: kind.into(),
            leader,
            replicas: vec![1, 2, 3],
            isr,
            min_isr: 2,
        };
        Ok(Response::new(BrokersResponse {
            cluster_id: "4L6g3nShT-eMCtK--X86sw".into(),
            brokers: vec![broker(1, true, 5_368_709_120), broker(2, false, -1)],
            under_replicated: 2,
            offline: 1,
            under_min_isr: 2,
            not_preferred: 4,
            problems: vec![problem(0, "offline", -1, vec![]), problem(1, "under-min-isr", 1, vec![1])],
        }))
    }

    async fn lint_topics(&self, request: Request<LintTopicsRequest>) -> Answer<LintTopicsResponse> {
        self.note(&request);
        let finding = |level: &str, rule: &str, message: &str, remedy: &str| Finding {
            level: level.into(),
            rule: rule.into(),
            message: message.into(),
            remedy: remedy.into(),
        };
        let error =
            finding("error", "replication", "a single copy, and the cluster has 3 brokers", "reassign its partitions to 3 replicas");
        let warning = finding("warning", "retention-unbounded", "neither retention.ms nor retention.bytes bounds it", "set retention.ms");
        let topic = |topic: &str, findings: Vec<Finding>| TopicFindings {
            topic: topic.into(),
            records_per_second: Some(12.5),
            keyed: Some(true),
            consumers: 1,
            findings,
        };
        let all = vec![topic("clean", vec![]), topic("logs_topic", vec![error, warning])];
        let wanted = request.into_inner().topics;
        Ok(Response::new(LintTopicsResponse {
            topics: all.into_iter().filter(|topic| wanted.is_empty() || wanted.contains(&topic.topic)).collect(),
        }))
    }
}

fn pace() -> LagPace {
    LagPace { lag_seconds: Some(75.25), trend: Some(-512.0), catch_up_seconds: Some(2_050.0) }
}

fn group() -> Group {
    Group { id: "spark-group".into(), state: "Stable".into(), members: 1, protocol: "range".into() }
}

fn job(name: &str, state: JobState) -> Job {
    Job {
        name: name.into(),
        state: state.into(),
        error: if state == JobState::Failed {
            "topic logs_topic is gone; create it and submit the job again".into()
        } else {
            String::new()
        },
        started_at_ms: 1_763_817_600_000,
        batch_interval_ms: 5_000,
        batches_completed: 1_440,
        rows_in: 3_600_000,
        rows_out: 8_640,
        watermark_ms: (state == JobState::Running).then_some(1_763_821_200_000),
        late_rows: 3,
        malformed_rows: 12,
        checkpoint: format!("file:///var/lib/millrace/{name}"),
        kind: "sql".into(),
        last_batch_at_ms: Some(1_763_821_205_000),
    }
}

#[tonic::async_trait]
impl Engine for Answers {
    async fn submit_job(&self, request: Request<SubmitJobRequest>) -> Answer<SubmitJobResponse> {
        self.note(&request);
        let request = request.into_inner();
        if let Some(at) = request.sql.lines().position(|line| line.contains("hots")) {
            let column = request.sql.lines().nth(at).and_then(|line| line.find("hots")).unwrap() + 1;
            return Err(Status::invalid_argument(format!("line {}, column {column}: unknown column hots; did you mean host?", at + 1)));
        }
        Ok(Response::new(SubmitJobResponse {
            job: (!request.dry_run).then(|| Job { watermark_ms: None, started_at_ms: 0, ..job(&request.name, JobState::Starting) }),
            plan: "WindowAggregate: TUMBLE(ts, 10 s) by host\n  Filter: status >= 500\n    Source: logs".into(),
            notes: vec!["spark.serializer is accepted without effect".into()],
        }))
    }

    async fn list_jobs(&self, request: Request<ListJobsRequest>) -> Answer<ListJobsResponse> {
        self.note(&request);
        Ok(Response::new(ListJobsResponse { jobs: vec![job("nginx-stats", JobState::Running), job("clicks", JobState::Failed)] }))
    }

    async fn show_job(&self, request: Request<ShowJobRequest>) -> Answer<ShowJobResponse> {
        self.note(&request);
        let range = |partition: i32, from: i64, until: i64| OffsetRange { topic: "logs_topic".into(), partition, from, until };
        let batch = |id: u64, state: &str, error: &str| Batch {
            id,
            time_ms: 1_763_821_200_000 + i64::try_from(id).unwrap() * 5_000,
            rows: 2_500,
            scheduling_delay_ms: 2,
            processing_ms: 340,
            total_delay_ms: 342,
            ranges: vec![range(0, 100, 2_600), range(1, 7, 7)],
            state: state.into(),
            error: error.into(),
        };
        Ok(Response::new(ShowJobResponse {
            job: Some(job(&request.get_ref().name, JobState::Running)),
            batches: vec![batch(2, "failed", "Redis at 127.0.0.1:6379 is away"), batch(1, "completed", "")],
            definition: "SELECT host\nFROM logs".into(),
            plan: "Filter\n  Source: logs".into(),
        }))
    }

    async fn stop_job(&self, request: Request<StopJobRequest>) -> Answer<StopJobResponse> {
        self.note(&request);
        Ok(Response::new(StopJobResponse { job: Some(job(&request.get_ref().name, JobState::Finished)) }))
    }

    async fn delete_job(&self, request: Request<DeleteJobRequest>) -> Answer<DeleteJobResponse> {
        self.note(&request);
        Ok(Response::new(DeleteJobResponse { checkpoint: format!("file:///var/lib/millrace/{}", request.get_ref().name) }))
    }

    async fn savepoint(&self, request: Request<SavepointRequest>) -> Answer<SavepointResponse> {
        self.note(&request);
        Ok(Response::new(SavepointResponse { location: "s3://bucket/nginx-stats/savepoints/7".into(), batch_id: 1_440 }))
    }

    async fn list_savepoints(&self, request: Request<ListSavepointsRequest>) -> Answer<ListSavepointsResponse> {
        self.note(&request);
        let savepoint = |name: &str, batch_id: u64| StoredSavepoint {
            name: name.into(),
            location: format!("s3://bucket/{}/savepoints/{name}", request.get_ref().name),
            batch_id,
            time_ms: 1_763_821_200_000,
        };
        Ok(Response::new(ListSavepointsResponse { savepoints: vec![savepoint("1440", 1_440), savepoint("before-upgrade", 977)] }))
    }

    async fn delete_savepoint(&self, request: Request<DeleteSavepointRequest>) -> Answer<DeleteSavepointResponse> {
        self.note(&request);
        match request.get_ref().savepoint.as_str() {
            "before-upgrade" => Ok(Response::new(DeleteSavepointResponse {})),
            other => Err(Status::not_found(format!("job `{}` has no savepoint `{other}`", request.get_ref().name))),
        }
    }
}
