//! `millrace config SERVICE`

use proto::control::v1::{EffectiveConfigRequest, control_client::ControlClient};
use serde::Serialize;

use crate::{
    cli::{Service, Session},
    failure::Failure,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(value_enum)]
    service: Service,
}

#[derive(Serialize)]
struct View {
    service: &'static str,
    /// `toml` or `properties`.
    format: String,
    text: String,
}

pub(crate) async fn run(args: Args, session: &Session) -> Result<(), Failure> {
    let link = session.connect(args.service).await?;
    let answer = link.answer(ControlClient::new(link.channel()).effective_config(link.request(EffectiveConfigRequest {}))).await?;
    let view = View { service: args.service.word(), format: answer.format, text: answer.text };
    session.out.show(&view, |view, _| view.text.clone())
}
