//! `millrace group lag [GROUP]`

use comfy_table::Cell;
use proto::control::v1::{GroupLagRequest, GroupLagResponse, GroupLagsRequest, PartitionLag, bridge_client::BridgeClient};
use serde::Serialize;

use super::{GroupView, PaceView};
use crate::{
    cli::{Service, Session},
    failure::Failure,
    output::{Output, Table, Tone, human, left, right, toned},
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// All groups, a line each, when left out.
    group: Option<String>,
}

#[derive(Serialize)]
struct Groups {
    groups: Vec<Line>,
}

#[derive(Serialize)]
struct Line {
    group: Option<GroupView>,
    total_lag: i64,
    /// By Burrow's rules: OK, WARN or ERR; `null` where the group never committed to Kafka.
    status: Option<String>,
    #[serde(flatten)]
    pace: PaceView,
}

#[derive(Serialize)]
struct Report {
    group: Option<GroupView>,
    total_lag: i64,
    status: Option<String>,
    #[serde(flatten)]
    pace: PaceView,
    partitions: Vec<View>,
}

#[derive(Serialize)]
struct View {
    topic: String,
    partition: i32,
    /// `null` where nothing has been committed yet.
    committed: Option<i64>,
    end_offset: i64,
    lag: i64,
    /// `null` where no member owns the partition.
    member: Option<String>,
    /// By Burrow's rules: OK, WARN, STOP, STALL or REWIND.
    status: Option<String>,
    #[serde(flatten)]
    pace: PaceView,
}

impl From<PartitionLag> for View {
    fn from(lag: PartitionLag) -> Self {
        let PartitionLag { topic, partition, committed, end_offset, lag, member, pace, status } = lag;
        Self {
            topic,
            partition,
            committed: (committed >= 0).then_some(committed),
            end_offset,
            lag,
            member: some(member),
            status: some(status),
            pace: pace.into(),
        }
    }
}

/// Empty is nothing.
fn some(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

pub(crate) async fn run(args: Args, session: &Session) -> Result<(), Failure> {
    let link = session.connect(Service::Bridge).await?;
    let Some(group) = args.group else {
        let answer = link.answer(BridgeClient::new(link.channel()).group_lags(link.request(GroupLagsRequest {}))).await?;
        let line = |lag: GroupLagResponse| Line {
            group: lag.group.map(GroupView::from),
            total_lag: lag.total_lag,
            status: some(lag.status),
            pace: lag.pace.into(),
        };
        return session.out.show(&Groups { groups: answer.groups.into_iter().map(line).collect() }, lines);
    };
    let request = link.request(GroupLagRequest { group });
    let answer = link.answer(BridgeClient::new(link.channel()).group_lag(request)).await?;
    let report = Report {
        group: answer.group.map(GroupView::from),
        total_lag: answer.total_lag,
        status: some(answer.status),
        pace: answer.pace.into(),
        partitions: answer.partitions.into_iter().map(View::from).collect(),
    };
    session.out.show(&report, text)
}

fn status(out: &Output, status: Option<&String>) -> Cell {
    let tone = match status.map(String::as_str) {
        Some("OK") => Tone::Good,
        Some("WARN") => Tone::Watch,
        Some(_) => Tone::Bad,
        None => Tone::Plain,
    };
    toned(out, status.map_or("-", String::as_str), tone)
}

fn seconds(seconds: Option<f64>) -> String {
    seconds.filter(|seconds| *seconds >= 0.0).map_or_else(|| "-".to_owned(), |seconds| human::millis((seconds * 1000.0) as u64))
}

/// Records a second, with its sign.
fn trend(trend: Option<f64>) -> String {
    match trend {
        None => "-".to_owned(),
        Some(0.0) => "0/s".to_owned(),
        Some(trend) => format!("{trend:+.1}/s"),
    }
}

fn lines(report: &Groups, out: &Output) -> String {
    let header = vec![
        left("GROUP"),
        left("STATUS"),
        right("LAG"),
        right("OLDEST"),
        right("TREND"),
        right("CAUGHT UP IN"),
        right("MEMBERS"),
        left("STATE"),
    ];
    let mut table = Table::new(out, header);
    for line in &report.groups {
        let Some(group) = &line.group else { continue };
        table.row(vec![
            left(&group.id),
            status(out, line.status.as_ref()),
            right(human::count(line.total_lag)),
            right(seconds(line.pace.lag_seconds)),
            right(trend(line.pace.trend_records_per_second)),
            right(seconds(line.pace.catch_up_seconds)),
            right(human::count(group.members)),
            left(&group.state),
        ]);
    }
    table.render()
}

fn text(report: &Report, out: &Output) -> String {
    let mut facts = Table::plain(out);
    if let Some(group) = &report.group {
        facts.fact("group", &group.id);
        facts.fact("state", &group.state);
        facts.fact("members", human::count(group.members));
    }
    facts.fact("status", report.status.as_deref().unwrap_or("-"));
    facts.fact("total lag", human::count(report.total_lag));
    facts.fact("oldest unread", seconds(report.pace.lag_seconds));
    facts.fact("trend", trend(report.pace.trend_records_per_second));
    facts.fact("caught up in", seconds(report.pace.catch_up_seconds));

    let header = vec![
        left("TOPIC"),
        right("PARTITION"),
        left("STATUS"),
        right("COMMITTED"),
        right("END"),
        right("LAG"),
        right("OLDEST"),
        left("MEMBER"),
    ];
    let mut partitions = Table::new(out, header);
    for view in &report.partitions {
        partitions.row(vec![
            left(&view.topic),
            right(view.partition.to_string()),
            status(out, view.status.as_ref()),
            right(view.committed.map_or_else(|| "-".to_owned(), human::count)),
            right(human::count(view.end_offset)),
            right(human::count(view.lag)),
            right(seconds(view.pace.lag_seconds)),
            left(view.member.as_deref().unwrap_or("-")),
        ]);
    }
    format!("{}\n\n{}", facts.render(), partitions.render())
}
