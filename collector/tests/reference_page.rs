//! `docs/generated/flume-properties.md` is written from the tables of component kinds. `MILLRACE_BLESS=1` writes it anew.
#![allow(clippy::unwrap_used)]

use std::{fmt::Write as _, fs, path::Path};

use collector::escape;
use collector::flume_conf::kinds::{MISSING, built};
use collector::flume_conf::substitute;

fn page() -> String {
    let mut text = String::from(
        "# Agent files: component types and their properties\n\nWritten by a test of the collector from its tables. Properties marked * are Millrace's own; Flume has no such property.\n",
    );
    let mut list = |title: &str, about: &str, rows: &[(&str, &str)]| {
        write!(text, "\n## {title}\n\n{about}\n\n| | |\n|---|---|\n").unwrap();
        for (written, meaning) in rows {
            writeln!(text, "| `{written}` | {meaning} |").unwrap();
        }
    };
    list("Variables", "In every value, when the file is read:", substitute::REFERENCE);
    let about = "In `hdfs.path`, `hdfs.filePrefix` and a Kafka sink's `kafka.topic`, for each event. The time is the event's header `timestamp` (milliseconds); \
                 without it a topic takes the present, and an `hdfs` sink puts the event aside unless `hdfs.useLocalTimeStamp = true`.";
    list("Escapes", about, escape::REFERENCE);
    for kind in built() {
        let class = kind.class.filter(|class| *class != kind.name()).map_or_else(String::new, |class| format!(" (`{class}`)"));
        write!(
            text,
            "\n## {} `{}`{class}\n\n{}\n\n| property | value | default | |\n|---|---|---|---|\n",
            kind.role,
            kind.name(),
            kind.doc
        )
        .unwrap();
        for property in kind.properties {
            let default = if property.required {
                "required".to_owned()
            } else {
                property.default.map_or_else(String::new, |default| format!("`{default}`"))
            };
            let own = if property.own { " *" } else { "" };
            writeln!(text, "| `{}`{own} | {} | {default} | {} |", property.name, property.kind, property.doc.replace('|', "\\|")).unwrap();
        }
        if !kind.deprecated.is_empty() {
            text.push_str("\nOld names, read with a warning: ");
            let names = kind
                .deprecated
                .iter()
                .map(|(old, new)| if new.is_empty() { format!("`{old}` (no effect)") } else { format!("`{old}` → `{new}`") });
            text.push_str(&names.collect::<Vec<_>>().join(", "));
            text.push_str(".\n");
        }
        if !kind.misspelt.is_empty() {
            text.push_str("\nDead in Flume, read with a warning unless `--flume-strict` is given: ");
            text.push_str(&kind.misspelt.iter().map(|(wrong, right)| format!("`{wrong}` → `{right}`")).collect::<Vec<_>>().join(", "));
            text.push_str(".\n");
        }
    }
    text.push_str("\n## In Flume, not in this version\n\n| | type | instead |\n|---|---|---|\n");
    for missing in MISSING {
        writeln!(text, "| {} | `{}` | {} |", missing.role, missing.alias.unwrap_or(missing.class), missing.instead).unwrap();
    }
    text
}

#[test]
fn the_reference_page_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/generated/flume-properties.md");
    let page = page();
    if std::env::var_os("MILLRACE_BLESS").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, &page).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert!(written == page, "docs/generated/flume-properties.md is stale: run the tests once with MILLRACE_BLESS=1");
}
