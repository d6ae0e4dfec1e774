//! The tail engine, driven step by step over real files: every kind of rotation, and restarts with and without delivery.

mod positions;
mod reading;
mod rotation;

use std::{
    fs::{self, File, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tempfile::TempDir;

use crate::event::{Event, Ledger, acknowledge};
use crate::source::tail::Forgotten;
use crate::source::tail::command::Begin;
use crate::source::tail::engine::{Earlier, Engine, Settings};
use crate::source::tail::find::{Find, Group};
use crate::source::tail::flume::FlumePositions;
use crate::source::tail::identity::Remembered;
use crate::source::tail::reader::READ_BYTES;
use crate::source::tail::store::Store;

struct Trial {
    directory: TempDir,
    begin: Begin,
    groups: Option<&'static str>,
    rotate_wait: Duration,
    partial_wait: Option<Duration>,
    line_bytes_max: usize,
    forgotten: Option<Forgotten>,
    handles_max: usize,
    look_pause_max: Duration,
    engine: Option<Engine>,
    ledger: Arc<Ledger>,
    /// Given out and not yet delivered.
    open: Vec<Event>,
}

impl Trial {
    fn new(begin: Begin) -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            begin,
            groups: None,
            rotate_wait: Duration::ZERO,
            partial_wait: None,
            line_bytes_max: 1 << 20,
            forgotten: None,
            handles_max: 100,
            look_pause_max: Duration::ZERO,
            engine: None,
            ledger: Arc::default(),
            open: Vec::new(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join("logs").join(name)
    }

    fn start(&mut self) -> &mut Self {
        self.start_with(Vec::new())
    }

    fn start_with(&mut self, known: Vec<Remembered>) -> &mut Self {
        fs::create_dir_all(self.path("")).unwrap();
        let find = match self.groups {
            Some(pattern) => Find::Groups(vec![Group {
                directory: self.path(""),
                name: crate::java_regex::JavaRegex::whole(pattern).unwrap(),
                headers: None,
            }]),
            None => Find::Path(self.path("app.log")),
        };
        let settings = Settings {
            find,
            line_bytes_max: self.line_bytes_max,
            rotate_wait: self.rotate_wait,
            partial_wait: self.partial_wait,
            scan_interval: Duration::ZERO,
            look_pause_max: self.look_pause_max,
            path_header: None,
            handles_max: self.handles_max,
        };
        let store = self.store();
        let first = Store::first(&self.directory.path().join("state"), "s", || settings.find.first_look(self.begin)).unwrap().unwrap();
        self.ledger = Arc::default();
        self.open.clear();
        self.engine = Some(Engine::new(settings, store, Earlier { known, first, forgotten: self.forgotten.clone() }, self.ledger.clone()));
        self
    }

    fn store(&self) -> Store {
        Store::open(&self.directory.path().join("state"), "s").unwrap()
    }

    fn saved(&self) -> Vec<Remembered> {
        self.store().saved().unwrap_or_default().to_vec()
    }

    /// As if the file had been written last so many seconds ago.
    fn age(&self, name: &str, seconds: u64) {
        let time = std::time::SystemTime::now() - Duration::from_secs(seconds);
        File::options().append(true).open(self.path(name)).unwrap().set_modified(time).unwrap();
    }

    /// Time passes while what was read waits for room.
    fn wait(&mut self) {
        self.engine.as_mut().unwrap().keep_up();
    }

    /// Everything there is now, as text; delivered only by [`Self::deliver`].
    fn read(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        // A file that lost its name is closed by one more look.
        let mut looks = 0;
        while looks < 2 {
            let Some(chunk) = self.engine.as_mut().unwrap().next_chunk() else {
                looks += 1;
                continue;
            };
            let origin = self.ledger.open(&chunk.file, chunk.mark(*chunk.ends.last().unwrap()), chunk.ends.len(), None);
            let mut start = 0;
            for &end in &chunk.ends {
                let body = chunk.line(start, end);
                lines.push(String::from_utf8(body.to_vec()).unwrap());
                self.open.push(Event { body, end: chunk.begin + end as u64, origin: Some(origin.clone()), ..Event::default() });
                start = end;
            }
        }
        lines
    }

    fn deliver(&mut self) -> &mut Self {
        acknowledge(&std::mem::take(&mut self.open));
        self.engine.as_mut().unwrap().save().unwrap();
        self
    }

    /// A kill: what was not delivered is forgotten.
    fn kill(&mut self) -> &mut Self {
        self.engine = None;
        self.start()
    }

    fn append(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        OpenOptions::new().create(true).append(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
    }

    fn rename(&self, from: &str, to: &str) {
        fs::rename(self.path(from), self.path(to)).unwrap();
    }

    fn truncate(&self, name: &str) {
        OpenOptions::new().write(true).truncate(true).open(self.path(name)).unwrap();
    }

    fn in_trouble(&self) -> Option<String> {
        self.engine.as_ref().unwrap().in_trouble()
    }

    fn handles(&self) -> usize {
        self.engine.as_ref().unwrap().handles()
    }

    fn open_files(&self) -> usize {
        self.engine.as_ref().unwrap().open_files()
    }
}

fn numbered(from: usize, to: usize) -> String {
    (from..to).map(|number| format!("line {number}\n")).collect()
}

fn lines(from: usize, to: usize) -> Vec<String> {
    (from..to).map(|number| format!("line {number}")).collect()
}

const NOTHING: [&str; 0] = [];
