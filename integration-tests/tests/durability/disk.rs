//! A small ext4 file system of its own, in an image on a loop device: full, freed, and cut off from power.
//!
//! A power cut is the image as it is at a moment: what the file system has written to its device. What is in the page cache
//! alone is not in it. The collector is stopped while the image is copied, and a copy during which the image changed is thrown
//! away, so that each is one moment's. Needs root, for `mount`; without it these tests fail and say so.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use super::{Agent, NOWHERE, WAIT, assert_none_lost, senders::Senders};

fn command(program: &str, args: &[&str]) -> std::process::Output {
    let output = Command::new(program).args(args).output();
    output.unwrap_or_else(|error| panic!("{program}: {error}; these tests need mkfs.ext4, e2fsck and mount, and root"))
}

fn succeeds(program: &str, args: &[&str]) {
    let output = command(program, args);
    assert!(
        output.status.success(),
        "{program} {args:?}: {}: {}; this test needs root and loop devices, and nothing else would show a power cut or a full disk",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Mounted until it is dropped.
struct Mounted {
    at: PathBuf,
}

impl Mounted {
    fn new(image: &Path, at: PathBuf) -> Self {
        fs::create_dir_all(&at).expect("a folder");
        succeeds("mount", &["-o", "loop", &image.to_string_lossy(), &at.to_string_lossy()]);
        Self { at }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Somebody may still be in it for a moment.
        for _ in 0..100 {
            if command("umount", &[&self.at.to_string_lossy()]).status.success() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn image(dir: &Path, mib: u64) -> PathBuf {
    let path = dir.join("disk.img");
    File::create(&path).and_then(|file| file.set_len(mib << 20)).expect("an image");
    succeeds("mkfs.ext4", &["-q", "-F", "-J", "size=4", "-m", "0", &path.to_string_lossy()]);
    path
}

/// The image of one moment.
fn copy(image: &Path, to: &Path) {
    for _ in 0..50 {
        let before = fs::read(image).expect("the image");
        if before == fs::read(image).expect("the image") {
            fs::write(to, before).expect("a copy of the image");
            return;
        }
    }
    panic!("the image changes all the time");
}

const CUTS: u32 = 24;

/// Cuts, and how many of them lost something that was acknowledged before.
async fn cut(cuts: u32, fault: &str) -> (u32, Vec<String>) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let image = image(dir.path(), 24);
    let disk = Mounted::new(&image, dir.path().join("disk"));
    let mut agent = Agent::new(dir.path(), &disk.at.join("channel"));
    let confs = [agent.conf("nowhere.conf", NOWHERE), agent.conf("files.conf", &agent.files())];
    let senders = Senders::start(agent.port);
    let (mut lost, mut done) = (Vec::new(), 0);
    // One half with a sink that delivers nothing, so that the channel grows; the other half with one that empties it.
    for conf in &confs {
        let mut collector = agent.start(conf, fault);
        collector.addresses().await;
        for _ in 0..cuts / 2 {
            let (before, begun) = (senders.count(), Instant::now());
            let more = rand::random_range(5..60);
            while senders.count() < before + more {
                assert!(begun.elapsed() < WAIT, "no line is taken any more:\n{}", collector.log());
                tokio::time::sleep(Duration::from_millis(rand::random_range(1..10))).await;
            }
            collector.signal(Signal::STOP);
            let acknowledged = senders.acknowledged();
            let copied = dir.path().join("cut.img");
            copy(&image, &copied);
            let delivered = agent.delivered();
            collector.signal(Signal::CONT);

            // Repairs are the journal's, and nothing is left to repair after it.
            let checked = command("e2fsck", &["-fp", &copied.to_string_lossy()]);
            assert!(checked.status.code().is_some_and(|code| code <= 1), "{}", String::from_utf8_lossy(&checked.stdout));
            let cut = Mounted::new(&copied, dir.path().join("cut"));
            let place = std::mem::replace(&mut agent.place, cut.at.join("channel"));
            let recovered = agent.conf("cut.conf", NOWHERE);
            let mut there: BTreeSet<String> = agent.drain(&recovered).into_iter().collect();
            agent.place = place;
            there.extend(delivered);
            let missing = acknowledged.difference(&there).count();
            if missing > 0 {
                lost.push(format!("cut {done}: {missing} of {} lines", acknowledged.len()));
            }
            done += 1;
        }
        collector.kill_9();
    }
    let acknowledged = senders.stop().await;
    assert!(acknowledged.len() > 100, "{}", acknowledged.len());
    (done, lost)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_cut_loses_nothing_that_was_acknowledged() {
    let (cuts, lost) = cut(CUTS, "").await;
    assert_eq!((cuts, lost), (CUTS, Vec::new()));
}

/// The same with syncs that do nothing must find a loss, else it finds none anywhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_cut_without_syncs_is_found_out() {
    let (cuts, lost) = cut(4, "disk-sync:skip").await;
    assert_eq!(cuts, 4);
    assert!(lost.len() >= 2, "only {lost:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_makes_senders_wait_and_loses_nothing() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let disk = Mounted::new(&image(dir.path(), 12), dir.path().join("disk"));
    let agent = Agent::new(dir.path(), &disk.at.join("channel"));
    let (nowhere, files) = (agent.conf("nowhere.conf", NOWHERE), agent.conf("files.conf", &agent.files()));
    let filler = disk.at.join("filler");
    let fill = |left: u64| {
        let mut file = File::options().create(true).append(true).open(&filler).expect("a file");
        loop {
            let space = rustix::fs::statvfs(&disk.at).expect("statvfs");
            let free = space.f_bavail * space.f_frsize;
            let more = free.saturating_sub(left).min(64 << 10);
            if more < 1024 || file.write_all(&vec![7; usize::try_from(more).expect("a size")]).and_then(|()| file.sync_all()).is_err() {
                return;
            }
        }
    };
    let senders = Senders::start(agent.port);
    let count = async |what: &str, log: &dyn Fn() -> String, reached: &dyn Fn() -> bool| {
        let begun = Instant::now();
        while !reached() {
            assert!(begun.elapsed() < WAIT, "{what}:\n{}", log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    for round in 0..5 {
        let mut collector = agent.start(&nowhere, "");
        collector.addresses().await;
        let before = senders.count();
        count("lines are taken", &|| collector.log(), &|| senders.count() > before + 50).await;
        // To the last byte, past what the channel leaves free.
        fill(0);
        let before = senders.refused();
        count("lines are refused", &|| collector.log(), &|| senders.refused() > before + 5).await;
        if round % 2 == 0 {
            // A start on a full disk.
            collector.kill_9();
            collector = agent.start(&nowhere, "");
            collector.addresses().await;
            let before = senders.refused();
            count("lines are refused after the start", &|| collector.log(), &|| senders.refused() > before + 5).await;
        }
        fs::remove_file(&filler).expect("the file is removed");
        let before = senders.count();
        count("lines are taken again", &|| collector.log(), &|| senders.count() > before + 20).await;
        assert!(!collector.log().contains("panicked"), "{}", collector.log());
        collector.kill_9();
    }
    // Full, and emptied by the sink.
    fill(0);
    let mut collector = agent.start(&files, "");
    collector.addresses().await;
    count("everything is delivered", &|| collector.log(), &|| {
        let there: BTreeSet<String> = agent.delivered().into_iter().collect();
        senders.acknowledged().iter().all(|line| there.contains(line))
    })
    .await;
    fs::remove_file(&filler).expect("the file is removed");
    let acknowledged = senders.stop().await;
    collector.stop().await;
    let there = agent.delivered().into_iter().chain(agent.drain(&files)).collect();
    assert_none_lost(&acknowledged, &there, "5 rounds of a full disk");
}
