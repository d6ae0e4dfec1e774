//! `millrace group list`

use proto::control::v1::{ListGroupsRequest, bridge_client::BridgeClient};
use serde::Serialize;

use super::GroupView;
use crate::{
    cli::{Service, Session},
    failure::Failure,
    output::{Output, Table, human, left, right},
};

#[derive(Serialize)]
struct Report {
    groups: Vec<GroupView>,
}

pub(crate) async fn run(session: &Session) -> Result<(), Failure> {
    let link = session.connect(Service::Bridge).await?;
    let answer = link.answer(BridgeClient::new(link.channel()).list_groups(link.request(ListGroupsRequest {}))).await?;
    session.out.show(&Report { groups: answer.groups.into_iter().map(GroupView::from).collect() }, table)
}

fn table(report: &Report, out: &Output) -> String {
    let mut table = Table::new(out, vec![left("GROUP"), left("STATE"), right("MEMBERS"), left("PROTOCOL")]);
    for group in &report.groups {
        table.row(vec![left(&group.id), left(&group.state), right(human::count(group.members)), left(&group.protocol)]);
    }
    table.render()
}
