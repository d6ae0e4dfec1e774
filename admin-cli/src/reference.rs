//! `docs/generated/cli.md`, written from what `--help` says.

use std::{fmt::Write as _, fs, path::Path};

use clap::CommandFactory as _;

use crate::cli::Cli;

const HEAD: &str = "\
# `millrace`: command reference

Written from `millrace --help` by a test; `MILLRACE_BLESS=1 cargo test -p admin-cli` renews it.
The global options are listed once, with the first command.
";

fn page() -> String {
    let mut page = HEAD.to_owned();
    let mut root = Cli::command().term_width(100);
    root.build();
    section(&mut page, &mut root, &["millrace".to_owned()]);
    page
}

fn section(page: &mut String, command: &mut clap::Command, path: &[String]) {
    let title = path.join(" ");
    let help = command.render_long_help().to_string();
    // Every command ends with the same global options; once is enough for a reader.
    let help = if path.len() == 1 { help.as_str() } else { help.split("Global options:").next().unwrap_or(&help) };
    let help: Vec<&str> = help.trim_end().lines().map(str::trim_end).collect();
    writeln!(page, "\n## `{title}`\n\n```text\n{}\n```", help.join("\n")).expect("a string takes everything");
    let names: Vec<String> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).filter(|name| name != "help").collect();
    for name in names {
        if let Some(sub) = command.find_subcommand_mut(&name) {
            let path: Vec<String> = path.iter().cloned().chain([name]).collect();
            section(page, sub, &path);
        }
    }
}

#[test]
fn the_reference_page_says_what_help_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/generated/cli.md");
    let page = page();
    if std::env::var_os("MILLRACE_BLESS").is_some() {
        fs::create_dir_all(path.parent().expect("the page is in a folder")).expect("the folder can be made");
        fs::write(&path, &page).expect("the page can be written");
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(found == page, "docs/generated/cli.md is stale; renew it with MILLRACE_BLESS=1 cargo test -p admin-cli");
}
