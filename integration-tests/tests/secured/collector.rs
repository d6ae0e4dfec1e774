//! The collector's Kafka sink, source and channel.

use std::{
    collections::BTreeSet,
    fs::{self, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
};

use integration_tests::{
    eventually, kafka,
    process::Process,
    secured::{Acl, By, Secured},
    unique,
};

use super::{WAIT, grant_all, lines, needed, told};

const ENV: [(&str, &str); 2] = [("MILLRACE_CONTROL__LISTEN", "127.0.0.1:0"), ("MILLRACE_METRICS__LISTEN", "127.0.0.1:0")];

/// An agent `a`, its files and who it is.
struct Agent {
    kafka: Arc<Secured>,
    by: By,
    dir: tempfile::TempDir,
    principal: String,
    written: BTreeSet<String>,
}

impl Agent {
    fn new(by: By) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        fs::write(dir.path().join("log"), "").expect("the log");
        fs::create_dir(dir.path().join("out")).expect("a folder");
        Self { kafka: Secured::shared(), by, dir, principal: Secured::principal(by, "collector"), written: BTreeSet::new() }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn log(&self) -> PathBuf {
        self.path().join("log")
    }

    /// `brokers` and the client's settings, in a component's words.
    fn secured(&self, component: &str, clients: &[&str]) -> String {
        let mut text = format!("{component}.kafka.bootstrap.servers = {}\n", self.kafka.at(self.by));
        for client in clients {
            for (key, value) in self.kafka.settings(self.by, "collector") {
                text.push_str(&format!("{component}.kafka.{client}.{key} = {value}\n"));
            }
        }
        text
    }

    fn configure(&self, lines: &str) {
        let text: String = lines.lines().map(str::trim).filter(|line| !line.is_empty()).map(|line| format!("a.{line}\n")).collect();
        fs::write(self.path().join("agent.conf"), text).expect("the agent's file");
    }

    fn start(&self) -> Process {
        let (conf, state) = (self.path().join("agent.conf"), self.path().join("state"));
        let args = ["agent", "-n", "a", "-f", &conf.to_string_lossy(), "--state-dir", &state.to_string_lossy(), "--no-reload-conf"];
        Process::start("millrace-collector", self.path(), &args, &ENV)
    }

    fn exec(&self) -> String {
        format!(
            "sources = s\nchannels = c\nsources.s.type = exec\nsources.s.command = tail -F {}\nsources.s.channels = c\n",
            self.log().display()
        )
    }

    fn file_roll(&self) -> String {
        let out = self.path().join("out");
        format!(
            "sinks = k\nsinks.k.type = file_roll\nsinks.k.channel = c\nsinks.k.sink.rollInterval = 0\nsinks.k.sink.directory = {}\n",
            out.display()
        )
    }

    /// Ten lines that were never there before.
    fn lines(&mut self) -> Vec<String> {
        let first = self.written.len();
        let new: Vec<String> = (first..first + 10).map(|n| format!("line {n:04}")).collect();
        self.written.extend(new.iter().cloned());
        new
    }

    fn append(&mut self) {
        let mut log = OpenOptions::new().append(true).open(self.log()).expect("the log");
        for line in self.lines() {
            writeln!(log, "{line}").expect("the log");
        }
    }

    async fn all_in_topic(&self, topic: &str, exactly: bool) {
        eventually(WAIT, &format!("every line is in {topic}"), || async {
            let texts = kafka::texts(&self.kafka.bootstrap, topic);
            let seen: BTreeSet<String> = texts.iter().cloned().collect();
            let whole = seen == self.written && (!exactly || texts.len() == seen.len());
            if whole { Ok(()) } else { Err(format!("{} of {} lines, {} records", seen.len(), self.written.len(), texts.len())) }
        })
        .await;
    }

    async fn all_in_files(&self) {
        eventually(WAIT, "every line is in the files", || async {
            let seen = lines(&self.path().join("out"));
            if seen == self.written { Ok(()) } else { Err(format!("{} of {} lines", seen.len(), self.written.len())) }
        })
        .await;
    }

    /// Starts without one entry after the other: says which, and does all of its work once it is granted. `work` gives it new lines.
    async fn each_in_turn(&mut self, acls: &[Acl], mut work: impl FnMut(&mut Self), done: impl AsyncFn(&Self)) {
        for acl in acls {
            self.kafka.revoke(&self.principal, acl);
            let mut collector = self.start();
            work(self);
            told(&collector, &self.principal, acl).await;
            self.kafka.grant(&self.principal, acl);
            done(self).await;
            collector.stop().await;
        }
    }
}

async fn sink(by: By) {
    let mut agent = Agent::new(by);
    let topic = unique("sink");
    kafka::create_topic(&agent.kafka.bootstrap, &topic, 1).await;
    agent.configure(&format!(
        "{}sinks = k\nchannels.c.type = memory\nsinks.k.channel = c\nsinks.k.type = org.apache.flume.sink.kafka.KafkaSink\nsinks.k.kafka.topic = {topic}\n{}",
        agent.exec(),
        agent.secured("sinks.k", &["producer"])
    ));
    let acls = needed("collector: Kafka sink", &[("TOPIC", &topic)]);
    grant_all(&agent.kafka, &agent.principal, &acls);
    agent.each_in_turn(&acls, Agent::append, async |agent| agent.all_in_topic(&topic, true).await).await;

    // And while it runs.
    let mut collector = agent.start();
    agent.append();
    agent.all_in_topic(&topic, true).await;
    for acl in &acls {
        agent.kafka.revoke(&agent.principal, acl);
        agent.append();
        told(&collector, &agent.principal, acl).await;
        agent.kafka.grant(&agent.principal, acl);
        agent.all_in_topic(&topic, true).await;
    }
    collector.log_contains(WAIT, "delivering again").await;
    collector.stop().await;
}

#[tokio::test]
async fn a_sink_by_scram_says_what_it_lacks_and_goes_on() {
    sink(By::Scram).await;
}

#[tokio::test]
async fn a_sink_by_certificate_says_what_it_lacks_and_goes_on() {
    sink(By::Certificate).await;
}

async fn transactional_sink(by: By) {
    let mut agent = Agent::new(by);
    let (topic, id, positions) = (unique("sink"), unique("id"), unique("positions"));
    kafka::create_topic(&agent.kafka.bootstrap, &topic, 1).await;
    agent.configure(&format!(
        "{}sinks = k\nchannels.c.type = memory\nsinks.k.channel = c\nsinks.k.type = org.apache.flume.sink.kafka.KafkaSink\nsinks.k.kafka.topic = {topic}\n\
         sinks.k.positionsTopic = {positions}\nsinks.k.kafka.producer.transactional.id = {id}\n{}",
        agent.exec(),
        agent.secured("sinks.k", &["producer"])
    ));
    let names = [("TOPIC", topic.as_str()), ("ID", &id), ("POSITIONS", &positions)];
    let (create, acls): (Vec<Acl>, Vec<Acl>) =
        needed("collector: transactional Kafka sink", &names).into_iter().partition(|acl| acl.operation == "CREATE");
    grant_all(&agent.kafka, &agent.principal, &acls);
    grant_all(&agent.kafka, &agent.principal, &create);
    // Only this once is the topic not there.
    agent.each_in_turn(&create, Agent::append, async |agent| agent.all_in_topic(&topic, true).await).await;
    create.iter().for_each(|acl| agent.kafka.revoke(&agent.principal, acl));
    agent.each_in_turn(&acls, Agent::append, async |agent| agent.all_in_topic(&topic, true).await).await;
}

#[tokio::test]
async fn a_transactional_sink_by_scram_says_what_it_lacks_and_goes_on() {
    transactional_sink(By::Scram).await;
}

#[tokio::test]
async fn a_transactional_sink_by_certificate_says_what_it_lacks_and_goes_on() {
    transactional_sink(By::Certificate).await;
}

async fn source(by: By) {
    let mut agent = Agent::new(by);
    let (topic, group) = (unique("source"), unique("group"));
    kafka::create_topic(&agent.kafka.bootstrap, &topic, 2).await;
    agent.configure(&format!(
        "sources = s\nchannels = c\nchannels.c.type = memory\nsources.s.type = org.apache.flume.source.kafka.KafkaSource\nsources.s.channels = c\n\
         sources.s.kafka.topics = {topic}\nsources.s.kafka.consumer.group.id = {group}\nsources.s.kafka.consumer.auto.offset.reset = earliest\n\
         sources.s.kafka.consumer.session.timeout.ms = 6000\nsources.s.kafka.consumer.heartbeat.interval.ms = 1000\n{}{}",
        agent.secured("sources.s", &["consumer"]),
        agent.file_roll()
    ));
    // Who may not speak for the group cannot leave it either: its session has to end.
    let acls = needed("collector: Kafka source", &[("TOPIC", &topic), ("GROUP", &group)]);
    grant_all(&agent.kafka, &agent.principal, &acls);
    let produce = |agent: &mut Agent| {
        let new = agent.lines();
        kafka::produce(&agent.kafka.bootstrap, &topic, 2, new);
    };
    agent.each_in_turn(&acls, produce, async |agent| agent.all_in_files().await).await;
    // All that was read is committed.
    assert_eq!(kafka::lag(&agent.kafka.bootstrap, &group, &topic), 0);

    let mut collector = agent.start();
    produce(&mut agent);
    agent.all_in_files().await;
    for acl in &acls {
        agent.kafka.revoke(&agent.principal, acl);
        produce(&mut agent);
        told(&collector, &agent.principal, acl).await;
        agent.kafka.grant(&agent.principal, acl);
        agent.all_in_files().await;
    }
    collector.stop().await;
}

#[tokio::test]
async fn a_source_by_scram_says_what_it_lacks_and_goes_on() {
    source(By::Scram).await;
}

#[tokio::test]
async fn a_source_by_certificate_says_what_it_lacks_and_goes_on() {
    source(By::Certificate).await;
}

async fn channel(by: By) {
    let mut agent = Agent::new(by);
    let (topic, group) = (unique("channel"), unique("group"));
    kafka::create_topic(&agent.kafka.bootstrap, &topic, 1).await;
    agent.configure(&format!(
        "{}channels.c.type = org.apache.flume.channel.kafka.KafkaChannel\nchannels.c.kafka.topic = {topic}\nchannels.c.kafka.consumer.group.id = {group}\n{}{}",
        agent.exec(),
        agent.secured("channels.c", &["producer", "consumer"]),
        agent.file_roll()
    ));
    let acls = needed("collector: Kafka channel", &[("TOPIC", &topic), ("GROUP", &group)]);
    grant_all(&agent.kafka, &agent.principal, &acls);
    agent.each_in_turn(&acls, Agent::append, async |agent| agent.all_in_files().await).await;
}

#[tokio::test]
async fn a_channel_by_scram_says_what_it_lacks_and_goes_on() {
    channel(By::Scram).await;
}

#[tokio::test]
async fn a_channel_by_certificate_says_what_it_lacks_and_goes_on() {
    channel(By::Certificate).await;
}
