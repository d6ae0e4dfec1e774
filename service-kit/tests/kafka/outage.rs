//! Brokers that are away: at start, in part, and for a while.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use service_kit::kafka::{self, Isolation, KafkaConfig, KafkaError, TopicPartition};

use crate::support::{Proxy, capture_log, config, eventually, logged, numbered, produce, read, servers, topic, unique, values};

/// Nothing listens here: the port was free a moment ago and is not given out again so soon.
async fn closed_port() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().to_string()
}

fn short(servers: &str) -> KafkaConfig {
    let mut config = KafkaConfig::new(servers);
    config.set("default.api.timeout.ms", "700");
    config.set("delivery.timeout.ms", "1500");
    config.set("request.timeout.ms", "1000");
    config
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_absent_cluster_is_named_after_a_bounded_wait() {
    let server = closed_port().await;
    let config = short(&server);
    let start = Instant::now();
    let errors = [
        kafka::admin(&config).await.err(),
        kafka::range_reader(&config, Isolation::ReadUncommitted).await.err(),
        kafka::range_reader(&config, Isolation::ReadCommitted).await.err(),
        kafka::transactional_writer(&config, "t").await.err(),
        kafka::member(&config, "g", &["t".to_owned()], "latest").await.err(),
    ];
    for error in &errors {
        let Some(KafkaError::Unreachable(text)) = error else { panic!("{errors:?}") };
        assert!(text.contains(&server) && text.contains("bootstrap.servers"), "{text}");
    }
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_not_kafka_is_an_error_too() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = listener.local_addr().unwrap().to_string();
    // Accepts and says nothing.
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            held.push(stream);
        }
    });
    let error = kafka::admin(&short(&server)).await.err();
    assert!(matches!(error, Some(KafkaError::Unreachable(_) | KafkaError::Timeout(_))), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_producer_starts_without_a_broker_and_its_records_fail_in_time() {
    let server = closed_port().await;
    let producer = kafka::producer(&short(&server)).await.unwrap();
    let results = producer.send(numbered(&"t".into(), "v", 3)).await;
    assert_eq!(results.len(), 3);
    for result in results {
        let error = result.unwrap_err();
        assert!(error.retryable(), "{error:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_server_that_answers_is_enough() {
    topic("some", 1, &[], async |name| {
        let list = format!("no-such-host.invalid:9092,{},{}", closed_port().await, servers());
        let config = KafkaConfig::new(list);
        let producer = kafka::producer(&config).await.unwrap();
        for result in producer.send(numbered(&name, "v", 10)).await {
            result.unwrap();
        }
        let admin = kafka::admin(&config).await.unwrap();
        assert_eq!(admin.topic(&name).await.unwrap().partitions.len(), 1);
        let partition = TopicPartition::new(Arc::clone(&name), 0);
        for isolation in [Isolation::ReadUncommitted, Isolation::ReadCommitted] {
            let reader = kafka::range_reader(&config, isolation).await.unwrap();
            assert_eq!(read(&reader, &partition, 0, 10).await.unwrap().len(), 10);
        }
        let mut writer = kafka::transactional_writer(&config, &unique("some")).await.unwrap();
        writer.begin().await.unwrap();
        writer.commit().await.unwrap();
        let member = kafka::member(&config, &unique("group"), &[name.to_string()], "earliest").await.unwrap();
        eventually("records", Duration::from_secs(30), async || !member.poll(10, Duration::from_millis(100)).await.unwrap().is_empty())
            .await;
        member.close().await;
    })
    .await;
}

/// Records sent while the broker is away arrive once it is back, each once; the log says so once and once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_loses_nothing_and_is_reported_once() {
    capture_log();
    topic("outage", 1, &[], async |name| {
        let proxy = Proxy::start().await;
        let config = KafkaConfig::new(&proxy.servers);
        let producer = kafka::producer(&config).await.unwrap();
        for result in producer.send(numbered(&name, "before", 100)).await {
            result.unwrap();
        }
        let away = || logged(&proxy.servers).into_iter().filter(|line| line.contains("no Kafka broker can be reached")).count();
        let back = || logged(&proxy.servers).into_iter().filter(|line| line.contains("Kafka is back")).count();
        assert_eq!((away(), back()), (0, 0));

        proxy.cut().await;
        let sending: Vec<_> = (0..20)
            .map(|call| {
                let producer = Arc::clone(&producer);
                let records = numbered(&name, &format!("during-{call}"), 50);
                tokio::spawn(async move { producer.send(records).await })
            })
            .collect();
        eventually("the outage is logged", Duration::from_secs(20), async || away() > 0).await;
        assert!(sending.iter().all(|call| !call.is_finished()));
        proxy.restore();
        for results in futures::future::join_all(sending).await {
            for result in results.unwrap() {
                result.unwrap();
            }
        }
        eventually("the return is logged", Duration::from_secs(20), async || back() > 0).await;
        assert_eq!((away(), back()), (1, 1), "{:?}", logged(&proxy.servers));

        let reader = kafka::range_reader(&crate::support::config(), Isolation::ReadUncommitted).await.unwrap();
        let partition = TopicPartition::new(name, 0);
        let latest = reader.bounds(std::slice::from_ref(&partition)).await.unwrap()[&partition].latest;
        let seen = values(&read(&reader, &partition, 0, latest).await.unwrap());
        assert_eq!(seen.len(), 1_100);
        assert_eq!(seen.into_iter().collect::<BTreeSet<_>>().len(), 1_100, "a record came twice");
    })
    .await;
}

/// Both readers go on by themselves after a short cut in the middle of a range.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_survives_a_cut_connection() {
    use futures::StreamExt;
    topic("cut", 1, &[], async |name| {
        produce((0..20_000).map(|_| crate::support::to(&name, 0, vec![b'x'; 200])).collect()).await;
        for isolation in [Isolation::ReadUncommitted, Isolation::ReadCommitted] {
            let proxy = Proxy::start().await;
            let mut config = KafkaConfig::new(&proxy.servers);
            config.set("max.partition.fetch.bytes", "50000");
            let reader = kafka::range_reader(&config, isolation).await.unwrap();
            let mut stream = reader.read(TopicPartition::new(Arc::clone(&name), 0), 0, 20_000);
            let mut next = stream.next().await.unwrap().unwrap().len() as i64;
            proxy.cut().await;
            proxy.restore();
            while let Some(chunk) = stream.next().await {
                for record in chunk.unwrap() {
                    assert_eq!(record.offset, next, "{isolation:?}");
                    next += 1;
                }
            }
            assert_eq!(next, 20_000, "{isolation:?}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_settings_are_told_when_the_client_is_made() {
    let mut wrong = config();
    wrong.set("acks", "most");
    let Err(error) = kafka::producer(&wrong).await else { panic!("accepted") };
    assert!(matches!(&error, KafkaError::Config(text) if text.contains("acks = most")), "{error:?}");
}

/// librdkafka throws its brokers away when one tells of topics and of no broker, and may never look for them again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_were_told_of_no_broker_find_one_again() {
    topic("fenced", 1, &[], async |name| {
        let proxy = Proxy::start().await;
        let mut config = KafkaConfig::new(&proxy.servers);
        // Each client asks for metadata again and again, so each is told.
        config.set("metadata.max.age.ms", "200");
        config.set("default.api.timeout.ms", "1000");
        let admin = kafka::admin(&config).await.unwrap();
        let producer = kafka::producer(&config).await.unwrap();
        let member = kafka::member(&config, &unique("fenced"), &[name.to_string()], "earliest").await.unwrap();
        let reader = kafka::range_reader(&config, Isolation::ReadCommitted).await.unwrap();
        let partition = TopicPartition::new(Arc::clone(&name), 0);
        let write = async |count: usize| {
            let results = producer.send(numbered(&name, "r", count)).await;
            results.iter().all(Result::is_ok)
        };
        assert!(write(10).await);
        let mut seen = 0;
        eventually("the member has read", Duration::from_secs(30), async || {
            seen += member.poll(100, Duration::from_millis(100)).await.unwrap().len();
            seen == 10
        })
        .await;
        assert_eq!(read(&reader, &partition, 0, 10).await.unwrap().len(), 10);

        for round in 1..=3 {
            let told = proxy.fenced_answers.load(std::sync::atomic::Ordering::SeqCst);
            proxy.fence(true);
            eventually("the clients are told", Duration::from_secs(30), async || {
                drop(admin.topics().await);
                drop(member.poll(1, Duration::from_millis(10)).await);
                proxy.fenced_answers.load(std::sync::atomic::Ordering::SeqCst) >= told + 4
            })
            .await;
            proxy.fence(false);
            let bound = Duration::from_secs(40);
            eventually("the admin client asks again", bound, async || admin.topics().await.is_ok()).await;
            eventually("settings are read again", bound, async || admin.topic_config(&name).await.is_ok()).await;
            assert!(write(10).await, "round {round}");
            eventually("the member goes on", bound, async || {
                seen += member.poll(100, Duration::from_millis(100)).await.map_or(0, |records| records.len());
                seen == 10 * (round + 1)
            })
            .await;
            eventually("the reader goes on", bound, async || {
                read(&reader, &partition, 0, 10 * (round as i64 + 1)).await.is_ok_and(|records| records.len() == 10 * (round + 1))
            })
            .await;
        }
    })
    .await;
}
