//! The write-ahead log: a log's records in files of a folder.
//!
//! ```text
//! <folder>/lock                    held by the process that writes here
//! <folder>/0000000000.seg, …       segments, by number
//! segment  = "MRWL", version u32, first i64, follows i64, CRC32C u32; frames
//! frame    = "MRFR", length u32 of the payload, CRC32C u32 of both; payload
//! payload  = first i64, time i64 (ms), count u32, count × (length u32, bytes)
//! ```
//!
//! All numbers are little-endian. `first` is the offset of the first record; `follows` is the offset that the log had
//! reached before the segment, so that what is missing between two segments is seen.
//!
//! A frame is written and synced before the next one, and it counts only then. So a crash leaves at most one unfinished
//! frame, at the end of the newest segment: it is cut off when the log is opened. Anything else that does not fit is
//! [`Damage`]. A frame that could not be written is written again to a new segment; what the old one holds of it does not
//! count, for a segment ends where the next one begins. A failed sync is never tried again on the same file.
//!
//! Limits: a segment is closed at 64 MiB or at its age, and deleted as a whole; a frame is at most 1 GiB.

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom},
    ops::Range,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{
            AtomicI64,
            Ordering::{Acquire, Release},
        },
    },
};

use bytes::{Buf as _, BufMut as _, Bytes};
use parking_lot::Mutex;
use service_kit::kafka::Record;

use crate::batch::clock::interval_ms;
use crate::job::WriteAheadLogSettings;

const SEGMENT_MAGIC: &[u8; 4] = b"MRWL";
const FRAME_MAGIC: &[u8; 4] = b"MRFR";
const VERSION: u32 = 1;
const SEGMENT_HEADER: usize = 28;
const FRAME_HEADER: usize = 12;
const SEGMENT_BYTES_MAX: u64 = 64 << 20;
const FRAME_BYTES_MAX: usize = 1 << 30;
/// Bytes that are read at once.
const CHUNK_BYTES: u64 = 1 << 20;
const SUFFIX: &str = "seg";
const LOCK: &str = "lock";

/// Acknowledged records that cannot be read any more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is damaged at byte {at}: {} records from offset {} on are lost", file.display(), lost.end - lost.start, lost.start)]
pub(super) struct Damage {
    pub(super) file: PathBuf,
    pub(super) at: u64,
    pub(super) lost: Range<i64>,
}

pub(super) struct Wal {
    folder: PathBuf,
    settings: WriteAheadLogSettings,
    /// Oldest first.
    segments: Mutex<VecDeque<Segment>>,
    /// Held while something is written.
    writer: Mutex<Writer>,
    /// The offset behind the newest record; for readers, who do not wait for the disk.
    latest: AtomicI64,
    /// Until nothing is written any more.
    lock: Mutex<Option<File>>,
    /// Tests: so many writes fail, halfway.
    #[cfg(test)]
    pub(super) failing: std::sync::atomic::AtomicU32,
}

struct Segment {
    path: Arc<Path>,
    first: i64,
    bytes: u64,
    frames: Vec<Frame>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Frame {
    first: i64,
    count: u32,
    /// Where in the file, and with its header how long.
    at: u64,
    bytes: u64,
}

impl Frame {
    fn end(&self) -> i64 {
        self.first + i64::from(self.count)
    }
}

impl Segment {
    fn end(&self) -> i64 {
        self.frames.last().map_or(self.first, Frame::end)
    }
}

struct Writer {
    open: Option<Open>,
    next_id: u64,
    /// Offset of the next record.
    next: i64,
    /// The offset behind the newest record that is in the log, or was.
    reached: i64,
}

struct Open {
    file: File,
    len: u64,
    opened_ms: i64,
}

/// Neighbouring frames of a segment.
pub(super) struct Span {
    path: Arc<Path>,
    at: u64,
    bytes: u64,
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn i64_at(bytes: &[u8], at: usize) -> Option<i64> {
    Some(i64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

fn segment_header(first: i64, follows: i64) -> Vec<u8> {
    let mut header = Vec::with_capacity(SEGMENT_HEADER);
    header.put_slice(SEGMENT_MAGIC);
    header.put_u32_le(VERSION);
    header.put_i64_le(first);
    header.put_i64_le(follows);
    header.put_u32_le(crc32c::crc32c(&header));
    header
}

/// `(first, follows)`; `None`: it is none.
fn read_segment_header(bytes: &[u8]) -> Option<(i64, i64)> {
    let header = bytes.get(..SEGMENT_HEADER)?;
    let sound = header.starts_with(SEGMENT_MAGIC)
        && u32_at(header, 4)? == VERSION
        && u32_at(header, SEGMENT_HEADER - 4)? == crc32c::crc32c(header.get(..SEGMENT_HEADER - 4)?);
    if sound { Some((i64_at(header, 8)?, i64_at(header, 16)?)) } else { None }
}

fn frame(first: i64, time_ms: i64, records: &[Bytes]) -> io::Result<Vec<u8>> {
    let payload: usize = 20 + records.iter().map(|record| record.len() + 4).sum::<usize>();
    let too_large = || io::Error::new(io::ErrorKind::InvalidInput, format!("{payload} bytes at once are more than {FRAME_BYTES_MAX}"));
    let length = u32::try_from(payload).ok().filter(|_| payload <= FRAME_BYTES_MAX).ok_or_else(too_large)?;
    let mut bytes = Vec::with_capacity(FRAME_HEADER + payload);
    bytes.put_slice(FRAME_MAGIC);
    bytes.put_u32_le(length);
    bytes.put_u32_le(0);
    bytes.put_i64_le(first);
    bytes.put_i64_le(time_ms);
    // Each takes more than a byte.
    bytes.put_u32_le(u32::try_from(records.len()).map_err(|_| too_large())?);
    for record in records {
        bytes.put_u32_le(u32::try_from(record.len()).map_err(|_| too_large())?);
        bytes.put_slice(record);
    }
    let crc = checksum(length, &bytes[FRAME_HEADER..]).to_le_bytes();
    bytes[8..FRAME_HEADER].copy_from_slice(&crc);
    Ok(bytes)
}

fn checksum(length: u32, payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&length.to_le_bytes()), payload)
}

/// The payload of the frame that begins here; `None` where no sound one does.
fn sound(bytes: &[u8]) -> Option<&[u8]> {
    if !bytes.starts_with(FRAME_MAGIC) {
        return None;
    }
    let length = u32_at(bytes, 4)?;
    let payload = bytes.get(FRAME_HEADER..)?.get(..usize::try_from(length).ok()?)?;
    (length >= 20 && u32_at(bytes, 8)? == checksum(length, payload)).then_some(payload)
}

/// Every record of sound frames that follow each other. The error says that one is not.
pub(super) fn records(mut bytes: Bytes) -> io::Result<Vec<Record>> {
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, "its checksum does not fit");
    let mut records = Vec::new();
    while !bytes.is_empty() {
        let length = sound(&bytes).ok_or_else(damaged)?.len();
        bytes.advance(FRAME_HEADER);
        let mut payload = bytes.split_to(length);
        let (first, timestamp_ms, count) = (payload.get_i64_le(), payload.get_i64_le(), payload.get_u32_le());
        for n in 0..count {
            let length = payload.try_get_u32_le().ok().and_then(|length| usize::try_from(length).ok());
            let length = length.filter(|length| *length <= payload.len()).ok_or_else(damaged)?;
            let value = Some(payload.split_to(length));
            records.push(Record { offset: first + i64::from(n), timestamp_ms, key: None, value, headers: Vec::new() });
        }
    }
    Ok(records)
}

/// What a segment's file holds.
struct Scanned {
    frames: Vec<Frame>,
    /// Behind the last sound byte.
    end: u64,
    /// What is not sound and has sound frames behind it: where, and which records are missing.
    gaps: Vec<(u64, Range<i64>)>,
}

fn scan(bytes: &[u8], first: i64) -> Scanned {
    let mut scanned = Scanned { frames: Vec::new(), end: SEGMENT_HEADER as u64, gaps: Vec::new() };
    let mut at = SEGMENT_HEADER;
    let mut next = first;
    let mut broken = None;
    while at < bytes.len() {
        let rest = bytes.get(at..).unwrap_or_default();
        let head = sound(rest).and_then(|payload| Some((payload.len(), i64_at(payload, 0)?, u32_at(payload, 16)?)));
        let Some((length, first, count)) = head else {
            broken.get_or_insert(at as u64);
            at += 1;
            continue;
        };
        if let Some(broken) = broken.take() {
            scanned.gaps.push((broken, next..first));
        }
        let frame = Frame { first, count, at: at as u64, bytes: (FRAME_HEADER + length) as u64 };
        next = frame.end();
        scanned.frames.push(frame);
        at += FRAME_HEADER + length;
        scanned.end = at as u64;
    }
    scanned
}

impl Wal {
    /// Takes the folder (made where it is missing) and finds out what is in it. Damage is told, and left out.
    pub(super) fn open(folder: &Path, settings: WriteAheadLogSettings) -> io::Result<(Self, Vec<Damage>)> {
        fs::create_dir_all(folder)?;
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(folder.join(LOCK))?;
        lock.try_lock().map_err(|error| match error {
            fs::TryLockError::WouldBlock => {
                io::Error::new(io::ErrorKind::ResourceBusy, "another process of this job writes to it; stop one of them")
            }
            fs::TryLockError::Error(error) => error,
        })?;
        let mut files: Vec<(u64, PathBuf)> = Vec::new();
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let id = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok());
            if let (Some(id), Some(SUFFIX)) = (id, path.extension().and_then(|extension| extension.to_str())) {
                files.push((id, path));
            }
        }
        files.sort_unstable();
        let next_id = files.last().map_or(0, |(id, _)| id + 1);
        let mut damages = Vec::new();
        let mut segments: VecDeque<Segment> = VecDeque::new();
        // Of the newest one: where it ends, when what is behind that is not sound.
        let mut cut: Option<u64> = None;
        for (n, (_, path)) in files.iter().enumerate() {
            let bytes = fs::read(path)?;
            let before = segments.back().map_or(0, Segment::end);
            let Some((first, follows)) = read_segment_header(&bytes) else {
                let frames = scan(&bytes, before).frames;
                // A crash while it was made: its name was there before its first bytes.
                if frames.is_empty() && n + 1 == files.len() {
                    fs::remove_file(path)?;
                } else {
                    let until = frames.last().map_or(before, Frame::end);
                    damages.push(Damage { file: path.clone(), at: 0, lost: before..until.max(before) });
                }
                continue;
            };
            if let Some(before) = segments.back_mut() {
                // Written again, to this one.
                before.frames.retain(|frame| frame.end() <= first);
                let end = before.end();
                if end < follows {
                    damages.push(Damage { file: before.path.to_path_buf(), at: cut.unwrap_or(before.bytes), lost: end..follows });
                }
            }
            let scanned = scan(&bytes, first);
            cut = (scanned.end < bytes.len() as u64).then_some(scanned.end);
            damages.extend(scanned.gaps.into_iter().map(|(at, lost)| Damage { file: path.clone(), at, lost }));
            segments.push_back(Segment { path: path.as_path().into(), first, bytes: scanned.end, frames: scanned.frames });
        }
        if let (Some(end), Some(newest)) = (cut, segments.back()) {
            tracing::info!(file = %newest.path.display(), at = end, "cut off a write that was not finished");
            let file = OpenOptions::new().write(true).open(&newest.path)?;
            file.set_len(end)?;
            file.sync_all()?;
        }
        let reached = segments.back().map_or(0, Segment::end);
        let writer = Writer { open: None, next_id, next: reached, reached };
        let wal = Self {
            folder: folder.into(),
            settings,
            segments: Mutex::new(segments),
            writer: Mutex::new(writer),
            latest: reached.into(),
            lock: Mutex::new(Some(lock)),
            #[cfg(test)]
            failing: 0.into(),
        };
        Ok((wal, damages))
    }

    /// Lets another process write; this one must not any more.
    pub(super) fn unlock(&self) {
        drop(self.lock.lock().take());
    }

    /// The next record's offset is at least this.
    pub(super) fn go_on_at(&self, next: i64) {
        let mut writer = self.writer.lock();
        writer.next = writer.next.max(next);
        self.latest.store(writer.next, Release);
    }

    /// The first offset that is held, and the one behind the last.
    pub(super) fn bounds(&self) -> (i64, i64) {
        let latest = self.latest.load(Acquire);
        (self.segments.lock().front().map_or(latest, |segment| segment.first), latest)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.segments.lock().iter().map(|segment| segment.bytes).sum()
    }

    /// `(offset behind it, bytes)` of each frame that ends behind `from`.
    pub(super) fn held_behind(&self, from: i64) -> Vec<(i64, u64)> {
        let segments = self.segments.lock();
        segments
            .iter()
            .flat_map(|segment| &segment.frames)
            .filter(|frame| frame.end() > from)
            .map(|frame| (frame.end(), frame.bytes))
            .collect()
    }

    /// Returns when the records are on disk; gives the offset behind them. After an error none of them counts.
    pub(super) fn append(&self, records: &[Bytes], now_ms: i64) -> io::Result<i64> {
        let mut writer = self.writer.lock();
        let frame = frame(writer.next, now_ms, records)?;
        let mut failures = 0;
        let at = loop {
            match self.write(&mut writer, &frame, now_ms) {
                Ok(at) => break at,
                Err(error) => {
                    failures += 1;
                    if let Some(open) = writer.open.take() {
                        // If this fails too, the next segment says where this one ends.
                        open.file.set_len(open.len).ok();
                    }
                    if failures >= self.settings.max_failures {
                        return Err(error);
                    }
                    tracing::warn!(%error, folder = %self.folder.display(), failures, "cannot write to the write-ahead log; trying a new segment");
                }
            }
        };
        let count = u32::try_from(records.len()).unwrap_or(u32::MAX);
        let frame = Frame { first: writer.next, count, at, bytes: frame.len() as u64 };
        if let Some(segment) = self.segments.lock().back_mut() {
            segment.frames.push(frame);
            segment.bytes = at + frame.bytes;
        }
        writer.next = frame.end();
        writer.reached = writer.next;
        self.latest.store(writer.next, Release);
        if self.settings.close_file_after_write {
            writer.open = None;
        }
        Ok(writer.next)
    }

    fn write(&self, writer: &mut Writer, frame: &[u8], now_ms: i64) -> io::Result<u64> {
        let rolling_ms = interval_ms(self.settings.rolling_interval);
        let open = match writer.open.take_if(|open| now_ms - open.opened_ms >= rolling_ms || open.len >= SEGMENT_BYTES_MAX) {
            None if writer.open.is_some() => writer.open.as_mut(),
            _ => Some(self.roll(writer, now_ms)?),
        };
        let open = open.ok_or_else(|| io::Error::other("no segment is open"))?;
        #[cfg(test)]
        if self.failing.load(std::sync::atomic::Ordering::Relaxed) > 0 {
            self.failing.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
            open.file.write_all_at(&frame[..frame.len() / 2], open.len)?;
            return Err(io::ErrorKind::StorageFull.into());
        }
        open.file.write_all_at(frame, open.len)?;
        open.file.sync_data()?;
        let at = open.len;
        open.len += frame.len() as u64;
        Ok(at)
    }

    fn roll<'a>(&self, writer: &'a mut Writer, now_ms: i64) -> io::Result<&'a mut Open> {
        let path = self.folder.join(format!("{:010}.{SUFFIX}", writer.next_id));
        writer.next_id += 1;
        let header = segment_header(writer.next, writer.reached);
        let made = OpenOptions::new().write(true).create_new(true).open(&path).and_then(|file| {
            file.write_all_at(&header, 0)?;
            file.sync_all()?;
            // Sync the folder too: a durable file whose name is lost is a lost file.
            File::open(&self.folder)?.sync_all()?;
            Ok(file)
        });
        let file = made.inspect_err(|_| drop(fs::remove_file(&path)))?;
        let bytes = header.len() as u64;
        self.segments.lock().push_back(Segment { path: path.into(), first: writer.next, bytes, frames: Vec::new() });
        // From here on the gap is said.
        writer.reached = writer.next;
        Ok(writer.open.insert(Open { file, len: bytes, opened_ms: now_ms }))
    }

    /// What holds these offsets, in pieces to read one by one.
    pub(super) fn spans(&self, range: Range<i64>) -> Vec<Span> {
        let mut spans: Vec<Span> = Vec::new();
        let segments = self.segments.lock();
        for segment in segments.iter().filter(|segment| segment.first < range.end && segment.end() > range.start) {
            let begin = segment.frames.partition_point(|frame| frame.end() <= range.start);
            for frame in segment.frames.iter().skip(begin).take_while(|frame| frame.first < range.end) {
                match spans.last_mut() {
                    Some(span) if span.path == segment.path && span.at + span.bytes == frame.at && span.bytes < CHUNK_BYTES => {
                        span.bytes += frame.bytes;
                    }
                    _ => spans.push(Span { path: segment.path.clone(), at: frame.at, bytes: frame.bytes }),
                }
            }
        }
        spans
    }

    /// Deletes segments that hold nothing from `needed` on; never the newest, which knows the offset.
    pub(super) fn release(&self, needed: i64) {
        loop {
            let path = {
                let mut segments = self.segments.lock();
                if segments.len() < 2 || segments.front().is_none_or(|segment| segment.end() > needed) {
                    return;
                }
                segments.pop_front().map(|segment| segment.path)
            };
            let Some(path) = path else { return };
            if let Err(error) = fs::remove_file(&path) {
                tracing::warn!(%error, file = %path.display(), "cannot delete a segment of the write-ahead log");
            }
        }
    }
}

impl Span {
    pub(super) fn read(&self) -> io::Result<Vec<Record>> {
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(self.at))?;
        let mut bytes = Vec::new();
        file.take(self.bytes).read_to_end(&mut bytes)?;
        records(bytes.into())
            .map_err(|error| io::Error::new(error.kind(), format!("`{}` at byte {}: {error}", self.path.display(), self.at)))
    }
}
