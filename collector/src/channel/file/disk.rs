//! What a file channel asks of the disk. One implementation is the disk, the other one a simulation for the tests.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use crate::fault::Point;

pub trait Disk: Send + Sync + 'static {
    type File: DiskFile;

    fn create_dir_all(&self, directory: &Path) -> io::Result<()>;
    /// Names in the directory, in any order.
    fn list(&self, directory: &Path) -> io::Result<Vec<String>>;
    fn open(&self, path: &Path) -> io::Result<Self::File>;
    /// Fails where the file is there already.
    fn create(&self, path: &Path) -> io::Result<Self::File>;
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes names in the directory durable.
    fn sync_dir(&self, directory: &Path) -> io::Result<()>;
    fn free_bytes(&self, directory: &Path) -> io::Result<u64>;
}

#[allow(clippy::len_without_is_empty, reason = "nobody asks whether a file is empty")]
pub trait DiskFile: Send + Sync + 'static {
    fn len(&self) -> io::Result<u64>;
    /// As many bytes as are there; fewer only at the end.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize>;
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    fn truncate(&self, len: u64) -> io::Result<()>;
    /// Makes the bytes durable. After an error what was written since the last success may be anything, and no later success changes that.
    fn sync(&self) -> io::Result<()>;
}

pub struct RealDisk;

impl Disk for RealDisk {
    type File = File;

    fn create_dir_all(&self, directory: &Path) -> io::Result<()> {
        fs::create_dir_all(directory)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(directory)? {
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    }

    fn open(&self, path: &Path) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).open(path)
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        Point::DiskCreate.hits()?;
        OpenOptions::new().read(true).write(true).create_new(true).open(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        if Point::DiskRename.hits()? {
            return Ok(());
        }
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        if Point::DiskRemove.hits()? {
            return Ok(());
        }
        fs::remove_file(path)
    }

    fn sync_dir(&self, directory: &Path) -> io::Result<()> {
        if Point::DiskSyncDirectory.hits()? {
            return Ok(());
        }
        File::open(directory)?.sync_all()
    }

    fn free_bytes(&self, directory: &Path) -> io::Result<u64> {
        let space = rustix::fs::statvfs(directory)?;
        Ok(space.f_bavail.saturating_mul(space.f_frsize))
    }
}

impl DiskFile for File {
    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut filled = 0;
        while filled < bytes.len() {
            match FileExt::read_at(self, &mut bytes[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if Point::DiskWrite.hits()? {
            return Ok(());
        }
        self.write_all_at(bytes, offset)
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        if Point::DiskSync.hits()? {
            return Ok(());
        }
        self.sync_data()
    }
}

/// A directory that another channel holds, in this process or another.
#[derive(Debug, thiserror::Error)]
#[error("another channel or process uses {}; give each file channel its own checkpointDir and dataDirs", .0.display())]
pub struct InUse(pub PathBuf);

/// A directory that cannot be made or written.
#[derive(Debug, thiserror::Error)]
#[error("{property}: {}: {error}; name a directory that this process may write", .directory.display())]
pub struct Unusable {
    pub property: &'static str,
    pub directory: PathBuf,
    pub error: io::Error,
}

/// Locks a directory for as long as the file is held: two processes must not write one channel.
pub fn lock(property: &'static str, directory: &Path) -> anyhow::Result<File> {
    let path: PathBuf = directory.join("lock");
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(|error| Unusable {
        property,
        directory: directory.to_owned(),
        error,
    })?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(_) => Err(InUse(directory.to_owned()).into()),
    }
}
