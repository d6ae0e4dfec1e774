//! `millrace`: asks the collector, the bridge and the engine over their control ports, and shows the answer.
//!
//! Speaks only the crate `proto`. The folder `commands/` is the command tree: `millrace topic create` is `commands/topic/create.rs`.
//! stdout is data, stderr is talk; the exit codes are in `failure.rs`.

mod cli;
mod commands;
mod connect;
mod failure;
mod output;
#[cfg(test)]
mod reference;

use std::process::ExitCode;

fn main() -> ExitCode {
    let (command, session) = match cli::parse(std::env::args_os()) {
        Ok(parsed) => parsed,
        Err(answer) => return output::usage(&answer),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return output::failure(&failure::Failure::failed(format!("cannot start: {error}"))),
    };
    match runtime.block_on(command.run(&session)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => output::failure(&failure),
    }
}
