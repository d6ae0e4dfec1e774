//! What real Java makes of expressions is in `tests/fixtures/java_regex/`, written there by `Expect.java`.

use proptest::prelude::*;

use super::*;

/// Text as the fixtures hold it: ‹hex› for a character, ‹› for nothing.
fn read(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('‹') {
        let (digits, after) = after.split_once('›').unwrap();
        out.push_str(before);
        out.extend(u32::from_str_radix(digits, 16).ok().and_then(char::from_u32));
        rest = after;
    }
    out + rest
}

fn shown(text: &str) -> String {
    let mut out = String::new();
    for char in text.chars() {
        let code = u32::from(char);
        if code < 32 || [127, 0x85, 0xa0].contains(&code) || (0x2000..0x2030).contains(&code) || char == '‹' || char == '|' {
            out.push_str(&format!("‹{code:x}›"));
        } else {
            out.push(char);
        }
    }
    out
}

/// As `Expect.java` writes it.
fn result(expression: &str, text: &str) -> Result<String, (String, bool)> {
    let told = |error: Refused| (error.to_string(), error.by_java);
    let regex = JavaRegex::new(expression).map_err(told)?;
    let gave_up = |error: GaveUp| (error.to_string(), false);
    let groups = match regex.groups_of(text, 0).map_err(gave_up)? {
        None => "-".to_owned(),
        Some(groups) => {
            let begin = text[..groups[0].clone().unwrap().start].encode_utf16().count();
            let texts = groups.iter().map(|group| group.clone().map_or("null".into(), |range| shown(&text[range])));
            format!("{begin} {}", texts.collect::<Vec<_>>().join("|"))
        }
    };
    assert_eq!(regex.find(text), Ok(groups != "-"), "{expression} on {text:?}");
    let replaced =
        regex.replace_all(text, &Replacement::parse("<$0>", &regex).unwrap(), usize::MAX).map_err(|error| (error.to_string(), false))?;
    let whole = JavaRegex::whole(expression).map_err(told)?.find(text).map_err(gave_up)?;
    Ok(format!("{groups}\t{}\t{whole}", shown(&replaced)))
}

/// What differs from `expected`, and how many expressions were refused that Java takes.
fn differences(expected: &str) -> (Vec<String>, usize) {
    let (mut wrong, mut refused) = (Vec::new(), 0);
    for line in expected.lines() {
        let [expression, text, java] = line.splitn(3, '\t').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let (may_refuse, expression) = expression.strip_prefix("! ").map_or((false, expression), |expression| (true, expression));
        match result(&read(expression), &read(text)) {
            Err(told) if told.1 != (java == "error") => wrong.push(format!("{expression}: blamed wrongly: {}", told.0)),
            Err(_) if java == "error" || may_refuse => {}
            Err((why, _)) => {
                refused += 1;
                wrong.push(format!("{expression} on {text}: refused: {why}"));
            }
            Ok(here) if may_refuse => wrong.push(format!("{expression} on {text}: not refused, {here}")),
            Ok(here) if here == java => {}
            Ok(here) => wrong.push(format!("{expression} on {text}:\n    here {here}\n    Java {java}")),
        }
    }
    (wrong, refused)
}

#[test]
fn expressions_match_what_they_match_in_java() {
    let (wrong, _) = differences(include_str!("../../tests/fixtures/java_regex/expected.txt"));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn random_expressions_match_what_they_match_in_java() {
    let random = std::env::var("JAVA_REGEX_EXPECTED").map(|path| std::fs::read_to_string(path).unwrap());
    let random = random.unwrap_or_else(|_| include_str!("../../tests/fixtures/java_regex/random.txt").to_owned());
    let (wrong, refused) = differences(&random);
    let wrong: Vec<_> = wrong.into_iter().filter(|line| !line.contains(": refused: ")).collect();
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), random.lines().count(), wrong.join("\n"));
    // Not by refusing everything.
    assert!(refused * 4 < random.lines().count(), "{refused} of {} refused", random.lines().count());
}

#[test]
fn replacements_name_groups_by_number_and_name() {
    let regex = JavaRegex::new("(?<a>x)(y)?(z)").unwrap();
    for (replacement, expected) in [
        ("", "-"),
        ("$0", "xz-"),
        ("$1$3", "xz-"),
        ("$2", "-"),
        ("${a}$12", "xx2-"),
        (r"\$1", "$1-"),
        (r"\\", r"\-"),
        (r"\a", "a-"),
        ("$3é", "zé-"),
    ] {
        let replacement = Replacement::parse(replacement, &regex).unwrap();
        assert_eq!(regex.replace_all("xz-", &replacement, usize::MAX).unwrap(), expected);
    }
    for wrong in ["$", "$x", "$4", "${b}", "${a", "x\\", "${}"] {
        assert!(Replacement::parse(wrong, &regex).is_err(), "{wrong}");
    }
    // The next match may be empty right where the last one ended.
    let regex = JavaRegex::new("a*").unwrap();
    assert_eq!(regex.replace_all("aaé", &Replacement::parse("<$0>", &regex).unwrap(), usize::MAX).unwrap(), "<aa><>é<>");
}

#[test]
fn texts_are_split_as_java_splits_them() {
    for (expression, text, expected) in [
        (r"\s*,\s*", "a , b,c", &["a", "b", "c"][..]),
        (",", ",a,,b,,", &["", "a", "", "b"]),
        (",", "", &[""]),
        (",", ",,", &[]),
        ("", "ab", &["a", "b"]),
        ("x", "ab", &["ab"]),
    ] {
        assert_eq!(JavaRegex::new(expression).unwrap().split(text).unwrap(), expected, "{expression} {text}");
    }
}

#[test]
fn an_expression_that_tries_too_much_gives_up() {
    let regex = JavaRegex::new(r"^(?:a|aa)+$(?<!a)").unwrap();
    assert_eq!(regex.find(&"a".repeat(60)), Err(GaveUp));
    assert_eq!(regex.find("aab"), Ok(false));
}

#[test]
fn what_is_refused_is_named_with_its_place() {
    for (expression, told) in [
        (r"ab\Gc", r"\G is not known here (near character 3)"),
        ("a(b", "`(` without `)` (near character 2)"),
        ("(?u)é", "the flag `u`"),
        (r"a{,3}", "`{` without a number"),
        (r"\p{InGreek}", "Unicode blocks"),
    ] {
        let error = JavaRegex::new(expression).unwrap_err().to_string();
        assert!(error.contains(told), "{expression}: {error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_expression_makes_it_panic(expression in any::<String>(), dense in r"[()\[\]\\{}?*+|^$.&<>=!a-cQExpkuL0-3,:-]{0,24}", text in any::<String>()) {
        for expression in [expression, dense] {
            if let Ok(regex) = JavaRegex::new(&expression) {
                let found = regex.find(&text);
                prop_assert!(found.is_err() || regex.groups_of(&text, 0).is_ok_and(|groups| Ok(groups.is_some()) == found));
            }
        }
    }

    #[test]
    fn quoted_text_finds_itself_alone(text in "\\PC{1,12}", before in "[a-z\n]{0,3}") {
        prop_assume!(!text.contains("\\E") && !text.ends_with('\\'));
        let regex = JavaRegex::new(&format!(r"\Q{text}\E")).unwrap();
        let found = regex.find(&format!("{before}{text}")).unwrap();
        prop_assert!(found);
        prop_assert_eq!(regex.find(&before).unwrap(), before.contains(&text));
    }

    /// The short way to write an expression matches what the long one matches.
    #[test]
    fn both_ways_agree(
        expression in prop::collection::vec(prop::sample::select(vec!["a", "b", ".", r"\n", "^", "$", r"\b", r"\B", r"\Z", "(?m)", "(?d)", "(a|b)", "_"]), 1..6),
        text in r"[ab_ \n\ré-]{0,8}",
    ) {
        let Ok(regex) = JavaRegex::new(&expression.concat()) else { return Ok(()) };
        let any = regex.any.captures(text.as_str()).unwrap().map(|groups| groups.get(0).unwrap().range());
        prop_assert_eq!(regex.groups_of(&text, 0).unwrap().map(|groups| groups[0].clone().unwrap()), any);
    }
}

#[test]
fn a_result_that_is_too_long_is_not_made() {
    let regex = JavaRegex::new("(q+)").unwrap();
    let replaced = |with: &str, most| regex.replace_all("qq-q-", &Replacement::parse(with, &regex).unwrap(), most).map(Cow::into_owned);
    assert_eq!(replaced("$1$1", 8), Ok("qqqq-qq-".to_owned()));
    for most in [0, 3, 4, 6, 7] {
        assert_eq!(replaced("$1$1", most), Err(NotReplaced::TooLong(most)));
    }
    assert_eq!(replaced("", 2), Ok("--".to_owned()));
}
