//! Flume's counters for Ganglia: gmetric packets over UDP, of the names and the form that Flume's own monitoring sends.
//!
//! Set as in Flume (`-Dflume.monitoring.type=ganglia` and what belongs to it) or by `[ganglia]`. UDP tells nobody whether a
//! packet arrived; what this machine cannot send is counted, and told once until it works again.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use serde_json::json;
use service_kit::config::duration;
use tokio::net::{UdpSocket, lookup_host};
use tokio_util::sync::CancellationToken;

use crate::agent::Agent;
use crate::control::flume_json;
use crate::flume_conf::kinds::nearest;

/// `[ganglia]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GangliaConfig {
    /// Where gmond listens, each `host:port`; none: nothing is sent (`-Dflume.monitoring.hosts`).
    pub hosts: Vec<String>,
    /// How often (`-Dflume.monitoring.pollFrequency`, in seconds).
    #[serde(with = "duration")]
    pub interval: Duration,
    /// Packets of Ganglia 3.0 instead of 3.1 (`-Dflume.monitoring.isGanglia3`).
    pub version_3_0: bool,
}

impl Default for GangliaConfig {
    fn default() -> Self {
        Self { hosts: Vec::new(), interval: Duration::from_secs(60), version_3_0: false }
    }
}

impl GangliaConfig {
    /// The error names what is wrong and how it is written.
    pub fn check(&self) -> Result<(), String> {
        let known = |host: &str| {
            host.rsplit_once(':').is_some_and(|(name, port)| !name.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0))
        };
        if let Some(wrong) = self.hosts.iter().find(|host| !known(host)) {
            return Err(format!("`{wrong}` is no address of a gmond; write host:port (ganglia.hosts, flume.monitoring.hosts)"));
        }
        if self.interval.is_zero() {
            return Err("ganglia.interval (flume.monitoring.pollFrequency) must be more than nothing".into());
        }
        Ok(())
    }
}

const PREFIX: &str = "flume.monitoring.";

const FLAGS: &[&str] = &["type", "port", "hosts", "pollFrequency", "isGanglia3"];
const KINDS: &[&str] = &["ganglia", "http"];

/// Flume's system properties as `[ganglia]`.
pub fn flags(define: &BTreeMap<String, String>) -> Result<serde_json::Value, String> {
    let set = |name: &str| define.get(&format!("{PREFIX}{name}")).map(|value| value.trim());
    let kind = set("type").unwrap_or_default();
    // A class of one's own has properties of its own.
    if !kind.contains('.') {
        let near = |word: &str, of: &[&'static str]| {
            let near = nearest(word, of.iter().copied());
            near.map_or_else(|| format!("known are {}", of.join(", ")), |near| format!("did you mean {near}?"))
        };
        if let Some(wrong) = define.keys().filter_map(|name| name.strip_prefix(PREFIX)).find(|name| !FLAGS.contains(name)) {
            return Err(format!("-D{PREFIX}{wrong}: there is no such property; {}", near(wrong, FLAGS)));
        }
        if nearest(kind, KINDS.iter().copied()).is_some() && !KINDS.iter().any(|known| known.eq_ignore_ascii_case(kind)) {
            return Err(format!("-D{PREFIX}type={kind}: {}", near(kind, KINDS)));
        }
    }
    if !kind.eq_ignore_ascii_case("ganglia") {
        return Ok(json!({}));
    }
    let hosts: Vec<&str> = set("hosts").unwrap_or_default().split(',').map(str::trim).filter(|host| !host.is_empty()).collect();
    if hosts.is_empty() {
        return Err(format!("-D{PREFIX}type=ganglia needs -D{PREFIX}hosts=host:port,…"));
    }
    let seconds = set("pollFrequency").map(|text| match text.parse::<u32>() {
        Ok(seconds) if seconds > 0 => Ok(format!("{seconds}s")),
        _ => Err(format!("-D{PREFIX}pollFrequency={text} is no number of seconds")),
    });
    let version_3_0 = set("isGanglia3").map(|text| match text.to_ascii_lowercase().as_str() {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(format!("-D{PREFIX}isGanglia3={text} is neither true nor false")),
    });
    Ok(json!({ "hosts": hosts, "interval": seconds.transpose()?, "version_3_0": version_3_0.transpose()? }))
}

/// Sends until `shutdown`.
pub async fn run(config: GangliaConfig, agent: Arc<Agent>, shutdown: CancellationToken) {
    let machine = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let mut failing = BTreeSet::new();
    tracing::info!(hosts = config.hosts.join(","), interval = ?config.interval, "counters go to Ganglia");
    while !shutdown.is_cancelled() {
        let packets = packets(&flume_json(&agent.view()), &machine, config.version_3_0);
        for host in &config.hosts {
            match send(host, &packets).await {
                Ok(()) if failing.remove(host) => tracing::info!(host, "counters go to Ganglia again"),
                Ok(()) => {}
                Err(error) => {
                    metrics::counter!("millrace_collector_ganglia_failures_total", "host" => host.clone()).increment(1);
                    if failing.insert(host.clone()) {
                        tracing::warn!(host, %error, "counters cannot be sent to Ganglia; tried again every time");
                    }
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(config.interval) => {}
            () = shutdown.cancelled() => {}
        }
    }
}

/// The name is looked up each time: it may move.
async fn send(host: &str, packets: &[Vec<u8>]) -> std::io::Result<()> {
    let address = lookup_host(host).await?.next().ok_or(std::io::ErrorKind::HostUnreachable)?;
    let any: SocketAddr = if address.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(any).await?;
    for packet in packets {
        socket.send_to(packet, address).await?;
    }
    Ok(())
}

/// For each counter of Flume's page what gmond takes for a metric.
fn packets(page: &serde_json::Value, machine: &str, version_3_0: bool) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    for (component, counters) in page.as_object().into_iter().flatten() {
        for (counter, value) in counters.as_object().into_iter().flatten() {
            let (name, value) = (format!("flume.{component}.{counter}"), value.as_str().unwrap_or_default());
            if version_3_0 {
                packets.push(metric_3_0(machine, &name, value));
            } else {
                packets.extend([metadata(machine, &name, value), metric(machine, &name, value)]);
            }
        }
    }
    packets
}

const METADATA: i32 = 128;
/// A metric whose value is text.
const TEXT: i32 = 133;
const UNITS: &str = "";
/// It may rise and fall.
const SLOPE: i32 = 3;
/// Seconds in which the next value comes.
const TMAX: i32 = 60;
/// Seconds after which gmond forgets it: never.
const DMAX: i32 = 0;

/// XDR (RFC 4506): big-endian, in fours.
#[derive(Default)]
struct Xdr(Vec<u8>);

impl Xdr {
    fn int(mut self, value: i32) -> Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    fn text(self, text: &str) -> Self {
        let mut with = self.int(i32::try_from(text.len()).unwrap_or(i32::MAX));
        with.0.extend_from_slice(text.as_bytes());
        with.0.resize(with.0.len().next_multiple_of(4), 0);
        with
    }
}

fn kind(value: &str) -> &'static str {
    if value.parse::<f32>().is_ok() { "float" } else { "string" }
}

fn metadata(machine: &str, name: &str, value: &str) -> Vec<u8> {
    let packet = Xdr::default().int(METADATA).text(machine).text(name).int(0).text(kind(value)).text(name).text(UNITS);
    packet.int(SLOPE).int(TMAX).int(DMAX).int(1).text("GROUP").text("flume").0
}

fn metric(machine: &str, name: &str, value: &str) -> Vec<u8> {
    Xdr::default().int(TEXT).text(machine).text(name).int(0).text("%s").text(value).0
}

fn metric_3_0(machine: &str, name: &str, value: &str) -> Vec<u8> {
    let packet = Xdr::default().int(0).text(kind(value)).text(&format!("{machine}.{name}")).text(value).text(UNITS);
    packet.int(SLOPE).int(TMAX).int(DMAX).0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_written_as_ganglia_reads_them() {
        let page = json!({"CHANNEL.c": {"Type": "CHANNEL", "ChannelSize": "7"}});
        let sent = packets(&page, "m1", false);
        // Metadata and value of two counters, by name.
        assert_eq!(sent.len(), 4);
        let words = |packet: &[u8]| packet.chunks(4).map(|word| i32::from_be_bytes(word.try_into().unwrap())).collect::<Vec<_>>();
        let name = b"flume.CHANNEL.c.ChannelSize\0";
        let expected = [&128i32.to_be_bytes()[..], &[0, 0, 0, 2], b"m1\0\0", &[0, 0, 0, 27], name, &[0; 4], &[0, 0, 0, 5], b"float\0\0\0"];
        let expected = [&expected.concat()[..], &[0, 0, 0, 27], name, &[0; 4]].concat();
        let rest = [3, 60, 0, 1, 5];
        assert_eq!((&sent[0][..expected.len()], &words(&sent[0][expected.len()..])[..5]), (&expected[..], &rest[..]));
        assert!(sent[0].ends_with(b"GROUP\0\0\0\0\0\0\x05flume\0\0\0"));
        let value = [
            &133i32.to_be_bytes()[..],
            &[0, 0, 0, 2],
            b"m1\0\0",
            &[0, 0, 0, 27],
            name,
            &[0; 4],
            &[0, 0, 0, 2],
            b"%s\0\0",
            &[0, 0, 0, 1],
            b"7\0\0\0",
        ];
        assert_eq!(sent[1], value.concat());
        assert!(sent[2].windows(12).any(|part| part == b"\0\0\0\x06string\0\0"));
        let old = packets(&page, "m1", true);
        assert_eq!(old.len(), 2);
        assert!(
            old[0].starts_with(b"\0\0\0\0\0\0\0\x05float\0\0\0\0\0\0\x1em1.flume.CHANNEL.c.ChannelSize\0\0\0\0\0\x017\0\0\0"),
            "{:?}",
            old[0]
        );
    }

    #[test]
    fn flumes_properties_are_read_and_mistakes_told() {
        let read =
            |pairs: &[(&str, &str)]| flags(&pairs.iter().map(|(name, value)| (format!("{PREFIX}{name}"), (*value).to_owned())).collect());
        assert_eq!(read(&[("type", "http"), ("hosts", "a:1")]), Ok(json!({})));
        for (flag, remedy) in [
            (("host", "a:1"), "-Dflume.monitoring.host: there is no such property; did you mean hosts?"),
            (("pollfrequency", "5"), "-Dflume.monitoring.pollfrequency: there is no such property; did you mean pollFrequency?"),
            (("type", "gangla"), "-Dflume.monitoring.type=gangla: did you mean ganglia?"),
            (("isGanglia3", "yes"), "-Dflume.monitoring.isGanglia3=yes is neither true nor false"),
        ] {
            let mut pairs = vec![("type", "ganglia"), ("hosts", "a:1")];
            pairs.push(flag);
            assert_eq!(read(&pairs), Err(remedy.to_owned()));
        }
        assert_eq!(read(&[("type", "com.example.Monitor"), ("colour", "red")]), Ok(json!({})));
        let all = [("type", "GANGLIA"), ("hosts", "a:1, b:2"), ("pollFrequency", "5"), ("isGanglia3", "true")];
        assert_eq!(read(&all), Ok(json!({"hosts": ["a:1", "b:2"], "interval": "5s", "version_3_0": true})));
        assert!(read(&[("type", "ganglia")]).unwrap_err().contains("flume.monitoring.hosts"));
        assert!(read(&[("type", "ganglia"), ("hosts", "a:1"), ("pollFrequency", "0")]).unwrap_err().contains("pollFrequency=0"));
        for (host, fine) in [
            ("h:8649", true),
            ("239.2.11.71:8649", true),
            ("[::1]:8649", true),
            ("h", false),
            (":1", false),
            ("h:x", false),
            ("h:0", false),
        ] {
            assert_eq!(GangliaConfig { hosts: vec![host.into()], ..GangliaConfig::default() }.check().is_ok(), fine, "{host}");
        }
    }
}
