//! Java's regular expressions (`java.util.regex`, as in Java 8 to 18), as agent files hold them.
//!
//! An expression is read by Java's rules into a tree and written anew for the matching library, so that it matches what
//! it matches in Java; what cannot be carried over is refused with its name and place, never matched differently in
//! silence. Many expressions are written twice: once for any text, once shorter for texts that do not hold what makes the
//! difference (a final line terminator for `$`, letters beyond ASCII for `\b`). Matching is bounded: an expression that
//! tries too many ways on a text gives up with an error.
//!
//! | differs in Java | here |
//! |---|---|
//! | `.` stops at `\r`, U+0085, U+2028, U+2029 too; `$` matches before a final line terminator | written out |
//! | `\w \d \s`, POSIX classes and the case of letters are ASCII | written out |
//! | `\b` knows the letters of all scripts | written out |
//! | possessive quantifiers, atomic groups, look-around, references | the library's backtracking half |
//! | `(?u)`, `(?U)`, `\G`, `\X`, `\N`, blocks, references without regard to case | refused |
//! | where Java's own versions differ (`[^a[b]]`, `(?i)\p{Lu}`) | refused |

mod parse;
mod replacement;
mod set;
mod tree;

use std::{borrow::Cow, fmt, ops::Range};

use fancy_regex::{Regex, RegexBuilder};

use parse::Parser;
pub use replacement::Replacement;
use tree::{Needs, Node};

/// More than anyone writes.
const GROUPS_MAX: usize = 500;

/// Ways that are tried on one text before it is given up.
const TRIES_MAX: usize = 1_000_000;

/// Bytes that the compiled form may have.
const COMPILED_MAX: usize = 10 << 20;

/// Why an expression is not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub why: String,
    /// Characters before the place, not counting `\Q` and `\E`.
    pub at: usize,
    /// It is no expression in Java either.
    pub by_java: bool,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (near character {})", self.why, self.at)
    }
}

impl std::error::Error for Refused {}

/// A text on which the expression tried too many ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the expression tried {TRIES_MAX} ways to match and gave up")]
pub struct GaveUp;

/// Why a text was not replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotReplaced {
    #[error(transparent)]
    GaveUp(#[from] GaveUp),
    #[error("the result is more than {0} bytes")]
    TooLong(usize),
}

/// Where the whole match and each group are.
pub type Groups = Vec<Option<Range<usize>>>;

#[derive(Clone, Debug)]
pub struct JavaRegex {
    /// For any text.
    any: Regex,
    /// For a text that meets the needs.
    short: Option<(Needs, Regex)>,
    names: Vec<Option<String>>,
}

impl JavaRegex {
    /// For [`Self::find`] and [`Self::replace_all`].
    pub fn new(pattern: &str) -> Result<Self, Refused> {
        Self::build(pattern, |node| node)
    }

    /// Matches whole texts only, as `Matcher.matches()` and file names do.
    pub fn whole(pattern: &str) -> Result<Self, Refused> {
        Self::build(pattern, |node| Node::Sequence(vec![Node::Start, Node::Sequence(vec![node]), Node::End]))
    }

    fn build(pattern: &str, around: impl Fn(Node) -> Node) -> Result<Self, Refused> {
        let mut parser = Parser::new(pattern);
        let node = around(parser.parse()?);
        if let Some(why) = node.fault() {
            return Err(Refused { why: why.into(), at: 0, by_java: false });
        }
        let compile = |short: bool| {
            let mut text = String::new();
            node.write(&mut text, short);
            let built = RegexBuilder::new(&text)
                .backtrack_limit(TRIES_MAX)
                .delegate_size_limit(COMPILED_MAX)
                .delegate_dfa_size_limit(COMPILED_MAX)
                .build();
            built.map_err(|error| Refused { why: format!("it cannot be carried over: {error}"), at: 0, by_java: false })
        };
        let needs = node.needs();
        let short = (needs != Needs::default()).then(|| compile(true)).transpose()?;
        Ok(Self { any: compile(false)?, short: short.map(|regex| (needs, regex)), names: parser.groups })
    }

    /// Groups besides the whole match.
    pub fn groups(&self) -> usize {
        self.names.len() - 1
    }

    pub fn group_named(&self, name: &str) -> Option<usize> {
        self.names.iter().position(|known| known.as_deref() == Some(name))
    }

    fn for_text(&self, text: &str) -> &Regex {
        self.short.as_ref().filter(|(needs, _)| needs.met_by(text)).map_or(&self.any, |(_, regex)| regex)
    }

    /// Is there a match anywhere?
    pub fn find(&self, text: &str) -> Result<bool, GaveUp> {
        self.for_text(text).is_match(text).map_err(|_| GaveUp)
    }

    /// The first match at or after `from`.
    pub fn groups_of(&self, text: &str, from: usize) -> Result<Option<Groups>, GaveUp> {
        let found = self.for_text(text).captures_from_pos(text, from).map_err(|_| GaveUp)?;
        Ok(found.map(|groups| (0..self.names.len()).map(|number| groups.get(number).map(|group| group.range())).collect()))
    }

    /// `Matcher.replaceAll`; borrowed where nothing matches. A result of more than `bytes_max` is not made.
    pub fn replace_all<'t>(&self, text: &'t str, replacement: &Replacement, bytes_max: usize) -> Result<Cow<'t, str>, NotReplaced> {
        let mut out = String::new();
        let (mut copied, mut from, mut any) = (0, 0, false);
        while let Some(groups) = self.groups_of(text, from)? {
            let Some(Some(range)) = groups.first().cloned() else { break };
            any = true;
            let between = &text[copied..range.start];
            if out.len() + between.len() + replacement.length(&groups) > bytes_max {
                return Err(NotReplaced::TooLong(bytes_max));
            }
            out.push_str(between);
            replacement.write(&mut out, text, &groups);
            copied = range.end;
            // After an empty match the next one begins a character further; after others it may be empty right there.
            let Some(next) = following(text, &range) else { break };
            from = next;
        }
        if !any {
            return Ok(Cow::Borrowed(text));
        }
        if out.len() + text.len() - copied > bytes_max {
            return Err(NotReplaced::TooLong(bytes_max));
        }
        out.push_str(&text[copied..]);
        Ok(Cow::Owned(out))
    }

    /// `String.split`: without empty texts at the end.
    pub fn split(&self, text: &str) -> Result<Vec<String>, GaveUp> {
        let (mut parts, mut begin, mut from) = (Vec::new(), 0, 0);
        while let Some(groups) = self.groups_of(text, from)? {
            let Some(Some(range)) = groups.first().cloned() else { break };
            // An empty match at the beginning separates nothing.
            if range.end > 0 {
                parts.push(text[begin..range.start].to_owned());
                begin = range.end;
            }
            let Some(next) = following(text, &range) else { break };
            from = next;
        }
        parts.push(text[begin..].to_owned());
        if parts.len() == 1 {
            return Ok(parts);
        }
        while parts.last().is_some_and(String::is_empty) {
            parts.pop();
        }
        Ok(parts)
    }
}

/// Where the search goes on after a match; `None` at the end.
fn following(text: &str, range: &Range<usize>) -> Option<usize> {
    if !range.is_empty() {
        return Some(range.end);
    }
    Some(range.end + text[range.end..].chars().next()?.len_utf8())
}

#[cfg(test)]
mod tests;
