//! Which files are meant: one by its path, or those of some directories whose names match.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs, io,
    os::unix::fs::DirEntryExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use super::command::Begin;
use super::identity::{Checksum, Inode, Remembered, TailedFile, head};
use super::reader::{begin_offset, open};
use crate::event::{Headers, Mark};
use crate::java_regex::JavaRegex;

/// Files of one directory whose names match.
pub struct Group {
    pub directory: PathBuf,
    /// Matched against the whole file name.
    pub name: JavaRegex,
    pub headers: Headers,
}

impl Group {
    /// Does the pattern mean this name? Of a name that is not UTF-8 a `.` takes what cannot be read, as in Java.
    pub fn matches(&self, name: &OsStr) -> bool {
        // A name on which it gives up is not meant.
        self.name.find(&name.to_string_lossy()).unwrap_or(false)
    }

    /// The files that match; none while the directory cannot be read.
    fn entries(&self) -> Vec<fs::DirEntry> {
        let matches = |entry: &fs::DirEntry| self.matches(&entry.file_name()) && entry.path().is_file();
        fs::read_dir(&self.directory).into_iter().flatten().flatten().filter(matches).collect()
    }
}

pub enum Find {
    Path(PathBuf),
    Groups(Vec<Group>),
}

impl Find {
    /// The files that are there now, each with the place where reading begins.
    pub fn first_look(&self, begin: Begin) -> Vec<Remembered> {
        let paths: Vec<PathBuf> = match self {
            Self::Path(path) => vec![path.clone()],
            Self::Groups(groups) => groups.iter().flat_map(Group::entries).map(|entry| entry.path()).collect(),
        };
        let look = |path: &PathBuf| {
            let (handle, metadata) = open(path)?;
            let file = TailedFile::new(rand::random(), path.clone(), Inode::from(&metadata), head(&handle)?);
            Ok(file.remember(Mark { offset: begin_offset(&handle, begin)?, tail: Checksum::default() }))
        };
        // What cannot be opened now is told, and read from its beginning, when it is looked for.
        paths.iter().filter_map(|path: &PathBuf| -> Option<Remembered> { (look(path) as io::Result<Remembered>).ok() }).collect()
    }

    /// Could names have come or gone since they were `looked` at? Where a link leads is not seen by this.
    pub fn may_have_changed(&self, looked: SystemTime) -> bool {
        // Within a second before the look it may have changed after it: file times are coarse.
        let changed = |directory: &Path| {
            let modified = fs::metadata(directory).and_then(|metadata| metadata.modified());
            modified.is_ok_and(|modified| modified + Duration::from_secs(1) >= looked)
        };
        match self {
            Self::Path(_) => true,
            Self::Groups(groups) => groups.iter().any(|group| changed(&group.directory)),
        }
    }

    /// Could a file that was at `path` be one of these?
    pub fn owns(&self, path: &Path) -> bool {
        match self {
            Self::Path(own) => path == own || is_rotated_name(own, path),
            Self::Groups(groups) => groups
                .iter()
                .any(|group| path.parent() == Some(&group.directory) && path.file_name().is_some_and(|name| group.matches(name))),
        }
    }
}

/// `app.log.1`, `app.log-20260102`, `app.log_3` for `app.log`; not what was compressed since.
pub fn is_rotated_name(file: &Path, path: &Path) -> bool {
    const COMPRESSED: [&str; 7] = [".gz", ".xz", ".zst", ".bz2", ".lz4", ".Z", ".zip"];
    let (Some(own), Some(name)) = (file.file_name(), path.file_name()) else { return false };
    let Some(rest) = name.as_encoded_bytes().strip_prefix(own.as_encoded_bytes()) else { return false };
    path.parent() == file.parent()
        && matches!(rest, [b'.' | b'-' | b'_', digit, ..] if digit.is_ascii_digit())
        && !COMPRESSED.iter().any(|end| rest.ends_with(end.as_bytes()))
}

/// Directories listed once each.
#[derive(Default)]
pub struct Listed(HashMap<PathBuf, HashMap<u64, PathBuf>>);

impl Listed {
    /// The name that a file which was at `path` has in its directory now.
    pub fn name_of(&mut self, path: &Path, inode: Inode) -> Option<PathBuf> {
        let directory = path.parent()?;
        let names = self
            .0
            .entry(directory.to_owned())
            .or_insert_with(|| fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| (entry.ino(), entry.path())).collect());
        let found = names.get(&inode.number)?;
        fs::metadata(found).is_ok_and(|metadata| Inode::from(&metadata) == inode).then(|| found.clone())
    }
}
