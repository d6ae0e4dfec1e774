//! Names of subjects: `orders-value` is in the default context, `:.test:orders-value` in the context `.test`.

/// The context of subjects that name none.
pub(super) const DEFAULT: &str = ".";
/// The context that holds what is set for all contexts.
pub(crate) const GLOBAL: &str = ".__GLOBAL";
/// Matches subjects of every context.
pub(super) const WILDCARD: &str = ":*:";

/// Context and name.
pub(crate) fn split(subject: &str) -> (&str, &str) {
    match subject.strip_prefix(':').filter(|rest| rest.starts_with('.')) {
        Some(rest) => rest.split_once(':').unwrap_or((rest, "")),
        None => (DEFAULT, subject),
    }
}

/// What a subject is stored under: the default context is not written.
pub(crate) fn normal(subject: &str) -> String {
    let (context, name) = split(subject);
    join(context, name)
}

/// `name` in `context`.
pub(super) fn join(context: &str, name: &str) -> String {
    if context == DEFAULT { name.to_owned() } else { format!(":{context}:{name}") }
}

/// A subject that a schema of `parent` refers to: in the parent's context unless it names its own.
pub(crate) fn beside(parent: &str, subject: &str) -> String {
    match split(subject) {
        (DEFAULT, name) => join(split(parent).0, name),
        (context, name) => join(context, name),
    }
}

/// A context's name as callers write it, `test`, `.test` or `:.test:`; `None` where it cannot be one.
pub(super) fn context(text: &str) -> Option<String> {
    let text = text.strip_prefix(':').unwrap_or(text);
    let text = text.strip_suffix(':').unwrap_or(text);
    if text.contains(':') {
        return None;
    }
    Some(if text.starts_with('.') { text.to_owned() } else { format!(".{text}") })
}

/// The key of what is set for a subject or a context; `None`: for everything.
pub(super) fn scope(subject: &str) -> Option<String> {
    match split(subject) {
        (DEFAULT, "") => None,
        (context, name) => Some(join(context, name)),
    }
}

/// Where to look for a setting: what is nearest comes first.
pub(super) fn scopes(subject: Option<&str>) -> Vec<Option<String>> {
    let mut all = Vec::new();
    if let Some(subject) = subject {
        all.push(Some(subject.to_owned()));
        let (context, name) = split(subject);
        if context != DEFAULT && !name.is_empty() {
            all.push(Some(join(context, "")));
        }
        if context != DEFAULT {
            all.push(Some(join(GLOBAL, "")));
            return all;
        }
    }
    all.push(None);
    all.push(Some(join(GLOBAL, "")));
    all
}

/// Whether schemas may be registered under it; settings may also be made for a context as a whole.
pub(super) fn is_valid(subject: &str, setting: bool) -> bool {
    let (context, name) = split(subject);
    let reserved = ["__GLOBAL", "__EMPTY"].contains(&name) || (context == GLOBAL && !setting);
    !subject.chars().any(char::is_control) && !reserved && (setting || !name.is_empty())
}

#[cfg(test)]
mod tests {

    use super::*;

    #[test]
    fn contexts_are_told_from_names() {
        let cases = [
            ("a-value", (".", "a-value")),
            (":.test:a-value", (".test", "a-value")),
            (":.test:", (".test", "")),
            (":.test", (".test", "")),
            (":.:a", (".", "a")),
            (":a:b", (".", ":a:b")),
            (":.x:a:b", (".x", "a:b")),
        ];
        for (text, expected) in cases {
            assert_eq!(split(text), expected);
        }
        assert_eq!((normal(":.:a"), normal(":.x:a")), ("a".to_owned(), ":.x:a".to_owned()));
        assert_eq!((beside(":.x:a", "b"), beside(":.x:a", ":.y:b"), beside("a", "b")), (":.x:b".into(), ":.y:b".into(), "b".into()));
        assert_eq!(["x", ".x", ":.x:", "."].map(|text| context(text).unwrap()), [".x", ".x", ".x", "."]);
        assert_eq!(context("a:b"), None);
    }

    #[test]
    fn settings_are_looked_for_from_near_to_far() {
        assert_eq!(scopes(Some("a")), [Some("a".to_owned()), None, Some(":.__GLOBAL:".to_owned())]);
        assert_eq!(scopes(Some(":.x:a")), [Some(":.x:a".to_owned()), Some(":.x:".to_owned()), Some(":.__GLOBAL:".to_owned())]);
        assert_eq!((scope(""), scope(":.:"), scope(":.x:")), (None, None, Some(":.x:".to_owned())));
        assert!(is_valid("a", false) && is_valid(":.x:a", false) && is_valid(":.x:", true));
        assert!(!is_valid("", false) && !is_valid(":.x:", false) && !is_valid("a\n", true) && !is_valid("__GLOBAL", true));
    }
}
