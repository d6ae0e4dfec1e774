//! Pairs of schemas, and what is found between them: data of the tests of `json_schema` and `protobuf`.
//!
//! ```text
//! # A heading.
//!
//! the highest temperature goes up
//!   a {"type": "number", "maximum": 45}
//!   b {"type": "number", "maximum": 60}
//!   a→b   MAXIMUM_INCREASED #/maximum
//!   b→a ! MAXIMUM_DECREASED #/maximum
//! ```
//!
//! `a→b`: `a` was there, and `b` comes after it. `!` marks what hinders. A direction of which nothing is told has no difference.
//! What stands further in goes on with the schema above; `a:site.proto` is what `a` imports under that name.

use std::collections::BTreeSet;

use super::schema::Referenced;

/// One of the two schemas.
#[derive(Default)]
pub(super) struct Side {
    pub(super) text: String,
    pub(super) references: Vec<Referenced>,
}

#[derive(Default)]
struct Vector {
    title: String,
    line: usize,
    a: Side,
    b: Side,
    forth: BTreeSet<String>,
    back: BTreeSet<String>,
}

fn read(text: &str) -> Vec<Vector> {
    let mut vectors: Vec<Vector> = Vec::new();
    for (at, line) in text.lines().enumerate() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if !line.starts_with(' ') {
            vectors.push(Vector { title: line.to_owned(), line: at + 1, ..Vector::default() });
            continue;
        }
        let vector = vectors.last_mut().unwrap_or_else(|| panic!("line {}: no title above it", at + 1));
        if let Some(rest) = line.strip_prefix("      ") {
            let side = if vector.b.text.is_empty() { &mut vector.a } else { &mut vector.b };
            side.text.push_str(rest);
            continue;
        }
        let (what, rest) = line.trim_start().split_once(' ').unwrap_or_else(|| panic!("line {}: {line}", at + 1));
        let (side, name) = what.split_once(':').unwrap_or((what, ""));
        let side = match side {
            "a→b" => {
                vector.forth.insert(rest.trim_start().to_owned());
                continue;
            }
            "b→a" => {
                vector.back.insert(rest.trim_start().to_owned());
                continue;
            }
            "a" => &mut vector.a,
            "b" => &mut vector.b,
            _ => panic!("line {}: {line}", at + 1),
        };
        if name.is_empty() {
            side.text.push_str(rest);
        } else {
            side.references.push(Referenced { name: name.to_owned(), text: rest.to_owned() });
        }
    }
    vectors
}

/// Compares what every vector tells with what is found for it: `found` is given what was there and what comes after it, and gives
/// differences as they are written here.
pub(super) fn check(text: &str, found: impl Fn(&Side, &Side) -> Result<Vec<String>, String>) {
    let vectors = read(text);
    assert!(!vectors.is_empty());
    let mut wrong = String::new();
    for Vector { title, line, a, b, forth, back } in &vectors {
        assert!(!a.text.is_empty() && !b.text.is_empty(), "line {line}: {title}: two schemas");
        for (direction, one, two, expected) in [("a→b", a, b, forth), ("b→a", b, a, back)] {
            match found(one, two) {
                Ok(found) => {
                    let found = BTreeSet::from_iter(found);
                    if found != *expected {
                        let (missing, surplus) = (expected - &found, &found - expected);
                        wrong.push_str(&format!("line {line}, {title}, {direction}: missing {missing:?}, surplus {surplus:?}\n"));
                    }
                }
                Err(error) => wrong.push_str(&format!("line {line}, {title}, {direction}: {error}\n")),
            }
        }
    }
    assert!(wrong.is_empty(), "{} vectors\n{wrong}", vectors.len());
}
