//! An expression as a tree, and how each part of it is written for the library.

use std::fmt::Write as _;

use super::set::{self, Set};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Greed {
    Greedy,
    Lazy,
    Possessive,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    pub(super) behind: bool,
    pub(super) negated: bool,
}

impl Look {
    pub(super) const AHEAD: Look = Look { behind: false, negated: false };
    pub(super) const NOT_AHEAD: Look = Look { behind: false, negated: true };
    pub(super) const BEHIND: Look = Look { behind: true, negated: false };
    pub(super) const NOT_BEHIND: Look = Look { behind: true, negated: true };
}

#[derive(Clone, Debug)]
pub(super) enum Node {
    Literal(char),
    Set(Set),
    Sequence(Vec<Node>),
    Either(Vec<Node>),
    Repeat {
        node: Box<Node>,
        min: u32,
        max: Option<u32>,
        greed: Greed,
    },
    Group(Box<Node>),
    Atomic(Box<Node>),
    Look {
        look: Look,
        node: Box<Node>,
    },
    Reference(usize),
    /// `\A`, and `^` without `(?m)`.
    Start,
    /// `^` with `(?m)`.
    LineStart {
        unix: bool,
    },
    /// `\z`
    End,
    /// `\Z`, and `$` without `(?m)`: the end, or before the text's last line terminator.
    FinalEnd {
        unix: bool,
    },
    /// `$` with `(?m)`.
    LineEnd {
        unix: bool,
    },
    /// `\b`, `\B`
    Word {
        boundary: bool,
    },
    /// `\R`
    LineBreak,
}

/// What the short way to write an expression takes for granted about the text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Needs {
    /// Its last character ends no line.
    pub(super) no_final_terminator: bool,
    /// Only ASCII, lines that end with `\n`, and something after the last of them.
    pub(super) plain_lines: bool,
    /// Only ASCII.
    pub(super) ascii: bool,
}

impl Needs {
    pub(super) fn met_by(self, text: &str) -> bool {
        let terminated = || text.ends_with(['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}']);
        !(self.no_final_terminator && terminated())
            && (!(self.ascii || self.plain_lines) || text.is_ascii())
            && !(self.plain_lines && (text.is_empty() || terminated() || memchr::memchr(b'\r', text.as_bytes()).is_some()))
    }
}

impl Node {
    /// A node that a repetition applies to as a whole.
    pub(super) fn grouped(self) -> Node {
        if matches!(self, Node::Sequence(_) | Node::Either(_)) { self } else { Node::Sequence(vec![self]) }
    }

    pub(super) fn is_assertion(&self) -> bool {
        matches!(
            self,
            Node::Look { .. }
                | Node::Start
                | Node::LineStart { .. }
                | Node::End
                | Node::FinalEnd { .. }
                | Node::LineEnd { .. }
                | Node::Word { .. }
        )
    }

    /// Characters of the longest text it matches; `None` where there is no longest.
    pub(super) fn width_max(&self) -> Option<u64> {
        match self {
            Node::Literal(_) | Node::Set(_) => Some(1),
            Node::LineBreak => Some(2),
            Node::Sequence(nodes) => nodes.iter().map(Node::width_max).sum(),
            Node::Either(nodes) => nodes.iter().map(Node::width_max).try_fold(0, |most, width| Some(most.max(width?))),
            Node::Repeat { node, max, .. } => node.width_max()?.checked_mul(u64::from((*max)?)),
            Node::Group(node) | Node::Atomic(node) => node.width_max(),
            Node::Reference(_) => None,
            _ => Some(0),
        }
    }

    fn may_be_empty(&self) -> bool {
        match self {
            Node::Literal(_) | Node::Set(_) | Node::LineBreak => false,
            Node::Sequence(nodes) => nodes.iter().all(Node::may_be_empty),
            Node::Either(nodes) => nodes.iter().any(Node::may_be_empty),
            Node::Repeat { node, min, .. } => *min == 0 || node.may_be_empty(),
            Node::Group(node) | Node::Atomic(node) => node.may_be_empty(),
            _ => true,
        }
    }

    fn children(&self) -> &[Node] {
        match self {
            Node::Sequence(nodes) | Node::Either(nodes) => nodes,
            Node::Repeat { node, .. } | Node::Group(node) | Node::Atomic(node) | Node::Look { node, .. } => std::slice::from_ref(node),
            _ => &[],
        }
    }

    fn any(&self, test: &impl Fn(&Node) -> bool) -> bool {
        test(self) || self.children().iter().any(|child| child.any(test))
    }

    /// Why it cannot be carried over, if so.
    pub(super) fn fault(&self) -> Option<&'static str> {
        let captures = |node: &Node| node.any(&|node| matches!(node, Node::Group(_)));
        let repeated = |test: &dyn Fn(&Node, Option<u32>, Greed) -> bool| {
            self.any(&|node| matches!(node, Node::Repeat { node, max, greed, .. } if test(node, *max, *greed)))
        };
        if repeated(&|node, max, _| max != Some(1) && node.may_be_empty() && captures(node)) {
            return Some(
                "a repeated group that may match no text, and what it captures then; make its inside match something, or use (?:…)",
            );
        }
        // Java leaves behind what such a group captured where the match then failed.
        if repeated(&|node, _, greed| greed == Greed::Possessive && captures(node)) {
            return Some("a capturing group inside a possessive repetition; write (?:…)");
        }
        let fixed = |node: &Node| {
            !node.any(&|node| matches!(node, Node::Either(_)) || matches!(node, Node::Repeat { min, max, .. } if *max != Some(*min)))
        };
        let inside = |node: &Node| match node {
            Node::Group(inside) => captures(inside) && fixed(inside),
            node => captures(node) && fixed(node),
        };
        if repeated(&|node, max, _| max != Some(1) && inside(node)) {
            return Some("a capturing group inside a repetition of fixed form, whose captures Java leaves behind; write (?:…)");
        }
        if repeated(&|node, _, _| !matches!(node, Node::LineBreak) && node.any(&|node| matches!(node, Node::LineBreak))) {
            return Some("\\R inside a repeated group, which Java takes for one way only; write (?:\\r\\n|\\v)");
        }
        None
    }

    pub(super) fn needs(&self) -> Needs {
        Needs {
            no_final_terminator: self.any(&|node| matches!(node, Node::FinalEnd { .. })),
            plain_lines: self.any(&|node| matches!(node, Node::LineStart { .. } | Node::LineEnd { .. })),
            ascii: self.any(&|node| matches!(node, Node::Word { .. })),
        }
    }

    /// The library's expression for any text, or for one that meets [`Needs`].
    pub(super) fn write(&self, out: &mut String, short: bool) {
        match self {
            Node::Literal(char) if char.is_ascii_alphanumeric() => out.push(*char),
            Node::Literal(char) => {
                let _infallible = write!(out, r"\x{{{:X}}}", u32::from(*char));
            }
            Node::Set(set) => write_set(out, set),
            Node::Sequence(nodes) => nodes.iter().for_each(|node| match node {
                Node::Either(_) => node.write_grouped(out, short),
                node => node.write(out, short),
            }),
            Node::Either(nodes) => {
                for (at, node) in nodes.iter().enumerate() {
                    out.push_str(if at > 0 { "|" } else { "" });
                    node.write(out, short);
                }
            }
            Node::Repeat { node, min, max, greed } => {
                out.push_str(if *greed == Greed::Possessive { "(?>" } else { "" });
                // Java tries one way only to match a repeated \R.
                let one_way = matches!(**node, Node::LineBreak);
                out.push_str(if one_way { "(?>" } else { "" });
                node.write_grouped(out, short);
                out.push_str(if one_way { ")" } else { "" });
                match (min, max) {
                    (0, None) => out.push('*'),
                    (1, None) => out.push('+'),
                    (0, Some(1)) => out.push('?'),
                    (min, max) => {
                        let max = max.map_or_else(String::new, |max| max.to_string());
                        let _infallible = write!(out, "{{{min},{max}}}");
                    }
                }
                out.push_str(match greed {
                    Greed::Greedy => "",
                    Greed::Lazy => "?",
                    Greed::Possessive => ")",
                });
            }
            Node::Group(node) => node.write_in("(", out, short),
            Node::Atomic(node) => node.write_in("(?>", out, short),
            Node::Look { look, node } => {
                let open = match (look.behind, look.negated) {
                    (false, false) => "(?=",
                    (false, true) => "(?!",
                    (true, false) => "(?<=",
                    (true, true) => "(?<!",
                };
                node.write_in(open, out, short);
            }
            Node::Reference(number) => {
                let _infallible = write!(out, r"(?:\{number})");
            }
            Node::Start => out.push_str(r"\A"),
            Node::End => out.push_str(r"\z"),
            Node::FinalEnd { .. } if short => out.push_str(r"\z"),
            Node::FinalEnd { unix: true } => out.push_str(r"(?=\n?\z)"),
            Node::FinalEnd { unix: false } => out.push_str(r"(?=(?:\r\n|[\r\x{85}\x{2028}\x{2029}]|(?<!\r)\n)?\z)"),
            Node::LineStart { .. } if short => out.push_str("(?m:^)"),
            Node::LineStart { unix: true } => out.push_str(r"(?:(?!\z)(?:\A|(?<=\n)))"),
            Node::LineStart { unix: false } => out.push_str(r"(?:(?!\z)(?:\A|(?<=[\n\x{85}\x{2028}\x{2029}])|(?<=\r)(?!\n)))"),
            Node::LineEnd { .. } if short => out.push_str("(?m:$)"),
            Node::LineEnd { unix: true } => out.push_str(r"(?:(?=\n)|\z)"),
            Node::LineEnd { unix: false } => out.push_str(r"(?:(?=[\r\x{85}\x{2028}\x{2029}])|(?<!\r)(?=\n)|\z)"),
            Node::Word { boundary: true } if short => out.push_str(r"\b"),
            Node::Word { boundary: false } if short => out.push_str(r"\B"),
            // Up to Java 18, `\b` knows letters and digits of all scripts, and marks that follow them, though `\w` does not.
            Node::Word { boundary } => {
                const LEFT: &str = r"(?:(?<=[\p{L}\p{Nd}_])|(?<=[[\p{L}\p{Nd}]&&[\x{0}-\x{FFFF}]][\p{Mn}&&[\x{0}-\x{FFFF}]]+))";
                const RIGHT: &str = r"(?:(?=[\p{L}\p{Nd}_])|(?=\p{Mn})(?<=[[\p{L}\p{Nd}]&&[\x{0}-\x{FFFF}]][\p{Mn}&&[\x{0}-\x{FFFF}]]*))";
                let _infallible = if *boundary {
                    write!(out, "(?:{LEFT}(?!{RIGHT})|(?!{LEFT}){RIGHT})")
                } else {
                    write!(out, "(?:{LEFT}{RIGHT}|(?!{LEFT})(?!{RIGHT}))")
                };
            }
            Node::LineBreak => {
                out.push_str(r"(?:\r\n|");
                write_set(out, &set::escape('v').unwrap_or_else(|| set::of(&[])));
                out.push(')');
            }
        }
    }

    fn write_in(&self, open: &str, out: &mut String, short: bool) {
        out.push_str(open);
        self.write(out, short);
        out.push(')');
    }

    fn write_grouped(&self, out: &mut String, short: bool) {
        let whole =
            matches!(self, Node::Literal(_) | Node::Set(_) | Node::Group(_) | Node::Atomic(_) | Node::LineBreak | Node::Reference(_));
        if whole { self.write(out, short) } else { self.write_in("(?:", out, short) }
    }
}

fn write_set(out: &mut String, set: &Set) {
    if set.ranges().is_empty() {
        out.push_str(r"[^\x{0}-\x{10FFFF}]");
        return;
    }
    out.push('[');
    for range in set.ranges() {
        let _infallible = write!(out, r"\x{{{:X}}}", u32::from(range.start()));
        if range.end() > range.start() {
            let _infallible = write!(out, r"-\x{{{:X}}}", u32::from(range.end()));
        }
    }
    out.push(']');
}
