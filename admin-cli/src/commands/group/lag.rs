//! `millrace group lag [GROUP]`

use proto::control::v1::{GroupLagRequest, GroupLagResponse, GroupLagsRequest, PartitionLag, bridge_client::BridgeClient};
use serde::Serialize;

use super::GroupView;
use crate::{
    cli::{Service, Session},
    failure::Failure,
    output::{Output, Table, human, left, right},
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
}

#[derive(Serialize)]
struct Report {
    group: Option<GroupView>,
    total_lag: i64,
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
}

impl From<PartitionLag> for View {
    fn from(lag: PartitionLag) -> Self {
        let PartitionLag { topic, partition, committed, end_offset, lag, member } = lag;
        Self {
            topic,
            partition,
            committed: (committed >= 0).then_some(committed),
            end_offset,
            lag,
            member: (!member.is_empty()).then_some(member),
        }
    }
}

pub(crate) async fn run(args: Args, session: &Session) -> Result<(), Failure> {
    let link = session.connect(Service::Bridge).await?;
    let Some(group) = args.group else {
        let answer = link.answer(BridgeClient::new(link.channel()).group_lags(link.request(GroupLagsRequest {}))).await?;
        let line = |lag: GroupLagResponse| Line { group: lag.group.map(GroupView::from), total_lag: lag.total_lag };
        return session.out.show(&Groups { groups: answer.groups.into_iter().map(line).collect() }, lines);
    };
    let request = link.request(GroupLagRequest { group });
    let answer = link.answer(BridgeClient::new(link.channel()).group_lag(request)).await?;
    let report = Report {
        group: answer.group.map(GroupView::from),
        total_lag: answer.total_lag,
        partitions: answer.partitions.into_iter().map(View::from).collect(),
    };
    session.out.show(&report, text)
}

fn lines(report: &Groups, out: &Output) -> String {
    let mut table = Table::new(out, vec![left("GROUP"), right("LAG"), right("MEMBERS"), left("STATE")]);
    for line in &report.groups {
        let Some(group) = &line.group else { continue };
        table.row(vec![left(&group.id), right(human::count(line.total_lag)), right(human::count(group.members)), left(&group.state)]);
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
    facts.fact("total lag", human::count(report.total_lag));

    let header = vec![left("TOPIC"), right("PARTITION"), right("COMMITTED"), right("END"), right("LAG"), left("MEMBER")];
    let mut partitions = Table::new(out, header);
    for view in &report.partitions {
        partitions.row(vec![
            left(&view.topic),
            right(view.partition.to_string()),
            right(view.committed.map_or_else(|| "-".to_owned(), human::count)),
            right(human::count(view.end_offset)),
            right(human::count(view.lag)),
            left(view.member.as_deref().unwrap_or("-")),
        ]);
    }
    format!("{}\n\n{}", facts.render(), partitions.render())
}
