//! The format of a test file: TOML, every key known, every mistake with its line. The page `docs/pipeline-tests.md` is its manual.

use std::{
    collections::BTreeMap,
    fs,
    io::Read as _,
    path::{Path, PathBuf},
};

use chrono::DateTime;
use serde::{Deserialize, Deserializer, de::Error as _};
use toml::Spanned;

use crate::java_regex::JavaRegex;

/// A file larger than this is no test file.
const SIZE_MAX: u64 = 16 << 20;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TestFile {
    /// The agent's files, beside this one.
    #[serde(deserialize_with = "one_or_many")]
    pub conf: Vec<PathBuf>,
    pub agent: Option<String>,
    #[serde(default, deserialize_with = "moment")]
    pub clock: Option<i64>,
    pub host: Option<String>,
    #[serde(default)]
    pub define: BTreeMap<String, String>,
    #[serde(rename = "test")]
    pub tests: Vec<Spanned<Test>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Test {
    pub name: String,
    pub source: Option<String>,
    #[serde(default)]
    pub lines: Vec<String>,
    #[serde(default)]
    pub input: Vec<Given>,
    #[serde(default)]
    pub expect: Vec<Spanned<Expect>>,
    /// No event comes to any channel.
    #[serde(default)]
    pub none: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Given {
    pub body: String,
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
}

/// What comes to one channel or sink.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expect {
    pub channel: Option<String>,
    pub sink: Option<String>,
    pub count: Option<usize>,
    #[serde(default)]
    pub none: bool,
    #[serde(default, rename = "event")]
    pub events: Vec<Spanned<Expected>>,
}

/// What is said of one event; what is not said is not looked at.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expected {
    pub body: Option<String>,
    pub body_matches: Option<Pattern>,
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    #[serde(default)]
    pub headers_match: BTreeMap<String, Pattern>,
    #[serde(default)]
    pub headers_absent: Vec<String>,
    pub topic: Option<String>,
    pub partition: Option<i32>,
    pub key: Option<String>,
    #[serde(default)]
    pub record_headers: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "moment")]
    pub timestamp: Option<i64>,
    pub dead_letter: Option<Pattern>,
    pub path: Option<String>,
}

impl Expected {
    /// Is something said that only a Kafka sink's record has?
    pub fn is_of_record(&self) -> bool {
        self.topic.is_some()
            || self.partition.is_some()
            || self.key.is_some()
            || self.timestamp.is_some()
            || self.dead_letter.is_some()
            || !self.record_headers.is_empty()
    }
}

/// A regular expression of Java's syntax that must match the whole text.
#[derive(Debug)]
pub struct Pattern {
    pub text: String,
    regex: JavaRegex,
}

impl Pattern {
    pub fn matches(&self, text: &str) -> bool {
        self.regex.find(text).unwrap_or(false)
    }
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let regex = JavaRegex::whole(&text).map_err(|refused| D::Error::custom(format!("`{text}`: {refused}")))?;
        Ok(Self { text, regex })
    }
}

fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<PathBuf>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a file's name, or a list of them")]
    enum Names {
        One(PathBuf),
        Many(Vec<PathBuf>),
    }
    match Names::deserialize(deserializer)? {
        Names::One(name) => Ok(vec![name]),
        Names::Many(names) if names.is_empty() => Err(D::Error::custom("no file is named")),
        Names::Many(names) => Ok(names),
    }
}

/// Milliseconds since 1970, or RFC 3339.
fn moment<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "milliseconds since 1970, or a time such as \"2026-03-04T17:06:07.089Z\"")]
    enum Moment {
        Millis(i64),
        Text(String),
        Time(toml::value::Datetime),
    }
    let text = match Moment::deserialize(deserializer)? {
        Moment::Millis(millis) => return Ok(Some(millis)),
        Moment::Text(text) => text,
        Moment::Time(time) => time.to_string(),
    };
    let time = DateTime::parse_from_rfc3339(&text);
    time.map(|time| Some(time.timestamp_millis()))
        .map_err(|_| D::Error::custom(format!("`{text}` is not a time with its zone, such as 2026-03-04T17:06:07.089Z")))
}

/// A mistake in a test file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub line: usize,
    pub message: String,
}

/// A test file and its text, so that a place in it has a line.
#[derive(Debug)]
pub struct Loaded {
    pub name: String,
    pub directory: PathBuf,
    pub file: TestFile,
    text: String,
}

impl Loaded {
    /// All that is wrong with the file, at once.
    pub fn read(path: &Path) -> Result<Self, Vec<Fault>> {
        let whole = |message: String| vec![Fault { line: 1, message }];
        // A pipe would be waited for.
        if fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
            return Err(whole("is not a file".into()));
        }
        let mut text = String::new();
        let read = fs::File::open(path).and_then(|file| file.take(SIZE_MAX + 1).read_to_string(&mut text));
        let size = read.map_err(|error| whole(format!("cannot be read: {error}")))?;
        if size as u64 > SIZE_MAX {
            return Err(whole(format!("is larger than {SIZE_MAX} bytes")));
        }
        Self::parse(path, text)
    }

    pub fn parse(path: &Path, text: String) -> Result<Self, Vec<Fault>> {
        let file: TestFile = toml::from_str(&text).map_err(|error| faults(&text, error))?;
        let directory = path.parent().unwrap_or(Path::new("")).to_owned();
        let loaded = Self { name: path.display().to_string(), directory, file, text };
        let faults = loaded.review();
        if faults.is_empty() { Ok(loaded) } else { Err(faults) }
    }

    pub fn line<T>(&self, part: &Spanned<T>) -> usize {
        line_of(&self.text, part.span().start)
    }

    fn review(&self) -> Vec<Fault> {
        let tests = &self.file.tests;
        let mut faults = Vec::new();
        for (at, test) in tests.iter().enumerate() {
            let line = self.line(test);
            let test = test.get_ref();
            let mut fault = |message: &str| faults.push(Fault { line, message: format!("test `{}`: {message}", test.name) });
            if tests.iter().take(at).any(|other| other.get_ref().name == test.name) {
                fault("another test has this name");
            }
            if test.lines.is_empty() && test.input.is_empty() {
                fault("nothing goes in; give `lines` or [[test.input]]");
            }
            if !test.lines.is_empty() && !test.input.is_empty() {
                fault("`lines` and [[test.input]] exclude each other");
            }
            match (test.none, test.expect.is_empty()) {
                (false, true) => fault("nothing is expected; give [[test.expect]], or none = true"),
                (true, false) => fault("none = true says that nothing comes anywhere; [[test.expect]] says something else"),
                _ => {}
            }
            for expect in &test.expect {
                self.review_expect(expect, &mut faults);
            }
        }
        if tests.is_empty() {
            faults.push(Fault { line: 1, message: "there is no [[test]]".into() });
        }
        faults
    }

    fn review_expect(&self, expect: &Spanned<Expect>, faults: &mut Vec<Fault>) {
        let line = self.line(expect);
        let mut fault = |line: usize, message: &str| faults.push(Fault { line, message: message.to_owned() });
        let Expect { channel, sink, count, none, events } = expect.get_ref();
        if channel.is_some() == sink.is_some() {
            fault(line, "[[test.expect]] needs `channel` or `sink`, one of them");
        }
        if *none && (count.is_some() || !events.is_empty()) {
            fault(line, "none = true says that nothing comes; `count` and events say something else");
        }
        if !*none && count.is_none() && events.is_empty() {
            fault(line, "nothing is expected; give [[test.expect.event]], count, or none = true");
        }
        if count.is_some_and(|count| !events.is_empty() && count < events.len()) {
            fault(line, "`count` is less than the events that follow");
        }
        for event in events {
            let (line, said) = (self.line(event), event.get_ref());
            if said.body.is_some() && said.body_matches.is_some() {
                fault(line, "`body` and `body_matches` exclude each other");
            }
            if channel.is_some() && (said.is_of_record() || said.path.is_some()) {
                fault(line, "a channel has neither records nor paths; name the `sink`");
            }
        }
    }
}

/// Mistakes that are looked for, at most.
const FAULTS_MAX: usize = 50;

/// All that is wrong with a file that cannot be read as tests: the reader stops at the first, so each line that is wrong
/// is emptied and the rest read again.
fn faults(text: &str, first: toml::de::Error) -> Vec<Fault> {
    let fault = |text: &str, error: &toml::de::Error| Fault {
        line: line_of(text, error.span().map_or(0, |span| span.start)),
        message: error.message().to_owned(),
    };
    let mut faults = vec![fault(text, &first)];
    // What follows a mistake in TOML itself is guesswork.
    if text.parse::<toml::Table>().is_err() {
        return faults;
    }
    let mut lines: Vec<&str> = text.lines().collect();
    while faults.len() < FAULTS_MAX
        && let Some(line) = faults.last().and_then(|fault| lines.get_mut(fault.line.saturating_sub(1)))
        && !std::mem::take(line).is_empty()
    {
        let rest = lines.join("\n");
        // A line without its key, or a table without its name, was part of a longer value.
        if rest.parse::<toml::Table>().is_err() {
            break;
        }
        match toml::from_str::<TestFile>(&rest) {
            Ok(_) => break,
            // It may have been in a line that is empty now.
            Err(error) if error.message().starts_with("missing field") => break,
            Err(error) => faults.push(fault(&rest, &error)),
        }
    }
    faults
}

fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count() + 1
}
