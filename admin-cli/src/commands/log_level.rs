//! `millrace log-level SERVICE FILTER`

use proto::control::v1::{SetLogLevelRequest, control_client::ControlClient};
use serde::Serialize;

use crate::{
    cli::{Service, Session},
    failure::Failure,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(value_enum)]
    service: Service,
    /// A level, or levels by target: `debug`, `info,collector::source=trace`.
    filter: String,
}

#[derive(Serialize)]
struct View {
    previous: String,
    current: String,
}

pub(crate) async fn run(args: Args, session: &Session) -> Result<(), Failure> {
    let link = session.connect(args.service).await?;
    let request = link.request(SetLogLevelRequest { filter: args.filter });
    let answer = link.answer(ControlClient::new(link.channel()).set_log_level(request)).await?;
    let view = View { previous: answer.previous, current: answer.current };
    session.out.show(&view, |view, _| format!("{} (was {})", view.current, view.previous))
}
