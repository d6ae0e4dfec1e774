//! `millrace SERVICE resume [COMPONENT]`

use proto::control::v1::{ResumeRequest, control_client::ControlClient};
use serde::Serialize;

use super::{Component, listed};
use crate::{
    cli::{Service, Session},
    failure::Failure,
};

#[derive(Serialize)]
struct View {
    resumed: Vec<String>,
}

pub(crate) async fn run(service: Service, component: Component, session: &Session) -> Result<(), Failure> {
    let link = session.connect(service).await?;
    let request = link.request(ResumeRequest { component: component.name() });
    let answer = link.answer(ControlClient::new(link.channel()).resume(request)).await?;
    session.out.show(&View { resumed: answer.resumed }, |view, _| listed("resumed", &view.resumed))
}
