//! One open file: complete lines out of it, from a position on.
//!
//! Reads up to 256 KiB at a time into a fresh buffer that is as large as what there is; the lines are slices of it. Bytes
//! after the last newline wait in memory and are read into the next buffer's beginning. Before new bytes are taken, the
//! last bytes read are compared with the file's: a file that was emptied and has grown past the position again is
//! recognised by them.
//!
//! A file with nothing new may be closed to save its handle ([`Reader::close`]); it is opened again when it has grown.

use std::{
    cell::Cell,
    fs::{File, Metadata},
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;

use super::command::Begin;
use super::identity::{Checksum, HEAD_BYTES_MAX, Inode, Remembered, TAIL_BYTES_MAX, TailedFile, head};
use crate::event::{Headers, Mark};

pub const READ_BYTES: usize = 256 * 1024;

/// Lines of one file, in one buffer.
#[derive(Debug)]
pub struct Chunk {
    pub file: Arc<TailedFile>,
    pub headers: Headers,
    pub text: Bytes,
    /// Offset of `text` in the file.
    pub begin: u64,
    /// Where each line ends in `text`, its newline included.
    pub ends: Vec<usize>,
}

impl Chunk {
    /// The line that ends at `end` and begins at `start`, without its newline and one carriage return before it.
    pub fn line(&self, start: usize, end: usize) -> Bytes {
        let mut stop = end;
        if stop > start && self.text[stop - 1] == b'\n' {
            stop -= 1;
            if stop > start && self.text[stop - 1] == b'\r' {
                stop -= 1;
            }
        }
        self.text.slice(start..stop)
    }

    pub fn mark(&self, end: usize) -> Mark {
        Mark { offset: self.begin + end as u64, tail: Checksum::of_tail(&self.text[..end]) }
    }
}

pub enum Read {
    Lines(Chunk),
    /// Nothing new.
    Idle,
    /// The content is another one now.
    Replaced,
}

pub struct Reader {
    pub file: Arc<TailedFile>,
    pub inode: Inode,
    pub headers: Headers,
    /// When its name was first seen to mean another file, or none.
    pub rotated_at: Option<Instant>,
    /// `None` while it is closed.
    handle: Option<File>,
    /// When the handle was last of use.
    pub used_at: Instant,
    /// Next byte to read.
    next: u64,
    /// Bytes before `next` that are no complete line yet.
    partial: Vec<u8>,
    /// The last bytes before `next`.
    last: Vec<u8>,
    modified: Option<(i64, i64)>,
    grown_at: Instant,
    /// When the content was last seen to be the one that is known, by the clock of file times.
    known_at: Cell<SystemTime>,
}

impl Reader {
    pub fn new(file: Arc<TailedFile>, inode: Inode, headers: Headers, handle: File, from: u64) -> io::Result<Self> {
        let mut last = vec![0; TAIL_BYTES_MAX.min(usize::try_from(from).unwrap_or(TAIL_BYTES_MAX))];
        let before = from - last.len() as u64;
        handle.read_exact_at(&mut last, before)?;
        Ok(Self {
            file,
            inode,
            headers,
            rotated_at: None,
            handle: Some(handle),
            used_at: Instant::now(),
            next: from,
            partial: Vec::new(),
            last,
            modified: None,
            grown_at: Instant::now(),
            known_at: Cell::new(SystemTime::now()),
        })
    }

    /// When the content was last seen to be the one that is known.
    pub fn known_at(&self) -> SystemTime {
        self.known_at.get()
    }

    /// It held nothing when it was last looked at, so what it holds now may be its second content since.
    pub fn comes_from_nothing(&self) -> io::Result<bool> {
        Ok(self.next == 0 && self.file.head().bytes == 0 && self.metadata()?.is_some_and(|metadata| metadata.len() > 0))
    }

    /// Does the file begin with what another one of `length` bytes holds? Seen by its first and last bytes.
    pub fn begins_with(&self, other: &File, length: u64) -> io::Result<bool> {
        let Some(handle) = &self.handle else { return Ok(false) };
        let mut last = vec![0; TAIL_BYTES_MAX.min(usize::try_from(length).unwrap_or(TAIL_BYTES_MAX))];
        let before = length - last.len() as u64;
        other.read_exact_at(&mut last, before)?;
        Ok(head(other)?.matches(handle, 0)? && Checksum::of(&last).matches(handle, before)?)
    }

    /// Everything of it is read, and nothing more has come for `wait` since it lost its name.
    pub fn is_finished(&self, wait: Duration) -> bool {
        self.rotated_at.is_some_and(|rotated| rotated.max(self.grown_at).elapsed() >= wait)
    }

    /// The unterminated last line has been waiting for `wait`.
    pub fn has_stale_partial(&self, wait: Duration) -> bool {
        !self.partial.is_empty() && self.grown_at.elapsed() >= wait
    }

    pub fn is_open(&self) -> bool {
        self.handle.is_some()
    }

    /// Gives the handle back. The file is opened again by its name, so one that has lost its name is not to be closed.
    pub fn close(&mut self) {
        self.handle = None;
    }

    /// Opens it again where it was closed.
    pub fn reopen(&mut self) -> io::Result<()> {
        if self.handle.is_none() {
            let (handle, metadata) = open(&self.file.path())?;
            if Inode::from(&metadata) != self.inode {
                return Err(io::Error::new(io::ErrorKind::NotFound, "the name means another file now"));
            }
            self.handle = Some(handle);
        }
        self.used_at = Instant::now();
        Ok(())
    }

    fn handle(&self) -> io::Result<&File> {
        self.handle.as_ref().ok_or_else(|| io::Error::other("the file is closed"))
    }

    /// `None` where it is closed and its name means another file, or none.
    fn metadata(&self) -> io::Result<Option<Metadata>> {
        if let Some(handle) = &self.handle {
            return handle.metadata().map(Some);
        }
        match std::fs::metadata(self.file.path()) {
            Ok(metadata) => Ok((Inode::from(&metadata) == self.inode).then_some(metadata)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Is there something to read? A closed file is looked at by its name.
    pub fn has_news(&self) -> io::Result<bool> {
        let Some(metadata) = self.metadata()? else { return Ok(false) };
        Ok(metadata.len() != self.next || self.modified != Some((metadata.mtime(), metadata.mtime_nsec())))
    }

    /// Of an open file.
    pub fn read(&mut self, line_bytes_max: usize) -> io::Result<Read> {
        let now = SystemTime::now();
        let metadata = self.handle()?.metadata()?;
        let modified = (metadata.mtime(), metadata.mtime_nsec());
        let unchanged = metadata.len() == self.next && self.modified == Some(modified);
        if !unchanged && self.holds_another(&metadata)? {
            return Ok(Read::Replaced);
        }
        self.known_at.set(now);
        if unchanged {
            return Ok(Read::Idle);
        }
        if metadata.len() == self.next {
            self.modified = Some(modified);
            return Ok(Read::Idle);
        }
        self.grow_fingerprint()?;
        self.used_at = Instant::now();
        // Again where a buffer held no line's end; bounded by the longest line.
        loop {
            // A buffer lives as long as the last of its lines: no more of it than there is.
            let there = metadata.len().saturating_sub(self.next);
            let most = usize::try_from(there).unwrap_or(READ_BYTES).min(READ_BYTES);
            let (begin, text) = match self.read_on(most)? {
                Some(read) => read,
                None => return Ok(Read::Idle),
            };
            if let Some(chunk) = self.split(begin, text, line_bytes_max) {
                return Ok(Read::Lines(chunk));
            }
        }
    }

    fn holds_another(&self, metadata: &Metadata) -> io::Result<bool> {
        if metadata.len() < self.next || !self.is_where_it_was()? {
            return Ok(true);
        }
        // Of a young file more may be known than was read.
        let head = self.file.head();
        Ok(self.next < u64::from(head.bytes) && !head.matches(self.handle()?, 0)?)
    }

    /// A look without reading: is the content another one? What the beginning is known by grows with the file meanwhile.
    pub fn is_replaced(&self) -> io::Result<bool> {
        let Some(handle) = &self.handle else { return Ok(false) };
        let now = SystemTime::now();
        let replaced = self.holds_another(&handle.metadata()?)?;
        if !replaced {
            self.known_at.set(now);
            self.grow_fingerprint()?;
        }
        Ok(replaced)
    }

    /// The content as it is known, with everything read so far; `None` while nothing of it is known.
    pub fn content(&self) -> Option<Remembered> {
        let known = self.file.remember(Mark { offset: self.next, tail: Checksum::of(&self.last) });
        (known.fingerprint.head.bytes > 0).then_some(known)
    }

    /// Where the first line begins that was not given out.
    pub fn line_begin(&self) -> u64 {
        self.next - self.partial.len() as u64
    }

    /// What waited, and the bytes after it; `None` at the end of the file.
    fn read_on(&mut self, most: usize) -> io::Result<Option<(u64, Vec<u8>)>> {
        if most == 0 {
            return Ok(None);
        }
        let carried = self.partial.len();
        let mut text = Vec::with_capacity(carried + most);
        text.extend_from_slice(&self.partial);
        let count = rustix::io::pread(self.handle()?, rustix::buffer::spare_capacity(&mut text), self.next)?;
        if count == 0 {
            return Ok(None);
        }
        let begin = self.next - carried as u64;
        self.next += count as u64;
        self.grown_at = Instant::now();
        self.remember_last(&text[carried..]);
        Ok(Some((begin, text)))
    }

    /// Complete lines; what comes after them waits. `None` when there is no line's end.
    fn split(&mut self, begin: u64, mut text: Vec<u8>, line_bytes_max: usize) -> Option<Chunk> {
        let searched = self.partial.len();
        let mut ends: Vec<usize> = Vec::with_capacity((text.len() - searched) / 64);
        ends.extend(memchr::memchr_iter(b'\n', &text[searched..]).map(|at| searched + at + 1));
        let complete = ends.last().copied().unwrap_or_default();
        if text.len() - complete >= line_bytes_max {
            // A line without end would fill the memory: it goes on in pieces.
            tracing::warn!(file = %self.file.path().display(), bytes = text.len() - complete, "line is longer than maxLineLength; it is split");
            ends.push(text.len());
            self.partial = Vec::new();
        } else if ends.is_empty() {
            self.partial = text;
            return None;
        } else {
            self.partial = text[complete..].to_vec();
            text.truncate(complete);
        }
        Some(self.chunk(text, begin, ends))
    }

    /// The unterminated last line, as a line.
    pub fn take_partial(&mut self) -> Option<Chunk> {
        if self.partial.is_empty() {
            return None;
        }
        let text = std::mem::take(&mut self.partial);
        let (begin, ends) = (self.next - text.len() as u64, vec![text.len()]);
        Some(self.chunk(text, begin, ends))
    }

    /// Bytes in the file after what was read.
    pub fn unread(&self) -> u64 {
        self.metadata().ok().flatten().map_or(0, |metadata| metadata.len().saturating_sub(self.next))
    }

    /// When the file was last written.
    pub fn modified(&self) -> Option<SystemTime> {
        self.metadata().ok().flatten().and_then(|metadata| metadata.modified().ok())
    }

    /// When the file was made, where the file system tells.
    pub fn created(&self) -> Option<SystemTime> {
        self.metadata().ok().flatten().and_then(|metadata| metadata.created().ok())
    }

    /// The same open file with another content in it, first seen at `now`, to be read from its beginning.
    pub fn emptied(&mut self, file: Arc<TailedFile>, now: SystemTime) {
        self.known_at.set(now);
        self.file = file;
        self.next = 0;
        self.partial = Vec::new();
        self.last = Vec::new();
        self.modified = None;
        self.grown_at = Instant::now();
    }

    /// Checksum of the beginning as it is now.
    pub fn head(&self) -> io::Result<Checksum> {
        head(self.handle()?)
    }

    fn chunk(&self, text: Vec<u8>, begin: u64, ends: Vec<usize>) -> Chunk {
        Chunk { file: self.file.clone(), headers: self.headers.clone(), text: text.into(), begin, ends }
    }

    /// Are the bytes before `next` still those that were read?
    fn is_where_it_was(&self) -> io::Result<bool> {
        let mut now = [0; TAIL_BYTES_MAX];
        let now = &mut now[..self.last.len()];
        match self.handle()?.read_exact_at(now, self.next - self.last.len() as u64) {
            Ok(()) => Ok(now == self.last.as_slice()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn remember_last(&mut self, new: &[u8]) {
        self.last.extend_from_slice(&new[new.len().saturating_sub(TAIL_BYTES_MAX)..]);
        let surplus = self.last.len().saturating_sub(TAIL_BYTES_MAX);
        self.last.drain(..surplus);
    }

    /// The beginning's checksum covers more as a young file grows.
    fn grow_fingerprint(&self) -> io::Result<()> {
        if (self.file.head().bytes as usize) < HEAD_BYTES_MAX {
            self.file.grown(self.head()?);
        }
        Ok(())
    }
}

/// The offset at which `tail` would begin.
pub fn begin_offset(file: &File, begin: Begin) -> io::Result<u64> {
    let length = file.metadata()?.len();
    match begin {
        Begin::End => Ok(length),
        Begin::Line(1) => Ok(0),
        Begin::Line(line) => {
            let mut newlines = line - 1;
            let mut offset = 0;
            let mut block = vec![0; 64 * 1024];
            while offset < length {
                let count = file.read_at(&mut block, offset)?;
                if count == 0 {
                    break;
                }
                for at in memchr::memchr_iter(b'\n', &block[..count]) {
                    newlines -= 1;
                    if newlines == 0 {
                        return Ok(offset + at as u64 + 1);
                    }
                }
                offset += count as u64;
            }
            Ok(length)
        }
        Begin::LastLines(lines) => {
            let mut end = length;
            let mut block = vec![0; 64 * 1024];
            // The newline that ends the last line does not begin another one.
            let mut newlines = lines;
            let mut at_end = true;
            while end > 0 {
                let start = end.saturating_sub(block.len() as u64);
                let part = &mut block[..usize::try_from(end - start).unwrap_or_default()];
                file.read_exact_at(part, start)?;
                let mut searched = part.len();
                if at_end && part.last() == Some(&b'\n') {
                    searched -= 1;
                }
                at_end = false;
                for at in memchr::memrchr_iter(b'\n', &part[..searched]) {
                    newlines -= 1;
                    if newlines == 0 {
                        return Ok(start + at as u64 + 1);
                    }
                }
                end = start;
            }
            Ok(0)
        }
    }
}

/// Opens a file that can be tailed; says what it is when it cannot.
pub fn open(path: &Path) -> io::Result<(File, Metadata)> {
    // A FIFO would block until somebody writes to it.
    let metadata = std::fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    Ok((file, metadata))
}
