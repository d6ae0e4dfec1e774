//! Lines, and files that are there, absent or unreadable.

use super::*;

#[test]
fn what_is_written_between_the_start_and_the_first_look_is_read() {
    let mut trial = Trial::new(Begin::LastLines(10));
    trial.append("app.log", &numbered(0, 25));
    trial.start();
    trial.append("app.log", &numbered(25, 60));
    assert_eq!(trial.read(), lines(15, 60));
}

#[test]
fn the_first_start_begins_where_tail_would() {
    for (begin, text, expected) in [
        (Begin::LastLines(10), numbered(0, 25), lines(15, 25)),
        (Begin::LastLines(10), numbered(0, 10), lines(0, 10)),
        (Begin::LastLines(10), numbered(0, 3), lines(0, 3)),
        (Begin::LastLines(10), String::new(), vec![]),
        (Begin::LastLines(2), "a\nb\nc\n".into(), vec!["b".into(), "c".into()]),
        (Begin::LastLines(1), "\n\n\n".into(), vec![String::new()]),
        (Begin::LastLines(2), "a\nb\nunfinished".into(), vec!["b".into()]),
        (
            Begin::LastLines(3),
            format!("{}\n{}\nz\n", "x".repeat(200_000), "y".repeat(70_000)),
            vec!["x".repeat(200_000), "y".repeat(70_000), "z".into()],
        ),
        (Begin::LastLines(2), format!("{}\n{}\nz\n", "x".repeat(200_000), "y".repeat(70_000)), vec!["y".repeat(70_000), "z".into()]),
        (Begin::Line(1), numbered(0, 25), lines(0, 25)),
        (Begin::Line(4), numbered(0, 5), lines(3, 5)),
        (Begin::Line(9), numbered(0, 5), vec![]),
        (Begin::End, numbered(0, 5), vec![]),
    ] {
        let mut trial = Trial::new(begin);
        trial.append("app.log", &text);
        assert_eq!(trial.start().read(), expected, "{begin:?}");
        trial.append("app.log", "!\nlater\n");
        assert_eq!(trial.read().last().unwrap(), "later");
    }
}

#[test]
fn a_file_that_is_not_there_yet_is_waited_for_and_read_whole() {
    let mut trial = Trial::new(Begin::LastLines(10));
    assert_eq!(trial.start().read(), NOTHING);
    trial.append("app.log", &numbered(0, 30));
    assert_eq!(trial.read(), lines(0, 30));
}

#[test]
fn lines_are_cut_at_newlines_whatever_their_length() {
    let mut trial = Trial::new(Begin::Line(1));
    let long = "l".repeat(3 * READ_BYTES + 17);
    trial.append("app.log", &format!("a\r\n\nb\n{long}\nc\rd\n"));
    assert_eq!(trial.start().read(), ["a", "", "b", &long, "c\rd"]);
    // Written byte by byte.
    for byte in ["h", "e", "y", "\r", "\n"] {
        assert_eq!(trial.read(), NOTHING);
        trial.append("app.log", byte);
    }
    assert_eq!(trial.read(), ["hey"]);
    trial.deliver().kill();
    assert_eq!(trial.read(), NOTHING);
}

#[test]
fn a_line_without_end_is_split_before_it_fills_the_memory() {
    let mut trial = Trial::new(Begin::Line(1));
    trial.line_bytes_max = READ_BYTES;
    let endless = "x".repeat(2 * READ_BYTES + 100);
    trial.append("app.log", &format!("{endless}\nb\n"));
    let read = trial.start().read();
    assert_eq!(read.last().unwrap(), "b");
    assert!(read.len() > 2 && read.iter().all(|line| line.len() <= READ_BYTES));
    assert_eq!(read[..read.len() - 1].concat(), endless);
}

#[test]
fn files_take_turns() {
    let mut trial = Trial::new(Begin::Line(1));
    trial.groups = Some("^(?:[ab])$");
    let large = numbered(0, 3 * READ_BYTES / 10);
    trial.append("a", &large);
    trial.append("b", "quick\n");
    trial.start();
    let mut chunks = 0;
    loop {
        let chunk = trial.engine.as_mut().unwrap().next_chunk().unwrap();
        if chunk.text.starts_with(b"quick") {
            break;
        }
        chunks += 1;
    }
    assert!(chunks <= 1, "the small file waited for {chunks} chunks");
}

#[test]
fn with_flumes_reading_an_unfinished_line_is_given_out_after_a_while() {
    let mut trial = Trial::new(Begin::Line(1));
    trial.partial_wait = Some(Duration::ZERO);
    trial.append("app.log", "half");
    assert_eq!(trial.start().read(), ["half"]);
    trial.append("app.log", " a line\n");
    assert_eq!(trial.read(), [" a line"]);
}

#[test]
fn what_cannot_be_read_is_told_and_the_others_go_on() {
    let mut trial = Trial::new(Begin::Line(1));
    fs::create_dir_all(trial.path("app.log")).unwrap();
    assert_eq!(trial.start().read(), NOTHING);
    assert!(trial.engine.as_ref().unwrap().in_trouble().unwrap().ends_with("app.log: not a regular file"));
    fs::remove_dir(trial.path("app.log")).unwrap();
    trial.append("app.log", "a\n");
    assert_eq!(trial.read(), ["a"]);
    assert_eq!(trial.engine.as_ref().unwrap().in_trouble(), None);
}

#[test]
fn an_absent_file_is_a_trouble_until_it_appears() {
    let mut trial = Trial::new(Begin::Line(1));
    assert_eq!(trial.start().read(), NOTHING);
    let waiting = format!("waiting for {} to appear", trial.path("app.log").display());
    assert_eq!(trial.in_trouble(), Some(waiting));
    trial.append("app.log", "a\n");
    assert_eq!((trial.read(), trial.in_trouble()), (vec!["a".to_owned()], None));
    // A moment without the file is a rotation, no trouble.
    trial.rename("app.log", "app.log.1");
    assert_eq!((trial.read(), trial.in_trouble()), (vec![], None));
}

#[test]
fn a_directory_that_appears_is_no_trouble_any_more() {
    let mut trial = Trial::new(Begin::Line(1));
    trial.groups = Some("^(?:.*)$");
    trial.start();
    fs::remove_dir(trial.path("")).unwrap();
    assert_eq!(trial.read(), NOTHING);
    assert!(trial.in_trouble().unwrap().contains("No such file"));
    trial.append("a", "1\n");
    assert_eq!((trial.read(), trial.in_trouble()), (vec!["1".to_owned()], None));
}

#[test]
fn names_that_are_not_utf_8_are_read_and_remembered() {
    let mut trial = Trial::new(Begin::Line(1));
    trial.groups = Some(r"^(?:.*\.log)$");
    fs::create_dir_all(trial.path("")).unwrap();
    let name = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"caf\xe9.log");
    let path = trial.path("").join(name);
    fs::write(&path, "a\n").unwrap();
    assert_eq!(trial.start().read(), ["a"]);
    trial.deliver();
    assert_eq!(trial.saved()[0].path, path);
    fs::write(&path, "a\nb\n").unwrap();
    assert_eq!(trial.kill().read(), ["b"]);
}

#[test]
fn a_thousand_files_are_followed_with_a_few_handles() {
    let mut trial = Trial::new(Begin::Line(1));
    trial.groups = Some("^(?:.*)$");
    trial.handles_max = 7;
    for file in 0..200 {
        trial.append(&format!("f{file}"), &format!("{file} first\n"));
    }
    assert_eq!(trial.start().read().len(), 200);
    assert!(trial.handles() <= 7, "{}", trial.handles());
    assert_eq!(trial.in_trouble(), None);
    for file in (0..200).step_by(3) {
        trial.append(&format!("f{file}"), &format!("{file} second\n"));
    }
    let mut seen = trial.read();
    seen.sort();
    let mut expected: Vec<String> = (0..200).step_by(3).map(|file| format!("{file} second")).collect();
    expected.sort();
    assert_eq!(seen, expected);
    assert!(trial.handles() <= 7, "{}", trial.handles());
    // Renamed among the matching names and out of them, while it is closed and then grows.
    trial.rotate_wait = Duration::from_secs(3600);
    trial.deliver().kill().read();
    trial.rename("f1", "g1");
    trial.append("g1", "grown\n");
    assert_eq!(trial.read(), ["grown"]);
    trial.append("g1", "half");
    trial.read();
    fs::remove_file(trial.path("f2")).unwrap();
    trial.append("f2", "another file\n");
    assert_eq!(trial.read(), ["another file"]);
}

#[test]
fn a_closed_file_that_is_renamed_and_grows_is_read_to_its_end() {
    let mut trial = Trial::new(Begin::Line(1));
    trial.groups = Some(r"^(?:.*\.log)$");
    (trial.handles_max, trial.rotate_wait) = (1, Duration::from_secs(3600));
    for name in ["a.log", "b.log", "c.log"] {
        trial.append(name, "1\n");
    }
    assert_eq!(trial.start().read().len(), 3);
    for name in ["a.log", "b.log", "c.log"] {
        trial.append(name, &format!("last of {name}\n"));
        trial.rename(name, &format!("{name}.old"));
    }
    let mut seen = trial.read();
    seen.sort();
    assert_eq!(seen, ["last of a.log", "last of b.log", "last of c.log"]);
}

/// A buffer lives as long as its lines: in a channel that is full of single lines each of them had a buffer of 256 KiB.
#[test]
fn a_line_keeps_no_more_memory_than_its_own() {
    let mut trial = Trial::new(Begin::Line(1));
    trial.append("app.log", "short\n");
    trial.start();
    let chunk = trial.engine.as_mut().unwrap().next_chunk().unwrap();
    let capacity = chunk.text.try_into_mut().unwrap().capacity();
    assert!(capacity <= 64, "{capacity} bytes");
}
