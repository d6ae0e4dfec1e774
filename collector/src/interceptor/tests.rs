use std::sync::Arc;

use super::*;
use crate::flume_conf::component::Setting;

fn built(name: &str, settings: &[(&str, &str)]) -> Box<dyn Interceptor> {
    let kind = INTERCEPTORS.iter().find(|kind| kind.kind.is_called(name)).unwrap();
    let mut component = Component::new(kind.kind, "r.interceptors.i", name);
    for (key, value) in settings {
        assert!(kind.kind.property(key).is_some(), "{key}");
        component.settings.insert((*key).to_owned(), Setting { value: (*value).to_owned(), place: None });
    }
    (kind.build)(&component).unwrap()
}

/// The event that comes of headers `a=1 b=2` and a body: headers and body, or nothing.
fn after(name: &str, settings: &[(&str, &str)], body: &[u8]) -> Option<(String, Vec<u8>)> {
    let event = Event::with_headers(body.to_vec(), [("a", "1"), ("b", "2")]);
    let event = built(name, settings).intercept(event)?;
    let headers = event.headers.iter().flat_map(|headers| headers.iter()).map(|(name, value)| format!("{name}={value}"));
    Some((headers.collect::<Vec<_>>().join(" "), event.body.to_vec()))
}

const MILLIS: &str = "org.apache.flume.interceptor.RegexExtractorInterceptorMillisSerializer";

#[test]
fn each_does_its_work() {
    let serializers = |more: &[(&'static str, &'static str)]| {
        [&[("serializers", "s t"), ("serializers.s.name", "h"), ("serializers.t.name", "b")], more].concat()
    };
    for (name, settings, body, headers, expected) in [
        ("remove_header", vec![("withName", "a")], &b"x"[..], "b=2", &b"x"[..]),
        ("remove_header", vec![("fromList", "z ,b, a")], b"x", "", b"x"),
        ("remove_header", vec![("fromList", "a|b"), ("fromListSeparator", r"\|")], b"x", "", b"x"),
        ("remove_header", vec![("matching", "[b-z]"), ("withName", "none")], b"x", "a=1", b"x"),
        // The whole name, not a part.
        ("remove_header", vec![("matching", "")], b"x", "a=1 b=2", b"x"),
        ("search_replace", vec![("searchPattern", r"(\d)(\d)"), ("replaceString", r"$2\$$1")], b"12-34", "a=1 b=2", b"2$1-4$3"),
        ("search_replace", vec![("searchPattern", r"^[A-Z]+\s")], b"INFO x INFO y", "a=1 b=2", b"x INFO y"),
        (
            "search_replace",
            vec![("searchPattern", "é"), ("replaceString", "ü"), ("charset", "ISO-8859-1")],
            b"\xe9x\xfe",
            "a=1 b=2",
            b"\xfcx\xfe",
        ),
        ("search_replace", vec![("searchPattern", "x"), ("replaceString", "é€"), ("charset", "US-ASCII")], b"x\xff", "a=1 b=2", b"???"),
        ("search_replace", vec![("searchPattern", "x"), ("replaceString", "y")], b"x\xff", "a=1 b=2", "y\u{fffd}".as_bytes()),
        // Without a match no byte changes.
        ("search_replace", vec![("searchPattern", "x"), ("replaceString", "y")], b"z\xff", "a=1 b=2", b"z\xff"),
        ("regex_extractor", serializers(&[("regex", r"(\w+)=(\d+)")]), b"k=7", "a=1 b=7 h=k", b"k=7"),
        ("regex_extractor", serializers(&[("regex", r"(\w+)=(\d+)")]), b"none", "a=1 b=2", b"none"),
        ("regex_extractor", serializers(&[("regex", "(x)|(y)")]), b"y", "a=1 b=y", b"y"),
        ("regex_extractor", serializers(&[("regex", "(x)(y)(z)")]), b"xyz", "a=1 b=y h=x", b"xyz"),
        (
            "regex_extractor",
            serializers(&[("regex", "(.*) (.*)"), ("serializers.s.type", MILLIS), ("serializers.s.pattern", "yyyy-MM-dd'T'HH:mmZ")]),
            b"1970-01-02T00:00Z x",
            "a=1 b=x h=86400000",
            b"1970-01-02T00:00Z x",
        ),
        // No time: the other header is set all the same.
        (
            "regex_extractor",
            serializers(&[("regex", "(.*) (.*)"), ("serializers.s.type", MILLIS), ("serializers.s.pattern", "yyyy")]),
            b"now x",
            "a=1 b=x",
            b"now x",
        ),
        ("regex_filter", vec![("regex", "^E")], b"E1", "a=1 b=2", b"E1"),
        ("regex_filter", vec![], b"", "a=1 b=2", b""),
        ("regex_filter", vec![("regex", "^E"), ("excludeEvents", "true")], b"xE", "a=1 b=2", b"xE"),
    ] {
        assert_eq!(after(name, &settings, body), Some((headers.to_owned(), expected.to_vec())), "{name} {settings:?}");
    }
    assert_eq!(after("regex_filter", &[("regex", "^E")], b"xE"), None);
    assert_eq!(after("regex_filter", &[("regex", "E$"), ("excludeEvents", "true")], b"xE\n"), None);
}

#[test]
fn an_event_that_cannot_be_decided_goes_on() {
    let body = "a".repeat(60);
    for exclude in ["false", "true"] {
        let settings = [("regex", "^(?:a|aa)+$(?<!a)"), ("excludeEvents", exclude)];
        assert!(after("regex_filter", &settings, body.as_bytes()).is_some());
    }
}

#[test]
fn identifiers_are_new_for_each_event() {
    let interceptor = built("org.apache.flume.sink.solr.morphline.UUIDInterceptor$Builder", &[("prefix", "p-")]);
    let id = |event| interceptor.intercept(event).unwrap().header("id").unwrap().to_owned();
    let (first, second) = (id(Event::new("x")), id(Event::new("x")));
    assert_ne!(first, second);
    assert!(first.starts_with("p-") && first.len() == 38);
    assert_eq!(id(Event::with_headers("x", [("id", "mine")])), "mine");
}

#[test]
fn the_machine_is_named_once_for_all_events() {
    let host = built("host", &[]);
    let named = host.intercept(Event::new("x")).unwrap();
    assert!(named.header("host").is_none_or(|address| address.parse::<std::net::IpAddr>().is_ok()));
    let kept = built("host", &[("preserveExisting", "true")]).intercept(Event::with_headers("x", [("host", "old")])).unwrap();
    assert_eq!(kept.header("host"), Some("old"));
}

#[test]
fn headers_that_stay_are_not_copied() {
    let event = Event::with_headers("x", [("a", "1")]);
    let before = event.headers.clone().unwrap();
    let after = built("remove_header", &[("withName", "b")]).intercept(event).unwrap();
    assert!(Arc::ptr_eq(&before, &after.headers.unwrap()));
}

/// A body of 2 MB became 11 GB.
#[test]
fn a_result_that_would_fill_the_memory_is_not_made_and_its_event_goes_on() {
    let many = "Q".repeat(10_000);
    let chain = Chain(vec![built("search_replace", &[("searchPattern", "q"), ("replaceString", &many)])]);
    let event = |length| Event::new("q".repeat(length));
    // A bound on the batch: what one event took another one has not.
    let going = chain.apply([2_000_000, 6_000, 1_000, 1].map(event).into()).0;
    assert_eq!(going.iter().map(|event| event.body.len()).collect::<Vec<_>>(), [2_000_000, 60_000_000, 1_000, 10_000]);
    let extract = built("regex_extractor", &[("regex", "(.*)"), ("serializers", "s"), ("serializers.s.name", "h")]);
    let mut room = 10;
    let taken = [8, 3, 2].map(|length| extract.intercept_within(event(length), &mut room).unwrap().header("h").map(str::len));
    assert_eq!((taken, room), ([Some(8), None, Some(2)], 0));
}
