//! Offsets in an HBase table, through its REST gateway: a group is a row, so that one `checkAndPut` writes all of a commit.
//!
//! Promise: HBase has a commit in its log when it answers. Every write compares and raises the row's version, so nothing is written over
//! what was not read; a row is read at one moment.
//!
//! | row | cell | value |
//! |---|---|---|
//! | `g` GROUP | `o:version` | `EPOCH VERSION COUNT`: writes so far, and offsets that the row holds |
//! | | `o:p:TOPIC:PARTITION` | `OFFSET METADATA`; no bytes once it was removed |
//! | `t` TOPIC | `o:id` | the topic's id, 32 hexadecimal digits |
//!
//! The table has one family, `o`, with one version of each cell; it is created with the first call.

use std::{collections::BTreeMap, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::OnceCell;

use super::{
    Calls, GroupOffsets, OffsetError, OffsetStore,
    checked::{Change, Checked, Groups, Purpose, hex, name, named, unhex, value, valued},
};
use crate::{
    hbase::{Family, Hbase, HbaseConfig, HbaseError, Row, Scan},
    kafka::TopicPartition,
};

const FAMILY: &str = "o";
const VERSION: &str = "o:version";
const ID: &str = "o:id";
const PARTITION: &str = "o:p:";
/// Cells asked for by name; of more the whole row is read, for they stand in the request's path.
const COLUMNS_MAX: usize = 40;
/// Groups of one scan.
const SCAN_ROWS: usize = 1_000;

/// The store in `table` behind the REST gateway at `url`: `http://[user:password@]host:port`. `bound` limits each call. A wrong address is
/// [`OffsetError::Invalid`].
pub fn hbase(url: &str, table: &str, bound: Duration) -> Result<impl OffsetStore + use<>, OffsetError> {
    let config = HbaseConfig { connect_timeout: bound, request_timeout: bound, connections_max: 16, ..HbaseConfig::new(url) };
    let client = Hbase::new(config).map_err(|error| OffsetError::Invalid(error.to_string()))?;
    if table.is_empty() {
        return Err(OffsetError::Invalid("the table of HBase has no name".to_owned()));
    }
    let calls = Calls::new("hbase", format!("hbase://{}/{table}", client.address()), bound);
    Ok(Checked::new(Table { calls, client, table: table.to_owned(), made: OnceCell::new() }))
}

struct Table {
    calls: Calls,
    client: Hbase,
    table: String,
    made: OnceCell<()>,
}

/// What `o:version` holds, and as it was read.
#[derive(Default)]
struct Version {
    epoch: u64,
    writes: u64,
    count: usize,
    read: Option<Bytes>,
}

impl Version {
    fn parse(read: &Bytes) -> Option<Self> {
        let mut parts = std::str::from_utf8(read).ok()?.split(' ');
        let (epoch, writes, count) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        parts.next().is_none().then(|| Self { epoch, writes, count, read: Some(read.clone()) })
    }
}

impl Table {
    fn error(&self, error: HbaseError) -> OffsetError {
        match error {
            error if error.retryable() => self.calls.away(error),
            HbaseError::Refused(message) | HbaseError::TooLarge(message) => OffsetError::Invalid(message),
            error => self.calls.storage(error),
        }
    }

    async fn client(&self) -> Result<&Hbase, OffsetError> {
        let family = Family { name: FAMILY.to_owned(), versions: 1 };
        let make = async || self.client.create_table(&self.table, std::slice::from_ref(&family)).await.map(drop);
        self.made.get_or_try_init(make).await.map_err(|error| self.error(error))?;
        Ok(&self.client)
    }
}

fn group_row(group: &str) -> Vec<u8> {
    [b"g", group.as_bytes()].concat()
}

fn column(partition: &TopicPartition) -> String {
    format!("{PARTITION}{}", name(partition))
}

#[async_trait]
impl Groups for Table {
    type Version = Version;

    fn calls(&self) -> &Calls {
        &self.calls
    }

    async fn read(
        &self,
        group: &str,
        partitions: Option<&[TopicPartition]>,
        _purpose: Purpose,
    ) -> Result<(GroupOffsets, Version), OffsetError> {
        let mut columns = Vec::new();
        if let Some(partitions) = partitions.filter(|partitions| partitions.len() <= COLUMNS_MAX) {
            columns.push(VERSION.to_owned());
            columns.extend(partitions.iter().map(column));
        }
        let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
        let row = self.client().await?.get(&self.table, &group_row(group), &columns).await.map_err(|error| self.error(error))?;
        let Some(row) = row else { return Ok(Default::default()) };
        let damaged = |column: &[u8]| self.calls.damaged(&format!("{} of row g{group}", String::from_utf8_lossy(column)));
        let mut version = Version::default();
        let mut offsets = BTreeMap::new();
        for cell in row.cells {
            let bad = || damaged(&cell.column);
            let text = std::str::from_utf8(&cell.value).map_err(|_| bad())?;
            match std::str::from_utf8(&cell.column).map_err(|_| bad())? {
                VERSION => version = Version::parse(&cell.value).ok_or_else(bad)?,
                _ if text.is_empty() => {}
                column => {
                    let partition = column.strip_prefix(PARTITION).and_then(named).ok_or_else(bad)?;
                    if partitions.is_none_or(|wanted| wanted.contains(&partition)) {
                        offsets.insert(partition, valued(text).ok_or_else(bad)?);
                    }
                }
            }
        }
        Ok((GroupOffsets { epoch: version.epoch, offsets }, version))
    }

    async fn write(&self, group: &str, held: &GroupOffsets, version: Version, change: &Change) -> Result<bool, OffsetError> {
        let new = change.set.keys().filter(|partition| !held.offsets.contains_key(partition)).count();
        let count = version.count + new - change.removed.len();
        let mut row = Row::new(group_row(group)).with(VERSION, format!("{} {} {count}", change.epoch, version.writes + 1));
        for (partition, stored) in &change.set {
            row = row.with(column(partition), value(stored));
        }
        for partition in &change.removed {
            row = row.with(column(partition), Bytes::new());
        }
        let client = self.client().await?;
        client.check_and_put(&self.table, &row, VERSION, version.read.as_deref()).await.map_err(|error| self.error(error))
    }

    async fn list(&self) -> Result<Vec<String>, OffsetError> {
        let client = self.client().await?;
        let mut groups = Vec::new();
        let mut scan = Scan { start: "g".into(), end: "h".into(), columns: vec![VERSION.into()], rows_max: SCAN_ROWS };
        loop {
            let rows = client.scan(&self.table, &scan).await.map_err(|error| self.error(error))?;
            for row in &rows {
                let damaged = || self.calls.damaged(&format!("row {}", String::from_utf8_lossy(&row.key)));
                let version = row.value(VERSION).and_then(Version::parse).ok_or_else(damaged)?;
                if version.count > 0 {
                    groups.push(String::from_utf8(row.key[1..].to_vec()).map_err(|_| damaged())?);
                }
            }
            match rows.last() {
                // The next key there can be.
                Some(last) if rows.len() == SCAN_ROWS => scan.start = [&last.key[..], b"\0"].concat().into(),
                _ => return Ok(groups),
            }
        }
    }

    async fn topic_id(&self, topic: &str) -> Result<Option<[u8; 16]>, OffsetError> {
        let key = [b"t", topic.as_bytes()].concat();
        let row = self.client().await?.get(&self.table, &key, &[ID]).await.map_err(|error| self.error(error))?;
        let Some(id) = row.as_ref().and_then(|row| row.value(ID)) else { return Ok(None) };
        unhex(id).map(Some).ok_or_else(|| self.calls.damaged(&format!("the id of row t{topic}")))
    }

    async fn note_topic(&self, topic: &str, id: [u8; 16]) -> Result<(), OffsetError> {
        let row = Row::new([b"t", topic.as_bytes()].concat()).with(ID, hex(id));
        self.client().await?.put(&self.table, &[row]).await.map_err(|error| self.error(error))
    }
}
