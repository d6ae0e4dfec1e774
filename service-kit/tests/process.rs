//! A whole service process, `examples/minimal.rs`: start, readiness, control port, drain, signals, exit codes, traces.
//!
//! Several threads per test: waiting for the process must not stop this side of a connection.

#![allow(clippy::unwrap_used)] // a test may fail by panic

use std::{
    collections::BTreeMap,
    env, fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    trace::v1::Span,
};
use proto::control::v1::{
    DrainRequest, EffectiveConfigRequest, Health, PauseRequest, SetLogLevelRequest, StatusRequest, control_client::ControlClient,
};
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::mpsc;
use tokio_stream::{StreamExt as _, wrappers::TcpListenerStream};
use tonic::{
    Code, Request, Response, Status,
    transport::{Channel, Endpoint, Server},
};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient, server_reflection_request, server_reflection_response,
};

/// Nothing here takes longer unless it hangs.
const PATIENCE: Duration = Duration::from_secs(30);

fn wait_for<T>(what: &str, mut get: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = get() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// The example, built as this test was.
fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        // …/debug/deps/process-1234 → …/debug/examples/minimal; `cargo test --test process` alone does not build it.
        let target = env::current_exe().unwrap().ancestors().nth(2).unwrap().to_owned();
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--package", "service-kit", "--example", "minimal"]).current_dir(env!("CARGO_MANIFEST_DIR"));
        build.arg("--target-dir").arg(target.parent().unwrap());
        assert!(build.status().unwrap().success());
        target.join("examples/minimal")
    })
}

struct Process {
    child: Child,
    dir: tempfile::TempDir,
}

impl Process {
    fn spawn(file: &str, variables: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("minimal.toml"), format!("{file}\n")).unwrap();
        let mut command = Command::new(binary());
        command.arg(dir.path().join("minimal.toml")).env("MILLRACE_ADDRESS_FILE", dir.path().join("addresses")).stdin(Stdio::null());
        command.env("MILLRACE_HTTP__LISTEN", "127.0.0.1:0").env("MILLRACE_CONTROL__LISTEN", "127.0.0.1:0");
        command.envs(variables.iter().copied()).stderr(fs::File::create(dir.path().join("log")).unwrap());
        Self { child: command.spawn().unwrap(), dir }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    fn await_log(&self, text: &str) {
        wait_for(text, || self.log().contains(text).then_some(()));
    }

    fn address(&self, listener: &str) -> String {
        let text = wait_for("the address file", || fs::read(self.dir.path().join("addresses")).ok());
        serde_json::from_slice::<BTreeMap<String, String>>(&text).unwrap()[listener].clone()
    }

    async fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.address("control"))).unwrap().connect().await.unwrap()
    }

    /// Sends a job over HTTP; gives the status line.
    fn job(&self, name: &str) -> String {
        let mut stream = TcpStream::connect(self.address("http")).unwrap();
        write!(stream, "POST /jobs HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{name}", name.len()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.lines().next().unwrap_or_default().to_owned()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn exit_code(&mut self) -> Option<i32> {
        wait_for("the process's end", || self.child.try_wait().unwrap()).code()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.child.kill().ok();
        self.child.wait().ok();
        if thread::panicking() {
            let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            std::io::stderr().write_all(format!("log of the process:\n{log}").as_bytes()).ok();
        }
    }
}

async fn serving(client: &mut HealthClient<Channel>, service: &str) -> ServingStatus {
    client.check(HealthCheckRequest { service: service.into() }).await.unwrap().into_inner().status()
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_serving_only_when_every_latch_is_released() {
    let mut process = Process::spawn("warm_up = '3s'", &[]);
    let channel = process.channel().await;
    let mut health = HealthClient::new(channel.clone());
    let mut control = ControlClient::new(channel);
    let mut watch = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    assert_eq!(serving(&mut health, "liveness").await, ServingStatus::Serving);
    assert_eq!(serving(&mut health, "minimal").await, ServingStatus::NotServing);
    let status = control.status(StatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.health(), status.reason.as_str(), status.service.as_str()), (Health::Starting, "waiting for warm-up", "minimal"));

    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    assert_eq!(serving(&mut health, "minimal").await, ServingStatus::Serving);
    let status = control.status(StatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.health(), status.reason.as_str()), (Health::Ready, ""));
    assert_eq!((status.pid, status.facts[0].name.as_str()), (process.child.id(), "open jobs"));
    process.await_log("ready after 3");
    assert!(status.memory_bytes > 1 << 20 && status.started_at_ms > 0 && !status.host.is_empty());

    process.signal(Signal::TERM);
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    assert_eq!(process.exit_code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_accepted_is_delivered_before_the_process_ends() {
    let mut process = Process::spawn("job_time = '1s'", &[]);
    assert_eq!(process.job("the-job"), "HTTP/1.1 202 Accepted");
    let mut control = ControlClient::new(process.channel().await);
    process.signal(Signal::INT);
    process.await_log("draining");
    let status = control.status(StatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.health(), status.facts[0].value.as_str()), (Health::Draining, "1"));
    assert_eq!(process.exit_code(), Some(0));
    assert!(process.log().contains("the-job"), "not delivered");
}

#[test]
fn a_drain_ends_at_its_deadline_and_says_what_is_left() {
    let mut process = Process::spawn("job_time = '1h'\n[shutdown]\ndeadline = '1s'", &[]);
    process.job("never done");
    let begun = Instant::now();
    process.signal(Signal::TERM);
    assert_eq!(process.exit_code(), Some(1));
    assert!(begun.elapsed() >= Duration::from_secs(1));
    assert!(process.log().contains("not finished within the deadline of 1s (shutdown.deadline) not_delivered=1 tasks=1"));
}

#[test]
fn a_second_signal_ends_the_process_at_once() {
    let mut process = Process::spawn("job_time = '1h'\n[shutdown]\ndeadline = '1h'", &[]);
    process.job("never done");
    process.signal(Signal::TERM);
    process.await_log("draining");
    process.signal(Signal::INT);
    assert_eq!(process.exit_code(), Some(130));
}

#[test]
fn a_signal_sent_to_the_process_and_to_its_group_is_one_signal() {
    let mut process = Process::spawn("job_time = '700ms'\n[shutdown]\ndeadline = '1h'", &[]);
    assert_eq!(process.job("the-job"), "HTTP/1.1 202 Accepted");
    process.signal(Signal::TERM);
    process.await_log("draining");
    process.signal(Signal::TERM);
    assert_eq!(process.exit_code(), Some(0));
    assert!(process.log().contains("the-job"), "not delivered");
}

#[test]
fn a_signal_while_nothing_is_open_ends_the_process_quickly() {
    let mut process = Process::spawn("[shutdown]\ndeadline = '1h'", &[]);
    process.address("control");
    process.signal(Signal::TERM);
    assert_eq!(process.exit_code(), Some(0));
}

#[test]
fn a_wrong_configuration_is_reported_whole_with_code_78() {
    let mut process = Process::spawn("job_tme = '1h'", &[("MILLRACE_TELEMETRY__LOG_FORMAT", "xml")]);
    assert_eq!(process.exit_code(), Some(78));
    let log = process.log();
    assert!(log.contains("minimal.toml:1: job_tme: unknown key; did you mean `job_time`?"), "{log}");
    assert!(log.contains("MILLRACE_TELEMETRY__LOG_FORMAT: telemetry.log_format: unknown variant `xml`"), "{log}");
}

#[test]
fn an_address_in_use_is_named_with_the_key_that_changes_it() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut process = Process::spawn("", &[("MILLRACE_HTTP__LISTEN", &address)]);
    assert_eq!(process.exit_code(), Some(1));
    assert!(
        process.log().contains(&format!("cannot listen on {address} (http): address in use; set [http] listen or MILLRACE_HTTP__LISTEN"))
    );
    let mut process = Process::spawn("", &[("MILLRACE_CONTROL__LISTEN", "0.0.0.0:0")]);
    assert_eq!(process.exit_code(), Some(78));
    assert!(process.log().contains("will not serve without TLS on 0.0.0.0:0 (control)"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_filter_changes_while_the_service_runs() {
    let process = Process::spawn("job_time = '1ms'", &[]);
    let mut control = ControlClient::new(process.channel().await);
    let mut status = control.clone();
    process.job("before");
    process.await_log("before");
    let mut set = async |filter: &str| control.set_log_level(SetLogLevelRequest { filter: filter.into() }).await;
    let answer = set("warn").await.unwrap().into_inner();
    assert_eq!((answer.previous.as_str(), answer.current.as_str()), ("info", "warn"));
    process.job("while-silent");
    let delivered = async {
        while status.status(StatusRequest {}).await.unwrap().into_inner().facts[0].value != "0" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, delivered).await.unwrap();
    let error = set("loud").await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().contains("`loud` is neither a level"), "{error}");
    assert_eq!(set("minimal=info").await.unwrap().into_inner().previous, "warn");
    process.job("after");
    process.await_log("after");
    assert!(!process.log().contains("while-silent"));
}

#[tokio::test(flavor = "multi_thread")]
async fn control_calls_answer_with_what_the_service_has() {
    let process = Process::spawn("[telemetry]\nlog_format = 'json'", &[]);
    let mut control = ControlClient::new(process.channel().await);
    let config = control.effective_config(EffectiveConfigRequest {}).await.unwrap().into_inner();
    assert!(config.format == "toml" && config.text.contains("job_time = \"100ms\""), "{config:?}");
    assert_eq!(control.pause(PauseRequest::default()).await.unwrap_err().code(), Code::Unimplemented);
    assert_eq!(control.drain(DrainRequest::default()).await.unwrap_err().code(), Code::Unimplemented);
    for line in process.log().lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap();
    }
    let get = |path: &str| {
        let mut stream = TcpStream::connect(process.address("control")).unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").as_bytes()).unwrap();
        let mut page = String::new();
        stream.read_to_string(&mut page).unwrap();
        page
    };
    let paths = get("/");
    assert!(paths.starts_with("HTTP/1.1 200") && paths.contains("minimal") && paths.contains("/metrics"), "{paths}");
    let page = get("/metrics");
    for line in [
        "millrace_process_ready 1",
        "millrace_process_build_info{service=\"minimal\",version=",
        "millrace_listen_requests_total{listener=\"control\",status=\"2xx\"}",
    ] {
        assert!(page.contains(line), "{line} is not in\n{page}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reflection_lists_what_is_served_and_nothing_else() {
    let process = Process::spawn("", &[]);
    let mut client = ServerReflectionClient::new(process.channel().await);
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(server_reflection_request::MessageRequest::ListServices(String::new())),
    };
    let mut answers = client.server_reflection_info(tokio_stream::once(request)).await.unwrap().into_inner();
    let answer = answers.next().await.unwrap().unwrap().message_response.unwrap();
    let server_reflection_response::MessageResponse::ListServicesResponse(list) = answer else { panic!("{answer:?}") };
    let mut names: Vec<String> = list.service.into_iter().map(|service| service.name).collect();
    names.sort();
    assert_eq!(names, ["grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection", "millrace.control.v1.Control"]);
}

struct Receiver(mpsc::Sender<Span>);

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(&self, request: Request<ExportTraceServiceRequest>) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for resource in request.into_inner().resource_spans {
            for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                self.0.send(span).await.map_err(|_| Status::internal("the test is over"))?;
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_call_joins_its_callers_trace_and_is_flushed_at_the_end() {
    let (sender, mut spans) = mpsc::channel(64);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let receiver = tokio::spawn(
        Server::builder().add_service(TraceServiceServer::new(Receiver(sender))).serve_with_incoming(TcpListenerStream::new(listener)),
    );

    let mut process = Process::spawn("", &[("MILLRACE_TELEMETRY__OTLP_ENDPOINT", &endpoint)]);
    let mut control = ControlClient::new(process.channel().await);
    // The caller's choice counts: the second trace is not sampled.
    for (parent, sampled) in [("b7ad6b7169203331", "01"), ("b7ad6b7169203332", "00")] {
        let mut request = Request::new(StatusRequest {});
        request.metadata_mut().insert("traceparent", format!("00-0af7651916cd43dd8448eb211c80319c-{parent}-{sampled}").parse().unwrap());
        control.status(request).await.unwrap();
    }
    process.signal(Signal::TERM);
    assert_eq!(process.exit_code(), Some(0));
    receiver.abort();
    let mut received = Vec::new();
    while let Ok(span) = spans.try_recv() {
        received.push(span);
    }
    let [span] = &received[..] else { panic!("{received:#?}") };
    assert_eq!(span.name, "millrace.control.v1.Control/Status");
    assert_eq!(span.trace_id, 0x0af7651916cd43dd8448eb211c80319c_u128.to_be_bytes());
    assert_eq!(span.parent_span_id, 0xb7ad6b7169203331_u64.to_be_bytes());
}
