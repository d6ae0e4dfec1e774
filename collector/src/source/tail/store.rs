//! Positions on disk: one small JSON file per source in the state directory, replaced as a whole.
//!
//! Promise: after `save` returns the positions survive a crash: temporary file, fsync, rename, fsync of the directory.
//! A file that cannot be read is kept aside as `….damaged` and told, never silently overwritten; one that says where reading
//! was to begin only where nothing depends on it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde::{Deserialize, Serialize};

use super::identity::Remembered;

#[derive(Serialize, Deserialize)]
struct Document {
    version: u32,
    files: Vec<Remembered>,
}

const VERSION: u32 = 1;
/// End of a file's name; before it is the source's.
const END: &str = ".positions.json";
/// The same of the file with what the very first look found.
const FIRST_END: &str = ".first.json";

pub struct Store {
    path: PathBuf,
    /// What is on disk, so that nothing is written twice.
    written: Option<Vec<Remembered>>,
}

impl Store {
    /// `<directory>/<source>.positions.json`; the directory is made if it is not there.
    pub fn open(directory: &Path, source: &str) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        Self::at(directory.join(format!("{}{END}", file_name(source))))
    }

    fn at(path: PathBuf) -> io::Result<Self> {
        let files = match fs::read(&path) {
            Ok(text) => match serde_json::from_slice::<Document>(&text) {
                Ok(document) if document.version == VERSION => Some(document.files),
                Ok(document) => {
                    return Err(io::Error::other(format!(
                        "{} has version {}, this program writes version {VERSION}; use the newer program or remove the file",
                        path.display(),
                        document.version
                    )));
                }
                Err(error) => {
                    let aside = path.with_extension("json.damaged");
                    fs::rename(&path, &aside)?;
                    tracing::warn!(%error, file = %path.display(), kept = %aside.display(), "positions cannot be read; files are found again by other means or read as new");
                    None
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(unreadable(&path, &error)),
        };
        Ok(Self { path, written: files })
    }

    /// Positions that sources left here which are not `configured` any more: a source that was renamed goes on from them.
    pub fn left(directory: &Path, configured: &[String]) -> io::Result<Vec<Self>> {
        let known: Vec<String> = configured.iter().map(|name| format!("{}{END}", file_name(name))).collect();
        let mut left: Vec<PathBuf> = fs::read_dir(directory)?
            .flatten()
            .filter(|entry| entry.file_name().to_str().is_some_and(|name| name.ends_with(END) && !known.iter().any(|known| known == name)))
            .map(|entry| entry.path())
            .collect();
        left.sort();
        left.into_iter().map(Self::at).collect()
    }

    /// Another source has these files now. Without any file left there is nothing to remember of the source.
    pub fn give_away(&mut self, taken: impl Fn(&Remembered) -> bool) -> io::Result<()> {
        let rest: Vec<Remembered> = self.saved().unwrap_or_default().iter().filter(|file| !taken(file)).cloned().collect();
        if !rest.is_empty() {
            return self.save(rest);
        }
        fs::remove_file(&self.path)?;
        match fs::remove_file(self.first_path()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    pub fn directory(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("."))
    }

    /// Its source's name, as it is written in the file's.
    pub fn name(&self) -> String {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        name.strip_suffix(END).unwrap_or(&name).to_owned()
    }

    /// What is on disk; `None` where nothing was ever saved.
    pub fn saved(&self) -> Option<&[Remembered]> {
        self.written.as_deref()
    }

    /// When it was saved last; where it never was, when the source's very first look was noted.
    pub fn saved_at(&self) -> Option<SystemTime> {
        let modified = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified());
        modified(&self.path).or_else(|_| modified(&self.first_path())).ok()
    }

    fn first_path(&self) -> PathBuf {
        let path = self.path.to_string_lossy();
        PathBuf::from(format!("{}{FIRST_END}", path.strip_suffix(END).unwrap_or(&path)))
    }

    /// What the source's very first look found, as it was noted then; looked at and noted now if it was not. So a process
    /// that is killed before it has saved a position still begins where the first one would have begun. `None` where the
    /// note is damaged.
    pub fn first(directory: &Path, source: &str, look: impl FnOnce() -> Vec<Remembered>) -> io::Result<Option<Vec<Remembered>>> {
        let path = directory.join(format!("{}{FIRST_END}", file_name(source)));
        match fs::read(&path) {
            Ok(text) => Ok(serde_json::from_slice::<Document>(&text).ok().map(|document| document.files)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(directory)?;
                let document = Document { version: VERSION, files: look() };
                write_atomically(&path, &serde_json::to_vec_pretty(&document)?)?;
                Ok(Some(document.files))
            }
            Err(error) => Err(unreadable(&path, &error)),
        }
    }

    /// [`Self::first`] of a note that may be damaged. With `spare` nothing depends on it: it is put aside and noted anew. Else
    /// it is an error, which says what removing it `means`.
    pub fn first_or_aside(
        directory: &Path,
        source: &str,
        spare: bool,
        means: &str,
        look: impl Fn() -> Vec<Remembered>,
    ) -> io::Result<Vec<Remembered>> {
        if let Some(files) = Self::first(directory, source, &look)? {
            return Ok(files);
        }
        let path = directory.join(format!("{}{FIRST_END}", file_name(source)));
        if !spare {
            let noted = fs::metadata(&path).and_then(|metadata| metadata.modified()).map(chrono::DateTime::<chrono::Local>::from);
            let since = noted.map_or_else(|_| String::new(), |noted| format!(" after {}", noted.format("%F %T")));
            return Err(io::Error::other(format!(
                "{} is damaged, which notes where reading begins, and no position is saved yet; without it {means}: what was \
                 written{since} and lies before that is not read. Remove the file to begin so",
                path.display()
            )));
        }
        let aside = path.with_extension("json.damaged");
        fs::rename(&path, &aside)?;
        tracing::warn!(file = %path.display(), kept = %aside.display(), "the note of the first look is damaged; it is not needed: no line is lost or repeated");
        Self::first(directory, source, look).map(Option::unwrap_or_default)
    }

    pub fn save(&mut self, files: Vec<Remembered>) -> io::Result<()> {
        if self.written.as_ref() == Some(&files) || (self.written.is_none() && files.is_empty()) {
            return Ok(());
        }
        self.written = None;
        let document = Document { version: VERSION, files };
        write_atomically(&self.path, &serde_json::to_vec_pretty(&document)?)?;
        self.written = Some(document.files);
        Ok(())
    }
}

fn unreadable(path: &Path, error: &io::Error) -> io::Error {
    let remedy = if error.kind() == io::ErrorKind::IsADirectory { "; a file belongs there: remove the directory" } else { "" };
    io::Error::new(error.kind(), format!("{}: {error}{remedy}", path.display()))
}

pub fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // Whoever cleaned up may have taken the directory too.
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let temporary = path.with_extension("json.new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    drop(file);
    fs::rename(&temporary, path)?;
    // Sync the directory too: a durable file whose name is lost is a lost file.
    match path.parent() {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

/// A component's name as a file name: what is not a letter, digit, `-`, `_` or `.` is written as its code.
pub fn file_name(name: &str) -> String {
    let mut result = String::new();
    for char in name.chars() {
        match char {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '-' | '_' => result.push(char),
            '.' if !result.is_empty() => result.push('.'),
            other => result.push_str(&format!("%{:x}", u32::from(other))),
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::super::identity::Fingerprint;
    use super::*;

    fn remembered(id: u64, offset: u64) -> Remembered {
        Remembered { id, path: "/var/log/app.log".into(), dev: 1, inode: 2, fingerprint: Fingerprint::default(), offset }
    }

    #[test]
    fn what_is_saved_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let saved = |source: &str| Store::open(directory.path(), source).unwrap().saved().map(<[Remembered]>::to_vec);
        assert_eq!(saved("src"), None);
        let mut store = Store::open(directory.path(), "src").unwrap();
        store.save(Vec::new()).unwrap();
        assert_eq!(saved("src"), None);
        store.save(vec![remembered(u64::MAX, 5), remembered(1, 9)]).unwrap();
        assert_eq!(saved("src"), Some(vec![remembered(u64::MAX, 5), remembered(1, 9)]));
        assert_eq!(saved("other"), None);
        store.save(Vec::new()).unwrap();
        assert_eq!(saved("src"), Some(Vec::new()));
    }

    #[test]
    fn a_damaged_file_is_kept_aside_and_a_newer_one_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s.positions.json");
        fs::write(&path, "{\"version\":1,\"files\":[{").unwrap();
        assert_eq!(Store::open(directory.path(), "s").unwrap().saved(), None);
        assert!(directory.path().join("s.positions.json.damaged").exists());
        fs::write(&path, "{\"version\":2,\"files\":[]}").unwrap();
        assert!(Store::open(directory.path(), "s").err().unwrap().to_string().contains("version 2"));
    }

    #[test]
    fn a_damaged_note_of_the_first_look_stops_nothing_that_does_not_need_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s.first.json");
        let first = |spare| Store::first_or_aside(directory.path(), "s", spare, "reading begins at the end", || vec![remembered(1, 9)]);
        assert_eq!(first(false).unwrap(), [remembered(1, 9)]);
        fs::write(&path, "{\"version\":1,\"fil").unwrap();
        assert_eq!(Store::first(directory.path(), "s", Vec::new).unwrap(), None);
        let error = first(false).unwrap_err().to_string();
        assert!(error.contains("s.first.json is damaged") && error.contains("without it reading begins at the end: "), "{error}");
        assert!(path.exists());
        assert_eq!(first(true).unwrap(), [remembered(1, 9)]);
        assert!(directory.path().join("s.first.json.damaged").exists());
        assert_eq!(Store::first(directory.path(), "s", Vec::new).unwrap(), Some(vec![remembered(1, 9)]));
    }

    #[test]
    fn a_directory_in_a_files_place_is_told_with_the_remedy() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["s.first.json", "s.positions.json"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        let first = Store::first(directory.path(), "s", Vec::new).err().unwrap().to_string();
        let saved = Store::open(directory.path(), "s").err().unwrap().to_string();
        for (error, name) in [(first, "s.first.json"), (saved, "s.positions.json")] {
            assert!(error.contains(name) && error.ends_with("; a file belongs there: remove the directory"), "{error}");
        }
    }

    #[test]
    fn a_left_over_temporary_file_does_no_harm() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("s.positions.json.new"), "torn").unwrap();
        Store::open(directory.path(), "s").unwrap().save(vec![remembered(3, 4)]).unwrap();
        assert_eq!(Store::open(directory.path(), "s").unwrap().saved(), Some(&[remembered(3, 4)][..]));
    }

    #[test]
    fn names_become_safe_file_names() {
        for (name, expected) in [("logSource", "logSource"), ("a/b", "a%2fb"), ("..", "%2e."), ("源", "%6e90"), ("a b", "a%20b")] {
            assert_eq!(file_name(name), expected);
        }
    }
}
