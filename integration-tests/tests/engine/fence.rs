//! Two processes with one job and one history, the older of them cut off from Redis for a while.

use std::{fs, net::SocketAddr, path::Path, process::Command, time::Duration};

use integration_tests::{
    eventually, kafka,
    process::Process,
    servers::{kafka_bootstrap, redis_url},
    unique,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};

use super::{FREE_PORTS, WAIT, WINDOWED, expected, in_redis, redis_sink, row, source};

/// A way to Redis that can be shut: connections end, and new ones end at once.
struct Way {
    address: SocketAddr,
    open: watch::Sender<bool>,
}

impl Way {
    async fn to(url: &str) -> Self {
        let upstream = url.trim_start_matches("redis://").split('/').next().unwrap_or_default().to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let open = watch::Sender::new(true);
        let state = open.subscribe();
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let (upstream, mut state) = (upstream.clone(), state.clone());
                tokio::spawn(async move {
                    if !*state.borrow() {
                        return;
                    }
                    let Ok(mut far) = TcpStream::connect(upstream).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        _ = state.wait_for(|open| !open) => {}
                    }
                });
            }
        });
        Self { address, open }
    }
}

/// Where the rows of the test below go, and how many there are.
#[derive(Clone, Copy, Debug)]
enum Results {
    Kafka,
    Redis,
}

impl Results {
    fn table(self, name: &str, bootstrap: &str) -> String {
        let with = match self {
            Self::Kafka => format!(
                "'connector' = 'kafka', 'topic' = '{name}', 'properties.bootstrap.servers' = '{bootstrap}', 'format' = 'json', \
                 'sink.delivery-guarantee' = 'exactly-once', 'sink.transactional-id-prefix' = '{name}'"
            ),
            Self::Redis => format!(
                "'connector' = 'redis', 'url' = '{}', 'key' = '{name}', 'field' = '{{ts}} {{host}} {{bytes}}', 'value' = 'bytes'",
                redis_url()
            ),
        };
        format!("CREATE TABLE results (ts BIGINT, host STRING, bytes BIGINT) WITH ({with});\n")
    }

    fn count(self, name: &str) -> usize {
        match self {
            Self::Kafka => kafka::texts(&kafka_bootstrap(), name).len(),
            Self::Redis => {
                let mut connection = redis::Client::open(redis_url()).expect("URL").get_connection().expect("Redis");
                redis::cmd("HLEN").arg(name).query(&mut connection).expect("HLEN")
            }
        }
    }
}

/// By several batches, and by one, which is cut again under the number of one that is written.
#[tokio::test]
async fn a_checkpoint_that_was_put_back_loses_no_rows_silently() {
    for (results, batches) in [(Results::Kafka, 1), (Results::Kafka, 2), (Results::Redis, 1), (Results::Redis, 2)] {
        put_back(results, batches).await;
    }
}

async fn put_back(to: Results, batches: u64) {
    let bootstrap = kafka_bootstrap();
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (topic, results) = (unique("put-back"), unique("put-back-results"));
    for topic in [&topic, &results] {
        kafka::create_topic(&bootstrap, topic, 1).await;
    }
    let job = dir.path().join("job.sql");
    let sql = format!(
        "SET 'batch.interval' = '100ms';\n{}{}INSERT INTO results SELECT ts, host, bytes FROM rows_in;\n",
        source(&topic, &bootstrap, ""),
        to.table(&results, &bootstrap)
    );
    fs::write(&job, sql).expect("the job");
    let (job, checkpoint) = (job.to_string_lossy().into_owned(), dir.path().join("checkpoint"));
    let start = || {
        let args = ["run", &job, "--name", "rows", "--checkpoint", &checkpoint.to_string_lossy()];
        Process::start("millrace-engine", dir.path(), &args, &FREE_PORTS)
    };
    let written = |rows: usize| {
        let results = results.clone();
        eventually(WAIT, "the rows are written", move || {
            let found = to.count(&results);
            async move { if found == rows { Ok(()) } else { Err(format!("{found}, not {rows}")) } }
        })
    };
    let run_to = async |from: u64, until: u64| {
        // Before the start: so all of it is in the first batch.
        kafka::produce(&bootstrap, &topic, 1, (from..until).map(|n| row(n).2));
        let mut engine = start();
        written(usize::try_from(until).expect("a number")).await;
        engine.signal(rustix::process::Signal::TERM);
        assert!(engine.ended(WAIT).await.success(), "{}", engine.log());
    };
    run_to(0, 100).await;
    let aside = dir.path().join("aside");
    let copied = Command::new("cp").arg("-r").args([&checkpoint, &aside]).status().expect("cp");
    assert!(copied.success());
    for batch in 1..=batches {
        run_to(100 * batch, 100 * (batch + 1)).await;
    }
    let rows = 100 * (batches + 1);
    fs::remove_dir_all(&checkpoint).and_then(|()| fs::rename(&aside, &checkpoint)).expect("the older checkpoint");

    // In the batch that is cut again, so that its ranges are others too.
    kafka::produce(&bootstrap, &topic, 1, std::iter::once(row(rows).2));
    let mut engine = start();
    assert!(!engine.ended(WAIT).await.success(), "{to:?}, {batches}: it goes on:\n{}", engine.log());
    let cause = if batches == 1 { "is written already with other input, by" } else { "is written already, by" };
    for part in ["output `results` is refused", cause, "whose checkpoint was put back", "start from a savepoint"] {
        assert!(engine.log().contains(part), "{to:?}, {batches}: without {part:?}:\n{}", engine.log());
    }
    written(usize::try_from(rows).expect("a number")).await;
}

#[tokio::test]
async fn a_writer_that_was_cut_off_and_comes_back_is_refused() {
    let (bootstrap, url) = (kafka_bootstrap(), redis_url());
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (topic, prefix) = (unique("fence"), unique("fence-totals"));
    kafka::create_topic(&bootstrap, &topic, 1).await;
    let job = dir.path().join("job.sql");
    // Every batch writes totals, so a batch that is written late would put old totals in the place of newer ones.
    let sink = redis_sink(&prefix, "${env:SINK_URL}").replace("'mode' = 'hash'", "'mode' = 'hash', 'sink.retry.timeout' = '5 min'");
    let sql = format!(
        "SET 'batch.interval' = '200ms';\nSET 'millrace.emit' = 'every-batch';\n{}{sink}INSERT INTO totals {WINDOWED}",
        source(&topic, &bootstrap, "")
    );
    fs::write(&job, sql).expect("the job");
    let (job, checkpoint) = (job.to_string_lossy().into_owned(), dir.path().join("checkpoint"));
    let start = |url: &str, checkpoint: &Path| {
        let env = [FREE_PORTS[0], FREE_PORTS[1], ("SINK_URL", url)];
        let args = ["run", &job, "--name", "totals", "--checkpoint", &checkpoint.to_string_lossy()];
        Process::start("millrace-engine", dir.path(), &args, &env)
    };
    let produce = |from: u64, until: u64| kafka::produce(&bootstrap, &topic, 1, (from..until).map(|n| row(n).2));
    let holds = |rows: u64| {
        let prefix = prefix.clone();
        eventually(WAIT, "Redis holds the totals", move || {
            let (held, wanted) = (in_redis(&prefix), expected(rows));
            async move { if held == wanted { Ok(()) } else { Err(format!("{held:?}, not {wanted:?}")) } }
        })
    };

    let way = Way::to(&url).await;
    let mut old = start(&format!("redis://{}", way.address), &checkpoint);
    produce(0, 300);
    holds(300).await;
    way.open.send_replace(false);
    produce(300, 600);
    old.log_contains(WAIT, "redis is away, waiting").await;

    // The old one is thought dead; its batch is run again by the new one, on a copy of its disk, and only Redis knows of both.
    let copied = Command::new("cp").arg("-r").arg(&checkpoint).arg(dir.path().join("copy")).status();
    assert!(copied.expect("cp").success());
    let mut new = start(&url, &dir.path().join("copy"));
    holds(600).await;
    produce(600, 900);
    holds(900).await;

    way.open.send_replace(true);
    let status = old.ended(WAIT).await;
    assert!(!status.success(), "the old writer goes on:\n{}", old.log());
    for part in ["output `totals` is refused", "another process that runs this job", "start from a savepoint"] {
        assert!(old.log().contains(part), "without {part:?}:\n{}", old.log());
    }
    assert_eq!(in_redis(&prefix), expected(900), "the old writer has written");
    produce(900, 1_000);
    holds(1_000).await;
    new.signal(rustix::process::Signal::TERM);
    assert!(new.ended(Duration::from_secs(30)).await.success(), "{}", new.log());
}
