//! Counters for Ganglia: the packets of the collector beside those of real Flume, and what a real gmond makes of them.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::{TcpStream, UdpSocket},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use integration_tests::{
    eventually,
    flume::{Flume, free_port},
    process::Process,
};

use super::network::WAIT;

/// Packets by the metric's name: what describes it, and its value.
#[derive(Default)]
struct Heard {
    described: BTreeMap<String, Vec<u8>>,
    values: BTreeMap<String, Vec<u8>>,
}

/// A gmond that only listens.
struct Ear(UdpSocket);

impl Ear {
    fn new() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        socket.set_nonblocking(true).expect("a socket");
        Self(socket)
    }

    fn address(&self) -> String {
        self.0.local_addr().expect("an address").to_string()
    }

    fn hear(&self, heard: &mut Heard) {
        let mut buffer = [0; 2000];
        while let Ok(length) = self.0.recv(&mut buffer) {
            let packet = buffer[..length].to_vec();
            let number = |at: usize| u32::from_be_bytes(packet[at..at + 4].try_into().expect("four bytes")) as usize;
            let text = |at: usize| {
                let length = number(at);
                (String::from_utf8_lossy(&packet[at + 4..at + 4 + length]).into_owned(), at + 4 + length.next_multiple_of(4))
            };
            let (name, kept) = match number(0) {
                128 => (text(text(4).1).0, &mut heard.described),
                133 => (text(text(4).1).0, &mut heard.values),
                // Ganglia 3.0: kind, name, value.
                0 => (text(text(4).1).0, &mut heard.described),
                other => panic!("a packet of kind {other}: {packet:?}"),
            };
            kept.insert(name, packet);
        }
    }

    /// Waits until every one of `names` was heard.
    async fn heard(&self, names: &[String]) -> Heard {
        let mut heard = Heard::default();
        eventually(WAIT, "every counter is sent", || {
            self.hear(&mut heard);
            let missing = names.iter().find(|name| !heard.described.keys().any(|known| known.ends_with(*name)));
            let missing = missing.cloned();
            async { missing.map_or(Ok(()), Err) }
        })
        .await;
        heard
    }
}

/// Debian's gmond, without its own metrics.
struct Gmond {
    child: Child,
    port: u16,
}

impl Gmond {
    fn start(dir: &Path) -> Self {
        let (port, conf) = (free_port(), dir.join("gmond.conf"));
        let text = format!(
            "globals {{\n daemonize = no\n setuid = no\n mute = yes\n deaf = no\n}}\ncluster {{\n name = \"test\"\n}}\n\
             udp_recv_channel {{\n port = {port}\n bind = 127.0.0.1\n}}\ntcp_accept_channel {{\n port = {port}\n bind = 127.0.0.1\n}}\n"
        );
        fs::write(&conf, text).expect("gmond's file");
        let child = Command::new("gmond").arg("-c").arg(&conf).stdin(Stdio::null()).spawn();
        Self { child: child.unwrap_or_else(|error| panic!("gmond (deploy/dev/install brings it): {error}")), port }
    }

    /// What it knows, as XML.
    fn shown(&self) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.flush()?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    }
}

impl Drop for Gmond {
    fn drop(&mut self) {
        // It is ended by the test alone.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn conf(dir: &Path, name: &str) -> String {
    let rolled = dir.join(name);
    fs::create_dir(&rolled).expect("a folder");
    format!(
        "agent.sources = r\nagent.channels = c\nagent.sinks = k\nagent.sources.r.type = seq\nagent.sources.r.totalEvents = 50\nagent.sources.r.channels = c\n\
         agent.channels.c.type = memory\nagent.channels.c.capacity = 8000\nagent.channels.c.transactionCapacity = 100\n\
         agent.sinks.k.type = file_roll\nagent.sinks.k.sink.rollInterval = 0\nagent.sinks.k.sink.directory = {}\nagent.sinks.k.channel = c\n",
        rolled.display()
    )
}

fn options(hosts: &str, version_3_0: bool) -> Vec<String> {
    let set = |name: &str, value: &str| format!("-Dflume.monitoring.{name}={value}");
    let three = version_3_0.to_string();
    vec![set("type", "ganglia"), set("hosts", hosts), set("pollFrequency", "1"), set("isGanglia3", &three)]
}

fn start(dir: &Path, name: &str, hosts: &str, version_3_0: bool) -> Process {
    let (path, state) = (dir.join(format!("{name}.conf")), dir.join(format!("{name}.state")));
    fs::write(&path, conf(dir, name)).expect("the agent's file");
    let (path, state, options) = (path.to_string_lossy(), state.to_string_lossy(), options(hosts, version_3_0));
    let mut args = vec!["agent", "-n", "agent", "-f", &path, "--state-dir", &state];
    args.extend(options.iter().map(String::as_str));
    let env = [("MILLRACE_CONTROL__LISTEN", "127.0.0.1:0"), ("MILLRACE_METRICS__LISTEN", "127.0.0.1:0")];
    Process::start("millrace-collector", dir, &args, &env)
}

#[tokio::test]
async fn ganglia_hears_of_the_collector_what_it_hears_of_flume() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path();
    let gmond = Gmond::start(dir);
    let named = |name: &str| format!("flume.{name}");
    let last: Vec<String> =
        ["SOURCE.r.EventAcceptedCount", "CHANNEL.c.ChannelCapacity", "SINK.k.EventDrainSuccessCount"].map(named).to_vec();
    for version_3_0 in [false, true] {
        let (ours, flumes) = (Ear::new(), Ear::new());
        let name = |who: &str| format!("{who}{version_3_0}");
        let java = options(&flumes.address(), version_3_0);
        let flume =
            Flume::start_with(dir, &name("flume"), &conf(dir, &name("by-flume")), &java.iter().map(String::as_str).collect::<Vec<_>>());
        let hosts = format!("{},127.0.0.1:{}", ours.address(), gmond.port);
        // gmond has forgotten the form of 3.0.
        let hosts = if version_3_0 { ours.address() } else { hosts };
        let mut collector = start(dir, &name("ours"), &hosts, version_3_0);
        let theirs = flumes.heard(&last).await;
        // Whatever Flume's components tell is told here.
        let names: Vec<String> = theirs.described.keys().cloned().collect();
        assert!(names.len() >= 30, "{names:?}");
        let heard = ours.heard(&names).await;
        for (name, packet) in &theirs.described {
            let same = &heard.described[name] == packet;
            // A packet of 3.0 has the value in it, and Flume's may be another.
            let constant = [".Type", ".ChannelCapacity"].iter().any(|end| name.ends_with(end));
            assert!(same || (version_3_0 && !constant), "{name}: {packet:?} and {:?}", heard.described[name]);
        }
        if !version_3_0 {
            assert_eq!(theirs.values.len(), theirs.described.len());
            for name in ["CHANNEL.c.Type", "CHANNEL.c.ChannelCapacity", "SOURCE.r.Type", "SINK.k.StopTime"].map(named) {
                assert_eq!(heard.values.get(&name), theirs.values.get(&name), "{name}");
            }
            eventually(WAIT, "gmond shows the events", || async {
                let shown = gmond.shown().map_err(|error| error.to_string())?;
                let metric = |name: &str, value: &str| shown.contains(&format!("<METRIC NAME=\"{}\" VAL=\"{value}\" TYPE=\"", named(name)));
                if metric("SINK.k.EventDrainSuccessCount", "50") && metric("CHANNEL.c.Type", "CHANNEL") { Ok(()) } else { Err(shown) }
            })
            .await;
            let shown = gmond.shown().expect("gmond's XML");
            assert!(shown.contains("<EXTRA_ELEMENT NAME=\"GROUP\" VAL=\"flume\"/>"), "{shown}");
        }
        collector.stop().await;
        flume.stop().await;
    }
}
