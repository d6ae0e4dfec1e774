//! Queries without windows, columns of every origin, and several INSERTs in one job.

use super::*;

#[test]
fn rows_pass_through_filters_and_projections() {
    let mut job = Job::new(&format!(
        "CREATE TABLE t (a INT, `bytes` BIGINT, name STRING) WITH ({KAFKA});
         CREATE VIEW big AS SELECT a, `bytes` AS b, UPPER(name) AS name FROM t WHERE `bytes` >= 10;
         CREATE TABLE s (name STRING, b BIGINT, nothing STRING) WITH ('connector' = 'console');
         INSERT INTO s (b, name) SELECT b * 2, name FROM big WHERE a <> 3;"
    ));
    let outcome = job.batch(
        vec![lines(
            0,
            &[r#"{"a":1,"bytes":10,"name":"x"}"#, r#"{"a":3,"bytes":10,"name":"y"}"#, r#"{"a":1,"bytes":9}"#, r#"{"a":2,"bytes":11}"#],
        )],
        false,
    );
    assert_eq!(job.rows(), ["X | 20 | NULL", "NULL | 22 | NULL"]);
    assert_eq!((outcome.rows_in, outcome.rows_out), (4, 2));
}

#[test]
fn metadata_computed_and_key_columns_are_read() {
    let mut job = Job::new(&format!(
        "CREATE TABLE t (
           id STRING, a INT, double_a AS a * 2,
           at TIMESTAMP(3) METADATA FROM 'timestamp' VIRTUAL, `partition` INT METADATA, `offset` BIGINT METADATA VIRTUAL, topic STRING METADATA,
           headers MAP<STRING, BYTES> METADATA
         ) WITH ({KAFKA}, 'key.format' = 'raw', 'key.fields' = 'id', 'value.fields-include' = 'EXCEPT_KEY');
         CREATE TABLE s (id STRING, a INT, d INT, at TIMESTAMP(3), p INT, o BIGINT, topic STRING) WITH ('connector' = 'print');
         INSERT INTO s SELECT id, a, double_a, at, `partition`, `offset`, topic FROM t;"
    ));
    job.batch(vec![lines(4, &[r#"{"a":1}"#, r#"{"a":2}"#])], false);
    assert_eq!(job.rows(), ["k | 1 | 2 | 1970-01-01T00:00:01 | 4 | 0 | in", "k | 2 | 4 | 1970-01-01T00:00:01.001 | 4 | 1 | in"]);
}

#[test]
fn several_inserts_share_one_read_and_get_the_same_rows() {
    let mut job = Job::new(&format!(
        "CREATE TABLE t (a INT, unused STRING, ts TIMESTAMP(3), WATERMARK FOR ts AS ts) WITH ({KAFKA});
         CREATE TABLE s (a INT) WITH ('connector' = 'console');
         CREATE TABLE w (n BIGINT) WITH ('connector' = 'console');
         BEGIN STATEMENT SET;
         INSERT INTO s SELECT a FROM t WHERE a > 1;
         INSERT INTO w SELECT COUNT(*) FROM TABLE(TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '1' SECOND)) GROUP BY window_start, window_end;
         INSERT INTO s SELECT -a FROM t;
         END;"
    ));
    assert_eq!(job.program.sources.len(), 1);
    assert_eq!(job.program.sources[0].reader.columns, [0, 2], "the unused column is not read");
    let names: Vec<_> = job.program.outputs.iter().map(|output| output.name.as_str()).collect();
    assert_eq!(names, ["s", "w", "s-2"]);
    let line = |a: i32| format!(r#"{{"a":{a},"ts":"2026-11-22 13:00:00"}}"#);
    let outcome = job.batch(vec![lines(0, &[&line(1), &line(2)]), lines(1, &[&line(3)])], true);
    assert_eq!(outcome.rows_in, 3);
    let sorted = |output| {
        let mut rows = job.rows_of(output);
        rows.sort();
        rows
    };
    assert_eq!(
        (sorted(0), sorted(1), sorted(2)),
        (vec!["2".into(), "3".into()], vec!["3".into()], vec!["-1".into(), "-2".into(), "-3".into()])
    );
    assert_eq!(outcome.rows_out, 6);
    let outputs = job.monitor.batch(0).unwrap().outputs;
    assert_eq!(outputs.iter().map(|output| output.rows).collect::<Vec<_>>(), [2, 1, 3]);
    assert_eq!(outputs[2].description, "INSERT INTO s");
}

#[test]
fn malformed_records_are_counted_and_cost_only_themselves() {
    let mut job = Job::new(&format!(
        "CREATE TABLE t (a INT NOT NULL, ts TIMESTAMP(3), WATERMARK FOR ts AS ts) WITH ({KAFKA});
         CREATE TABLE s (a INT) WITH ('connector' = 'console');
         INSERT INTO s SELECT a FROM t;"
    ));
    let good = |a: i32| format!(r#"{{"a":{a},"ts":"2026-11-22T13:00:00"}}"#);
    let outcome = job.batch(
        vec![lines(
            0,
            &[
                &good(1),
                "{",
                &good(2),
                r#"{"a":"x","ts":"2026-11-22 13:00:00"}"#,
                r#"{"a":3}"#,
                r#"{"ts":"2026-11-22 13:00:00"}"#,
                &good(4),
            ],
        )],
        false,
    );
    assert_eq!(job.rows(), ["1", "2", "4"]);
    assert_eq!((outcome.rows_in, outcome.malformed), (7, 4), "broken, wrong type, no event time, no value for NOT NULL");
}

#[test]
fn a_snapshot_of_another_version_is_refused() {
    let text = format!(
        "CREATE TABLE t (a INT) WITH ({KAFKA}); CREATE TABLE s (a INT) WITH ('connector' = 'console'); INSERT INTO s SELECT a FROM t;"
    );
    let mut job = Job::new(&text);
    let snapshot = job.program.snapshot().unwrap();
    let changed: Vec<u8> = String::from_utf8(snapshot.to_vec()).unwrap().replace("\"version\":1", "\"version\":9").into_bytes();
    assert!(job.program.restore(changed.into()).unwrap_err().to_string().contains("version 9"));
    assert!(job.program.restore(snapshot.slice(..3)).unwrap_err().to_string().contains("cut off"));
    job.program.restore(snapshot).unwrap();
    job.program.restore(bytes::Bytes::new()).unwrap();
}

#[test]
fn settings_are_the_jobs_and_unknown_ones_are_refused() {
    let text = |settings: &str| {
        format!(
            "{settings} CREATE TABLE t (a INT) WITH ({KAFKA}); CREATE TABLE s (a INT) WITH ('connector' = 'console');
             INSERT INTO s SELECT a FROM t;"
        )
    };
    let compiled =
        try_compile(&text("SET 'batch.interval' = '250ms'; SET 'spark.serializer' = 'x'; SET 'millrace.query.memory.max' = '64 MB';"))
            .unwrap();
    assert_eq!(compiled.settings.batch_interval, std::time::Duration::from_millis(250));
    assert_eq!(compiled.notes.len(), 1, "{:?}", compiled.notes);
    let mut options = options();
    options.defaults.insert("batch.interval".into(), "2s".into());
    assert_eq!(compile(&text(""), &options).unwrap().settings.batch_interval, std::time::Duration::from_secs(2));
}

#[test]
fn explain_shows_the_plan_and_runs_nothing() {
    let compiled = try_compile(&format!(
        "CREATE TABLE t (a INT, ts TIMESTAMP(3), WATERMARK FOR ts AS ts) WITH ({KAFKA});
         EXPLAIN SELECT window_start, COUNT(*) FROM TABLE(TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '10' SECOND)) GROUP BY window_start, window_end;"
    ))
    .unwrap();
    assert!(compiled.explain_only);
    for part in ["TUMBLE, size 10000 ms", "AggregateExec: mode=Partial", "AggregateExec: mode=Final", "FeedExec: t, columns=[ts]"] {
        assert!(compiled.plan.contains(part), "{part} is not in\n{}", compiled.plan);
    }
}

#[test]
fn the_example_counts_a_log_in_windows() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/nginx-stats/job.sql");
    let text = std::fs::read_to_string(file)
        .unwrap()
        .replace("${env:REDIS_URL}", "redis://nowhere")
        .replace("${env:KAFKA_BOOTSTRAP_SERVERS}", "nowhere:9092");
    let mut job = Job::new(&text);
    let line = |second: u32, path: &str, status: u32| {
        format!(r#"10.0.0.1 - - [22/Nov/2026:13:00:{second:02} +0000] "GET {path} HTTP/1.1" {status} 100 "-" "curl" 0.{second:03}"#)
    };
    let broken = r#"10.0.0.1 - - [22/Nov/2026:13:00:03 +0000] "" 400 0 "-" "-" 0.000"#.to_owned();
    let input = vec![line(1, "/", 200), line(2, "/a?b=c", 500), broken, line(12, "/a", 200), "no access log".to_owned()];
    let outcome = job.batch(vec![Lines { partition: 0, lines: input, behind: false }], true);
    assert_eq!((outcome.rows_in, outcome.malformed, outcome.late), (5, 1, 0));
    let sorted = |output| {
        let mut rows = job.rows_of(output);
        rows.sort();
        rows
    };
    let (first, second) = ("2026-11-22T13:00:00", "2026-11-22T13:00:10");
    assert_eq!(sorted(0), [format!("{first} | 3"), format!("{second} | 1")]);
    assert_eq!(sorted(1)[1], format!("{second} | 1 | 100 | 0 | 0.0 | 12.0 | 12.0 | 12.0"));
    let statuses: Vec<String> = sorted(2).iter().map(|row| row.split(" | ").take(3).collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(statuses, [format!("{first} 200 1"), format!("{first} 400 1"), format!("{first} 500 1"), format!("{second} 200 1")]);
    assert_eq!(sorted(3), [format!("{first} | / | 1"), format!("{first} | /a | 1"), format!("{second} | /a | 1")]);
}

#[test]
fn a_row_of_values_goes_to_the_fields_of_a_column_by_position() {
    let mut job = Job::new(&format!(
        "CREATE TABLE t (a INT, name STRING, r ROW<x INT, y STRING>) WITH ({KAFKA});
         CREATE TABLE h (k STRING, f ROW<n BIGINT, `of` STRING>, g ROW<x BIGINT, z STRING>, PRIMARY KEY (k) NOT ENFORCED)
           WITH ('connector' = 'hbase', 'url' = 'http://nowhere', 'table-name' = 'h');
         INSERT INTO h SELECT name, ROW(a, UPPER(name)), r FROM t;"
    ));
    job.batch(vec![lines(0, &[r#"{"a":1,"name":"x","r":{"x":2,"y":"z"}}"#, r#"{"name":"y"}"#])], false);
    assert_eq!(job.rows(), ["x | {n: 1, of: X} | {x: 2, z: z}", "y | {n: NULL, of: Y} | NULL"]);
}

#[test]
fn who_asks_for_exactly_once_is_known_and_at_most_once_writes_no_batch_twice() {
    let text = |set: &str, of_table: &str| {
        format!(
            "{set} CREATE TABLE t (a INT) WITH ({KAFKA});
             CREATE TABLE h (k STRING, f ROW<n INT>) WITH ('connector' = 'hbase', 'url' = 'http://nowhere', 'table-name' = 'h' {of_table});
             INSERT INTO h SELECT CAST(a AS STRING), ROW(a) FROM t;"
        )
    };
    let asks = |set, of_table| try_compile(&text(set, of_table)).unwrap().exactly_once;
    let set = "SET 'sink.delivery-guarantee' = 'exactly-once';";
    assert_eq!(asks("", ""), [""; 0], "it is, and does not insist");
    assert_eq!(asks(set, ""), ["h"]);
    assert_eq!(asks("", ", 'sink.delivery-guarantee' = 'exactly-once'"), ["h"]);
    assert_eq!(asks(set, ", 'sink.delivery-guarantee' = 'at-least-once'"), [""; 0]);
    let notes = try_compile(&text(&format!("{set} SET 'failOnDataLoss' = 'false';"), "")).unwrap().notes;
    assert!(notes.iter().any(|note| note.contains("table `h` is exactly-once for the records that can still be read")), "{notes:?}");

    let mut job = Job::new(&format!(
        "CREATE TABLE t (a INT) WITH ({KAFKA});
         CREATE TABLE once (a INT) WITH ('connector' = 'console', 'sink.delivery-guarantee' = 'at-most-once');
         CREATE TABLE again (a INT) WITH ('connector' = 'console');
         INSERT INTO once SELECT a FROM t; INSERT INTO again SELECT a FROM t;"
    ));
    job.replay = true;
    // More than the queues hold: what is left out must be taken all the same.
    let all: Vec<String> = (0..100).map(|a| format!(r#"{{"a":{a}}}"#)).collect();
    let outcome = job.batch(vec![Lines { partition: 0, lines: all, behind: false }], false);
    assert_eq!((job.rows_of(0).len(), job.rows_of(1).len(), outcome.rows_out), (0, 100, 100));
    job.replay = false;
    job.batch(vec![lines(0, &[r#"{"a":1}"#])], false);
    assert_eq!((job.rows_of(0).len(), job.rows_of(1).len()), (1, 101));
}
