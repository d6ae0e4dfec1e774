//! `logger`: events in the log, in Flume's form: `Event: { headers:{} body: 68 65 6C 6C 6F … hello }`.

use std::fmt::Write as _;

use async_trait::async_trait;

use super::{Input, Setup, Sink};
use crate::event::Event;
use crate::flume_conf::kinds::{adopts_nothing, nothing_to_say};
use crate::flume_conf::{Component, Kind, Property, Role};
use crate::source::Stop;

pub static KIND: Kind = Kind {
    role: Role::Sink,
    alias: Some("logger"),
    class: Some("org.apache.flume.sink.LoggerSink"),
    doc: "Writes every event into the log, its first bytes as hexadecimal numbers and as text.",
    properties: &[Property::integer("maxBytesToLog", 0, 1_048_576, Some("16"), "Bytes of the body that are written.")],
    deprecated: &[],
    misspelt: &[],
    adopt: adopts_nothing,
    batch: None,
    review: nothing_to_say,
};

pub fn build(component: &Component, _setup: Setup) -> anyhow::Result<Box<dyn Sink>> {
    Ok(Box::new(Logger(component.count("maxBytesToLog"))))
}

struct Logger(usize);

#[async_trait]
impl Sink for Logger {
    async fn run(self: Box<Self>, input: Input, stop: Stop) -> anyhow::Result<()> {
        loop {
            let taken = tokio::select! {
                taken = input.take(100) => taken,
                () = stop.begin.cancelled() => return Ok(()),
            };
            for event in taken.events() {
                tracing::info!("Event: {}", dump(event, self.0));
            }
            input.counters.delivered.add(taken.len() as u64);
            taken.commit();
        }
    }
}

fn dump(event: &Event, bytes_max: usize) -> String {
    let headers = event.headers.iter().flat_map(|headers| headers.iter()).map(|(name, value)| format!("{name}={value}"));
    let mut text = format!("{{ headers:{{{}}} body:", headers.collect::<Vec<_>>().join(", "));
    let body = &event.body[..event.body.len().min(bytes_max)];
    for (row, bytes) in body.chunks(16).enumerate() {
        // Flume writes the offset of every row but the first.
        if row > 0 {
            let _infallible = write!(text, "\n{:08X}", row * 16);
        }
        text.push(' ');
        for at in 0..16 {
            match bytes.get(at) {
                Some(byte) => {
                    let _infallible = write!(text, "{byte:02X} ");
                }
                None => text.push_str("   "),
            }
        }
        text.extend(bytes.iter().map(|&byte| if (b' '..127).contains(&byte) { char::from(byte) } else { '.' }));
    }
    text.push_str(" }");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_written_as_flume_writes_them() {
        for (event, max, expected) in [
            (Event::new("hello"), 16, "{ headers:{} body: 68 65 6C 6C 6F                                  hello }"),
            (Event::new(""), 16, "{ headers:{} body: }"),
            (Event::new("0123456789abcdefgh"), 16, "{ headers:{} body: 30 31 32 33 34 35 36 37 38 39 61 62 63 64 65 66 0123456789abcdef }"),
            (
                Event::new("0123456789abcdefgh"),
                99,
                "{ headers:{} body: 30 31 32 33 34 35 36 37 38 39 61 62 63 64 65 66 0123456789abcdef\n00000010 67 68                                           gh }",
            ),
            (
                Event::with_headers("é\t", [("a", "1"), ("b", "2")]),
                16,
                "{ headers:{a=1, b=2} body: C3 A9 09                                        ... }",
            ),
        ] {
            assert_eq!(dump(&event, max), expected);
        }
    }
}
