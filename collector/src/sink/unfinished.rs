//! Files that a sink is writing on this machine, remembered in the state directory, so that a kill leaves none half done.
//!
//! A file is remembered before it is made, so that a kill forgets none, and on the disk itself before the first take it
//! holds is committed, so that a power cut does not either. At the next start each file that is remembered and
//! still there is cut after its last whole event, synced and given its final name. What is cut had not been committed;
//! whole events behind the last commit stay, and come again: at least once.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, BufReader, Read, Seek, SeekFrom, Write as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::hdfs::{codec::Codec, sequence};
use crate::serializer::{self, Format};
use crate::source::tail::store::file_name;

pub struct Unfinished {
    path: PathBuf,
    open: BTreeMap<PathBuf, Entry>,
    /// Is there a file that the disk does not know of yet?
    news: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The name it gets when it is done.
    pub finished: PathBuf,
    pub shape: Shape,
}

/// What the end of a whole event looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shape {
    Lines,
    /// Bodies without anything between them: a torn one cannot be told.
    Bytes,
    Avro,
    Members(Codec),
    Sequence,
}

impl Shape {
    pub fn of(format: Format) -> Self {
        match format {
            Format::Avro { .. } => Self::Avro,
            _ if format.is_lines() => Self::Lines,
            _ => Self::Bytes,
        }
    }
}

impl Unfinished {
    /// What `sink` left; `<state directory>/<sink>.unfinished.json`.
    pub fn load(state_dir: &Path, sink: &str) -> io::Result<Self> {
        let path = state_dir.join(format!("{}.unfinished.json", file_name(sink)));
        let open = match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|error| {
                tracing::warn!(%error, file = %path.display(), "the list of unfinished files cannot be read; files in use keep their names");
                BTreeMap::new()
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
        };
        let mut all = Self { path, open, news: false };
        // What the last process made and did not come to sync.
        let unsynced = fs::read(all.unsynced()).ok().and_then(|text| serde_json::from_slice::<BTreeMap<_, _>>(&text).ok());
        all.open.extend(unsynced.unwrap_or_default());
        Ok(all)
    }

    /// Finishes what an earlier process left. A file that cannot be finished is told and remembered.
    pub fn finish_all(&mut self) -> io::Result<()> {
        let left = std::mem::take(&mut self.open);
        let had = !left.is_empty();
        for (path, entry) in left {
            match finish(&path, &entry) {
                Ok(None) => {}
                Ok(Some(cut)) => {
                    tracing::info!(file = %entry.finished.display(), bytes_cut = cut, "finished a file that an earlier process left");
                }
                Err(error) => {
                    tracing::warn!(%error, file = %path.display(), "a file that an earlier process left cannot be finished; tried again at the next start");
                    self.open.insert(path, entry);
                }
            }
        }
        if had {
            self.save()?;
            match fs::remove_file(self.unsynced()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(self.explain(error)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Before the file is made. To be followed by [`Self::saved`] before a take whose events are in it is committed.
    pub fn add(&mut self, path: PathBuf, entry: Entry) -> io::Result<()> {
        self.open.insert(path, entry);
        self.news = true;
        self.make_directory()?;
        // Apart from the synced list: a power cut may leave anything of a file that is not synced.
        let new = self.path.with_extension("unsynced.new");
        fs::write(&new, serde_json::to_vec(&self.open)?)
            .and_then(|()| fs::rename(&new, self.unsynced()))
            .map_err(|error| self.explain(error))
    }

    fn unsynced(&self) -> PathBuf {
        self.path.with_extension("unsynced.json")
    }

    /// The file has its final name. The disk need not know: a file that is not there is nothing to finish.
    pub fn remove(&mut self, path: &Path) {
        self.open.remove(path);
    }

    /// Everything added is on disk.
    pub fn saved(&mut self) -> io::Result<()> {
        if !std::mem::take(&mut self.news) {
            return Ok(());
        }
        self.save().inspect_err(|_| self.news = true)
    }

    fn save(&self) -> io::Result<()> {
        self.make_directory()?;
        let write = || {
            let new = self.path.with_extension("json.new");
            let mut file = File::create(&new)?;
            file.write_all(&serde_json::to_vec(&self.open)?)?;
            file.sync_all()?;
            fs::rename(&new, &self.path)?;
            sync_parent(&self.path)
        };
        write().map_err(|error| self.explain(error))
    }

    fn make_directory(&self) -> io::Result<()> {
        self.path.parent().map_or(Ok(()), |directory| fs::create_dir_all(directory).map_err(|error| self.explain(error)))
    }

    fn explain(&self, error: io::Error) -> io::Error {
        io::Error::new(error.kind(), format!("{}: {error}", self.path.display()))
    }
}

/// The bytes cut, or `None` where the file is gone.
fn finish(path: &Path, entry: &Entry) -> io::Result<Option<u64>> {
    let mut file = match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let length = file.metadata()?.len();
    let whole = whole(&mut file, length, entry.shape)?;
    if whole == 0 {
        // Nothing of it had been committed, and an empty file is not always a valid one (gzip's is not).
        fs::remove_file(path)?;
        return Ok(Some(length));
    }
    if whole < length {
        file.set_len(whole)?;
    }
    file.sync_all()?;
    if path != entry.finished {
        // Somebody else's file keeps its name.
        if entry.finished.try_exists()? {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{} is there already", entry.finished.display())));
        }
        fs::rename(path, &entry.finished)?;
        sync_parent(path)?;
    }
    Ok(Some(length - whole))
}

/// Where the file's last whole event ends.
fn whole(file: &mut File, length: u64, shape: Shape) -> io::Result<u64> {
    match shape {
        Shape::Bytes => Ok(length),
        Shape::Lines => last_line(file, length),
        // A file cut within its first bytes holds nothing.
        Shape::Sequence => Ok(sequence::whole(&mut BufReader::new(file)).unwrap_or(0)),
        Shape::Avro => Ok(serializer::whole_avro(&mut BufReader::new(file)).unwrap_or(0)),
        Shape::Members(codec) => {
            let mut input = BufReader::new(file);
            let mut end = 0;
            while codec.skip_member(&mut input).unwrap_or(false) {
                end = input.stream_position()?;
            }
            Ok(end)
        }
    }
}

/// Behind the last newline.
fn last_line(file: &mut File, length: u64) -> io::Result<u64> {
    const STEP: u64 = 64 << 10;
    let mut end = length;
    let mut bytes = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(STEP);
        file.seek(SeekFrom::Start(start))?;
        bytes.clear();
        file.take(end - start).read_to_end(&mut bytes)?;
        if let Some(at) = memchr::memrchr(b'\n', &bytes) {
            return Ok(start + at as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

/// A new name is safe when its directory is.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}

/// Makes a directory and those above it; they are there after a power cut as well.
pub fn make_directory(path: &Path) -> io::Result<()> {
    if path.as_os_str().is_empty() || path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        make_directory(parent)?;
    }
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        made => made.and_then(|()| sync_parent(path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Event;
    use crate::serializer::AvroCodec;

    /// What becomes of a file of `shape` that holds `whole` and then `torn`.
    fn check(shape: Shape, whole: &[u8], torn: &[u8]) {
        let directory = tempfile::tempdir().unwrap();
        let (path, finished) = (directory.path().join("f.tmp"), directory.path().join("f"));
        let mut before = Unfinished::load(directory.path(), "k").unwrap();
        before.add(path.clone(), Entry { finished: finished.clone(), shape }).unwrap();
        before.saved().unwrap();
        // Made, and not synced when the process was killed.
        before.add(directory.path().join("never made"), Entry { finished: finished.clone(), shape }).unwrap();
        let late = (directory.path().join("late.tmp"), directory.path().join("late"));
        before.add(late.0.clone(), Entry { finished: late.1.clone(), shape }).unwrap();
        fs::write(&late.0, [whole, torn].concat()).unwrap();
        fs::write(&path, [whole, torn].concat()).unwrap();
        let mut after = Unfinished::load(directory.path(), "k").unwrap();
        after.finish_all().unwrap();
        let expected = (!whole.is_empty()).then(|| whole.to_owned());
        assert_eq!(fs::read(&finished).ok(), expected, "{shape:?} {torn:?}");
        assert_eq!(fs::read(&late.1).ok(), expected);
        assert!(!path.exists() && !late.0.exists() && after.open.is_empty());
        assert!(Unfinished::load(directory.path(), "k").unwrap().open.is_empty());
    }

    #[test]
    fn a_torn_end_is_cut_and_the_file_gets_its_name() {
        check(Shape::Lines, b"a\nb\n", b"c");
        check(Shape::Lines, b"a\nb\n", b"");
        check(Shape::Lines, b"a\n", &[0; 5000]);
        check(Shape::Lines, b"a\n", &vec![b'x'; 200_000]);
        check(Shape::Lines, b"", b"abc");
        check(Shape::Bytes, b"abc", b"");
        for codec in [Codec::Gzip, Codec::Snappy, Codec::Zstandard, Codec::Deflate] {
            let (mut one, mut two) = (Vec::new(), Vec::new());
            codec.member(b"a\nb\n", &mut one).unwrap();
            codec.member(b"c\nd\n", &mut one).unwrap();
            codec.member(b"e\n", &mut two).unwrap();
            for cut in [0, 1, 5, two.len() - 1] {
                check(Shape::Members(codec), &one, &two[..cut]);
            }
        }
        for codec in [AvroCodec::Null, AvroCodec::Deflate, AvroCodec::Snappy, AvroCodec::Zstandard] {
            let mut whole = Vec::new();
            let mut file = Format::Avro { block_bytes: 1, codec }.begin(&mut whole);
            file.write(&Event::with_headers("body", [("a", "b")]), &mut whole).unwrap();
            let mut torn = Vec::new();
            file.write(&Event::new("another"), &mut torn).unwrap();
            for cut in 0..torn.len() {
                check(Shape::Avro, &whole, &torn[..cut]);
            }
            check(Shape::Avro, &whole, &[0; 64]);
        }
        check(Shape::Avro, b"", b"Obj\x01\x04");
        check(Shape::Sequence, b"", b"SEQ\x06\x21org");
    }

    #[test]
    fn a_name_that_is_taken_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let (path, finished) = (directory.path().join("f.tmp"), directory.path().join("f"));
        fs::write(&finished, "other").unwrap();
        fs::write(&path, "a\nb").unwrap();
        let mut open = Unfinished::load(directory.path(), "k").unwrap();
        open.add(path.clone(), Entry { finished: finished.clone(), shape: Shape::Lines }).unwrap();
        open.finish_all().unwrap();
        assert_eq!((fs::read(&finished).unwrap(), fs::read(&path).unwrap()), (b"other".to_vec(), b"a\n".to_vec()));
        assert_eq!(Unfinished::load(directory.path(), "k").unwrap().open.len(), 1);
    }
}
