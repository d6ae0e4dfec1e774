//! Offsets in ZooKeeper, where Kafka's consumers kept them before 0.9: what they left is found, and their tools read what is written here.
//!
//! Promise: a commit or reset is one `multi`, which checks the versions of the group's node and of every offset's node that it writes; ZooKeeper
//! has it on the disks of a majority when it answers. Reads follow a `sync`, so they see what any other process was answered.
//!
//! | node | data |
//! |---|---|
//! | `/consumers/GROUP/offsets/TOPIC/PARTITION` | the offset, decimal: the old layout |
//! | `/consumers/GROUP/millrace` | the group's epoch, decimal; nothing is 0. Its version counts the writes |
//! | `/consumers/GROUP/millrace/TOPIC/PARTITION` | an offset's metadata; no node where there is none |
//! | `/millrace/topics/TOPIC` | the topic's id, 32 hexadecimal digits |
//!
//! What a node's name cannot hold is written as `%XX`: `/`, `%`, control characters, and a name of only dots.
//! Needs ZooKeeper 3.5 or later. Nodes are open to everybody, as Kafka's were.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt::Write as _,
    time::Duration,
};

use async_trait::async_trait;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::Mutex;
use tracing::debug;
use zookeeper_client::{Acls, Client, CreateMode, CreateOptions, Error, MultiWriteError};

use super::{
    Calls, GroupOffsets, OffsetError, OffsetStore, StoredOffset,
    checked::{Change, Checked, Groups, Purpose, hex, unhex},
};
use crate::kafka::TopicPartition;

const CONSUMERS: &str = "/consumers";
const TOPICS: &str = "/millrace/topics";
const NODE: CreateOptions<'static> = CreateMode::Persistent.with_acls(Acls::anyone_all());
/// How long ZooKeeper keeps a session whose client it does not hear.
const SESSION: Duration = Duration::from_secs(6);
/// Requests under way for one call.
const AHEAD: usize = 64;
/// ZooKeeper's limit for a request is 1 MiB (`jute.maxbuffer`).
const WRITE_BYTES_MAX: usize = 1_000_000;

/// The store at `servers`: `host:port,host:port/chroot`, as Kafka's `zookeeper.connect`. It connects with the first call, and again when the
/// session was lost. `bound` limits each call. A wrong address is [`OffsetError::Invalid`].
pub fn zookeeper(servers: &str, bound: Duration) -> Result<impl OffsetStore + use<>, OffsetError> {
    let servers = servers.trim();
    check(servers).map_err(|why| {
        OffsetError::Invalid(format!("`{servers}` is no address of ZooKeeper: {why}; write host:port,host:port or host:port/chroot"))
    })?;
    let calls = Calls::new("zookeeper", format!("zookeeper://{servers}"), bound);
    Ok(Checked::new(Zookeeper { calls, servers: servers.to_owned(), client: Mutex::default() }))
}

fn check(servers: &str) -> Result<(), &'static str> {
    let (hosts, chroot) = servers.split_at(servers.find('/').unwrap_or(servers.len()));
    if chroot.len() > 1 && (chroot.ends_with('/') || chroot.contains("//")) {
        return Err("the path at its end is none");
    }
    for server in hosts.split(',') {
        let (host, port) = match server.rsplit_once(':') {
            Some((host, port)) if !server.ends_with(']') => (host, port),
            _ => (server, "2181"),
        };
        if host.is_empty() || host.contains(['@', ' ']) {
            return Err("a server has no host");
        }
        if port.parse::<u16>().map_or(true, |port| port == 0) {
            return Err("a server's port is no number from 1 to 65535");
        }
    }
    Ok(())
}

struct Zookeeper {
    calls: Calls,
    servers: String,
    client: Mutex<Option<Client>>,
}

/// Versions as they were read.
struct Versions {
    /// Of the group's node; `None` where there is none.
    group: Option<i32>,
    offsets: HashMap<TopicPartition, i32>,
}

impl Zookeeper {
    async fn client(&self) -> Result<Client, OffsetError> {
        let mut client = self.client.lock().await;
        if let Some(client) = client.as_ref().filter(|client| !client.state().is_terminated()) {
            return Ok(client.clone());
        }
        let connected = Client::connector().with_session_timeout(SESSION).with_fail_eagerly().connect(&self.servers).await;
        let connected = connected.map_err(|error| self.calls.away(format!("cannot connect: {error}")))?;
        Ok(client.insert(connected).clone())
    }

    fn error(&self, error: Error) -> OffsetError {
        match error {
            Error::NoHosts
            | Error::Timeout
            | Error::SessionExpired
            | Error::SessionMoved
            | Error::NotReadOnly
            | Error::Throttled
            | Error::ConnectionLoss
            | Error::ClientClosed
            // What reading or writing the connection met, as a pipe that is broken.
            | Error::Custom(_) => self.calls.away(error),
            Error::NoAuth => self.calls.storage("a node may not be read or written; open /consumers and /millrace to everybody"),
            other => self.calls.storage(other),
        }
    }

    /// A node's data and version; `None` where there is no such node.
    async fn data(&self, client: &Client, path: &str) -> Result<Option<(Vec<u8>, i32)>, OffsetError> {
        match client.get_data(path).await {
            Ok((data, stat)) => Ok(Some((data, stat.version))),
            Err(Error::NoNode) => Ok(None),
            Err(error) => Err(self.error(error)),
        }
    }

    async fn children(&self, client: &Client, path: &str) -> Result<Vec<String>, OffsetError> {
        match client.list_children(path).await {
            Ok(children) => Ok(children),
            Err(Error::NoNode) => Ok(Vec::new()),
            Err(error) => Err(self.error(error)),
        }
    }

    async fn partitions(&self, client: &Client, group: &str) -> Result<Vec<TopicPartition>, OffsetError> {
        let offsets = format!("{CONSUMERS}/{}/offsets", encoded(group));
        let topics = self.children(client, &offsets).await?;
        let of = async |topic: String| {
            let numbers = self.children(client, &format!("{offsets}/{topic}")).await?;
            let topic = decoded(&topic);
            // Nobody's tools leave other nodes there; one that is none of ours is left alone.
            Ok(numbers.iter().filter_map(|number| Some(TopicPartition::new(topic.as_str(), number.parse().ok()?))).collect())
        };
        let found: Vec<Vec<TopicPartition>> = stream::iter(topics.into_iter().map(of)).buffered(AHEAD).try_collect().await?;
        Ok(found.concat())
    }

    /// Epoch and version of the group's node.
    async fn epoch(&self, client: &Client, group: &str) -> Result<(u64, Option<i32>), OffsetError> {
        let path = format!("{CONSUMERS}/{}/millrace", encoded(group));
        let Some((data, version)) = self.data(client, &path).await? else { return Ok((0, None)) };
        let epoch = if data.is_empty() { Some(0) } else { number(&data) };
        Ok((epoch.ok_or_else(|| self.calls.damaged(&path))?, Some(version)))
    }

    async fn offset(&self, client: &Client, group: &str, partition: &TopicPartition) -> Result<Option<(StoredOffset, i32)>, OffsetError> {
        let (offset, metadata) = paths(group, partition);
        let (found, metadata) = tokio::join!(self.data(client, &offset), self.data(client, &metadata));
        let Some((data, version)) = found? else { return Ok(None) };
        let offset = number(&data).ok_or_else(|| self.calls.damaged(&offset))?;
        let metadata = String::from_utf8(metadata?.unwrap_or_default().0).map_err(|_| self.calls.damaged("metadata"))?;
        Ok(Some((StoredOffset { offset, metadata }, version)))
    }

    async fn make(&self, client: &Client, path: &str) -> Result<(), OffsetError> {
        client.mkdir(path, &NODE).await.map_err(|error| match error {
            Error::NoNode => self.calls.storage("the path at the end of its address does not exist; create it"),
            error => self.error(error),
        })
    }
}

#[async_trait]
impl Groups for Zookeeper {
    type Version = Versions;

    fn calls(&self) -> &Calls {
        &self.calls
    }

    async fn read(
        &self,
        group: &str,
        partitions: Option<&[TopicPartition]>,
        _purpose: Purpose,
    ) -> Result<(GroupOffsets, Versions), OffsetError> {
        let client = self.client().await?;
        // Answered in order: what is read afterwards is not older than now.
        let (synced, mut before) = tokio::join!(client.sync("/"), self.epoch(&client, group));
        synced.map_err(|error| self.error(error))?;
        loop {
            let (epoch, version) = before?;
            let wanted = match partitions {
                Some(partitions) => partitions.to_vec(),
                None => self.partitions(&client, group).await?,
            };
            let one = async |partition: TopicPartition| {
                Ok::<_, OffsetError>(self.offset(&client, group, &partition).await?.map(|(stored, version)| (partition, stored, version)))
            };
            let found: Vec<_> = stream::iter(wanted.into_iter().map(one)).buffered(AHEAD).try_collect().await?;
            let after = self.epoch(&client, group).await?;
            // Every write of ours changes the node's version: all was read at one moment.
            if after.1 == version {
                let mut held = GroupOffsets { epoch, offsets: BTreeMap::new() };
                let mut versions = Versions { group: version, offsets: HashMap::new() };
                for (partition, stored, version) in found.into_iter().flatten() {
                    held.offsets.insert(partition.clone(), stored);
                    versions.offsets.insert(partition, version);
                }
                return Ok((held, versions));
            }
            before = Ok(after);
        }
    }

    async fn write(&self, group: &str, held: &GroupOffsets, versions: Versions, change: &Change) -> Result<bool, OffsetError> {
        let client = self.client().await?;
        let base = format!("{CONSUMERS}/{}", encoded(group));
        let node = format!("{base}/millrace");
        if versions.group.is_none() {
            self.make(&client, &node).await?;
        }
        let has_metadata = |partition: &TopicPartition| held.offsets.get(partition).is_some_and(|held| !held.metadata.is_empty());
        let mut folders = HashSet::new();
        for (partition, stored) in &change.set {
            let topic = encoded(&partition.topic);
            if !versions.offsets.contains_key(partition) {
                folders.insert(format!("{base}/offsets/{topic}"));
            }
            if !stored.metadata.is_empty() && !has_metadata(partition) {
                folders.insert(format!("{node}/{topic}"));
            }
        }
        for folder in folders {
            self.make(&client, &folder).await?;
        }
        let mut bytes = node.len() + 64;
        let mut multi = client.new_multi_writer();
        let add = |added: Result<(), Error>| added.map_err(|error| self.error(error));
        add(multi.add_set_data(&node, change.epoch.to_string().as_bytes(), Some(versions.group.unwrap_or(0))))?;
        for (partition, stored) in &change.set {
            let (offset, metadata) = paths(group, partition);
            bytes += offset.len() + metadata.len() + stored.metadata.len() + 160;
            let digits = stored.offset.to_string();
            match versions.offsets.get(partition) {
                Some(version) => add(multi.add_set_data(&offset, digits.as_bytes(), Some(*version)))?,
                None => add(multi.add_create(&offset, digits.as_bytes(), &NODE))?,
            }
            match (has_metadata(partition), stored.metadata.is_empty()) {
                (true, false) => add(multi.add_set_data(&metadata, stored.metadata.as_bytes(), None))?,
                (true, true) => add(multi.add_delete(&metadata, None))?,
                (false, false) => add(multi.add_create(&metadata, stored.metadata.as_bytes(), &NODE))?,
                (false, true) => {}
            }
        }
        for partition in &change.removed {
            let (offset, metadata) = paths(group, partition);
            bytes += offset.len() + metadata.len() + 64;
            add(multi.add_delete(&offset, versions.offsets.get(partition).copied()))?;
            if has_metadata(partition) {
                add(multi.add_delete(&metadata, None))?;
            }
        }
        if bytes > WRITE_BYTES_MAX {
            let many = change.set.len() + change.removed.len();
            return Err(OffsetError::Invalid(format!(
                "{many} offsets with their metadata are more than ZooKeeper takes at once (1 MiB); commit fewer at a time"
            )));
        }
        match multi.commit().await.map_err(|error| match error {
            MultiWriteError::OperationFailed { source, .. } | MultiWriteError::RequestFailed { source } => source,
        }) {
            Ok(_) => {}
            Err(Error::BadVersion | Error::NodeExists | Error::NoNode | Error::NotEmpty) => return Ok(false),
            Err(error) => return Err(self.error(error)),
        }
        let topics: HashSet<&str> = change.removed.iter().map(|partition| &*partition.topic).collect();
        for topic in topics {
            for folder in [format!("{base}/offsets/{}", encoded(topic)), format!("{node}/{}", encoded(topic))] {
                // Only when it is empty: somebody may write there again.
                if let Err(error) = client.delete(&folder, None).await {
                    debug!(folder, %error, "a topic's node stays");
                }
            }
        }
        Ok(true)
    }

    async fn list(&self) -> Result<Vec<String>, OffsetError> {
        let client = self.client().await?;
        let (synced, groups) = tokio::join!(client.sync("/"), self.children(&client, CONSUMERS));
        synced.map_err(|error| self.error(error))?;
        let holding = async |name: String| {
            let offsets = format!("{CONSUMERS}/{name}/offsets");
            for topic in self.children(&client, &offsets).await? {
                if !self.children(&client, &format!("{offsets}/{topic}")).await?.is_empty() {
                    return Ok(Some(decoded(&name)));
                }
            }
            Ok::<_, OffsetError>(None)
        };
        let found: Vec<Option<String>> = stream::iter(groups?.into_iter().map(holding)).buffered(AHEAD).try_collect().await?;
        Ok(found.into_iter().flatten().collect())
    }

    async fn topic_id(&self, topic: &str) -> Result<Option<[u8; 16]>, OffsetError> {
        let client = self.client().await?;
        let path = format!("{TOPICS}/{}", encoded(topic));
        let (synced, found) = tokio::join!(client.sync("/"), self.data(&client, &path));
        synced.map_err(|error| self.error(error))?;
        match found? {
            // Made, and cut off before its id was written.
            None => Ok(None),
            Some((data, _)) if data.is_empty() => Ok(None),
            Some((data, _)) => Ok(Some(unhex(&data).ok_or_else(|| self.calls.damaged(&path))?)),
        }
    }

    async fn note_topic(&self, topic: &str, id: [u8; 16]) -> Result<(), OffsetError> {
        let client = self.client().await?;
        let path = format!("{TOPICS}/{}", encoded(topic));
        self.make(&client, &path).await?;
        client.set_data(&path, hex(id).as_bytes(), None).await.map(drop).map_err(|error| self.error(error))
    }
}

/// Of an offset, and of its metadata.
fn paths(group: &str, partition: &TopicPartition) -> (String, String) {
    let (group, topic, number) = (encoded(group), encoded(&partition.topic), partition.partition);
    (format!("{CONSUMERS}/{group}/offsets/{topic}/{number}"), format!("{CONSUMERS}/{group}/millrace/{topic}/{number}"))
}

/// Old tools may end a number with a line's end.
fn number<T: std::str::FromStr>(data: &[u8]) -> Option<T> {
    std::str::from_utf8(data).ok()?.trim().parse().ok()
}

fn encoded(name: &str) -> String {
    let dots = name.bytes().all(|byte| byte == b'.');
    let mut encoded = String::with_capacity(name.len());
    for char in name.chars() {
        let refused = matches!(u32::from(char), 0..=0x1f | 0x7f..=0x9f | 0xd800..=0xf8ff | 0xfff0..=0xffff);
        if refused || matches!(char, '/' | '%') || dots {
            let mut bytes = [0; 4];
            for byte in char.encode_utf8(&mut bytes).bytes() {
                // A String takes all that is written to it.
                write!(encoded, "%{byte:02X}").unwrap_or_default();
            }
        } else {
            encoded.push(char);
        }
    }
    encoded
}

/// A name that is not encoded so, of an old consumer, is left as it is.
fn decoded(name: &str) -> String {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let code = (byte == b'%').then(|| after.split_at_checked(2)).flatten();
        let code = code.and_then(|(digits, after)| Some((u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?, after)));
        let (byte, after) = code.unwrap_or((byte, after));
        bytes.push(byte);
        rest = after;
    }
    String::from_utf8(bytes).unwrap_or_else(|_| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_what_a_node_cannot_be_called() {
        for (name, node) in [
            ("plain-1_x.y", "plain-1_x.y"),
            ("a/b", "a%2Fb"),
            ("50%", "50%25"),
            ("..", "%2E%2E"),
            ("größe", "größe"),
            ("a\u{0}\u{85}\u{fffd}", "a%00%C2%85%EF%BF%BD"),
        ] {
            assert_eq!(encoded(name), node);
            assert_eq!(decoded(node), name);
        }
        assert_eq!(decoded("old%zz%f"), "old%zz%f");
    }

    #[test]
    fn addresses_are_checked() {
        for good in ["h", "h:1", "a:1,b:2", "a,b/kafka/x", "[::1]:2181", "h:2181/"] {
            assert!(zookeeper(good, SESSION).is_ok(), "{good}");
        }
        for bad in ["", ":1", "h:0", "h:x", "h:70000", "a,,b", "h/x/", "u@h:1", "h//x"] {
            assert!(matches!(zookeeper(bad, SESSION).err(), Some(OffsetError::Invalid(_))), "{bad}");
        }
    }
}
