//! Windows across batches against a straightforward computation over all rows at once.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

/// One row of the source.
#[derive(Clone, Debug)]
struct Row {
    partition: i32,
    ts: i64,
    key: String,
    value: Option<i64>,
}

impl Row {
    fn line(&self) -> String {
        let value = self.value.map_or("null".to_owned(), |value| value.to_string());
        format!(r#"{{"ms":{},"k":"{}","v":{value}}}"#, self.ts, self.key)
    }
}

const DELAY_MS: i64 = 500;

fn job(tvf: &str) -> String {
    format!(
        "CREATE TABLE t (ms BIGINT, k STRING, v INT, ts AS TO_TIMESTAMP_LTZ(ms, 3),
           WATERMARK FOR ts AS ts - INTERVAL '0.5' SECOND) WITH ({KAFKA});
         CREATE TABLE s (ws TIMESTAMP(3), we TIMESTAMP(3), k STRING, n BIGINT, c BIGINT, s BIGINT, a INT, lo INT, hi INT, d BIGINT, f BIGINT)
           WITH ('connector' = 'console');
         INSERT INTO s SELECT window_start, window_end, k, COUNT(*), COUNT(v), SUM(v), AVG(v), MIN(v), MAX(v), COUNT(DISTINCT v),
           COUNT(*) FILTER (WHERE v > 3) FROM TABLE({tvf}) GROUP BY window_start, window_end, k;"
    )
}

const TUMBLE: &str = "TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '1' SECOND)";
const HOP: &str = "HOP(TABLE t, DESCRIPTOR(ts), INTERVAL '1' SECOND, INTERVAL '3' SECOND)";

fn time(ms: i64) -> String {
    let seconds = ms.div_euclid(1000);
    format!("1970-01-01T{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// The rows of every window, from all rows at once.
fn expected(rows: &[Row], slide: i64, size: i64) -> Vec<String> {
    let mut groups: BTreeMap<(i64, String), Vec<Option<i64>>> = BTreeMap::new();
    for row in rows {
        let mut start = row.ts.div_euclid(slide) * slide;
        while start + size > row.ts {
            groups.entry((start, row.key.clone())).or_default().push(row.value);
            start -= slide;
        }
    }
    let mut lines: Vec<String> = groups
        .into_iter()
        .map(|((start, key), values)| {
            let known: Vec<i64> = values.iter().flatten().copied().collect();
            let or_null = |value: Option<i64>| value.map_or("NULL".to_owned(), |value| value.to_string());
            let sum = (!known.is_empty()).then(|| known.iter().sum::<i64>());
            [
                time_signed(start),
                time_signed(start + size),
                key,
                values.len().to_string(),
                known.len().to_string(),
                or_null(sum),
                or_null(sum.map(|sum| sum / known.len() as i64)),
                or_null(known.iter().min().copied()),
                or_null(known.iter().max().copied()),
                known.iter().collect::<BTreeSet<_>>().len().to_string(),
                known.iter().filter(|value| **value > 3).count().to_string(),
            ]
            .join(" | ")
        })
        .collect();
    lines.sort();
    lines
}

fn time_signed(ms: i64) -> String {
    if ms >= 0 { time(ms) } else { format!("1969-12-31T23:59:{:02}", 60 + ms / 1000) }
}

/// Runs the rows in the batches they are cut into.
fn run(text: &str, batches: &[Vec<Row>], restart_after: Option<usize>) -> (Job, u64) {
    let mut job = Job::new(text);
    let mut late = 0;
    for (index, rows) in batches.iter().enumerate() {
        let input = (0..3)
            .map(|partition| Lines {
                partition,
                lines: rows.iter().filter(|row| row.partition == partition).map(Row::line).collect(),
                behind: false,
            })
            .collect();
        late += job.batch(input, index + 1 == batches.len()).late;
        if restart_after == Some(index) {
            job.restart(text);
        }
    }
    (job, late)
}

prop_compose! {
    /// Rows out of order by less than the delay, and cuts.
    fn stream()(
        steps in proptest::collection::vec((0_i64..400, 0_i64..DELAY_MS, 0..3_i32, 0..4_u8, proptest::option::of(-5_i64..10)), 1..80),
        cuts in proptest::collection::btree_set(0_usize..80, 0..8),
        restart in 0_usize..8,
    ) -> (Vec<Row>, Vec<Vec<Row>>, usize) {
        let mut base = 0;
        let rows: Vec<Row> = steps
            .into_iter()
            .map(|(step, jitter, partition, key, value)| {
                base += step;
                Row { partition, ts: base + jitter, key: format!("k{key}"), value }
            })
            .collect();
        let mut batches = Vec::new();
        let mut from = 0;
        for cut in cuts.into_iter().filter(|cut| *cut < rows.len()).chain([rows.len()]) {
            batches.push(rows[from..cut].to_vec());
            from = cut;
        }
        (rows, batches, restart)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn any_cut_and_any_restart_give_the_same_tumbling_windows((rows, batches, restart) in stream()) {
        let (job, late) = run(&job(TUMBLE), &batches, Some(restart));
        prop_assert_eq!(late, 0);
        prop_assert_eq!(job.sorted(), expected(&rows, 1000, 1000));
    }

    #[test]
    fn any_cut_and_any_restart_give_the_same_hopping_windows((rows, batches, restart) in stream()) {
        let (job, late) = run(&job(HOP), &batches, Some(restart));
        prop_assert_eq!(late, 0);
        prop_assert_eq!(job.sorted(), expected(&rows, 1000, 3000));
    }
}

fn at(ts: i64, key: &str, value: i64) -> String {
    Row { partition: 0, ts, key: key.into(), value: Some(value) }.line()
}

fn row_lines(partition: i32, rows: &[String]) -> Lines {
    Lines { partition, lines: rows.to_vec(), behind: false }
}

const COUNTS: &str = "SELECT window_start, k, COUNT(*) FROM TABLE(TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '1' SECOND)) GROUP BY window_start, window_end, k";

fn counts(settings: &str, query: &str) -> String {
    format!(
        "{settings}
         CREATE TABLE t (ms BIGINT, k STRING, v INT, ts AS TO_TIMESTAMP_LTZ(ms, 3),
           WATERMARK FOR ts AS ts - INTERVAL '0.5' SECOND) WITH ({KAFKA});
         CREATE TABLE s (ws TIMESTAMP(3), k STRING, n BIGINT) WITH ('connector' = 'console');
         INSERT INTO s {query};"
    )
}

#[test]
fn a_window_is_emitted_when_the_watermark_passes_and_only_once() {
    let mut job = Job::new(&counts("", COUNTS));
    let first = job.batch(vec![row_lines(0, &[at(100, "a", 1), at(900, "a", 1)])], false);
    assert_eq!((first.rows_in, first.rows_out, first.watermark_ms), (2, 0, Some(400)));
    job.batch(vec![row_lines(0, &[at(1498, "a", 1)])], false);
    assert_eq!(job.rows(), Vec::<String>::new(), "the watermark is at 998");
    job.batch(vec![row_lines(0, &[at(1499, "a", 1)])], false);
    assert_eq!(job.rows(), ["1970-01-01T00:00:00 | a | 2"], "no row at or before 999 can come");
    job.batch(vec![row_lines(0, &[])], true);
    assert_eq!(job.rows(), ["1970-01-01T00:00:00 | a | 2", "1970-01-01T00:00:01 | a | 2"]);
}

#[test]
fn rows_behind_their_emitted_window_are_counted_and_dropped() {
    let mut job = Job::new(&counts("", COUNTS));
    job.batch(vec![row_lines(0, &[at(100, "a", 1), at(2000, "a", 1)])], false);
    let outcome = job.batch(vec![row_lines(0, &[at(999, "a", 1), at(1000, "b", 1), at(1999, "b", 1)])], true);
    assert_eq!((outcome.late, outcome.rows_in), (1, 3), "the window of 1000 is still open at 1500");
    assert_eq!(job.sorted(), ["1970-01-01T00:00:00 | a | 1", "1970-01-01T00:00:01 | b | 2", "1970-01-01T00:00:02 | a | 1"]);
}

#[test]
fn a_row_that_is_late_for_some_hop_windows_still_counts_in_the_open_ones() {
    let text = job(HOP);
    let mut job = Job::new(&text);
    job.batch(vec![row_lines(0, &[at(2600, "a", 1)])], false);
    // The watermark is 2100: windows that end at 1000 and 2000 are closed, the one from 0 to 3000 is not.
    let outcome = job.batch(vec![row_lines(0, &[at(500, "a", 2)])], true);
    assert_eq!(outcome.late, 0);
    let counts: Vec<String> = job.sorted().iter().map(|row| row.split(" | ").take(4).collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(
        counts,
        [
            "1970-01-01T00:00:00 1970-01-01T00:00:03 a 2",
            "1970-01-01T00:00:01 1970-01-01T00:00:04 a 1",
            "1970-01-01T00:00:02 1970-01-01T00:00:05 a 1"
        ]
    );
}

#[test]
fn a_partition_that_is_behind_holds_the_windows_open() {
    let mut job = Job::new(&counts("SET 'table.exec.source.idle-timeout' = '1 s';", COUNTS));
    let behind = |rows: &[String]| Lines { behind: true, ..row_lines(1, rows) };
    job.batch(vec![row_lines(0, &[at(5000, "a", 1)]), behind(&[at(100, "a", 1)])], false);
    assert_eq!(job.rows(), Vec::<String>::new());
    job.batch(vec![row_lines(0, &[]), behind(&[at(200, "a", 1)])], false);
    assert_eq!(job.rows(), Vec::<String>::new());
    job.batch(vec![row_lines(0, &[at(5001, "a", 1)]), row_lines(1, &[])], false);
    assert_eq!(job.rows(), ["1970-01-01T00:00:00 | a | 2"], "caught up and silent for long enough: idle");
}

#[test]
fn every_batch_shows_the_totals_so_far_of_the_windows_it_touched() {
    let mut job = Job::new(&counts("SET 'millrace.emit' = 'every-batch';", COUNTS));
    job.batch(vec![row_lines(0, &[at(100, "a", 1), at(1100, "b", 1)])], false);
    job.batch(vec![row_lines(0, &[at(200, "a", 1)])], false);
    job.batch(vec![row_lines(0, &[at(1600, "b", 1)])], true);
    let written: Vec<_> = job.written[0].lock().iter().map(|(batch, row)| format!("{batch}: {}", row.join(" "))).collect();
    let mut sorted = written;
    sorted.sort();
    assert_eq!(
        sorted,
        [
            "0: 1970-01-01T00:00:00 a 1",
            "0: 1970-01-01T00:00:01 b 1",
            "1: 1970-01-01T00:00:00 a 2",
            "2: 1970-01-01T00:00:00 a 2",
            "2: 1970-01-01T00:00:01 b 2",
        ]
    );
}

#[test]
fn order_and_limit_apply_to_each_window() {
    let query = format!("{COUNTS} ORDER BY 3 DESC, k LIMIT 1");
    let top = "SELECT window_start, k, n FROM (SELECT *, ROW_NUMBER() OVER (PARTITION BY window_start, window_end ORDER BY n DESC, k) AS r
               FROM (SELECT window_start, window_end, k, COUNT(*) AS n FROM TABLE(TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '1' SECOND))
               GROUP BY window_start, window_end, k)) WHERE r <= 1";
    for query in [query.as_str(), top] {
        let mut job = Job::new(&counts("", query));
        job.batch(vec![row_lines(0, &[at(1, "a", 1), at(2, "b", 1), at(3, "b", 1), at(1001, "c", 1), at(1002, "d", 1)])], true);
        assert_eq!(job.sorted(), ["1970-01-01T00:00:00 | b | 2", "1970-01-01T00:00:01 | c | 1"], "{query}");
    }
}

#[test]
fn many_keys_over_many_batches_are_merged_and_stay_right() {
    let text = counts("", COUNTS);
    let mut job = Job::new(&text);
    let keys = 3000;
    for _ in 0..6 {
        let rows: Vec<String> = (0..keys).map(|key| at(10, &format!("k{key}"), 1)).collect();
        job.batch(vec![row_lines(0, &rows)], false);
    }
    let rows = job.program.snapshot().unwrap().len();
    assert!(rows < 6 * keys * 24, "the states of six batches were merged: {rows} bytes");
    job.restart(&text);
    job.batch(vec![], true);
    assert_eq!(job.rows().len(), keys);
    assert!(job.rows().iter().all(|row| row.ends_with(" | 6")));
}

#[test]
fn percentiles_and_flinks_integer_arithmetic() {
    let text = format!(
        "CREATE TABLE t (ms BIGINT, k STRING, v INT, x AS CAST(v AS DOUBLE), ts AS TO_TIMESTAMP_LTZ(ms, 3), WATERMARK FOR ts AS ts) WITH ({KAFKA});
         CREATE TABLE s (half BIGINT, average INT, rate DOUBLE, p50 DOUBLE, p DOUBLE) WITH ('connector' = 'console');
         INSERT INTO s SELECT SUM(v) / 2, AVG(v), AVG(x), APPROX_PERCENTILE_CONT(x, 0.5), PERCENTILE(x, 0.99)
           FROM TABLE(TUMBLE(DATA => TABLE t, TIMECOL => DESCRIPTOR(ts), SIZE => INTERVAL '1' SECOND)) GROUP BY window_start, window_end;"
    );
    let mut job = Job::new(&text);
    let rows: Vec<String> = (0..=100).map(|value| at(10, "a", value)).collect();
    job.batch(vec![row_lines(0, &rows[..50])], false);
    job.batch(vec![row_lines(0, &rows[50..])], true);
    let row = job.rows().remove(0);
    let values: Vec<f64> = row.split(" | ").map(|value| value.parse().unwrap()).collect();
    assert_eq!(&values[..3], [2525.0, 50.0, 50.0]);
    assert!((values[3] - 50.0).abs() < 1.0 && (values[4] - 99.0).abs() < 1.5, "{row}");
}

#[test]
fn a_failed_batch_changes_no_state() {
    let text = format!(
        "CREATE TABLE t (ms BIGINT, k STRING, v INT, ts AS TO_TIMESTAMP_LTZ(ms, 3), WATERMARK FOR ts AS ts) WITH ({KAFKA});
         CREATE TABLE s (n BIGINT) WITH ('connector' = 'console');
         INSERT INTO s SELECT SUM(10 / v) FROM TABLE(TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '1' SECOND)) GROUP BY window_start, window_end;"
    );
    let mut job = Job::new(&text);
    job.batch(vec![row_lines(0, &[at(1, "a", 5)])], false);
    let error = job.try_batch(vec![row_lines(0, &[at(2, "a", 1), at(3, "a", 0)])], false).unwrap_err();
    assert!(format!("{error:#}").contains("ivide by zero"), "{error:#}");
    job.batch(vec![row_lines(0, &[at(2, "a", 2)])], true);
    assert_eq!(job.rows(), ["7"]);
}

#[test]
fn a_drained_job_that_goes_on_counts_rows_of_its_closed_windows_as_late() {
    let text = job(TUMBLE);
    let mut job = Job::new(&text);
    let outcome = job.batch(vec![lines(0, &[r#"{"ms":100,"k":"a","v":1}"#, r#"{"ms":200,"k":"a","v":1}"#])], true);
    assert_eq!((outcome.rows_out, outcome.late), (1, 0));
    job.restart(&text);
    let more = [r#"{"ms":300,"k":"a","v":1}"#, r#"{"ms":1100,"k":"a","v":1}"#, r#"{"ms":9000,"k":"a","v":1}"#];
    let outcome = job.batch(vec![lines(0, &more)], false);
    assert_eq!((outcome.rows_out, outcome.late), (1, 1));
    let counts: Vec<String> = job.rows().iter().map(|row| row.split(" | ").nth(3).unwrap().to_owned()).collect();
    assert_eq!(counts, ["2", "1"], "the first window is not written again: {:?}", job.rows());
}

#[test]
fn a_total_beyond_bigint_is_an_error_that_names_the_column() {
    for aggregate in ["SUM(v)", "AVG(v)"] {
        let text = format!(
            "CREATE TABLE t (ms BIGINT, v BIGINT, ts AS TO_TIMESTAMP_LTZ(ms, 3), WATERMARK FOR ts AS ts) WITH ({KAFKA});
             CREATE TABLE s (ws TIMESTAMP(3), total BIGINT) WITH ('connector' = 'console');
             INSERT INTO s SELECT window_start, {aggregate} FROM TABLE({TUMBLE}) GROUP BY window_start, window_end;"
        );
        let row = |v: i64| format!(r#"{{"ms":100,"v":{v}}}"#);
        let mut job = Job::new(&text);
        job.batch(vec![lines(0, &[&row(i64::MAX - 1), &row(1)])], false);
        // In one batch, and across batches.
        let in_one = Job::new(&text).try_batch(vec![lines(0, &[&row(i64::MAX), &row(1)])], true);
        let across = job.try_batch(vec![lines(0, &[&row(1)])], true);
        for result in [in_one, across] {
            let error = result.unwrap_err();
            assert!(error.chain().any(|cause| cause.is::<crate::sql::Overflow>()), "{error:#}");
            assert!(crate::job::said(&error).contains("the total of sum(t.v) is beyond BIGINT"), "{error:#}");
        }
    }
}
