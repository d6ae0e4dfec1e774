//! Batches as folders of files.

use std::{collections::BTreeMap, path::Path};

use serde::{Deserialize, Serialize};

use super::*;

/// Path below the folder, and content.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![dir.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                found.insert(path.strip_prefix(dir).unwrap().to_string_lossy().into_owned(), std::fs::read(&path).unwrap());
            }
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn every_batch_is_a_folder_that_is_complete_with_success() {
    let dir = tempfile::tempdir().unwrap();
    let prefix = dir.path().join("out/words").to_string_lossy().into_owned();
    let (ssc, words) = context();
    words.save_as_text_files(&format!("file://{prefix}"), "txt");
    let mut program = ssc.program().unwrap();
    // What an attempt of more partitions left, and its unfinished file.
    let first = dir.path().join("out/words-1000.txt");
    std::fs::create_dir_all(&first).unwrap();
    for left in ["part-00000", "part-00007", "part-00001#1"] {
        std::fs::write(first.join(left), "left\n").unwrap();
    }
    run(&mut program, 1, "a b c").await;
    run(&mut program, 2, "").await;
    let found = files(&dir.path().join("out"));
    let text = |name: &str| String::from_utf8(found[name].clone()).unwrap();
    let names = ["words-1000.txt/_SUCCESS", "words-1000.txt/part-00000", "words-1000.txt/part-00001"];
    let names = names.into_iter().chain(["words-2000.txt/_SUCCESS", "words-2000.txt/part-00000", "words-2000.txt/part-00001"]);
    assert_eq!(found.keys().collect::<Vec<_>>(), names.collect::<Vec<_>>());
    assert_eq!((text("words-1000.txt/part-00000"), text("words-1000.txt/part-00001")), ("a\nc\n".into(), "b\n".into()));
    assert_eq!(text("words-2000.txt/part-00000"), "");

    // Another process runs the batch again, and finds it complete.
    let (ssc, words) = context();
    words.save_as_text_files(&prefix, "txt");
    attempt(&mut ssc.program().unwrap(), 1, "other words", true).await.unwrap();
    assert_eq!(files(&dir.path().join("out")), found);
}

#[tokio::test(flavor = "multi_thread")]
async fn object_files_are_read_value_by_value() {
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Word {
        word: String,
        letters: usize,
    }
    let of = |word: &str| Word { word: word.to_owned(), letters: word.len() };
    let dir = tempfile::tempdir().unwrap();
    let (ssc, words) = context();
    words.map(move |word| of(&word)).save_as_object_files(&dir.path().join("words").to_string_lossy(), "");
    run(&mut ssc.program().unwrap(), 1, "a bb ccc").await;
    let mut file = &files(dir.path())["words-1000/part-00000"][..];
    let mut read = Vec::new();
    while !file.is_empty() {
        read.push(rmp_serde::from_read::<_, Word>(&mut file).unwrap());
    }
    assert_eq!(read, [of("a"), of("ccc")]);
}

#[test]
fn a_prefix_that_is_no_place_is_an_error_of_the_start() {
    let (ssc, words) = context();
    words.save_as_text_files("gs://bucket/words", "");
    words.save_as_text_files("s3://bucket", "");
    words.save_as_object_files("/out/", "");
    let error = ssc.program().err().unwrap().to_string();
    for part in [
        "saveAsTextFiles: `gs://bucket/words` scheme `gs` is not built in",
        "saveAsTextFiles: `s3://bucket` names no path",
        "saveAsObjectFiles: `/out/` ends with `/`",
    ] {
        assert!(error.contains(part), "{error}");
    }
}
