//! The directories of Flume's own file channel, read only: what waits in them, as a start of Flume would find it.
//!
//! A log `log-N` is records: one byte (127 a record, 0 one that was made void, 128 the end of what is written), four bytes
//! of length, and three protobuf messages with their lengths: a head (kind, transaction, number of the write), a body by
//! kind (put, take, rollback, commit) and an empty foot. `log-N.meta` says what N is and whether it is encrypted. All logs
//! together are replayed in the order of writes; a transaction counts with its commit. The checkpoint is the queue at one
//! write, with what was in flight then; logs whose takes it has seen may be gone, so that it counts where it is whole.
//!
//! Memory: eight bytes for each put that waits, and as many for each take since the last look through them.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, HashSet},
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context as _;
use bytes::{Buf, Bytes};
use md5::{Digest as _, Md5};
use prost::Message;

use crate::event::Event;

const RECORD: u8 = 127;
const VOID: u8 = 0;
const END: u8 = 128;
/// The only version since Flume 1.3.
const VERSION: i32 = 3;
/// A longer record is taken for damage: no event is so large.
const RECORD_BYTES_MAX: u32 = 256 << 20;
/// Every record begins with this: the length of its head, and the head's first field.
const HEAD_BEGIN: [u8; 2] = [23, 13];
/// Where the queue begins in the checkpoint, in numbers of eight bytes.
const CHECKPOINT_HEAD: u64 = 1029;
/// More takes than this are set off against the puts before the end.
const TAKEN_MAX: usize = 1 << 20;

#[derive(Clone, PartialEq, Message)]
struct Meta {
    #[prost(sfixed32, tag = "1")]
    version: i32,
    #[prost(sfixed32, tag = "2")]
    id: i32,
    #[prost(message, optional, tag = "5")]
    encryption: Option<Encryption>,
}

#[derive(Clone, PartialEq, Message)]
struct Encryption {
    #[prost(string, tag = "1")]
    cipher: String,
    #[prost(string, tag = "2")]
    key: String,
}

#[derive(Clone, PartialEq, Message)]
struct CheckpointMeta {
    #[prost(sfixed32, tag = "1")]
    version: i32,
    #[prost(sfixed64, tag = "2")]
    write: i64,
    #[prost(sfixed32, tag = "3")]
    size: i32,
    #[prost(sfixed32, tag = "4")]
    head: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Head {
    #[prost(sfixed32, tag = "1")]
    kind: i32,
    #[prost(sfixed64, tag = "2")]
    transaction: i64,
    #[prost(sfixed64, tag = "3")]
    write: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Put {
    #[prost(message, optional, tag = "1")]
    event: Option<PutEvent>,
    #[prost(sfixed64, optional, tag = "2")]
    checksum: Option<i64>,
}

#[derive(Clone, PartialEq, Message)]
struct PutEvent {
    #[prost(message, repeated, tag = "1")]
    headers: Vec<PutHeader>,
    #[prost(bytes = "bytes", tag = "2")]
    body: Bytes,
}

#[derive(Clone, PartialEq, Message)]
struct PutHeader {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, optional, tag = "2")]
    value: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
struct Take {
    #[prost(sfixed32, tag = "1")]
    file: i32,
    #[prost(sfixed32, tag = "2")]
    offset: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Commit {
    #[prost(sfixed32, tag = "1")]
    kind: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Nothing {}

#[derive(Debug)]
enum Body {
    Put(Event),
    Take(Pointer),
    Rollback,
    /// True for puts, false for takes.
    Commit(bool),
}

#[derive(Debug)]
struct Record {
    transaction: i64,
    write: i64,
    body: Body,
}

fn parse(bytes: Bytes) -> anyhow::Result<Record> {
    let mut rest = bytes;
    let head = Head::decode_length_delimited(&mut rest).context("its head")?;
    let body = match head.kind {
        1 => {
            let put = Put::decode_length_delimited(&mut rest).context("its event")?;
            let event = put.event.context("a put without event")?;
            if let Some(expected) = put.checksum {
                let mut crc = flate2::Crc::new();
                crc.update(&event.body);
                anyhow::ensure!(i64::from(crc.sum()) == expected, "its checksum");
            }
            let headers: BTreeMap<String, String> =
                event.headers.into_iter().map(|header| (header.key, header.value.unwrap_or_default())).collect();
            Body::Put(Event { headers: (!headers.is_empty()).then(|| Arc::new(headers)), ..Event::new(event.body) })
        }
        2 => {
            let take = Take::decode_length_delimited(&mut rest).context("its pointer")?;
            Body::Take(Pointer::new(take.file as u32, take.offset as u32))
        }
        3 => {
            Nothing::decode_length_delimited(&mut rest).context("its rollback")?;
            Body::Rollback
        }
        4 => match Commit::decode_length_delimited(&mut rest).context("its commit")?.kind {
            1 => Body::Commit(true),
            2 => Body::Commit(false),
            other => anyhow::bail!("a commit of kind {other}"),
        },
        other => anyhow::bail!("a record of kind {other}"),
    };
    Nothing::decode_length_delimited(&mut rest).context("its foot")?;
    Ok(Record { transaction: head.transaction, write: head.write, body })
}

/// A put: the log's number and where its record begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pointer(u64);

impl Pointer {
    fn new(file: u32, offset: u32) -> Self {
        Self(u64::from(file) << 32 | u64::from(offset))
    }

    fn file(self) -> u32 {
        (self.0 >> 32) as u32
    }

    fn offset(self) -> u64 {
        self.0 & u64::from(u32::MAX)
    }
}

struct Log {
    path: PathBuf,
    file: File,
    len: u64,
}

/// What one look at a place in a log gives.
enum Found {
    Record {
        at: u64,
        next: u64,
        record: Record,
    },
    Void {
        next: u64,
    },
    End,
    /// Why it is no record.
    Damaged(String),
}

impl Log {
    fn look(&self, at: u64) -> io::Result<Found> {
        let damaged = |why: &str| Ok(Found::Damaged(why.to_owned()));
        let Some(left) = self.len.checked_sub(at).filter(|left| *left > 0) else { return Ok(Found::End) };
        let mut begin = [0; 5];
        let there = begin.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        self.file.read_exact_at(&mut begin[..there], at)?;
        if begin[0] == END {
            return Ok(Found::End);
        }
        if begin[0] != RECORD && begin[0] != VOID {
            return damaged("no record begins there");
        }
        if there < begin.len() {
            return damaged("it ends with the file");
        }
        let length = u32::from_be_bytes([begin[1], begin[2], begin[3], begin[4]]);
        let next = at + 5 + u64::from(length);
        if next > self.len {
            return damaged("it ends behind the file");
        }
        if begin[0] == VOID {
            return Ok(Found::Void { next });
        }
        if length > RECORD_BYTES_MAX {
            return damaged("its length cannot be");
        }
        let mut bytes = vec![0; length as usize];
        self.file.read_exact_at(&mut bytes, at + 5)?;
        Ok(match parse(bytes.into()) {
            Ok(record) => Found::Record { at, next, record },
            Err(error) => Found::Damaged(format!("{error:#}")),
        })
    }

    /// Where the next whole record begins behind `at`.
    fn next_whole(&self, at: u64) -> io::Result<Option<u64>> {
        let mut window = vec![0; 64 << 10];
        let mut from = at;
        while from < self.len {
            let count = window.len().min(usize::try_from(self.len - from).unwrap_or(usize::MAX));
            self.file.read_exact_at(&mut window[..count], from)?;
            let begins = window[..count].windows(7).enumerate();
            for (offset, _) in begins.filter(|(_, seven)| seven[0] == RECORD && seven[5..] == HEAD_BEGIN) {
                if let Found::Record { at, .. } = self.look(from + offset as u64)? {
                    return Ok(Some(at));
                }
            }
            if count < window.len() {
                break;
            }
            from += (count - 6) as u64;
        }
        Ok(None)
    }
}

/// Records of one log in the order of the file.
struct Walk<'a> {
    log: &'a Log,
    at: u64,
}

impl Walk<'_> {
    /// Damage between records goes to `damaged`; an incomplete end to `cut`.
    fn next(&mut self, damaged: &mut Vec<Damage>, cut: &mut Vec<Damage>) -> io::Result<Option<(u64, Record)>> {
        loop {
            match self.log.look(self.at)? {
                Found::Record { at, next, record } => {
                    self.at = next;
                    return Ok(Some((at, record)));
                }
                Found::Void { next } => self.at = next,
                Found::End => return Ok(None),
                Found::Damaged(why) => {
                    let from = self.at;
                    let whole = self.log.next_whole(from + 1)?;
                    self.at = whole.unwrap_or(self.log.len);
                    let damage = Damage { path: self.log.path.clone(), from, to: self.at, why };
                    if whole.is_some() { damaged.push(damage) } else { cut.push(damage) }
                }
            }
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    pub path: PathBuf,
    pub from: u64,
    pub to: u64,
    pub why: String,
}

/// What waits, and what was seen on the way.
#[derive(Debug, Default)]
pub struct Replay {
    /// In the order in which they were committed.
    pub waiting: Vec<Pointer>,
    pub puts: u64,
    pub takes: u64,
    /// Puts of transactions without an end: never acknowledged to their source.
    pub unfinished: u64,
    pub damaged: Vec<Damage>,
    /// Incomplete ends: what was being written when Flume died.
    pub cut: Vec<Damage>,
    /// Why the checkpoint does not count; none where it does.
    pub without_checkpoint: Option<String>,
}

pub struct FlumeLogs {
    logs: BTreeMap<u32, Log>,
    checkpoint: PathBuf,
}

/// The number in `log-N`.
fn number(path: &Path) -> Option<u32> {
    let digits = path.file_name()?.to_str()?.strip_prefix("log-")?;
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

/// The logs in these directories, in order of their numbers.
pub fn logs_in(directories: &[PathBuf]) -> Vec<PathBuf> {
    let entries = directories.iter().filter_map(|directory| fs::read_dir(directory).ok()).flatten().flatten();
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| number(path).is_some()).collect();
    found.sort_by_key(|path| number(path));
    found
}

/// The process that has Flume's lock file of one of the directories open. (Flume tries its lock twice, and by closing the
/// second one loses both: the lock itself tells nothing on Linux.)
pub fn holder(directories: &[PathBuf]) -> Option<(PathBuf, u32)> {
    let locks: Vec<PathBuf> = directories.iter().filter_map(|directory| directory.join("in_use.lock").canonicalize().ok()).collect();
    let processes = fs::read_dir("/proc").ok()?.flatten();
    // Processes of other users cannot be looked at; they cannot be stopped by this user either.
    processes.filter_map(|process| Some((process.file_name().to_str()?.parse().ok()?, process.path()))).find_map(|(id, process)| {
        let mut open = fs::read_dir(process.join("fd")).ok()?.flatten().filter_map(|handle| fs::read_link(handle.path()).ok());
        let held = open.find(|path| locks.contains(path))?;
        Some((held, id))
    })
}

impl FlumeLogs {
    pub fn open(data: &[PathBuf], checkpoint: PathBuf) -> anyhow::Result<Self> {
        let mut logs: BTreeMap<u32, Log> = BTreeMap::new();
        for path in logs_in(data) {
            let Some(id) = number(&path) else { continue };
            let shown = path.display();
            let file = File::open(&path).with_context(|| shown.to_string())?;
            let len = file.metadata().with_context(|| shown.to_string())?.len();
            // Flume makes the log before what describes it.
            if len == 0 {
                continue;
            }
            let meta_path = PathBuf::from(format!("{shown}.meta"));
            let bytes = fs::read(&meta_path).with_context(|| format!("{}: Flume 1.3 or later writes it", meta_path.display()))?;
            let meta = Meta::decode_length_delimited(bytes.as_slice()).with_context(|| meta_path.display().to_string())?;
            anyhow::ensure!(meta.version == VERSION, "{}: version {} is not known, {VERSION} is", meta_path.display(), meta.version);
            anyhow::ensure!(meta.id == id as i32, "{}: it describes log-{}", meta_path.display(), meta.id);
            if let Some(encryption) = meta.encryption {
                anyhow::bail!(
                    "{shown} is encrypted ({}, key `{}`) and cannot be read here; let Flume itself deliver what is in it",
                    encryption.cipher,
                    encryption.key
                );
            }
            if let Some(other) = logs.insert(id, Log { path: path.clone(), file, len }) {
                anyhow::bail!("{shown} and {} have the same number: they are not of one channel", other.path.display());
            }
        }
        Ok(Self { logs, checkpoint })
    }

    pub fn files(&self) -> impl Iterator<Item = (&Path, u64)> {
        self.logs.values().map(|log| (log.path.as_path(), log.len))
    }

    /// The event of a pointer of [`Self::replay`].
    pub fn event(&self, pointer: Pointer) -> anyhow::Result<Event> {
        let log = self.logs.get(&pointer.file()).with_context(|| format!("log-{} is gone", pointer.file()))?;
        match log.look(pointer.offset())? {
            Found::Record { record: Record { body: Body::Put(event), .. }, .. } => Ok(event),
            Found::Damaged(why) => anyhow::bail!("{}: byte {}: {why}", log.path.display(), pointer.offset()),
            _ => anyhow::bail!("{}: byte {}: there is no event", log.path.display(), pointer.offset()),
        }
    }

    /// Reads everything. Blocks.
    pub fn replay(&self) -> anyhow::Result<Replay> {
        let mut replay = Replay::default();
        let mut begin = Checkpoint::default();
        match Checkpoint::read(&self.checkpoint) {
            Ok(read) => begin = read,
            Err(error) => replay.without_checkpoint = Some(format!("{error:#}")),
        }
        let mut queue = Queue { waiting: begin.queue, taken: HashSet::new() };
        let mut open: HashMap<i64, Vec<Pointer>> = begin.puts;
        let mut taking = begin.takes;
        let (mut walks, mut next) = (HashMap::new(), BinaryHeap::new());
        for (id, log) in &self.logs {
            walks.insert(*id, Walk { log, at: 0 });
        }
        // One record of each log: the earliest write is the next.
        let mut held: HashMap<u32, (u64, Record)> = HashMap::new();
        let ids: Vec<u32> = self.logs.keys().copied().collect();
        let mut refill = ids;
        loop {
            for id in refill.drain(..) {
                let Some(walk) = walks.get_mut(&id) else { continue };
                let read = walk.next(&mut replay.damaged, &mut replay.cut).with_context(|| walk.log.path.display().to_string())?;
                if let Some((at, record)) = read {
                    let last = matches!(record.body, Body::Rollback | Body::Commit(_));
                    next.push(Reverse((record.write, record.transaction, last, id)));
                    held.insert(id, (at, record));
                }
            }
            let Some(Reverse((.., id))) = next.pop() else { break };
            refill.push(id);
            let Some((at, record)) = held.remove(&id) else { continue };
            if record.write <= begin.write {
                continue;
            }
            match record.body {
                Body::Put(_) => {
                    let offset = u32::try_from(at).context("a log of more than 4 GiB")?;
                    open.entry(record.transaction).or_default().push(Pointer::new(id, offset));
                }
                Body::Take(pointer) => open.entry(record.transaction).or_default().push(pointer),
                Body::Rollback => drop(open.remove(&record.transaction)),
                Body::Commit(true) => {
                    let done = open.remove(&record.transaction).unwrap_or_default();
                    replay.puts += done.len() as u64;
                    queue.waiting.extend(done);
                }
                Body::Commit(false) => {
                    let mut done = open.remove(&record.transaction).unwrap_or_default();
                    done.extend(taking.remove(&record.transaction).unwrap_or_default());
                    replay.takes += done.len() as u64;
                    queue.take(done);
                }
            }
        }
        // What was in flight at the checkpoint and never committed is delivered again, first.
        let back: BTreeSet<Pointer> = taking.into_values().flatten().collect();
        queue.settle();
        replay.waiting = back.into_iter().chain(queue.waiting).collect();
        replay.unfinished = open.values().map(|pointers| pointers.len() as u64).sum();
        Ok(replay)
    }
}

/// A take may be seen before its put, where they are in logs of different directories.
struct Queue {
    waiting: Vec<Pointer>,
    taken: HashSet<Pointer>,
}

impl Queue {
    fn take(&mut self, pointers: Vec<Pointer>) {
        self.taken.extend(pointers);
        if self.taken.len() > TAKEN_MAX.max(self.waiting.len() / 2) {
            self.settle();
        }
    }

    fn settle(&mut self) {
        let Self { waiting, taken } = self;
        waiting.retain(|pointer| !taken.remove(pointer));
        waiting.shrink_to_fit();
    }
}

#[derive(Default)]
struct Checkpoint {
    write: i64,
    queue: Vec<Pointer>,
    puts: HashMap<i64, Vec<Pointer>>,
    takes: HashMap<i64, Vec<Pointer>>,
}

impl Checkpoint {
    fn read(directory: &Path) -> anyhow::Result<Self> {
        let path = directory.join("checkpoint");
        let file = File::open(&path).with_context(|| path.display().to_string())?;
        let len = file.metadata()?.len();
        let at = |index: u64| -> io::Result<i64> {
            let mut bytes = [0; 8];
            file.read_exact_at(&mut bytes, index * 8)?;
            Ok(i64::from_be_bytes(bytes))
        };
        anyhow::ensure!(len > CHECKPOINT_HEAD * 8 && len % 8 == 0, "the checkpoint is incomplete");
        let capacity = len / 8 - CHECKPOINT_HEAD;
        let (version, write, marker) = (at(0)?, at(1)?, at(4)?);
        anyhow::ensure!(version == i64::from(VERSION), "the checkpoint has version {version}");
        anyhow::ensure!(marker == 0, "the checkpoint was being written");
        let meta = fs::read(directory.join("checkpoint.meta")).context("checkpoint.meta")?;
        let meta = CheckpointMeta::decode_length_delimited(meta.as_slice()).context("checkpoint.meta")?;
        let (size, head) = (u64::try_from(meta.size)?, u64::try_from(meta.head)?);
        let fits = meta.version == VERSION && meta.write == write && size <= capacity && head <= capacity;
        anyhow::ensure!(fits, "checkpoint.meta is of another checkpoint");
        let queue: io::Result<Vec<Pointer>> =
            (0..size).map(|index| at(CHECKPOINT_HEAD + (head + index) % capacity).map(|value| Pointer(value as u64))).collect();
        Ok(Self {
            write,
            queue: queue?,
            puts: in_flight(&directory.join("inflightputs"))?,
            takes: in_flight(&directory.join("inflighttakes"))?,
        })
    }
}

/// Transactions that had no end at the checkpoint: a checksum, then for each its number, a count and as many pointers.
fn in_flight(path: &Path) -> anyhow::Result<HashMap<i64, Vec<Pointer>>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(HashMap::new()),
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    transactions(&bytes).with_context(|| path.display().to_string())
}

fn transactions(bytes: &[u8]) -> anyhow::Result<HashMap<i64, Vec<Pointer>>> {
    let mut open = HashMap::new();
    if bytes.is_empty() {
        return Ok(open);
    }
    let (sum, mut rest) = bytes.split_at_checked(16).context("it is incomplete")?;
    anyhow::ensure!(Md5::digest(rest).as_slice() == sum, "its checksum is wrong");
    while rest.len() >= 16 {
        let (transaction, count) = (rest.get_i64(), rest.get_i64());
        let pointers: &mut Vec<Pointer> = open.entry(transaction).or_default();
        for _ in 0..count {
            if rest.len() < 8 {
                break;
            }
            pointers.push(Pointer(rest.get_u64()));
        }
    }
    Ok(open)
}

#[cfg(test)]
mod tests;
