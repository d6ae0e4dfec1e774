//! Segments flipped, cut, zeroed, missing and there twice, on the real file system: the collector starts, delivers the rest,
//! and says how much is missing.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{Agent, NOWHERE, WAIT, senders::Senders};

fn segments(place: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = ["data1", "data2"]
        .iter()
        .flat_map(|name| fs::read_dir(place.join(name)))
        .flatten()
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|end| end == "log"))
        .collect();
    all.sort_by_key(|path| path.file_name().map(ToOwned::to_owned));
    all
}

fn copy_all(from: &Path, to: &Path) {
    for name in ["checkpoint", "data1", "data2"] {
        drop(fs::remove_dir_all(to.join(name)));
        fs::create_dir_all(to.join(name)).expect("a folder");
        for entry in fs::read_dir(from.join(name)).expect("a folder").flatten() {
            fs::copy(entry.path(), to.join(name).join(entry.file_name())).expect("a copy");
        }
    }
}

fn change(path: &Path, act: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).expect("a segment");
    act(&mut bytes);
    fs::write(path, bytes).expect("a segment");
}

#[derive(Debug)]
enum Harm {
    Flip(usize, usize),
    Cut(usize, usize),
    Zero(usize, usize),
    Missing(usize),
    /// In the other directory under its name, or in its own under another one.
    TwiceInDirectories(usize),
    TwiceUnderNames(usize),
    NoAcks,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_segments_cost_what_is_damaged_and_the_commands_tell() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let whole = dir.path().join("whole");
    let mut agent = Agent::new(dir.path(), &whole);
    let conf = agent.conf("whole.conf", NOWHERE);
    let mut collector = agent.start(&conf, "");
    let senders = Senders::start(agent.port);
    let begun = Instant::now();
    while segments(&whole).len() < 5 {
        assert!(begun.elapsed() < WAIT, "{}", collector.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let acknowledged = senders.stop().await;
    collector.stop().await;
    let good = agent.drain(&conf);
    let all: u64 = good.len() as u64;
    assert!(acknowledged.iter().all(|line| good.contains(line)) && all >= 300, "{all}");
    assert_eq!((agent.json(&conf, "inspect")["waiting"].as_u64(), agent.json(&conf, "verify")["well"].as_bool()), (Some(all), Some(true)));
    // The drain began a last segment, which is empty.
    let full = segments(&whole).len() - 1;

    agent.place = dir.path().join("harmed");
    let conf = agent.conf("harmed.conf", NOWHERE);
    let mut harms = vec![Harm::NoAcks];
    for at in 0..full {
        harms.extend([Harm::Missing(at), Harm::TwiceInDirectories(at), Harm::TwiceUnderNames(at), Harm::Cut(at, 40), Harm::Zero(at, 30)]);
    }
    for n in 0..24 {
        // The first ones are in the header.
        harms.push(Harm::Flip(n % full, n * 4));
        harms.push(Harm::Cut(n % full, n * 4 + 2));
    }
    let count = harms.len();
    for harm in harms {
        copy_all(&whole, &agent.place);
        let paths = segments(&agent.place);
        let at = |len: usize, percent: usize| len * percent / 100;
        // How many events may be missing; and whether the commands must find something wrong.
        let (most, wrong) = match harm {
            Harm::Flip(n, percent) => {
                change(&paths[n], |bytes| {
                    let at = at(bytes.len(), percent);
                    bytes[at] ^= 0x10;
                });
                (1, true)
            }
            Harm::Cut(n, percent) => {
                change(&paths[n], |bytes| bytes.truncate(at(bytes.len(), percent)));
                (all, true)
            }
            Harm::Zero(n, percent) => {
                change(&paths[n], |bytes| {
                    let at = at(bytes.len(), percent);
                    let end = bytes.len().min(at + 4096);
                    bytes[at..end].fill(0);
                });
                // 4 KiB of lines with at least 25 bytes each, and one more at each end.
                (4096 / 25 + 2, true)
            }
            Harm::Missing(n) => {
                fs::remove_file(&paths[n]).expect("removed");
                (all, true)
            }
            Harm::TwiceInDirectories(n) => {
                let other = if paths[n].starts_with(agent.place.join("data1")) { "data2" } else { "data1" };
                fs::copy(&paths[n], agent.place.join(other).join(paths[n].file_name().expect("a name"))).expect("a copy");
                (0, true)
            }
            Harm::TwiceUnderNames(n) => {
                fs::copy(&paths[n], agent.place.join("data1/segment-00000000000000ee.log")).expect("a copy");
                (0, true)
            }
            Harm::NoAcks => {
                fs::remove_file(agent.place.join("checkpoint/acks")).expect("removed");
                (0, false)
            }
        };
        let (inspected, verified) = (agent.json(&conf, "inspect"), agent.json(&conf, "verify"));
        let rest = agent.drain(&conf);
        let missing = all - rest.len() as u64;
        assert!(missing <= most, "{harm:?}: {missing} are missing");
        // In their order, and nothing else.
        let mut expected = good.iter();
        assert!(rest.iter().all(|line| expected.any(|good| good == line)), "{harm:?}: a line that was not there, or out of order");
        let told = verified["missing"].as_u64();
        if let Harm::Missing(_) = harm {
            assert_eq!(inspected["missing"].as_u64(), told, "{inspected} {verified}");
        }
        assert_eq!(told, Some(missing), "{harm:?}: {inspected} {verified}");
        assert_eq!(verified["well"].as_bool(), Some(!wrong), "{harm:?}: {inspected} {verified}");
    }
    assert!(count >= 60, "{count}");
}
