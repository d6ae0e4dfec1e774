//! `millrace SERVICE drain`

use proto::control::v1::{DrainRequest, control_client::ControlClient};
use serde::Serialize;

use crate::{
    cli::{Service, Session},
    failure::Failure,
    output::human,
};

#[derive(Serialize)]
struct View {
    drained: bool,
    remaining: u64,
}

pub(crate) async fn run(service: Service, session: &Session) -> Result<(), Failure> {
    let patience = session.patience();
    let link = session.connect_within(service, patience.wait).await?;
    let spinner = session.out.waiting(format!("draining the {}", service.word()));
    let request = link.request(DrainRequest { timeout_ms: patience.asked_ms });
    let answer = link.answer(ControlClient::new(link.channel()).drain(request)).await;
    spinner.finish_and_clear();
    let answer = answer?;
    let view = View { drained: answer.drained, remaining: answer.remaining };
    session.out.show(&view, |view, _| {
        if view.drained { "drained".to_owned() } else { format!("not drained: {} left", human::count(view.remaining)) }
    })?;
    if view.drained {
        return Ok(());
    }
    Err(Failure::failed(format!(
        "the {word} still holds {left} that it accepted; is what it delivers to reachable? see `millrace status {word}`, or raise --timeout",
        word = service.word(),
        left = human::count(view.remaining),
    )))
}
