use super::*;

fn values(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn native(role: Role, pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    translate(&values(pairs), role).unwrap()
}

fn error(pairs: &[(&str, &str)]) -> String {
    check(&values(pairs)).unwrap_err().to_string()
}

#[test]
fn every_translation_is_accepted_by_librdkafka() {
    // One value per property that has an effect; librdkafka refuses names and values it does not know.
    let common: &[(&str, &str)] = &[
        ("client.id", "c"),
        ("client.dns.lookup", "use_all_dns_ips"),
        ("metadata.max.age.ms", "60000"),
        ("metadata.recovery.strategy", "rebootstrap"),
        ("metadata.recovery.rebootstrap.trigger.ms", "300000"),
        ("connections.max.idle.ms", "540000"),
        ("reconnect.backoff.ms", "50"),
        ("reconnect.backoff.max.ms", "1000"),
        ("retry.backoff.ms", "100"),
        ("retry.backoff.max.ms", "1000"),
        ("request.timeout.ms", "30000"),
        ("socket.connection.setup.timeout.ms", "10000"),
        ("send.buffer.bytes", "131072"),
        ("receive.buffer.bytes", "-1"),
        ("enable.metrics.push", "false"),
        ("security.protocol", "SASL_SSL"),
        ("sasl.mechanism", "SCRAM-SHA-512"),
        ("sasl.jaas.config", "o.a.k.ScramLoginModule required username=\"u\" password=\"p\";"),
        ("ssl.endpoint.identification.algorithm", "https"),
    ];
    let producer: &[(&str, &str)] = &[
        ("acks", "all"),
        ("enable.idempotence", "true"),
        ("retries", "2147483647"),
        ("max.in.flight.requests.per.connection", "5"),
        ("compression.type", "gzip"),
        ("compression.gzip.level", "6"),
        ("linger.ms", "20"),
        ("batch.size", "16384"),
        ("max.request.size", "2097152"),
        ("buffer.memory", "67108864"),
        ("delivery.timeout.ms", "60000"),
        ("max.block.ms", "60000"),
        ("partitioner.ignore.keys", "true"),
        ("transaction.timeout.ms", "10000"),
    ];
    let consumer: &[(&str, &str)] = &[
        ("client.rack", "r"),
        ("session.timeout.ms", "10000"),
        ("heartbeat.interval.ms", "3000"),
        ("max.poll.interval.ms", "300000"),
        ("fetch.min.bytes", "1"),
        ("fetch.max.bytes", "52428800"),
        ("fetch.max.wait.ms", "500"),
        ("max.partition.fetch.bytes", "1048576"),
        ("check.crcs", "true"),
        ("allow.auto.create.topics", "false"),
        ("group.instance.id", "i"),
        ("partition.assignment.strategy", "org.apache.kafka.clients.consumer.CooperativeStickyAssignor"),
        ("isolation.level", "read_committed"),
    ];
    for (role, own) in [
        (Role::Producer, producer),
        (Role::Transactional, producer),
        (Role::Reader, consumer),
        (Role::Member, consumer),
        (Role::Admin, &[][..]),
    ] {
        let mut client = rdkafka::ClientConfig::new();
        for (key, value) in native(role, &[common, own].concat()) {
            client.set(key, value);
        }
        client.create_native_config().unwrap_or_else(|error| panic!("{role:?}: {error}"));
    }
}

#[test]
fn the_table_names_each_property_once() {
    for (index, property) in TABLE.iter().enumerate() {
        assert!(TABLE[index + 1..].iter().all(|other| other.name != property.name), "{} twice", property.name);
    }
}

#[test]
fn a_producer_is_idempotent_by_default() {
    let native = native(Role::Producer, &[]);
    assert_eq!(native["enable.idempotence"], "true");
    assert_eq!(native["acks"], "all");
}

#[test]
fn acks_of_the_configuration_win_over_default_idempotence() {
    for acks in ["0", "1"] {
        let pairs = [("acks", acks)];
        let native = native(Role::Producer, &pairs);
        assert_eq!((native["acks"].as_str(), native["enable.idempotence"].as_str()), (acks, "false"));
        let notes = check(&values(&pairs)).unwrap();
        assert!(notes.iter().any(|note| note.contains("turns idempotence off")), "{notes:?}");
    }
    assert_eq!(native(Role::Producer, &[("acks", "-1")])["acks"], "all");
    assert_eq!(native(Role::Producer, &[("acks", "-1")])["enable.idempotence"], "true");
    assert_eq!(native(Role::Transactional, &[("acks", "1")])["acks"], "all");
}

#[test]
fn idempotence_asked_for_beside_acks_1_is_an_error() {
    let text = error(&[("acks", "1"), ("enable.idempotence", "true")]);
    assert!(text.contains("acks = 1") && text.contains("enable.idempotence"), "{text}");
}

#[test]
fn a_client_gets_only_its_own_side() {
    let pairs = [("linger.ms", "7"), ("fetch.min.bytes", "9")];
    assert!(!native(Role::Producer, &pairs).contains_key("fetch.min.bytes"));
    assert!(!native(Role::Member, &pairs).contains_key("linger.ms"));
    assert!(!native(Role::Admin, &pairs).contains_key("linger.ms"));
}

#[test]
fn java_values_become_librdkafka_ones() {
    let producer = native(
        Role::Producer,
        &[("max.request.size", "2000000"), ("batch.size", "0"), ("compression.type", "ZSTD"), ("request.timeout.ms", "5000")],
    );
    assert_eq!(producer["message.max.bytes"], "2000000");
    assert_eq!(producer["batch.num.messages"], "1");
    assert_eq!(producer["compression.type"], "zstd");
    assert_eq!((producer["request.timeout.ms"].as_str(), producer["socket.timeout.ms"].as_str()), ("5000", "5000"));
    let member = native(Role::Member, &[("partition.assignment.strategy", "org.apache.kafka.clients.consumer.RangeAssignor, roundrobin")]);
    assert_eq!(member["partition.assignment.strategy"], "range,roundrobin");
    assert_eq!(native(Role::Member, &[])["partition.assignment.strategy"], "range");
}

#[test]
fn a_transaction_outlives_its_records_and_requests() {
    let native = native(Role::Transactional, &[("transaction.timeout.ms", "10000")]);
    assert_eq!(native["delivery.timeout.ms"], "10000");
    assert_eq!(native["socket.timeout.ms"], "10000");
    assert_eq!(native["retry.backoff.ms"], "5");
}

#[test]
fn jaas_gives_user_and_password() {
    let with = |mechanism: &str, jaas: &str| {
        native(Role::Admin, &[("security.protocol", "SASL_PLAINTEXT"), ("sasl.mechanism", mechanism), ("sasl.jaas.config", jaas)])
    };
    let plain =
        with("PLAIN", "org.apache.kafka.common.security.plain.PlainLoginModule required\n username=\"al ice\" password='a\"b\\\\c;';");
    assert_eq!(plain["sasl.username"], "al ice");
    assert_eq!(plain["sasl.password"], "a\"b\\c;");
    let scram = with("SCRAM-SHA-256", "org.apache.kafka.common.security.scram.ScramLoginModule required username=u password=p;");
    assert_eq!((scram["sasl.mechanism"].as_str(), scram["sasl.password"].as_str()), ("SCRAM-SHA-256", "p"));
}

#[test]
fn every_refusal_names_the_key_and_the_remedy() {
    let sasl = ("security.protocol", "SASL_SSL");
    let ssl = ("security.protocol", "SSL");
    let plain = ("sasl.mechanism", "PLAIN");
    for (pairs, words) in [
        (&[("acks", "2")][..], &["acks = 2", "all, -1, 0, 1"][..]),
        (&[("linger.ms", "soon")], &["linger.ms = soon", "whole number"]),
        (&[("enable.idempotence", "maybe")], &["enable.idempotence", "true or false"]),
        (&[("interceptor.classes", "com.example.Audit")], &["interceptor.classes", "remove it"]),
        (&[("key.serializer", "io.confluent.KafkaAvroSerializer")], &["key.serializer", "ByteArraySerializer"]),
        (&[("partitioner.class", "com.example.Mine")], &["partitioner.class", "RoundRobinPartitioner"]),
        (&[("partition.assignment.strategy", "x.Mine")], &["partition.assignment.strategy", "RangeAssignor"]),
        (&[ssl, ("ssl.truststore.location", "/k.jks")], &["ssl.truststore.location", "PEM", "keytool"]),
        (&[ssl, ("ssl.keystore.location", "/k.jks"), ("ssl.keystore.type", "JKS")], &["ssl.keystore.location", "PEM"]),
        (&[sasl], &["sasl.mechanism is missing", "SCRAM-SHA-512"]),
        (&[sasl, ("sasl.mechanism", "GSSAPI")], &["GSSAPI", "Kerberos", "SCRAM"]),
        (&[sasl, ("sasl.mechanism", "OAUTHBEARER")], &["OAUTHBEARER", "SCRAM"]),
        (&[sasl, plain], &["sasl.jaas.config is missing", "PlainLoginModule"]),
        (&[sasl, plain, ("sasl.jaas.config", "x.PlainLoginModule required username=\"u\"")], &["`;`"]),
        (&[sasl, plain, ("sasl.jaas.config", "x.PlainLoginModule required username=\"u\";")], &["password", "missing"]),
        (
            &[sasl, plain, ("sasl.jaas.config", "x.ScramLoginModule required username=\"u\" password=\"p\";")],
            &["ScramLoginModule", "PlainLoginModule"],
        ),
    ] {
        let text = error(pairs);
        for word in words {
            assert!(text.contains(word), "{pairs:?}: {word:?} is not in: {text}");
        }
    }
}

#[test]
fn tls_by_pem() {
    let native = native(
        Role::Admin,
        &[
            ("security.protocol", "SSL"),
            ("ssl.truststore.type", "PEM"),
            ("ssl.truststore.location", "/ca"),
            ("ssl.keystore.location", "/client.pem"),
            ("ssl.endpoint.identification.algorithm", ""),
        ],
    );
    assert_eq!(native["ssl.ca.location"], "/ca");
    assert_eq!((native["ssl.certificate.location"].as_str(), native["ssl.key.location"].as_str()), ("/client.pem", "/client.pem"));
    assert_eq!(native["ssl.endpoint.identification.algorithm"], "none");
}

#[test]
fn what_has_no_effect_is_said() {
    let notes = check(&values(&[
        ("max.poll.records", "500"),
        ("acsk", "all"),
        ("ssl.truststore.location", "/ca.pem"),
        ("sasl.mechanism", "PLAIN"),
    ]))
    .unwrap();
    for key in ["max.poll.records", "acsk", "ssl.*", "sasl.*"] {
        assert_eq!(notes.iter().filter(|note| note.starts_with(key)).count(), 1, "{key}: {notes:?}");
    }
}

#[test]
fn secrets_are_masked() {
    let config = super::super::KafkaConfig::from_properties(values(&[
        ("bootstrap.servers", "h:1"),
        ("ssl.key.password", "hunter2"),
        ("sasl.jaas.config", "x required password=\"hunter2\";"),
        ("ssl.keystore.key", "hunter2"),
    ]))
    .unwrap();
    let shown = format!("{config:?} {:?}", config.masked());
    assert!(!shown.contains("hunter2"), "{shown}");
    let text = error(&[("security.protocol", "SASL_SSL"), ("sasl.mechanism", "PLAIN"), ("sasl.jaas.config", "hunter2;")]);
    assert!(!text.contains("hunter2"), "{text}");
}

#[test]
fn servers_are_read_as_people_write_them() {
    let config = super::super::KafkaConfig::new(" a:1, b:2 c ,PLAINTEXT://d:4,");
    assert_eq!(config.servers(), ["a:1", "b:2", "c:9092", "d:4"]);
    assert!(super::super::KafkaConfig::from_properties(values(&[("acks", "1")])).unwrap_err().to_string().contains("bootstrap.servers"));
}

#[test]
fn a_server_is_host_and_port_and_nothing_that_could_be_shown_by_mistake() {
    use super::super::config::server;
    for (given, expected) in
        [("k:1", "k:1"), ("k", "k:9092"), ("PLAINTEXT://k:1", "k:1"), ("sasl_ssl://k", "k:9092"), ("[::1]:9092", "[::1]:9092")]
    {
        assert_eq!(server(given).as_deref(), Ok(expected), "{given}");
    }
    for wrong in ["http://k:1", "k:port", "k:70000", ":9092", "k/path", "http://user:hunter2@h:1", "user:hunter2@h:1"] {
        let error = super::super::KafkaConfig::from_properties(values(&[("bootstrap.servers", wrong)])).unwrap_err().to_string();
        assert!(error.contains("host:port") && !error.contains("hunter2"), "{wrong}: {error}");
    }
}
