//! The segments on disk: appended to by one thread, read by whoever holds [`Segments`].
//!
//! A start never writes into an old segment: it begins a new one, whose header says how far the one before counts. So
//! recovery changes nothing that another recovery would need. After a failed write or sync a segment is given up in the same
//! way, without another try: what it holds beyond the last success is not read again.

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use parking_lot::Mutex;

use super::acks::AckFile;
use super::disk::{Disk, DiskFile};
use super::format::{self, FileMark, HEADER_BYTES, Header, HeaderFault, NOTE, Previous, Step};
use super::recovery::{self, Decision, Facts, GAP, Scan, Segment, SegmentFacts};
use crate::fault::Point;

/// Where a channel is.
pub struct Place<D> {
    pub disk: D,
    pub checkpoint: PathBuf,
    pub data: Vec<PathBuf>,
}

impl<D: Disk> Place<D> {
    pub fn path(&self, id: u64, directory: usize) -> PathBuf {
        self.data[directory].join(format!("segment-{id:016x}.log"))
    }

    pub fn open(&self, segment: &Segment) -> io::Result<D::File> {
        self.disk.open(&self.path(segment.id, segment.directory))
    }

    /// What there is, as [`recovery::decide`] wants it.
    pub fn facts(&self) -> io::Result<Facts> {
        let mut segments = Vec::new();
        for (directory, path) in self.data.iter().enumerate() {
            for name in named(path, self.disk.list(path))? {
                let id = name.strip_prefix("segment-").and_then(|rest| rest.strip_suffix(".log"));
                if let Some(id) = id.filter(|id| id.len() == 16).and_then(|id| u64::from_str_radix(id, 16).ok()) {
                    let file = named(path, self.disk.open(&path.join(&name)))?;
                    let mut bytes = [0; HEADER_BYTES];
                    let header = match file.read_at(&mut bytes, 0) {
                        Ok(count) => Header::decode(&bytes[..count]),
                        Err(_) => Err(HeaderFault::Damaged),
                    };
                    segments.push(SegmentFacts { id, directory, len: named(path, file.len())?, header, scan: None });
                }
            }
        }
        segments.sort_by_key(|segment| (segment.id, segment.header.is_err()));
        for at in 0..segments.len() {
            if recovery::needed(&segments, at) {
                let facts = &segments[at];
                let file = self.disk.open(&self.path(facts.id, facts.directory))?;
                let first = facts.header.as_ref().ok().map(|header| header.first);
                segments[at].scan = Some(scan(&file, first, facts.len)?);
            }
        }
        let acks = named(&self.checkpoint, AckFile::read(&self.disk, &self.checkpoint))?;
        Ok(Facts { acks, segments, fresh: rand::random() })
    }
}

fn named<T>(path: &Path, result: io::Result<T>) -> io::Result<T> {
    result.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

/// Reads a whole segment.
fn scan(file: &impl DiskFile, first: Option<u64>, len: u64) -> io::Result<Scan> {
    let mut scan = Scan { next: first.unwrap_or_default(), len: HEADER_BYTES as u64, ..Scan::default() };
    let mut walk = Walk::new(file, HEADER_BYTES as u64, len, first.unwrap_or_default()..u64::MAX);
    while let Some(found) = walk.advance()? {
        if let Found::Record { number, flags, bytes, content, end } = found {
            scan.first.get_or_insert(number);
            if flags & format::LAST != 0 {
                (scan.next, scan.len) = (if flags & NOTE != 0 { number } else { number + 1 }, end);
                let marks = format::decode(&bytes, flags, content).map(|decoded| decoded.marks).unwrap_or_default();
                for (id, mark) in marks {
                    let known = scan.marks.entry(id).or_default();
                    *known = mark.max(*known);
                }
            }
        }
    }
    Ok(scan)
}

/// Bytes read at once. Few in tests, so that records lie across the edges.
const READ_BYTES: usize = if cfg!(test) { 100 } else { 256 * 1024 };
/// What a copy of a segment is called until it is in the segment's place.
pub const COPY: &str = "log.copy";
const COPY_BYTES: usize = if cfg!(test) { 500 } else { 1 << 20 };
/// What is read as zeros where it cannot be read at all.
const PAGE: usize = 4096;

/// Goes over the records of a segment.
pub struct Walk<'a, F> {
    file: &'a F,
    /// Where the segment ends.
    len: u64,
    numbers: std::ops::Range<u64>,
    chunk: Bytes,
    base: u64,
    at: usize,
    /// Unreadable pages become damage instead of an error.
    lossy: bool,
}

pub enum Found {
    Record { number: u64, flags: u8, bytes: Bytes, content: std::ops::Range<usize>, end: u64 },
    Damaged { from: u64, to: u64 },
}

impl<'a, F: DiskFile> Walk<'a, F> {
    pub fn new(file: &'a F, from: u64, len: u64, numbers: std::ops::Range<u64>) -> Self {
        Self { file, len, numbers, chunk: Bytes::new(), base: from, at: 0, lossy: false }
    }

    pub fn lossy(self, lossy: bool) -> Self {
        Self { lossy, ..self }
    }

    /// Where the next record begins.
    pub fn offset(&self) -> u64 {
        self.base + self.at as u64
    }

    /// The number that comes next if none is missing.
    pub fn expected(&self) -> u64 {
        self.numbers.start
    }

    /// The next record, or what is damaged before it; `None` at the end.
    pub fn advance(&mut self) -> io::Result<Option<Found>> {
        loop {
            let beyond = self.len.saturating_sub(self.base + self.chunk.len() as u64);
            if self.at >= self.chunk.len() {
                if beyond == 0 {
                    return Ok(None);
                }
                self.read(READ_BYTES)?;
                continue;
            }
            let from = self.offset();
            match format::step(&self.chunk, self.at, beyond, self.numbers.clone()) {
                Step::Record { number, flags, content, end } => {
                    self.at = end;
                    self.numbers.start = if flags & NOTE != 0 { number } else { number + 1 };
                    return Ok(Some(Found::Record { number, flags, bytes: self.chunk.clone(), content, end: self.offset() }));
                }
                Step::Damaged { to } => {
                    self.at = to;
                    return Ok(Some(Found::Damaged { from, to: self.offset() }));
                }
                Step::More { bytes } => self.read(bytes.max(READ_BYTES))?,
                Step::End => return Ok(None),
            }
        }
    }

    /// Reads from the current offset on.
    fn read(&mut self, bytes: usize) -> io::Result<()> {
        let from = self.offset();
        let bytes = usize::try_from(self.len - from).unwrap_or(bytes).min(bytes);
        let mut chunk = vec![0; bytes];
        let filled = match self.file.read_at(&mut chunk, from) {
            Err(_) if self.lossy => {
                for (at, page) in (0..).zip(chunk.chunks_mut(PAGE)) {
                    if self.file.read_at(page, from + at * PAGE as u64).is_err() {
                        page.fill(0);
                    }
                }
                bytes
            }
            filled => filled?,
        };
        if filled < bytes {
            // The file is shorter than it was: what is missing is lost.
            chunk.truncate(filled);
            self.len = from + filled as u64;
        }
        (self.chunk, self.base, self.at) = (chunk.into(), from, 0);
        Ok(())
    }
}

/// Which segments there are, the one that is written included.
pub type Segments = Arc<Mutex<Vec<Segment>>>;

pub struct Log<D: Disk> {
    place: Arc<Place<D>>,
    channel: u64,
    pub segments: Segments,
    /// The last segment, unless it was given up.
    active: Option<D::File>,
    /// Something was appended to it without a sync.
    unsynced: bool,
    /// Segments of an earlier process that may be in the page cache alone.
    unsure: Vec<u64>,
    next_segment: u64,
    /// The next event's number.
    next: u64,
    segment_bytes_max: u64,
    marks: Marks,
}

/// How far tailed files are in the channel: what a source reads again after a crash is not taken twice.
#[derive(Default)]
pub struct Marks {
    files: HashMap<u64, (u64, u64)>,
    clock: u64,
}

/// More files than have events between two writes of a source's positions.
const MARKS_MAX: usize = 4096;

impl Marks {
    pub fn of(&self, file: u64) -> u64 {
        self.files.get(&file).map_or(0, |(end, _)| *end)
    }

    pub fn set(&mut self, file: u64, end: u64) {
        self.clock += 1;
        let mark = self.files.entry(file).or_default();
        *mark = (end.max(mark.0), self.clock);
        if self.files.len() > MARKS_MAX {
            // Half at once, so that it is seldom.
            let mut clocks: Vec<u64> = self.files.values().map(|(_, clock)| *clock).collect();
            clocks.sort_unstable();
            let median = clocks[clocks.len() / 2];
            self.files.retain(|_, (_, clock)| *clock >= median);
        }
    }

    fn list(&self) -> Vec<FileMark> {
        self.files.iter().map(|(id, (end, _))| (*id, *end)).collect()
    }
}

/// Why nothing was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Room must be made.
    NoSpace(String),
    Failed(String),
}

impl Trouble {
    pub fn of(error: &io::Error, what: &Path) -> Self {
        let text = format!("{}: {error}", what.display());
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace(text),
            _ => Self::Failed(text),
        }
    }
}

impl<D: Disk> Log<D> {
    /// With what [`recovery::decide`] decided. Nothing is written yet.
    pub fn new(place: Arc<Place<D>>, decision: &Decision, segment_bytes_max: u64) -> Self {
        let mut marks = Marks::default();
        decision.marks.iter().for_each(|(&id, &end)| marks.set(id, end));
        Self {
            place,
            channel: decision.channel,
            segments: Arc::new(Mutex::new(decision.segments.clone())),
            active: None,
            unsynced: false,
            unsure: decision.unsure.clone(),
            next_segment: decision.next_segment,
            next: decision.next,
            segment_bytes_max,
            marks,
        }
    }

    pub fn channel(&self) -> u64 {
        self.channel
    }

    pub fn marks(&self) -> &Marks {
        &self.marks
    }

    pub fn set_segment_bytes_max(&mut self, bytes: u64) {
        self.segment_bytes_max = bytes;
    }

    pub fn segment_bytes_max(&self) -> u64 {
        self.segment_bytes_max
    }

    /// Bytes of all segments.
    pub fn bytes(&self) -> u64 {
        self.segments.lock().iter().map(|segment| segment.len).sum()
    }

    fn last(&self) -> Option<Segment> {
        self.segments.lock().last().copied()
    }

    /// Puts segments of which nobody knows whether they are on disk in place of themselves: a copy, synced, under their name.
    /// Another sync of the old file would not do: after a failed one the kernel calls its pages clean.
    pub fn secure(&mut self) -> Result<(), Trouble> {
        while let Some(id) = self.unsure.last() {
            let segment = self.segments.lock().iter().find(|segment| segment.id == *id).copied();
            if let Some(segment) = segment {
                let path = self.place.path(segment.id, segment.directory);
                self.copy(&segment, &path).map_err(|error| Trouble::of(&error, &path))?;
            }
            self.unsure.pop();
        }
        Ok(())
    }

    fn copy(&self, segment: &Segment, path: &Path) -> io::Result<()> {
        let disk = &self.place.disk;
        let copy = path.with_extension(COPY);
        let made = (|| {
            let (from, to) = (self.place.open(segment)?, disk.create(&copy)?);
            let mut at = 0;
            let mut chunk = vec![0; COPY_BYTES];
            while at < segment.len {
                let wanted = usize::try_from(segment.len - at).unwrap_or(COPY_BYTES).min(COPY_BYTES);
                let read = from.read_at(&mut chunk[..wanted], at)?;
                if read == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                to.write_at(&chunk[..read], at)?;
                at += read as u64;
            }
            Point::RecoveryCopyWritten.reach();
            to.sync()?;
            Point::RecoveryCopySynced.reach();
            disk.rename(&copy, path)?;
            Point::RecoveryCopyRenamed.reach();
            disk.sync_dir(&self.place.data[segment.directory])
        })();
        match made {
            Ok(()) => Point::RecoveryCopySafe.reach(),
            // It is in the way of the next try only; what was wrong is told.
            Err(_) => drop(disk.remove(&copy)),
        }
        made
    }

    /// Sees to it that `bytes` more may be appended, in a new segment if need be; gives the next event's number.
    pub fn prepare(&mut self, bytes: u64) -> Result<u64, Trouble> {
        self.secure()?;
        let full = self.last().is_some_and(|last| last.first < last.next && last.len + bytes > self.segment_bytes_max);
        if self.active.is_none() || full {
            self.begin_segment()?;
        }
        Ok(self.next)
    }

    pub fn begin_segment(&mut self) -> Result<(), Trouble> {
        // The new segment's header says how far the old one counts.
        self.sync()?;
        let id = self.next_segment;
        let directory = usize::try_from(id).unwrap_or_default() % self.place.data.len();
        let path = self.place.path(id, directory);
        let previous = self.last().map(|last| Previous { segment: last.id, len: last.len, next: last.next });
        // Names are used once, also by what could not be finished.
        self.next_segment += 1;
        let made = self.make(&path, directory, &Header { channel: self.channel, segment: id, first: self.next, previous });
        match made {
            Ok((file, len)) => {
                self.segments.lock().push(Segment { id, directory, first: self.next, next: self.next, len });
                self.active = Some(file);
                Ok(())
            }
            Err(error) => {
                if let Err(error) = self.place.disk.remove(&path)
                    && error.kind() != io::ErrorKind::NotFound
                {
                    tracing::warn!(file = %path.display(), %error, "an unfinished segment cannot be removed; the next start does it");
                }
                Err(Trouble::of(&error, &path))
            }
        }
    }

    fn make(&self, path: &Path, directory: usize, header: &Header) -> io::Result<(D::File, u64)> {
        let mut bytes = header.encode().to_vec();
        format::encode_note(&mut bytes, header.first, &self.marks.list());
        let file = self.place.disk.create(path)?;
        Point::SegmentCreated.reach();
        file.write_at(&bytes, 0)?;
        Point::SegmentWritten.reach();
        file.sync()?;
        Point::SegmentSynced.reach();
        self.place.disk.sync_dir(&self.place.data[directory])?;
        Point::SegmentBegun.reach();
        Ok((file, bytes.len() as u64))
    }

    /// Appends `count` events, durable when this returns if `sync`. Gives where they begin.
    pub fn append(&mut self, bytes: &[u8], count: u64, marks: &[FileMark], sync: bool) -> Result<(u64, u64), Trouble> {
        let (Some(file), Some(last)) = (&self.active, self.last()) else {
            return Err(Trouble::Failed("no segment is open".into()));
        };
        let path = self.place.path(last.id, last.directory);
        if let Err(error) = file.write_at(bytes, last.len) {
            let trouble = Trouble::of(&error, &path);
            let undone = file.truncate(last.len);
            if undone.is_err() || matches!(trouble, Trouble::Failed(_)) {
                self.give_up(&last);
            }
            return Err(trouble);
        }
        Point::PutWritten.reach();
        if sync && let Err(error) = file.sync() {
            self.give_up(&last);
            return Err(Trouble::Failed(format!("{}: sync: {error}", path.display())));
        }
        self.unsynced = !sync;
        Point::PutSynced.reach();
        self.next += count;
        if let Some(last) = self.segments.lock().last_mut() {
            last.len += bytes.len() as u64;
            last.next = self.next;
        }
        marks.iter().for_each(|&(id, end)| self.marks.set(id, end));
        Ok((last.id, last.len))
    }

    /// Makes durable what was appended without.
    pub fn sync(&mut self) -> Result<(), Trouble> {
        let (Some(file), Some(last), true) = (&self.active, self.last(), self.unsynced) else { return Ok(()) };
        if let Err(error) = file.sync() {
            let path = self.place.path(last.id, last.directory);
            self.give_up(&last);
            return Err(Trouble::Failed(format!("{}: sync: {error}", path.display())));
        }
        self.unsynced = false;
        Ok(())
    }

    /// What was written since the last success may be anything: nothing more goes into this segment, and its numbers are not used again.
    fn give_up(&mut self, last: &Segment) {
        tracing::error!(segment = last.id, bytes = last.len, "segment given up after a failed write; going on in a new one");
        self.active = None;
        self.unsynced = false;
        self.next = self.next.saturating_add(GAP);
    }

    /// Removes segments whose events are all delivered, for good: `gone_below` is on disk. Gives how many.
    pub fn remove_below(&mut self, gone_below: u64) -> Result<usize, Trouble> {
        let mut removed = 0;
        loop {
            let first = {
                let segments = self.segments.lock();
                let removable = segments.len() > 1;
                segments.first().copied().filter(|first| removable && first.next <= gone_below)
            };
            let Some(first) = first else { return Ok(removed) };
            let path = self.place.path(first.id, first.directory);
            match self.place.disk.remove(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Trouble::of(&error, &path)),
                _ => {}
            }
            Point::SegmentRemoved.reach();
            self.segments.lock().remove(0);
            removed += 1;
        }
    }

    /// Removes the segment that is written, when it is the only one and all of its events are delivered for good.
    pub fn remove_last(&mut self, gone_below: u64) -> Result<bool, Trouble> {
        let Some(last) = self.last().filter(|last| last.next > last.first && last.next <= gone_below) else { return Ok(false) };
        if self.segments.lock().len() > 1 {
            return Ok(false);
        }
        let path = self.place.path(last.id, last.directory);
        self.active = None;
        self.unsynced = false;
        self.place.disk.remove(&path).map_err(|error| Trouble::of(&error, &path))?;
        Point::LastSegmentRemoved.reach();
        self.segments.lock().clear();
        Ok(true)
    }

    /// The least room of the data directories.
    pub fn free_bytes(&self) -> Result<u64, Trouble> {
        let mut least = u64::MAX;
        for path in &self.place.data {
            least = least.min(self.place.disk.free_bytes(path).map_err(|error| Trouble::of(&error, path))?);
        }
        Ok(least)
    }
}
