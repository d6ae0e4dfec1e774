//! Recognises `tail -F FILE` among commands, so that the tail engine can do it.

use std::path::PathBuf;

/// Where `tail` begins in a file that is there when it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// The last lines, as `tail -n N`.
    LastLines(u64),
    /// From a line counted from 1, as `tail -n +N`.
    Line(u64),
    End,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TailCommand {
    pub path: PathBuf,
    pub begin: Begin,
    /// `-F`, or `-f` that would stay with a renamed file.
    pub by_name: bool,
}

/// The command as a following `tail` of one file; `None` for anything else. `shell` is the property of that name.
pub fn recognise(command: &str, shell: Option<&str>) -> Option<TailCommand> {
    // With a shell, anything it would interpret stays the shell's.
    if shell.is_some() && command.contains(|char: char| "|&;<>()$`\\\"'*?[]#~=%!{}\n".contains(char)) {
        return None;
    }
    let mut words = command.split_whitespace();
    let program = words.next()?;
    if program != "tail" && !(program.starts_with('/') && program.ends_with("/tail")) {
        return None;
    }
    let (mut follow, mut by_name) = (false, false);
    let mut begin = Begin::LastLines(10);
    let mut file = None;
    let mut options = true;
    while let Some(word) = words.next() {
        if !options || !word.starts_with('-') || word == "-" {
            if word == "-" || file.replace(word).is_some() {
                return None;
            }
            continue;
        }
        if let Some(long) = word.strip_prefix("--") {
            let (name, value) = long.split_once('=').map_or((long, None), |(name, value)| (name, Some(value)));
            match (name, value) {
                ("", None) => options = false,
                ("follow", None) => follow = true,
                ("follow", Some("name")) => (follow, by_name) = (true, true),
                ("follow", Some("descriptor")) => follow = true,
                ("retry" | "quiet" | "silent", None) => {}
                ("lines", value) => begin = lines(value.or_else(|| words.next())?)?,
                ("sleep-interval" | "max-unchanged-stats", value) => {
                    value.or_else(|| words.next())?;
                }
                _ => return None,
            }
            continue;
        }
        let mut letters = word.strip_prefix('-')?.char_indices();
        while let Some((at, letter)) = letters.next() {
            let rest = word.get(at + 2..).filter(|rest| !rest.is_empty());
            match letter {
                'F' => (follow, by_name) = (true, true),
                'f' => follow = true,
                'q' => {}
                // `-n` and `-s` take the rest of the word or the next one.
                'n' => {
                    begin = lines(rest.or_else(|| words.next())?)?;
                    break;
                }
                's' => {
                    rest.or_else(|| words.next())?;
                    break;
                }
                // `tail -100f`.
                '0'..='9' if at == 0 => {
                    let digits: String = word.chars().skip(1).take_while(char::is_ascii_digit).collect();
                    begin = lines(&digits)?;
                    for _ in 1..digits.len() {
                        letters.next();
                    }
                }
                _ => return None,
            }
        }
    }
    let path = PathBuf::from(file?);
    follow.then_some(TailCommand { path, begin, by_name })
}

/// Is there a following `tail` among the commands of a line?
pub fn follows(command: &str) -> bool {
    let follow =
        |word: &str| word.starts_with("--follow") || (word.starts_with('-') && !word.starts_with("--") && word.contains(['f', 'F']));
    command.split(|char: char| "|;&()'\"`".contains(char)).any(|part| {
        let mut words = part.split_whitespace();
        words.any(|word| word == "tail" || word.ends_with("/tail")) && words.any(follow)
    })
}

fn lines(text: &str) -> Option<Begin> {
    let number = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse::<u64>().ok()).flatten();
    match text.strip_prefix('+') {
        Some(from) => Some(Begin::Line(number(from)?.max(1))),
        None => match number(text.strip_prefix('-').unwrap_or(text))? {
            0 => Some(Begin::End),
            count => Some(Begin::LastLines(count)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_among_other_commands_is_seen() {
        for command in ["tail -F a b", "/usr/bin/tail -f a | grep x", "sh -c 'tail --follow a'", "cat a; tail -n0 -F a"] {
            assert!(follows(command), "{command}");
        }
        for command in ["tail a", "tail a | grep -f words", "grep -f words a", "tailf a", ""] {
            assert!(!follows(command), "{command}");
        }
    }

    #[test]
    fn tails() {
        use Begin::*;
        for (command, path, begin, by_name) in [
            ("tail -F /var/log/app.log", "/var/log/app.log", LastLines(10), true),
            ("tail  -F   /a", "/a", LastLines(10), true),
            ("/usr/bin/tail -F /a", "/a", LastLines(10), true),
            ("tail -f /a", "/a", LastLines(10), false),
            ("tail -n 5 -F /a", "/a", LastLines(5), true),
            ("tail -n5 -F /a", "/a", LastLines(5), true),
            ("tail -Fn5 /a", "/a", LastLines(5), true),
            ("tail -Fn 5 /a", "/a", LastLines(5), true),
            ("tail -n -5 -F /a", "/a", LastLines(5), true),
            ("tail -n 0 -F /a", "/a", End, true),
            ("tail -n0 -F /a", "/a", End, true),
            ("tail -n +1 -F /a", "/a", Line(1), true),
            ("tail -n +0 -F /a", "/a", Line(1), true),
            ("tail -c +0f /a", "", End, false),
            ("tail -100f /a", "/a", LastLines(100), false),
            ("tail -100 -F /a", "/a", LastLines(100), true),
            ("tail -F -- /a", "/a", LastLines(10), true),
            ("tail -F -- -a", "-a", LastLines(10), true),
            ("tail --follow=name --retry /a", "/a", LastLines(10), true),
            ("tail --follow /a", "/a", LastLines(10), false),
            ("tail --lines=7 -F /a", "/a", LastLines(7), true),
            ("tail --lines 7 -F /a", "/a", LastLines(7), true),
            ("tail -q -F -s 0.1 /a", "/a", LastLines(10), true),
            ("tail /a -F", "/a", LastLines(10), true),
            ("tail -F relative.log", "relative.log", LastLines(10), true),
            // Not a following tail of one file.
            ("tail /a", "", End, false),
            ("tail -F", "", End, false),
            ("tail -F /a /b", "", End, false),
            ("tail -F -", "", End, false),
            ("tail -F /a | grep x", "", End, false),
            ("tail -F --pid=3 /a", "", End, false),
            ("tail -n x -F /a", "", End, false),
            ("tail -n", "", End, false),
            ("tail -z -F /a", "", End, false),
            ("tailf /a", "", End, false),
            ("xtail -F /a", "", End, false),
            ("bin/tail -F /a", "", End, false),
            ("cat /a", "", End, false),
            ("", "", End, false),
        ] {
            let expected = (!path.is_empty()).then(|| TailCommand { path: path.into(), begin, by_name });
            assert_eq!(recognise(command, None), expected, "{command}");
        }
        assert!(recognise("tail -F /var/log/app.log", Some("/bin/sh -c")).is_some());
        for command in ["tail -F /a | grep b", "tail -F $LOG", "tail -F ~/a", "tail -F '/a b'", "tail -F /a > /b", "tail -F /a*"] {
            assert_eq!(recognise(command, Some("/bin/sh -c")), None, "{command}");
        }
    }
}
