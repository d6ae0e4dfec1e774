//! Events that can never be delivered are put aside with the reason, so that they neither block the others nor vanish.
//!
//! They go to a topic (`deadLetter.topic`), or to a file of JSON lines (`deadLetter.directory`, by default
//! `dead-letter/` in the state directory). The file is kept below [`FILE_BYTES_MAX`]: then it becomes `….1`, which the
//! next one replaces.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::Mutex;
use serde::Serialize;
use service_kit::kafka::{OutRecord, Producer};

use crate::counters::{Counter, unix_ms};
use crate::event::Event;
use crate::flume_conf::Component;
use crate::flume_conf::kinds::Property;
use crate::source::tail::store::file_name;

pub const FILE_BYTES_MAX: u64 = 256 << 20;

pub const DIRECTORY: Property = Property::text(
    "deadLetter.directory",
    None,
    "Where events that can never be delivered are written as JSON lines; by default `dead-letter/` in the state directory.",
)
.own();

pub struct DeadLetters {
    sink: String,
    path: PathBuf,
    topic: Option<(Arc<str>, Arc<dyn Producer>)>,
    told_at: Mutex<Option<Instant>>,
}

/// One line of the file.
#[derive(Serialize)]
struct Letter<'a> {
    time_ms: i64,
    reason: &'a str,
    headers: Option<&'a std::collections::BTreeMap<String, String>>,
    file: Option<PathBuf>,
    end: Option<u64>,
    /// As text where it is UTF-8, else `body_base64`.
    body: Option<&'a str>,
    body_base64: Option<String>,
}

impl DeadLetters {
    pub fn of(component: &Component, state_dir: &Path) -> Self {
        let directory = component.set("deadLetter.directory").map_or_else(|| state_dir.join("dead-letter"), PathBuf::from);
        Self {
            sink: component.name.clone(),
            path: directory.join(format!("{}.jsonl", file_name(&component.name))),
            topic: None,
            told_at: Mutex::new(None),
        }
    }

    pub fn to_topic(mut self, topic: &str, producer: Arc<dyn Producer>) -> Self {
        self.topic = Some((topic.into(), producer));
        self
    }

    /// Returns when the events are safe.
    pub async fn put(&self, letters: Vec<(Event, String)>, put_aside: &Counter) -> io::Result<()> {
        let Some((_, reason)) = letters.first() else { return Ok(()) };
        let count = letters.len();
        let told = {
            let mut told_at = self.told_at.lock();
            let due = told_at.is_none_or(|at| at.elapsed() > Duration::from_secs(10));
            if due {
                *told_at = Some(Instant::now());
            }
            !due
        };
        if !told {
            let place = self.topic.as_ref().map_or_else(|| self.path.display().to_string(), |(topic, _)| format!("topic {topic}"));
            tracing::warn!(sink = self.sink, events = count, reason, place, "events that cannot be delivered are put aside");
        }
        let rest = match &self.topic {
            Some((topic, producer)) => self.to_kafka(topic, producer.as_ref(), letters).await,
            None => letters,
        };
        if !rest.is_empty() {
            let path = self.path.clone();
            tokio::task::spawn_blocking(move || append(&path, &rest)).await.map_err(io::Error::other)??;
        }
        put_aside.add(count as u64);
        Ok(())
    }

    /// What the topic did not take.
    async fn to_kafka(&self, topic: &Arc<str>, producer: &dyn Producer, letters: Vec<(Event, String)>) -> Vec<(Event, String)> {
        let record = |(event, reason): &(Event, String)| {
            let mut headers = vec![
                ("millrace.reason".to_owned(), Bytes::copy_from_slice(reason.as_bytes())),
                ("millrace.sink".to_owned(), Bytes::copy_from_slice(self.sink.as_bytes())),
            ];
            headers.extend(
                event
                    .headers
                    .iter()
                    .flat_map(|headers| headers.iter())
                    .map(|(name, value)| (name.clone(), Bytes::copy_from_slice(value.as_bytes()))),
            );
            OutRecord { topic: topic.clone(), partition: None, key: None, value: Some(event.body.clone()), headers, timestamp_ms: None }
        };
        let results = producer.send(letters.iter().map(record).collect()).await;
        let failed = letters.into_iter().zip(results).filter_map(|(letter, result)| Some((letter, result.err()?)));
        failed
            .map(|((event, reason), error)| {
                tracing::debug!(topic = &**topic, %error, "the dead-letter topic does not take it; it goes to the file");
                (event, reason)
            })
            .collect()
    }
}

fn append(path: &PathBuf, letters: &[(Event, String)]) -> io::Result<()> {
    let explain = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(explain)?;
    }
    if fs::metadata(path).is_ok_and(|metadata| metadata.len() > FILE_BYTES_MAX) {
        fs::rename(path, path.with_extension("jsonl.1")).map_err(explain)?;
    }
    let mut text = Vec::new();
    for (event, reason) in letters {
        let body = std::str::from_utf8(&event.body).ok();
        let letter = Letter {
            time_ms: unix_ms(),
            reason,
            headers: event.headers.as_deref(),
            file: event.origin.as_ref().and_then(|origin| origin.file.as_ref()).map(|file| file.path()),
            end: (event.end > 0).then_some(event.end),
            body,
            body_base64: body.is_none().then(|| base64(&event.body)),
        };
        serde_json::to_writer(&mut text, &letter)?;
        text.push(b'\n');
    }
    let mut file = OpenOptions::new().append(true).create(true).open(path).map_err(explain)?;
    file.write_all(&text).and_then(|()| file.sync_data()).map_err(explain)
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counters::SinkCounters;

    #[tokio::test]
    async fn what_is_put_aside_can_be_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/k.jsonl");
        let letters = DeadLetters { sink: "k".into(), path: path.clone(), topic: None, told_at: Mutex::new(None) };
        let counters = SinkCounters::new("k");
        letters
            .put(
                vec![(Event::with_headers("té\n", [("a", "b")]), "too \"large\"".into()), (Event::new(vec![0xff, 0]), "why".into())],
                &counters.dead,
            )
            .await
            .unwrap();
        letters.put(vec![(Event::new("x"), "again".into())], &counters.dead).await.unwrap();
        letters.put(Vec::new(), &counters.dead).await.unwrap();
        let lines: Vec<serde_json::Value> =
            fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(
            (&lines[0]["body"], &lines[0]["headers"]["a"], &lines[0]["reason"]),
            (&"té\n".into(), &"b".into(), &"too \"large\"".into())
        );
        assert_eq!((&lines[1]["body"], &lines[1]["body_base64"]), (&serde_json::Value::Null, &"/wA=".into()));
        assert_eq!(counters.dead.get(), 3);
    }
}
