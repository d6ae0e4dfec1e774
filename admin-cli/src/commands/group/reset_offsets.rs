//! `millrace group reset-offsets GROUP --topic TOPIC --to PLACE`

use std::str::FromStr;

use chrono::DateTime;
use proto::control::v1::{OffsetChange, ResetOffsetsRequest, bridge_client::BridgeClient, reset_offsets_request::To};
use serde::Serialize;

use crate::{
    cli::{Service, Session},
    failure::Failure,
    output::{Output, Table, human, right},
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    group: String,
    /// All partitions of this topic.
    #[arg(long)]
    topic: String,
    /// `earliest`, `latest`, an offset, or a time as `2026-01-31T08:00:00Z`: the first record of then or later.
    #[arg(long, value_name = "PLACE")]
    to: Place,
    /// Shows what would change; changes nothing.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Earliest,
    Latest,
    Offset(i64),
    Time(i64),
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "earliest" => return Ok(Self::Earliest),
            "latest" => return Ok(Self::Latest),
            _ => {}
        }
        if let Ok(offset @ 0..) = text.parse() {
            return Ok(Self::Offset(offset));
        }
        match DateTime::parse_from_rfc3339(text).map(|time| time.timestamp_millis()) {
            Ok(time @ 0..) => Ok(Self::Time(time)),
            _ => Err("expected earliest, latest, an offset, or a time with its zone, e.g. 2026-01-31T08:00:00Z".to_owned()),
        }
    }
}

#[derive(Serialize)]
struct Report {
    /// False after `--dry-run`.
    changed: bool,
    group: String,
    topic: String,
    partitions: Vec<View>,
}

#[derive(Serialize)]
struct View {
    partition: i32,
    /// `null` where the group had no offset.
    from: Option<i64>,
    to: i64,
    /// After the change.
    lag: i64,
}

impl From<OffsetChange> for View {
    fn from(change: OffsetChange) -> Self {
        let OffsetChange { partition, from, to, end_offset } = change;
        Self { partition, from, to, lag: end_offset.saturating_sub(to) }
    }
}

pub(crate) async fn run(args: Args, session: &Session) -> Result<(), Failure> {
    let Args { group, topic, to, dry_run } = args;
    let to = match to {
        Place::Earliest => To::Earliest(true),
        Place::Latest => To::Latest(true),
        Place::Offset(offset) => To::Offset(offset),
        Place::Time(time) => To::TimestampMs(time),
    };
    let link = session.connect(Service::Bridge).await?;
    let request = link.request(ResetOffsetsRequest { group: group.clone(), topic: topic.clone(), to: Some(to), dry_run });
    let answer = link.answer(BridgeClient::new(link.channel()).reset_offsets(request)).await?;
    let partitions = answer.partitions.into_iter().map(View::from).collect();
    session.out.show(&Report { changed: !dry_run, group, topic, partitions }, text)
}

fn text(report: &Report, out: &Output) -> String {
    let mut facts = Table::plain(out);
    facts.fact(if report.changed { "reset" } else { "would reset" }, &report.group);
    facts.fact("topic", &report.topic);
    let mut partitions = Table::new(out, vec![right("PARTITION"), right("FROM"), right("TO"), right("LAG")]);
    for view in &report.partitions {
        partitions.row(vec![
            right(view.partition.to_string()),
            right(view.from.map_or_else(|| "-".to_owned(), human::count)),
            right(human::count(view.to)),
            right(human::count(view.lag)),
        ]);
    }
    format!("{}\n\n{}", facts.render(), partitions.render())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_an_end_an_offset_or_a_time() {
        assert_eq!("earliest".parse(), Ok(Place::Earliest));
        assert_eq!("42".parse(), Ok(Place::Offset(42)));
        assert_eq!("1970-01-01T01:00:01+01:00".parse(), Ok(Place::Time(1_000)));
        for wrong in ["", "-1", "start", "2026-01-31", "2026-01-31T08:00:00", "1969-01-01T00:00:00Z"] {
            assert!(wrong.parse::<Place>().is_err(), "{wrong}");
        }
    }
}
