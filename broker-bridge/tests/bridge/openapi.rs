//! The served OpenAPI document against the answers: schemathesis sends what it allows, and what it does not.

use std::{path::Path, process::Stdio, time::Duration};

use tokio::{process::Command, time::timeout};

use crate::{
    cluster::Cluster,
    process::{Bridge, text},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_answer_is_a_server_error_and_every_one_is_as_the_openapi_document_says() {
    // Of its own: settings of brokers are changed, too.
    let cluster = Cluster::start(1);
    // What waits, and what costs a broker time, is kept short.
    let variables = [
        ("MILLRACE_CONSUME__REQUEST_TIMEOUT", "50ms"),
        ("MILLRACE_CONSUME__REQUEST_TIMEOUT_MAX", "100ms"),
        ("MILLRACE_TOPICS__PARTITIONS_MAX", "4"),
        ("MILLRACE_TRANSACTIONS__LEASE", "1m"),
    ];
    let bridge = Bridge::start_with(&cluster.servers, &variables).await;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/dev/openapi/openapi");
    let running = Command::new(script).arg(format!("http://{}", bridge.http)).stdin(Stdio::null()).kill_on_drop(true).output();
    let output = timeout(Duration::from_secs(300), running).await.expect("schemathesis does not end").unwrap();
    assert!(output.status.success(), "{}", text(&output));
    bridge.stop().await;
}
