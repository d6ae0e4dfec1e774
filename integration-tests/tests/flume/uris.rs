//! Agent files by their URI: read at the start over HTTP, under the file, with a config filter's command, and again when they change.

use std::{
    fs,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use integration_tests::process::{Process, run};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

const WAIT: Duration = Duration::from_secs(30);

/// Serves `text` to whoever asks.
async fn serve(text: Arc<Mutex<String>>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("its address").port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let body = text.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let mut request = [0; 4096];
            // What is asked does not matter; a broken connection is the client's business.
            let _asked = stream.read(&mut request).await;
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
            let _answered = stream.write_all(answer.as_bytes()).await;
        }
    });
    port
}

fn conf(value: &str) -> String {
    format!(
        "a.sources = r\na.channels = c\na.sinks = k\na.configfilters = f\na.configfilters.f.type = external\na.configfilters.f.command = /bin/echo got\n\
         a.sources.r.type = seq\na.sources.r.totalEvents = 1\na.sources.r.channels = c\na.sources.r.interceptors = i\n\
         a.sources.r.interceptors.i.type = static\na.sources.r.interceptors.i.key = k\na.sources.r.interceptors.i.value = {value}\n\
         a.channels.c.type = memory\na.sinks.k.type = null\na.sinks.k.channel = c\n"
    )
}

fn set(served: &Mutex<String>, text: String) {
    *served.lock().unwrap_or_else(PoisonError::into_inner) = text;
}

// The answers come while a command is waited for.
#[tokio::test(flavor = "multi_thread")]
async fn a_uri_is_read_under_the_file_and_again_when_it_changes() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let served = Arc::new(Mutex::new(conf("${f['first']}")));
    let uri = format!("http://127.0.0.1:{}/agent.conf", serve(served.clone()).await);
    let over = dir.path().join("over.conf");
    fs::write(&over, "a.sinks.k.type = logger\n").expect("the agent's file");
    let (over, state) = (over.to_string_lossy().into_owned(), dir.path().join("state").to_string_lossy().into_owned());
    let args = ["agent", "-n", "a", "-u", &uri, "-f", &over, "-i", "1", "--state-dir", &state];
    let mut collector = Process::start(
        "millrace-collector",
        dir.path(),
        &args,
        &[("MILLRACE_CONTROL__LISTEN", "127.0.0.1:0"), ("MILLRACE_METRICS__LISTEN", "127.0.0.1:0")],
    );
    collector.log_contains(WAIT, "headers:{k=got first}").await;
    set(&served, conf("${f['second']}"));
    collector.log_contains(WAIT, "headers:{k=got second}").await;
    // What is wrong, or not there, leaves the running one in place.
    set(&served, conf("${g['third']}"));
    collector.log_contains(WAIT, "there is no config filter `g`").await;
    set(&served, conf("${f['fourth']}"));
    collector.log_contains(WAIT, "headers:{k=got fourth}").await;
    collector.stop().await;

    let checked = run("millrace-collector", &["check", &uri, &over], &[]);
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
    let checked = run("millrace-collector", &["check", "http://127.0.0.1:1/none"], &[]);
    assert!(!checked.status.success() && String::from_utf8_lossy(&checked.stdout).contains("http://127.0.0.1:1/none: "));
}
