//! Every message about a wrong job, as the user sees it, beside the job that causes it: `messages.txt`.
//!
//! `UPDATE_SNAPSHOTS=1 cargo test -p stream-engine messages` writes the file anew; read the difference before keeping it.

use super::*;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/sql/tests/messages.txt");

/// In front of each case, on one line, so that the case begins in line 2.
fn prelude() -> String {
    format!(
        "CREATE TABLE t (a INT, name STRING, ts TIMESTAMP(3), WATERMARK FOR ts AS ts) WITH ({KAFKA}); \
         CREATE TABLE s (a INT, name STRING) WITH ('connector' = 'console');\n"
    )
}

#[test]
fn messages_name_the_place_the_mistake_and_the_remedy() {
    let text = std::fs::read_to_string(FILE).unwrap();
    let mut written = String::new();
    let mut count = 0;
    for case in text.split("\n\n").map(str::trim).filter(|case| !case.is_empty()) {
        let sql: Vec<&str> = case.lines().filter(|line| !line.starts_with("=> ")).collect();
        let sql = sql.join("\n");
        let job = prelude() + &sql.replace("KAFKA", KAFKA);
        let message = match try_compile(&job) {
            Ok(_) => "no error".to_owned(),
            Err(error) => error.to_string(),
        };
        assert!(message != "no error", "this job is not wrong:\n{sql}");
        count += 1;
        written.push_str(&format!("{sql}\n=> {message}\n\n"));
    }
    assert!(count > 50, "only {count} cases were found");
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(FILE, written.trim_end().to_owned() + "\n").unwrap();
        return;
    }
    assert_eq!(written.trim(), text.trim());
}
