//! Replacement strings: `$1`, `${name}`, `\$`.

use std::ops::Range;

use super::JavaRegex;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Group(usize),
}

/// A replacement string, read against an expression's groups.
#[derive(Clone, Debug)]
pub struct Replacement(Vec<Part>);

impl Replacement {
    /// The error is Java's, which Java tells only when a text matches.
    pub fn parse(text: &str, regex: &JavaRegex) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut chars = text.chars().peekable();
        while let Some(char) = chars.next() {
            match char {
                '\\' => literal.push(chars.next().ok_or("`\\` at the end of the replacement; write \\\\\\\\ for the character")?),
                '$' => {
                    let number = if chars.next_if_eq(&'{').is_some() {
                        let mut name = String::new();
                        loop {
                            match chars.next().ok_or_else(|| format!("`${{{name}` without `}}`"))? {
                                '}' => break,
                                char => name.push(char),
                            }
                        }
                        regex.group_named(&name).ok_or_else(|| format!("`${{{name}}}`: the expression has no group of this name"))?
                    } else {
                        let digit = chars.next_if(char::is_ascii_digit).and_then(|char| char.to_digit(10));
                        let mut number = digit.ok_or("`$` without a group; write \\\\$ for the character")? as usize;
                        if number > regex.groups() {
                            return Err(format!("`${number}`: the expression has {} groups", regex.groups()));
                        }
                        // As many digits as make the number of a group.
                        while let Some(digit) = chars.peek().and_then(|char| char.to_digit(10)) {
                            let next = number * 10 + digit as usize;
                            if next > regex.groups() {
                                break;
                            }
                            number = next;
                            chars.next();
                        }
                        number
                    };
                    if !literal.is_empty() {
                        parts.push(Part::Text(std::mem::take(&mut literal)));
                    }
                    parts.push(Part::Group(number));
                }
                char => literal.push(char),
            }
        }
        if !literal.is_empty() {
            parts.push(Part::Text(literal));
        }
        Ok(Self(parts))
    }

    /// Bytes of what [`Self::write`] writes.
    pub(super) fn length(&self, groups: &[Option<Range<usize>>]) -> usize {
        let length = |part: &Part| match part {
            Part::Text(literal) => literal.len(),
            Part::Group(number) => groups.get(*number).and_then(Option::as_ref).map_or(0, ExactSizeIterator::len),
        };
        self.0.iter().map(length).sum()
    }

    /// Writes it for one match; a group that took no part is nothing.
    pub(super) fn write(&self, out: &mut String, text: &str, groups: &[Option<Range<usize>>]) {
        for part in &self.0 {
            match part {
                Part::Text(literal) => out.push_str(literal),
                Part::Group(number) => out.push_str(groups.get(*number).cloned().flatten().map_or("", |range| &text[range])),
            }
        }
    }
}
