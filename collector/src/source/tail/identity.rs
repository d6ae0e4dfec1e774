//! Which file is this? A name says little: logs are renamed, truncated, deleted, and inodes are used again.
//!
//! A file is its device, its inode and a fingerprint of its content. The fingerprint has two parts: the checksum of the
//! first bytes (up to 1,024; it grows with a young file), and of the last bytes (up to 64) before the position that was
//! read. A file that was emptied and has grown past the old position again differs in one of them.

use std::{
    fs::{File, Metadata},
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::event::Mark;

pub const HEAD_BYTES_MAX: usize = 1024;
pub const TAIL_BYTES_MAX: usize = 64;

/// CRC-32C of `bytes` bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checksum {
    pub bytes: u32,
    pub crc: u32,
}

impl Checksum {
    pub fn of(bytes: &[u8]) -> Self {
        Self { bytes: u32::try_from(bytes.len()).unwrap_or(u32::MAX), crc: crc32c::crc32c(bytes) }
    }

    /// Of the last bytes of `text`, as kept in a [`Mark`].
    pub fn of_tail(text: &[u8]) -> Self {
        Self::of(&text[text.len().saturating_sub(TAIL_BYTES_MAX)..])
    }

    /// Does the file hold bytes with this checksum at `offset`?
    pub fn matches(self, file: &File, offset: u64) -> io::Result<bool> {
        let mut bytes = vec![0; (self.bytes as usize).min(HEAD_BYTES_MAX)];
        match file.read_exact_at(&mut bytes, offset) {
            Ok(()) => Ok(Self::of(&bytes) == self),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Device and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Inode {
    pub device: u64,
    pub number: u64,
}

impl From<&Metadata> for Inode {
    fn from(metadata: &Metadata) -> Self {
        Self { device: metadata.dev(), number: metadata.ino() }
    }
}

/// Checksum of the file's beginning.
pub fn head(file: &File) -> io::Result<Checksum> {
    let mut bytes = [0; HEAD_BYTES_MAX];
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read_at(&mut bytes[filled..], filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Checksum::of(&bytes[..filled]))
}

/// A file as it is remembered: in the state directory, and in the positions topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// Minted once for a content; another content under the same name and inode has another id.
    #[serde(with = "hex")]
    pub id: u64,
    #[serde(with = "any_path")]
    pub path: PathBuf,
    pub dev: u64,
    pub inode: u64,
    pub fingerprint: Fingerprint,
    /// Everything before it is delivered.
    pub offset: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    pub head: Checksum,
    pub tail: Checksum,
}

impl Remembered {
    /// Is `file`, now at `path`, this one? Device numbers may change with a reboot, so the same path stands in for the device.
    pub fn is(&self, file: &File, metadata: &Metadata, path: &Path) -> io::Result<bool> {
        let near = metadata.ino() == self.inode && (metadata.dev() == self.dev || path == self.path);
        Ok(near && metadata.len() >= self.offset && self.content_is(file)?)
    }

    /// The same by its beginning alone, whatever the position.
    pub fn begins(&self, file: &File, metadata: &Metadata, path: &Path) -> io::Result<bool> {
        let near = metadata.ino() == self.inode && (metadata.dev() == self.dev || path == self.path);
        Ok(near && self.fingerprint.head.bytes > 0 && self.fingerprint.head.matches(file, 0)?)
    }

    /// Do the fingerprints fit the content?
    pub fn content_is(&self, file: &File) -> io::Result<bool> {
        let before = self.offset.checked_sub(u64::from(self.fingerprint.tail.bytes));
        let Some(before) = before else { return Ok(false) };
        Ok(self.fingerprint.head.matches(file, 0)? && self.fingerprint.tail.matches(file, before)?)
    }

    pub fn at(&self, mark: Mark) -> Self {
        Self { offset: mark.offset, fingerprint: Fingerprint { tail: mark.tail, ..self.fingerprint }, ..self.clone() }
    }
}

/// An open file's id and what is known of it now. Events point to it, so that a sink can name the file in its transaction.
#[derive(Debug)]
pub struct TailedFile {
    pub id: u64,
    known: Mutex<Known>,
}

#[derive(Clone, Debug)]
struct Known {
    path: PathBuf,
    inode: Inode,
    head: Checksum,
}

impl TailedFile {
    pub fn new(id: u64, path: PathBuf, inode: Inode, head: Checksum) -> Self {
        Self { id, known: Mutex::new(Known { path, inode, head }) }
    }

    /// As it is to be remembered with everything before `mark` delivered.
    pub fn remember(&self, mark: Mark) -> Remembered {
        let known = self.known.lock().clone();
        let fingerprint = Fingerprint { head: known.head, tail: mark.tail };
        Remembered { id: self.id, path: known.path, dev: known.inode.device, inode: known.inode.number, fingerprint, offset: mark.offset }
    }

    pub fn path(&self) -> PathBuf {
        self.known.lock().path.clone()
    }

    pub fn head(&self) -> Checksum {
        self.known.lock().head
    }

    pub fn renamed(&self, path: &Path) {
        let mut known = self.known.lock();
        if known.path != path {
            known.path = path.to_owned();
        }
    }

    /// The same content is in another file now.
    pub fn copied(&self, path: &Path, inode: Inode) {
        let mut known = self.known.lock();
        (known.path, known.inode) = (path.to_owned(), inode);
    }

    pub fn grown(&self, head: Checksum) {
        self.known.lock().head = head;
    }

    #[cfg(test)]
    pub fn for_test(id: u64) -> Self {
        Self::new(id, PathBuf::new(), Inode { device: 0, number: 0 }, Checksum::default())
    }
}

mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(id: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{id:016x}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        u64::from_str_radix(&String::deserialize(deserializer)?, 16).map_err(D::Error::custom)
    }
}

/// A path as text; one that is not UTF-8 as its bytes.
mod any_path {
    use std::{
        ffi::OsString,
        os::unix::ffi::{OsStrExt, OsStringExt},
        path::{Path, PathBuf},
    };

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Text(String),
        Bytes(Vec<u8>),
    }

    pub(super) fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
        match path.to_str() {
            Some(text) => serializer.serialize_str(text),
            None => path.as_os_str().as_bytes().serialize(serializer),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
        Ok(match Written::deserialize(deserializer)? {
            Written::Text(text) => text.into(),
            Written::Bytes(bytes) => OsString::from_vec(bytes).into(),
        })
    }
}
