use proptest::prelude::*;

use super::*;

fn record(kind: i32, transaction: i64, write: i64, body: &impl Message) -> Vec<u8> {
    let mut payload = Head { kind, transaction, write }.encode_length_delimited_to_vec();
    body.encode_length_delimited(&mut payload).unwrap();
    payload.push(0);
    let mut bytes = vec![RECORD];
    bytes.extend((payload.len() as u32).to_be_bytes());
    bytes.extend(payload);
    bytes
}

fn put(transaction: i64, write: i64, text: &str) -> Vec<u8> {
    let mut crc = flate2::Crc::new();
    crc.update(text.as_bytes());
    let header = PutHeader { key: "k".into(), value: Some("v".into()) };
    let event = PutEvent { headers: vec![header], body: Bytes::copy_from_slice(text.as_bytes()) };
    record(1, transaction, write, &Put { event: Some(event), checksum: Some(crc.sum().into()) })
}

fn commit(transaction: i64, write: i64, kind: i32) -> Vec<u8> {
    record(4, transaction, write, &Commit { kind })
}

fn write_log(directory: &Path, id: i32, bytes: &[u8], encryption: Option<Encryption>) {
    fs::write(directory.join(format!("log-{id}")), bytes).unwrap();
    let meta = Meta { version: 3, id, encryption }.encode_length_delimited_to_vec();
    fs::write(directory.join(format!("log-{id}.meta")), meta).unwrap();
}

fn bodies(directory: &Path) -> (Vec<String>, Replay) {
    let logs = FlumeLogs::open(&[directory.to_path_buf()], directory.join("none")).unwrap();
    let replay = logs.replay().unwrap();
    let text = |pointer: &Pointer| String::from_utf8(logs.event(*pointer).unwrap().body.to_vec()).unwrap();
    (replay.waiting.iter().map(text).collect(), replay)
}

#[test]
fn what_is_committed_and_not_taken_waits_in_the_order_of_its_commits() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b, c, d) = (put(1, 1, "a"), put(2, 2, "b"), put(1, 3, "c"), put(9, 20, "d"));
    let first = [a.clone(), b, c, commit(2, 4, 1), commit(1, 5, 1), d, vec![END; 100]].concat();
    write_log(dir.path(), 1, &first, None);
    let void: Vec<u8> = std::iter::once(VOID).chain(put(7, 9, "void").into_iter().skip(1)).collect();
    // Takes `b` and commits; takes `a` and rolls back.
    let b = Take { file: 1, offset: a.len() as i32 };
    let a = Take { file: 1, offset: 0 };
    let second = [record(2, 3, 6, &b), record(2, 4, 7, &a), void, record(3, 4, 8, &Nothing {}), commit(3, 9, 2)].concat();
    write_log(dir.path(), 2, &second, None);
    let (texts, replay) = bodies(dir.path());
    assert_eq!(texts, ["a", "c"]);
    assert_eq!((replay.puts, replay.takes, replay.unfinished, replay.damaged.len(), replay.cut.len()), (3, 1, 1, 0, 0));
}

#[test]
fn damage_is_told_and_an_incomplete_end_is_cut() {
    let dir = tempfile::tempdir().unwrap();
    let parts = [put(1, 1, "first"), put(1, 2, "second"), put(1, 3, "third"), commit(1, 4, 1), put(2, 5, "torn")];
    let (second, end) = (parts[0].len(), parts[..4].concat().len());
    let mut bytes = parts.concat();
    let at = bytes.windows(6).position(|six| six == b"second").unwrap();
    bytes[at] ^= 1;
    bytes.truncate(bytes.len() - 3);
    write_log(dir.path(), 7, &bytes, None);
    let (texts, replay) = bodies(dir.path());
    assert_eq!(texts, ["first", "third"]);
    let spans = |all: &[Damage]| all.iter().map(|damage| (damage.from, damage.to)).collect::<Vec<_>>();
    assert_eq!(spans(&replay.damaged), [(second as u64, (second + parts[1].len()) as u64)]);
    assert_eq!(spans(&replay.cut), [(end as u64, bytes.len() as u64)]);
}

#[test]
fn what_cannot_be_read_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let open = || FlumeLogs::open(&[dir.path().to_path_buf()], dir.path().join("none")).err().map(|error| format!("{error:#}"));
    write_log(dir.path(), 3, &put(1, 1, "x"), Some(Encryption { cipher: "AESCTRNOPADDING".into(), key: "key-0".into() }));
    assert!(open().unwrap().contains("is encrypted (AESCTRNOPADDING, key `key-0`)"));
    fs::write(dir.path().join("log-3.meta"), Meta { version: 2, id: 3, encryption: None }.encode_length_delimited_to_vec()).unwrap();
    assert!(open().unwrap().contains("version 2 is not known"));
    fs::write(dir.path().join("log-3.meta"), Meta { version: 3, id: 4, encryption: None }.encode_length_delimited_to_vec()).unwrap();
    assert!(open().unwrap().contains("it describes log-4"));
    fs::remove_file(dir.path().join("log-3.meta")).unwrap();
    assert!(open().unwrap().contains("log-3.meta"));
}

#[test]
fn transactions_in_flight_have_a_checksum() {
    let numbers: Vec<u8> = [5i64, 2, (1 << 32) | 10, (1 << 32) | 20].iter().flat_map(|number| number.to_be_bytes()).collect();
    let file = [Md5::digest(&numbers).to_vec(), numbers].concat();
    assert_eq!(transactions(&file).unwrap(), HashMap::from([(5, vec![Pointer::new(1, 10), Pointer::new(1, 20)])]));
    assert!(transactions(&file[..file.len() - 1]).is_err() && transactions(&[0; 7]).is_err());
    assert!(transactions(&[]).unwrap().is_empty());
}

proptest! {
    #[test]
    fn no_flume_log_makes_it_panic(bytes in any::<Vec<u8>>(), dense in prop::collection::vec(prop::sample::select(vec![127u8, 0, 128, 23, 13, 5, 255]), 0..60)) {
        for bytes in [&bytes, &dense] {
            let dir = tempfile::tempdir().unwrap();
            write_log(dir.path(), 1, bytes, None);
            fs::write(dir.path().join("checkpoint"), bytes).unwrap();
            let logs = FlumeLogs::open(&[dir.path().to_path_buf()], dir.path().to_path_buf()).unwrap();
            prop_assert!(logs.replay().unwrap().waiting.is_empty());
            let _refused = transactions(bytes);
            let _refused = parse(Bytes::copy_from_slice(bytes));
        }
    }

    #[test]
    fn nor_a_damaged_one_of_flume(at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>()) {
        let mut bytes = [put(1, 1, "one"), put(1, 2, "two"), commit(1, 3, 1), put(2, 4, "three"), commit(2, 5, 1)].concat();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        bytes.truncate(cut.index(bytes.len() + 1));
        let dir = tempfile::tempdir().unwrap();
        write_log(dir.path(), 1, &bytes, None);
        let logs = FlumeLogs::open(&[dir.path().to_path_buf()], dir.path().join("none")).unwrap();
        for pointer in logs.replay().unwrap().waiting {
            let event = logs.event(pointer).unwrap();
            prop_assert!([&b"one"[..], b"two", b"three"].contains(&event.body.as_ref()));
        }
    }
}
