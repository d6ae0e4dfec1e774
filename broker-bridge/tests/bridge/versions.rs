//! The oldest Kafka that is supported: 2.8 with its ZooKeeper takes the same tests as the newest.

use std::{env, path::Path, process::Command};

use tempfile::TempDir;

use crate::process::text;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/dev/kafka/kafka");

/// Produce, groups and transactions, over HTTP and gRPC, with keys that make a repetition harmless.
const TESTS: &[&str] = &[
    "records_go_in_and_out_over_http_with_their_trace",
    "grpc_writes_a_batch_once_and_consumes_by_credit_and_ack",
    "a_group_goes_on_where_it_was_after_a_stop_and_after_kill_9",
    "a_group_that_has_read_transactions_to_the_end_has_no_lag_and_is_put_elsewhere_when_it_is_empty",
    "lag_is_what_the_group_has_not_committed_and_names_the_member",
    "topics_are_advised_created_described_and_deleted",
    "transactions::transactions_are_all_or_nothing_and_end_with_their_lease",
    "idempotence::a_key_sent_to_two_bridges_at_once_is_written_once_and_known_after_a_restart_until_its_window_ends",
    "window::what_is_acknowledged_never_comes_again_and_the_rest_does_until_it_is_a_dead_letter",
];

/// Stopped when it goes out of scope.
struct Kafka {
    directory: TempDir,
    servers: String,
}

fn script(command: &str, directory: &Path, more: &[&str]) -> String {
    let output = Command::new(SCRIPT).arg(command).arg(directory).args(more).output().unwrap();
    assert!(output.status.success() || std::thread::panicking(), "{}", text(&output));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

impl Drop for Kafka {
    fn drop(&mut self) {
        script("stop", self.directory.path(), &[]);
    }
}

/// This program again, on another broker.
#[test]
fn kafka_2_8_takes_the_tests_of_produce_groups_and_transactions() {
    let directory = TempDir::new().unwrap();
    let servers = script("start", directory.path(), &["--version", "2.8"]);
    let kafka = Kafka { directory, servers };
    let mut tests = Command::new(env::current_exe().unwrap());
    let output =
        tests.args(["--exact", "--test-threads", "3"]).args(TESTS).env("KAFKA_BOOTSTRAP_SERVERS", &kafka.servers).output().unwrap();
    let told = text(&output);
    assert!(output.status.success() && told.contains(&format!("{} passed; 0 failed", TESTS.len())), "{told}");
}
