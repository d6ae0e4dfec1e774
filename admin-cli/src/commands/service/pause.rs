//! `millrace SERVICE pause [COMPONENT]`

use proto::control::v1::{PauseRequest, control_client::ControlClient};
use serde::Serialize;

use super::{Component, listed};
use crate::{
    cli::{Service, Session},
    failure::Failure,
};

#[derive(Serialize)]
struct View {
    paused: Vec<String>,
}

pub(crate) async fn run(service: Service, component: Component, session: &Session) -> Result<(), Failure> {
    let link = session.connect(service).await?;
    let request = link.request(PauseRequest { component: component.name() });
    let answer = link.answer(ControlClient::new(link.channel()).pause(request)).await?;
    session.out.show(&View { paused: answer.paused }, |view, _| listed("paused", &view.paused))
}
