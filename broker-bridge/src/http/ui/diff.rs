//! Which lines of a text came and went. Pure.

/// So many lines of each text are compared.
pub(super) const LINES_MAX: usize = 500;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Line<'a> {
    Same(&'a str),
    Gone(&'a str),
    New(&'a str),
}

/// By their longest common subsequence; `None` where a text has more than [`LINES_MAX`] lines.
pub(super) fn diff<'a>(old: &'a str, new: &'a str) -> Option<Vec<Line<'a>>> {
    let (old, new): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    if old.len().max(new.len()) > LINES_MAX {
        return None;
    }
    // common[i][j]: the most lines that old[i..] and new[j..] have in common.
    let mut common = vec![vec![0_u16; new.len() + 1]; old.len() + 1];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            common[i][j] = if old[i] == new[j] { common[i + 1][j + 1] + 1 } else { common[i + 1][j].max(common[i][j + 1]) };
        }
    }
    let (mut lines, mut i, mut j) = (Vec::with_capacity(old.len().max(new.len())), 0, 0);
    while i < old.len() || j < new.len() {
        let line = match (old.get(i), new.get(j)) {
            (Some(one), Some(other)) if one == other => {
                j += 1;
                Line::Same(one)
            }
            (Some(one), other) if other.is_none() || common[i + 1][j] >= common[i][j + 1] => Line::Gone(one),
            (_, Some(other)) => {
                j += 1;
                lines.push(Line::New(other));
                continue;
            }
            // One of them has lines left.
            (_, None) => break,
        };
        i += 1;
        lines.push(line);
    }
    Some(lines)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Line::*, *};

    #[test]
    fn what_came_is_behind_what_went() {
        assert_eq!(diff("a\nb\nc", "a\nx\nc\nd").unwrap(), [Same("a"), Gone("b"), New("x"), Same("c"), New("d")]);
        assert_eq!(diff("", "a").unwrap(), [New("a")]);
        assert_eq!(diff("a\na", "a").unwrap(), [Same("a"), Gone("a")]);
        let long = "x\n".repeat(LINES_MAX + 1);
        assert!(diff(&long, "").is_none() && diff("", &long).is_none() && diff(&long[2..], &long[2..]).is_some());
    }

    proptest! {
        #[test]
        fn both_texts_can_be_made_of_it(old in proptest::collection::vec("[abc]", 0..30), new in proptest::collection::vec("[abc]", 0..30)) {
            let (one, other) = (old.join("\n"), new.join("\n"));
            let lines = diff(&one, &other).unwrap();
            let of = |wanted: fn(&Line<'_>) -> bool| {
                lines.iter().filter(|line| wanted(line)).map(|line| match line { Same(text) | Gone(text) | New(text) => *text }).collect::<Vec<_>>()
            };
            prop_assert_eq!(of(|line| !matches!(line, New(_))), old);
            prop_assert_eq!(of(|line| !matches!(line, Gone(_))), new);
        }
    }
}
