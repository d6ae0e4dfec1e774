//! `millrace-collector`

use std::process::ExitCode;

fn main() -> ExitCode {
    collector::cli::main()
}
