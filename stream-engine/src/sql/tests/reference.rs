//! `docs/generated/sql.md`, from the tables in this crate's own documentation; every option that the code knows must be in it.
//! `MILLRACE_BLESS=1` writes it anew.

use crate::format::FORMATS;
use crate::job::settings::KNOWN;
use crate::sink::SINKS;
use crate::sql::settings::OWN;
use crate::sql::types::TYPE_NAMES;

const HEAD: &str = "# SQL jobs: statements, options, settings

Written by a test of the stream engine from its tables. `millrace-engine run --dry-run JOB.sql` checks and plans a job and runs nothing.

## Statements

| statement | |
|---|---|
| `SET 'key' = 'value'` | a setting, see below |
| `CREATE TABLE name (columns) WITH ('option' = 'value', …)` | a topic, a Redis, a table of HBase, files or the console. A column is `name TYPE`, `name TYPE METADATA [FROM 'key'] VIRTUAL` or `name AS expression` |
| `WATERMARK FOR ts AS ts - INTERVAL '5' SECOND` | among the columns: the event time, and how late its rows may be |
| `PRIMARY KEY (a, b) NOT ENFORCED` | among the columns |
| `CREATE VIEW name AS SELECT …` | a query under a name |
| `INSERT INTO name SELECT …` | what the job does; every INSERT of a job shares one read of its source |
| `EXPLAIN SELECT …`, `EXPLAIN INSERT …` | show the plan |

`${env:NAME}` and `${env:NAME:-default}` in an option's value are replaced. Metadata: METADATA.

## Several engines for one job

`SET 'job.slots' = '8'` cuts a job into as many shares. Every engine that runs it under the same name, with the same checkpoint, takes part: the slots are dealt out
by the consumer group `millrace-JOB` over the topic `millrace-JOB-slots`, whose partitions stand for them; there is no driver. Engines may come and go, die or stand still at any time;
who takes a slot over fences the writers and the checkpoint of its owner before, so each batch of a slot happens once. Partition p of each topic belongs to slot p modulo the number.

Queries without windows run in each slot by themselves. Those with windows send what they have of each key and pane, partly aggregated, to the slot of the key, through the topic
`millrace-JOB-exchange-…` in transactions; each slot tells the others how far its partitions are, so the watermark is that of one process. A query with ORDER BY or LIMIT
over a window runs in one slot. Late rows are counted as partial results, not one by one. What was read is removed from the topic every 30 seconds.

Not with slots: DStream programs, savepoints; with windows also `scan.bounded.mode` and `--drain`. The number is fixed when the job first starts. An owner that stands still without ending gives
its slots up where the checkpoint is on a network (HDFS, S3); a folder that several engines of one machine share is locked, and waits for it. `jobs.worker_id` in the engine's configuration
makes it a static member, whose slots wait for its return for `session.timeout.ms`.

## Windows

| function | |
|---|---|
| `TABLE(TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '10' SECOND))` | windows side by side |
| `TABLE(HOP(TABLE t, DESCRIPTOR(ts), INTERVAL '5' SECOND, INTERVAL '10' SECOND))` | slide, then size, a multiple of it |

Both add `window_start`, `window_end` and `window_time`; GROUP BY names the first two. An optional last argument is the offset. A window is emitted when
the watermark passes its end; rows that come later are late: counted, logged, left out. `millrace job stop --drain` emits and closes every window, so
rows that come for them afterwards are late too.

`SUM` and `AVG` of whole numbers fail the job with a clear error when a total is beyond BIGINT (`SUM(DISTINCT …)` and plain arithmetic wrap around, as in
Flink); sum `CAST(x AS DECIMAL(38, 0))` where totals are that large. Beside DataFusion's functions there are:

";

/// The lines of the first table in a module's documentation.
fn table(source: &str) -> String {
    let lines = source.lines().map(|line| line.strip_prefix("//! ").unwrap_or_default());
    let rows: Vec<&str> = lines.skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|')).collect();
    assert!(rows.len() > 2, "no table in: {}", source.lines().next().unwrap_or_default());
    rows.join("\n") + "\n"
}

/// The text between two markers of a module's documentation.
fn text<'a>(source: &'a str, from: &str, until: &str) -> Vec<&'a str> {
    let lines = source.lines().map_while(|line| line.strip_prefix("//!")).map(|line| line.strip_prefix(' ').unwrap_or(line));
    lines.skip_while(|line| !line.starts_with(from)).take_while(|line| !line.starts_with(until)).collect()
}

fn page() -> String {
    let mut page = HEAD.replace("METADATA.", &format!("`{}`.", crate::sql::source::METADATA.join("`, `")));
    let functions = text(include_str!("../functions.rs"), "- ", "- Three internal");
    page.push_str(&functions.join("\n"));
    page.push_str("\n\n## Types\n\n");
    page.push_str(&table(include_str!("../types.rs")));
    page.push_str("\n## Connector `kafka`: read and write\n\n");
    page.push_str(&table(include_str!("../kafka.rs")));
    page.push_str("\n### Format `json`\n\n");
    page.push_str(&table(include_str!("../../format/json.rs")));
    page.push_str("\n### Format `regex`\n\n");
    page.push_str(&table(include_str!("../../format/regex.rs")));
    page.push_str("\nThe preset `nginx-combined` reads:\n\n");
    page.push_str(&text(include_str!("../../format/nginx.rs"), "```text", "use ").join("\n"));
    page.push_str("\n\n### Format `raw`\n\nThe whole record is one column, STRING or BYTES. STRING must be UTF-8.\n");
    page.push_str("\n## Connector `redis`: write\n\n");
    page.push_str(&table(include_str!("../../sink/redis.rs")));
    page.push_str("\n## Connector `filesystem`: write\n\n");
    page.push_str(&table(include_str!("../../sink/files.rs")));
    page.push_str("\n## Connector `hbase`: write\n\n");
    page.push_str(&table(include_str!("../../sink/hbase.rs")));
    page.push('\n');
    page.push_str(&text(include_str!("../../sink/hbase.rs"), "As in Flink", "\0").join("\n").replace(" ([`Fenced`])", ""));
    page.push_str("\n## Connector `console` (or `print`): write\n\n");
    page.push_str(&table(include_str!("../../sink/console.rs")));
    page.push_str("\n\n## Delivery guarantees\n\n");
    page.push_str(&text(include_str!("../../sink/mod.rs"), "What stands", "\0").join("\n"));
    page.push_str("\n\n## Settings\n\nOf SQL jobs, by `SET` or in `[jobs.settings]` of the engine's configuration:\n\n");
    page.push_str(&table(include_str!("../mod.rs").split_once("A job's own settings").map_or("", |(_, rest)| rest)));
    page.push_str("\n### Where offsets live\n\n");
    page.push_str(&text(include_str!("../../source/offsets.rs"), "| `offsets.store`", "use ").join("\n"));
    page.push_str("\n\n### Settings of every job\n");
    page.push_str("\nOf SQL jobs and DStream programs alike:\n\n| key | default | |\n|---|---|---|\n");
    for known in KNOWN {
        page.push_str(&format!("| `{}` | {} | {} |\n", known.name, known.default, known.meaning));
    }
    page
}

#[test]
fn the_reference_has_every_option_and_is_current() {
    let page = page();
    let options = SINKS.iter().flat_map(|sink| (sink.options)()).chain(FORMATS.iter().flat_map(|format| format.options.iter().copied()));
    let names = options.chain(KNOWN.iter().map(|known| known.name)).chain(OWN.iter().copied());
    let missing: Vec<&str> = names.filter(|name| *name != "connector" && !page.contains(&format!("`{name}`"))).collect();
    assert!(missing.is_empty(), "without {missing:?}: add them to the tables in the modules' documentation");
    let types: Vec<&&str> = TYPE_NAMES.iter().filter(|name| !page.contains(**name)).collect();
    assert!(types.is_empty(), "without {types:?}");

    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/generated/sql.md");
    if std::env::var_os("MILLRACE_BLESS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let current = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(current == page, "docs/generated/sql.md is stale; renew it with: MILLRACE_BLESS=1 cargo test --workspace --lib");
}
