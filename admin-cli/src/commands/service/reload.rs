//! `millrace collector reload`

use proto::control::v1::{ReloadRequest, control_client::ControlClient};
use serde::Serialize;

use super::listed;
use crate::{
    cli::{Service, Session},
    failure::Failure,
};

#[derive(Serialize)]
struct View {
    changed: Vec<String>,
    unchanged: Vec<String>,
    warnings: Vec<String>,
}

pub(crate) async fn run(session: &Session) -> Result<(), Failure> {
    let link = session.connect(Service::Collector).await?;
    let answer = link.answer(ControlClient::new(link.channel()).reload(link.request(ReloadRequest {}))).await?;
    let view = View { changed: answer.changed, unchanged: answer.unchanged, warnings: answer.warnings };
    if session.out.people() {
        view.warnings.iter().for_each(|warning| session.out.warning(warning));
    }
    session.out.show(&view, |view, _| format!("{}\n{}", listed("changed", &view.changed), listed("unchanged", &view.unchanged)))
}
