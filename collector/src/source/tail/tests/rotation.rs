//! Renamed, emptied, deleted, replaced: with and without a collector that watches.

use super::*;

#[test]
fn a_rename_loses_and_repeats_nothing() {
    let mut trial = Trial::new(Begin::Line(1));
    trial.rotate_wait = Duration::from_secs(3600);
    trial.append("app.log", &numbered(0, 5));
    assert_eq!(trial.start().read(), lines(0, 5));
    trial.rename("app.log", "app.log.1");
    trial.append("app.log.1", &numbered(5, 7));
    assert_eq!(trial.read(), lines(5, 7));
    trial.append("app.log", &numbered(8, 10));
    // The writer still had the old file open: what it wrote there comes first.
    trial.append("app.log.1", &numbered(7, 8));
    assert_eq!(trial.read(), lines(7, 10));
    trial.deliver();
    assert_eq!(trial.open_files(), 2);
    assert_eq!(trial.kill().read(), NOTHING);
}

#[test]
fn a_rotated_file_is_closed_when_it_is_through_and_its_unfinished_line_is_a_line() {
    let mut trial = Trial::new(Begin::Line(1));
    trial.append("app.log", "a\nunfinished");
    assert_eq!(trial.start().read(), ["a"]);
    trial.rename("app.log", "app.log.1");
    trial.append("app.log", "b\n");
    assert_eq!(trial.read(), ["b", "unfinished"]);
    assert_eq!(trial.open_files(), 1);
    trial.deliver();
    assert_eq!(trial.kill().read(), NOTHING);
}

#[test]
fn a_rename_while_nobody_watched_is_followed() {
    let mut trial = Trial::new(Begin::LastLines(10));
    trial.append("app.log", &numbered(0, 5));
    trial.start().read();
    trial.deliver();
    trial.append("app.log", &numbered(5, 20));
    trial.rename("app.log", "app.log.1");
    trial.append("app.log", &numbered(20, 40));
    assert_eq!(trial.kill().read(), lines(5, 40));
    trial.deliver();
    assert_eq!(trial.kill().read(), NOTHING);
}

#[test]
fn files_that_came_and_went_while_nobody_watched_are_read_oldest_first() {
    let mut trial = Trial::new(Begin::Line(1));
    // Read to its end and forgotten long before.
    trial.append("app.log", &numbered(0, 3));
    assert_eq!(trial.start().read(), lines(0, 3));
    trial.deliver();
    trial.age("app.log", 900);
    trial.rename("app.log", "app.log.4");
    trial.append("app.log", &numbered(3, 5));
    trial.read();
    trial.deliver();
    // Now nobody watches, and there are three rotations.
    trial.append("app.log", &numbered(5, 6));
    for (at, age) in [(3, 800), (2, 700), (1, 600)] {
        trial.age("app.log", age);
        trial.rename("app.log", &format!("app.log.{at}"));
        trial.append("app.log", &numbered(9 - at, 10 - at));
    }
    for other in ["app.log.1.gz", "app.log.swp", "app.logs", "app2.log.1", "other.log.1"] {
        trial.append(other, "none of its business\n");
    }
    assert_eq!(trial.kill().read(), lines(5, 9));
    trial.deliver();
    assert_eq!(trial.kill().read(), NOTHING);
    assert_eq!(trial.read(), NOTHING);
}

#[test]
fn files_that_came_and_went_are_read_also_when_the_last_known_one_is_gone() {
    let mut trial = Trial::new(Begin::Line(1));
    trial.append("app.log", &numbered(0, 3));
    assert_eq!(trial.start().read(), lines(0, 3));
    trial.age("app.log", 900);
    trial.rename("app.log", "app.log.1");
    trial.append("app.log", &numbered(3, 5));
    trial.read();
    trial.deliver();
    trial.engine = None;
    fs::remove_file(trial.path("app.log")).unwrap();
    trial.append("app.log-20260102", &numbered(5, 7));
    trial.append("app.log", &numbered(7, 9));
    assert_eq!(trial.kill().read(), lines(5, 9));
    trial.deliver();
    assert_eq!(trial.kill().read(), NOTHING);
}

#[test]
fn emptied_in_place_is_read_from_the_beginning() {
    let mut trial = Trial::new(Begin::Line(1));
    trial.append("app.log", &numbered(0, 50));
    assert_eq!(trial.start().read(), lines(0, 50));
    trial.deliver();
    trial.truncate("app.log");
    assert_eq!(trial.read(), NOTHING);
    trial.append("app.log", "new\n");
    assert_eq!(trial.read(), ["new"]);
    trial.deliver();
    assert_eq!(trial.kill().read(), NOTHING);
}

#[test]
fn emptied_and_grown_past_the_old_position_is_seen_too() {
    for kill in [false, true] {
        let mut trial = Trial::new(Begin::Line(1));
        trial.append("app.log", &numbered(0, 50));
        assert_eq!(trial.start().read(), lines(0, 50));
        trial.deliver();
        trial.truncate("app.log");
        trial.append("app.log", &numbered(1000, 1400));
        if kill {
            trial.kill();
        }
        assert_eq!(trial.read(), lines(1000, 1400));
    }
}

#[test]
fn emptied_and_grown_to_the_very_same_length_is_seen_too() {
    let mut trial = Trial::new(Begin::Line(1));
    trial.append("app.log", "aaaa\nbbbb\n");
    assert_eq!(trial.start().read(), ["aaaa", "bbbb"]);
    trial.truncate("app.log");
    trial.append("app.log", "cccc\ndddd\n");
    let later = std::time::SystemTime::now() + Duration::from_secs(5);
    File::open(trial.path("app.log")).unwrap().set_modified(later).unwrap();
    assert_eq!(trial.read(), ["cccc", "dddd"]);
}

#[test]
fn the_same_first_lines_do_not_hide_that_a_file_is_new() {
    // A header longer than the fingerprint of the beginning.
    let header = format!("{}\n", "#".repeat(2000));
    for kill in [false, true] {
        let mut trial = Trial::new(Begin::Line(1));
        trial.append("app.log", &(header.clone() + &numbered(0, 30)));
        assert_eq!(trial.start().read().len(), 31);
        trial.deliver();
        trial.truncate("app.log");
        trial.append("app.log", &(header.clone() + &numbered(100, 200)));
        if kill {
            trial.kill();
        }
        assert_eq!(trial.read()[1..], lines(100, 200), "killed: {kill}");
    }
}

#[test]
fn what_was_not_read_when_a_file_was_emptied_is_read_in_its_copy() {
    let mut trial = Trial::new(Begin::Line(1));
    trial.append("app.log", &numbered(0, 5));
    assert_eq!(trial.start().read(), lines(0, 5));
    // Another file that begins alike, and an older copy.
    trial.append("app.log.2", &numbered(0, 4));
    trial.append("app.log", "line 5\nline ");
    assert_eq!(trial.read(), lines(5, 6));
    trial.append("app.log", &("6\n".to_owned() + &numbered(7, 9)));
    fs::copy(trial.path("app.log"), trial.path("app.log.1")).unwrap();
    trial.truncate("app.log");
    trial.append("app.log", &numbered(9, 12));
    let mut read = trial.read();
    read.sort_by_key(|line| line.trim_start_matches("line ").parse::<usize>().unwrap());
    assert_eq!(read, lines(6, 12));
    assert_eq!(trial.kill().read(), lines(0, 12));
    trial.deliver();
    assert_eq!(trial.kill().read(), NOTHING);
}

#[test]
fn files_that_come_and_go_while_lines_wait_for_room_are_read_when_there_is_some() {
    for copied in [false, true] {
        let mut trial = Trial::new(Begin::Line(1));
        trial.append("app.log", &numbered(0, 5));
        assert_eq!(trial.start().read(), lines(0, 5));
        for n in 1..=3 {
            trial.append("app.log", &numbered(n * 5, n * 5 + 5));
            trial.wait();
            if copied {
                fs::copy(trial.path("app.log"), trial.path(&format!("app.log.{n}"))).unwrap();
                trial.truncate("app.log");
            } else {
                // To where nobody looks for it.
                trial.rename("app.log", &format!("gone{n}"));
            }
            trial.wait();
        }
        trial.append("app.log", &numbered(20, 25));
        assert_eq!(trial.read(), lines(5, 25), "copied: {copied}");
        trial.deliver();
        assert_eq!(trial.kill().read(), NOTHING);
    }
}

/// As logrotate does it: `app.log.1` becomes `app.log.2`, the file `app.log.1`.
fn rotate(trial: &Trial, copied: bool) {
    if trial.path("app.log.1").exists() {
        trial.rename("app.log.1", "app.log.2");
    }
    if copied {
        fs::copy(trial.path("app.log"), trial.path("app.log.1")).unwrap();
        trial.truncate("app.log");
    } else {
        trial.rename("app.log", "app.log.1");
    }
}

#[test]
fn what_is_rotated_twice_between_two_looks_is_found() {
    for (copied, waits) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut trial = Trial::new(Begin::Line(1));
        trial.append("app.log", &numbered(0, 5));
        assert_eq!(trial.start().read(), lines(0, 5));
        trial.append("app.log", &numbered(5, 10));
        rotate(&trial, copied);
        trial.append("app.log", &numbered(10, 15));
        rotate(&trial, copied);
        trial.append("app.log", &numbered(15, 20));
        if waits {
            trial.wait();
        }
        let mut read = trial.read();
        read.sort_by_key(|line| line.trim_start_matches("line ").parse::<usize>().unwrap());
        assert_eq!(read, lines(5, 20), "copied: {copied}, waits: {waits}");
        trial.deliver();
        assert_eq!(trial.read(), NOTHING);
        assert_eq!(trial.kill().read(), NOTHING);
    }
}

#[test]
fn what_an_empty_file_held_between_two_looks_is_found_in_its_copy() {
    for waits in [false, true] {
        let mut trial = Trial::new(Begin::Line(1));
        trial.append("app.log", &numbered(0, 5));
        assert_eq!(trial.start().read(), lines(0, 5));
        rotate(&trial, true);
        assert_eq!(trial.read(), NOTHING);
        trial.append("app.log", &numbered(5, 10));
        rotate(&trial, true);
        trial.append("app.log", &numbered(10, 15));
        // Just begun, and no rotation yet.
        trial.append("app.log.0", &numbered(10, 12));
        if waits {
            trial.wait();
        }
        let mut read = trial.read();
        read.sort_by_key(|line| line.trim_start_matches("line ").parse::<usize>().unwrap());
        assert_eq!(read, lines(5, 15), "waits: {waits}");
        trial.deliver();
        assert_eq!(trial.kill().read(), NOTHING);
    }
}

#[test]
fn a_file_that_came_and_went_before_anything_was_saved_is_read() {
    let mut trial = Trial::new(Begin::Line(1));
    trial.start().engine = None;
    trial.append("app.log", &numbered(0, 5));
    rotate(&trial, false);
    trial.append("app.log", &numbered(5, 9));
    assert_eq!(trial.start().read(), lines(0, 9));
    trial.deliver();
    assert_eq!(trial.kill().read(), NOTHING);
}

#[test]
fn copied_and_emptied_while_nobody_watched_is_finished_in_the_copy() {
    let mut trial = Trial::new(Begin::Line(1));
    trial.append("app.log", &numbered(0, 5));
    trial.start().read();
    trial.deliver();
    trial.append("app.log", &numbered(5, 9));
    fs::copy(trial.path("app.log"), trial.path("app.log.1")).unwrap();
    trial.truncate("app.log");
    trial.append("app.log", &numbered(9, 12));
    assert_eq!(trial.kill().read(), lines(5, 12));
    trial.deliver();
    assert_eq!(trial.kill().read(), NOTHING);
}

#[test]
fn an_unfinished_line_is_not_lost_when_the_file_is_emptied() {
    let mut trial = Trial::new(Begin::Line(1));
    trial.append("app.log", "a\nhalf");
    assert_eq!(trial.start().read(), ["a"]);
    trial.truncate("app.log");
    trial.append("app.log", "b\n");
    assert_eq!(trial.read(), ["half", "b"]);
}

#[test]
fn a_deleted_file_is_read_to_its_end_and_a_new_one_from_its_beginning() {
    let mut trial = Trial::new(Begin::Line(1));
    trial.append("app.log", &numbered(0, 2));
    trial.start();
    let mut writer = OpenOptions::new().append(true).open(trial.path("app.log")).unwrap();
    assert_eq!(trial.read(), lines(0, 2));
    trial.rotate_wait = Duration::from_secs(3600);
    fs::remove_file(trial.path("app.log")).unwrap();
    writer.write_all(numbered(2, 3).as_bytes()).unwrap();
    assert_eq!(trial.read(), lines(2, 3));
    drop(writer);
    trial.append("app.log", &numbered(3, 5));
    assert_eq!(trial.read(), lines(3, 5));
    trial.deliver();
    assert_eq!(trial.kill().read(), NOTHING);
}

#[test]
fn an_inode_used_again_is_another_file() {
    let mut trial = Trial::new(Begin::Line(1));
    trial.append("app.log", &numbered(0, 5));
    trial.start().read();
    trial.deliver();
    let saved = trial.saved();
    trial.engine = None;
    fs::remove_file(trial.path("app.log")).unwrap();
    trial.append("app.log", &numbered(100, 110));
    // Whether the file system gives the number again is its own affair: the remembered one is made to fit.
    let inode = std::os::unix::fs::MetadataExt::ino(&fs::metadata(trial.path("app.log")).unwrap());
    trial.store().save(saved.into_iter().map(|file| Remembered { inode, ..file }).collect()).unwrap();
    assert_eq!(trial.start().read(), lines(100, 110));
}

#[test]
fn a_symlink_that_points_elsewhere_is_a_rotation() {
    let mut trial = Trial::new(Begin::Line(1));
    trial.append("day1", &numbered(0, 2));
    trial.append("day2", &numbered(3, 5));
    std::os::unix::fs::symlink(trial.path("day1"), trial.path("app.log")).unwrap();
    assert_eq!(trial.start().read(), lines(0, 2));
    trial.append("day1", &numbered(2, 3));
    std::os::unix::fs::symlink(trial.path("day2"), trial.path("link")).unwrap();
    trial.rename("link", "app.log");
    assert_eq!(trial.read(), lines(2, 5));
    trial.deliver();
    assert_eq!(trial.kill().read(), NOTHING);
}

#[test]
fn a_rename_back_is_no_rotation() {
    let mut trial = Trial::new(Begin::Line(1));
    trial.rotate_wait = Duration::from_secs(3600);
    trial.append("app.log", "a\n");
    assert_eq!(trial.start().read(), ["a"]);
    trial.rename("app.log", "aside");
    assert_eq!(trial.read(), NOTHING);
    trial.rename("aside", "app.log");
    trial.append("app.log", "b\n");
    assert_eq!(trial.read(), ["b"]);
    assert_eq!(trial.open_files(), 1);
}

#[test]
fn taildir_follows_files_whose_names_match_over_a_rename_among_them() {
    let mut trial = Trial::new(Begin::Line(1));
    trial.groups = Some(r"^(?:app\.log.*)$");
    trial.append("app.log", &numbered(0, 3));
    trial.append("other.txt", "no\n");
    assert_eq!(trial.start().read(), lines(0, 3));
    trial.rename("app.log", "app.log.1");
    trial.append("app.log", &numbered(3, 5));
    assert_eq!(trial.read(), lines(3, 5));
    trial.deliver();
    // Flume reads a renamed file again from its beginning.
    assert_eq!(trial.kill().read(), NOTHING);
    trial.rename("app.log", "app.log.2");
    trial.append("app.log", &numbered(5, 6));
    assert_eq!(trial.kill().read(), lines(5, 6));
}

/// Whatever the writer does and whenever the reader is killed: every line arrives, and those delivered before a kill once.
#[test]
fn random_rotations_and_kills_lose_nothing() {
    for seed in 0..60u64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut random = move |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let mut trial = Trial::new(Begin::Line(1));
        trial.rotate_wait = Duration::from_secs(3600);
        trial.start();
        let (mut written, mut rotations) = (0usize, 0);
        let (mut delivered, mut pending) = (Vec::<String>::new(), Vec::<String>::new());
        for _ in 0..60 {
            match random(6) {
                0..=2 => {
                    let count = 1 + random(20) as usize;
                    trial.append("app.log", &numbered(written, written + count));
                    written += count;
                }
                3 => {
                    pending.extend(trial.read());
                    if random(2) == 0 {
                        trial.deliver();
                        delivered.append(&mut pending);
                    }
                }
                4 if Path::new(&trial.path("app.log")).exists() => {
                    rotations += 1;
                    // A file that came and went between two looks was never there for the collector.
                    pending.extend(trial.read());
                    trial.rename("app.log", &format!("app.log.{rotations}"));
                    pending.extend(trial.read());
                }
                _ => {
                    pending.clear();
                    trial.kill();
                    pending.extend(trial.read());
                }
            }
        }
        pending.extend(trial.read());
        delivered.append(&mut pending);
        delivered.sort_by_key(|line| line.trim_start_matches("line ").parse::<usize>().unwrap());
        assert_eq!(delivered, lines(0, written), "seed {seed}");
    }
}

/// Idle files are looked at seldom; what comes and goes among them is seen all the same.
#[test]
fn many_idle_files_hide_no_rotation() {
    let mut trial = Trial::new(Begin::Line(1));
    trial.groups = Some("^(?:.*[.]log)$");
    trial.look_pause_max = Duration::from_secs(3600);
    trial.rotate_wait = Duration::from_secs(3600);
    for file in 0..300 {
        trial.append(&format!("idle{file}.log"), "idle\n");
    }
    assert_eq!(trial.start().read().len(), 300);
    assert_eq!(trial.read(), NOTHING);
    for round in 0..5 {
        trial.append("app.log", &format!("{round}\n"));
        assert_eq!(trial.read(), [round.to_string()]);
        trial.append("app.log", &format!("last of {round}\n"));
        trial.rename("app.log", &format!("app.log.{round}"));
        assert_eq!(trial.read(), [format!("last of {round}")]);
        // The look at all of them is over, and was long.
        assert_eq!(trial.read(), NOTHING);
    }
}
