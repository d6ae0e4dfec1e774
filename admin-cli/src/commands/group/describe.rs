//! `millrace group describe GROUP`

use std::collections::BTreeMap;

use proto::control::v1::{DescribeGroupRequest, GroupMember, bridge_client::BridgeClient};
use serde::Serialize;

use super::GroupView;
use crate::{
    cli::{Service, Session},
    failure::Failure,
    output::{Output, Table, left},
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    group: String,
}

#[derive(Serialize)]
struct Report {
    group: GroupView,
    /// The broker that looks after the group; `null` while there is none.
    coordinator: Option<i32>,
    members: Vec<MemberView>,
}

#[derive(Serialize)]
struct MemberView {
    id: String,
    /// Empty where the member is not a static one.
    instance_id: String,
    client_id: String,
    /// Partitions by topic.
    assignment: BTreeMap<String, Vec<i32>>,
}

impl From<GroupMember> for MemberView {
    fn from(member: GroupMember) -> Self {
        let mut assignment: BTreeMap<String, Vec<i32>> = BTreeMap::new();
        for of in member.assignment {
            assignment.entry(of.topic).or_default().push(of.partition);
        }
        Self { id: member.id, instance_id: member.instance_id, client_id: member.client_id, assignment }
    }
}

pub(crate) async fn run(args: Args, session: &Session) -> Result<(), Failure> {
    let link = session.connect(Service::Bridge).await?;
    let request = link.request(DescribeGroupRequest { group: args.group });
    let answer = link.answer(BridgeClient::new(link.channel()).describe_group(request)).await?;
    let report = Report {
        group: answer.group.unwrap_or_default().into(),
        coordinator: answer.coordinator,
        members: answer.members.into_iter().map(MemberView::from).collect(),
    };
    session.out.show(&report, text)
}

fn text(report: &Report, out: &Output) -> String {
    let mut facts = Table::plain(out);
    facts.fact("group", &report.group.id);
    facts.fact("state", &report.group.state);
    facts.fact("protocol", &report.group.protocol);
    facts.fact("coordinator", report.coordinator.map_or_else(|| "-".to_owned(), |id| id.to_string()));
    let mut members = Table::new(out, vec![left("MEMBER"), left("INSTANCE"), left("CLIENT"), left("READS")]);
    for member in &report.members {
        let reads: Vec<String> = member
            .assignment
            .iter()
            .map(|(topic, partitions)| format!("{topic} {}", partitions.iter().map(i32::to_string).collect::<Vec<_>>().join(",")))
            .collect();
        members.row(vec![left(&member.id), left(&member.instance_id), left(&member.client_id), left(reads.join("; "))]);
    }
    format!("{}\n\n{}", facts.render(), members.render())
}
