//! `millrace completion SHELL`

use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::{
    cli::{Cli, Session},
    failure::Failure,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(value_enum)]
    shell: Shell,
}

pub(crate) fn run(args: Args, session: &Session) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "millrace", &mut script);
    session.out.text(&String::from_utf8_lossy(&script))
}
