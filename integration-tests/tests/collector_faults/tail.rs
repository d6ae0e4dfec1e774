//! What happens to files, while the collector is killed in between.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Write,
    os::unix::fs::{MetadataExt, symlink},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use integration_tests::{kafka, servers::kafka_bootstrap, unique};
use rand::RngExt;
use rustix::process::Signal;

use crate::{Agent, Log, append};

const KILLS: usize = 6;
const ROTATIONS: usize = 14;

/// Three logs at 2,000 lines a second each: renamed as logrotate does it, copied and emptied, renamed among names that match.
#[tokio::test(flavor = "multi_thread")]
async fn rotated_every_second_under_load_and_killed_no_line_is_lost_or_repeated() {
    let topic = unique("rotated");
    kafka::create_topic(&kafka_bootstrap(), &topic, 1).await;
    let agent = Agent::new(
        &kafka_bootstrap(),
        &topic,
        "renamed copied matching",
        "sources.renamed.type = exec\nsources.renamed.command = tail -n +1 -F DIR/renamed/app.log\nsources.renamed.rotateWait = 2000\n\
         sources.copied.type = exec\nsources.copied.command = tail -n +1 -F DIR/copied/app.log\nsources.copied.rotateWait = 2000\n\
         sources.matching.type = TAILDIR\nsources.matching.filegroups = f\nsources.matching.rotateWait = 2000\n\
         sources.matching.filegroups.f = DIR/matching/app\\\\.log.*",
    );
    let (mut renamed, mut copied, mut matching) =
        (agent.log("renamed", "renamed/app.log"), agent.log("copied", "copied/app.log"), agent.log("matching", "matching/app.log"));
    let done = AtomicBool::new(false);
    let kills = std::thread::scope(|scope| {
        let writing = scope.spawn(|| {
            let begun = Instant::now();
            let mut rotations = 0;
            while rotations < ROTATIONS {
                [&mut renamed, &mut copied, &mut matching].into_iter().for_each(|log| log.write(100));
                std::thread::sleep(Duration::from_millis(50));
                if begun.elapsed() >= Duration::from_secs(rotations as u64 + 1) {
                    rotations += 1;
                    shift(&renamed);
                    renamed.rename("app.log.1");
                    shift(&copied);
                    copied.copy_truncate("app.log.1");
                    matching.rename(&format!("app.log.{rotations}"));
                }
            }
            [&mut renamed, &mut copied, &mut matching].into_iter().for_each(|log| log.write(100));
            done.store(true, Ordering::Release);
        });
        let mut kills = 0;
        while !done.load(Ordering::Acquire) {
            let mut collector = agent.start();
            std::thread::sleep(Duration::from_millis(rand::rng().random_range(800..2_200)));
            if kills % 3 == 1 {
                // It stands still over two rotations.
                collector.signal(Signal::STOP);
                std::thread::sleep(Duration::from_millis(2_100));
                collector.signal(Signal::CONT);
                std::thread::sleep(Duration::from_millis(rand::rng().random_range(0..300)));
            }
            collector.kill_9();
            kills += 1;
        }
        writing.join().expect("the writer");
        kills
    });
    assert!(kills >= 4, "only {kills} kills");
    let mut collector = agent.start();
    agent.delivered_once([&renamed, &copied, &matching]).await;
    collector.stop().await;
    agent.delivered_once([&renamed, &copied, &matching]).await;
}

/// `app.log.1` becomes `app.log.2` and so on.
fn shift(log: &Log) {
    let name = |n: usize| log.path.with_file_name(format!("app.log.{n}"));
    for n in (1..ROTATIONS).rev().filter(|n| name(*n).exists()) {
        fs::rename(name(n), name(n + 1)).expect("rotation");
    }
}

const FILES: usize = 1_000;
const LONG: usize = 10_000_000;
/// What two small files begin with.
const HEADER: &str = "# 0000 one and the same header";

/// In every other round while the collector follows the files and is killed soon after, else while none runs.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens_to_a_file_each_of_its_lines_arrives_once() {
    const LOGS: [&str; 8] = ["renamed", "regrown", "deleted", "reused", "linked", "torn", "long", "one"];
    let topic = unique("files");
    kafka::create_topic_with(&kafka_bootstrap(), &topic, 1, &[("max.message.bytes", "20000000")]).await;
    let mut lines = format!("sources.r.type = TAILDIR\nsources.r.filegroups = {}\nsources.r.rotateWait = 300\n", LOGS.join(" "));
    for name in LOGS {
        lines += &format!("sources.r.filegroups.{name} = DIR/{name}/[a-z]+\\\\.log\n");
    }
    lines += "sources.r.maxLineLength = 16000000\nsources.m.type = TAILDIR\nsources.m.filegroups = f\n\
              sources.m.filegroups.f = DIR/many/.*\nsources.m.maxOpenFiles = 100\nsinks.k.kafka.producer.max.request.size = 20000000";
    let agent = Agent::new(&kafka_bootstrap(), &topic, "r m", &lines);
    let mut logs: BTreeMap<String, Log> =
        LOGS.iter().map(|name| ((*name).to_owned(), agent.log(name, &format!("{name}/app.log")))).collect();
    for n in 0..FILES {
        let name = format!("many{n}");
        logs.insert(name.clone(), agent.log(&name, &format!("many/{n}")));
    }
    logs.insert("two".into(), agent.log("two", "one/two.log"));
    let header = Log { written: vec![HEADER.to_owned(); 2], ..agent.log("#", "none/app.log") };
    logs.insert("#".into(), header);
    for name in ["one", "two"] {
        append(&logs[name].path, &format!("{HEADER}\n"));
    }
    let day = |n: usize| agent.dir.path().join("linked").join(format!("day{n}"));
    symlink(day(0), &logs["linked"].path).expect("a link");

    let mut collector = agent.start();
    let mut inodes_reused = 0;
    for round in 0..KILLS {
        let alive = round % 2 == 0;
        for (name, log) in logs.iter_mut().filter(|(name, _)| !["#", "long"].contains(&name.as_str())) {
            log.write(if name.starts_with("many") || ["one", "two"].contains(&name.as_str()) { 1 } else { 40 });
        }
        agent.delivered_once(logs.values()).await;
        if !alive {
            collector.kill_9();
        }
        let mut log = |name: &str, change: &mut dyn FnMut(&mut Log)| logs.get_mut(name).map(change).expect("the log");
        log("renamed", &mut |log| {
            log.write(30);
            log.rename(&format!("app.log.{round}"));
            log.write(30);
        });
        log("regrown", &mut |log| {
            log.write(30);
            log.copy_truncate(&format!("app.log.{round}"));
            // Longer than the position that was read before.
            log.write(100 * (round + 1));
        });
        log("linked", &mut |log| {
            log.write(30);
            let link = log.path.with_file_name("new");
            symlink(day(round + 1), &link).and_then(|()| fs::rename(link, &log.path)).expect("the link switched");
            log.file += 1;
            log.write(30);
        });
        // What is deleted while nobody reads it is gone for everybody: it was delivered above.
        log("deleted", &mut |log| {
            fs::remove_file(&log.path).expect("deletion");
            log.file += 1;
            log.write(30);
        });
        // Two small files that begin alike change their names.
        let (mut path, aside) = (logs["one"].path.clone(), agent.dir.path().join("one/aside"));
        std::mem::swap(&mut path, &mut logs.get_mut("two").expect("the log").path);
        for (from, to) in [(&path, &aside), (&logs["one"].path, &path), (&aside, &logs["two"].path)] {
            fs::rename(from, to).expect("a name");
        }
        logs.get_mut("one").expect("the log").path = path;
        let mut log = |name: &str, change: &mut dyn FnMut(&mut Log)| logs.get_mut(name).map(change).expect("the log");
        if !alive {
            log("reused", &mut |log| inodes_reused += usize::from(reuse_inode(log)));
        }
        // The end of the last line comes after the kill, or, where the file goes away, never.
        let mut rest = String::new();
        log("torn", &mut |log| {
            let line = log.line("in two parts");
            let (first, second) = line.split_at(25);
            append(&log.path, if alive { first } else { &line });
            rest = format!("{second}\n");
        });
        if round < 2 {
            log("long", &mut |log| {
                let line = log.line(&"y".repeat(LONG)) + "\n";
                append(&log.path, &line);
            });
        }
        if alive {
            tokio::time::sleep(Duration::from_millis(rand::rng().random_range(0..600))).await;
            collector.kill_9();
        }
        logs.get_mut("torn").into_iter().for_each(|log| {
            if alive {
                append(&log.path, &rest);
            } else {
                log.rename(&format!("app.log.{round}"));
            }
        });
        collector = agent.start();
    }
    assert!(inodes_reused > 0, "the file system of {} gives no inode number again; set TMPDIR", agent.dir.path().display());
    // Through an open handle, after the name is gone.
    if let Some(log) = logs.get_mut("deleted") {
        log.write(10);
        agent.delivered_once(logs.values()).await;
    }
    if let Some(log) = logs.get_mut("deleted") {
        let mut open = File::options().append(true).open(&log.path).expect("the log");
        fs::remove_file(&log.path).expect("deletion");
        writeln!(open, "{}", log.line("written after the file was deleted")).expect("the log");
        log.file += 1;
        log.write(10);
    }
    agent.delivered_once(logs.values()).await;
    collector.stop().await;
    agent.delivered_once(logs.values()).await;
}

/// Deletes the log and makes another one with its inode number; false where the file system has given it to somebody else.
fn reuse_inode(log: &mut Log) -> bool {
    let inode = |path: &Path| fs::metadata(path).expect("the log").ino();
    let old = inode(&log.path);
    fs::remove_file(&log.path).expect("deletion");
    log.file += 1;
    let mut passed_over = Vec::new();
    for n in 0..100 {
        append(&log.path, "");
        if inode(&log.path) == old {
            break;
        }
        let aside = log.path.with_file_name(format!("aside{n}"));
        fs::rename(&log.path, &aside).expect("another try");
        passed_over.push(aside);
    }
    log.write(60);
    passed_over.iter().for_each(|path| fs::remove_file(path).expect("deletion"));
    inode(&log.path) == old
}
