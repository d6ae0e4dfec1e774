//! The registry's own port: its paths, its form of errors, and what it leaves out; and its pages.

use super::{
    tests::{Bridge, app, call},
    *,
};
use crate::{
    auth::tests::{Kept, key_of},
    testing::{FakeKafka, MemoryOffsets},
};

const TYPE: &str = "application/vnd.schemaregistry.v1+json";

#[tokio::test]
async fn its_root_is_empty_and_what_it_does_not_have_is_refused_in_its_form() {
    let bridge = Bridge::new(Compat::Confluent);
    let ask = async |method: &str, path: &str| call(&bridge.registry_router, method, path, &[], "").await;
    let root = ask("GET", "/").await;
    assert_eq!((root.status, root.text.as_str(), root.headers["content-type"].to_str().unwrap()), (200, "{}", TYPE));
    assert_eq!(ask("GET", "/schemas/types").await.text, r#"["JSON","PROTOBUF","AVRO"]"#);
    for (method, path, status, message) in [
        // The bridge's own paths are on its own port.
        ("GET", "/topics", 404, "HTTP 404 Not Found"),
        ("GET", "/openapi", 404, "HTTP 404 Not Found"),
        ("PATCH", "/subjects", 405, "HTTP 405 Method Not Allowed"),
        ("GET", "/subjects/%FF/versions", 400, "UTF-8"),
    ] {
        let refused = ask(method, path).await;
        refused.fails(status, status.into(), message);
        assert_eq!(refused.headers["content-type"], TYPE, "{method} {path}");
    }
}

/// docs/bridge.md says why.
#[tokio::test]
async fn what_confluents_registry_has_and_this_one_leaves_out_is_not_found() {
    let bridge = Bridge::new(Compat::Confluent);
    for (method, path) in [
        ("POST", "/subjects/s/versions/1/tags"),
        ("GET", "/associations"),
        ("GET", "/associations/subjects/s"),
        ("POST", "/associations:batchGet"),
        ("GET", "/exporters"),
        ("PUT", "/exporters/e/pause"),
        ("GET", "/dek-registry/v1/keks"),
        ("POST", "/dek-registry/v1/keks/k/deks"),
        ("GET", "/catalog/v1/types/tagdefs"),
        ("GET", "/v1/metadata/deployment"),
    ] {
        let own = call(&bridge.registry_router, method, path, &[], "").await;
        own.fails(404, 404, "HTTP 404 Not Found");
        assert_eq!(own.headers["content-type"], TYPE, "{method} {path}");
        bridge.call(method, path, &[], "").await.fails(404, 404, path);
    }
}

/// Its routes ask as they do beside the others.
#[tokio::test]
async fn nobody_comes_to_it_without_being_asked() {
    let kept = Kept::new("[principals.nothing]\n", &["nothing"]);
    let kafka = FakeKafka::with_topic("t", 1);
    let router = registry_router(app(&kafka, &MemoryOffsets::default(), BridgeConfig::default(), Some(kept.auth.clone())));
    for Route { method, path, access, .. } in registry::routes() {
        let path = path.replace(['{', '}'], "");
        let refused = call(&router, method, &path, &[], "").await;
        refused.fails(401, 40101, "X-API-Key");
        assert_eq!(
            (&refused.headers["content-type"], &refused.headers["www-authenticate"]),
            (&TYPE.parse().unwrap(), &"ApiKey realm=\"millrace\"".parse().unwrap())
        );
        if access != KNOWN {
            call(&router, method, &path, &[("x-api-key", &key_of("nothing"))], "").await.fails(403, 40301, "nothing");
        }
    }
    assert_eq!(call(&router, "GET", "/", &[], "").await.status, 401);
    assert_eq!(call(&router, "GET", "/", &[("x-api-key", &key_of("nothing"))], "").await.text, "{}");
}

/// As the topic has it: two versions, one that refers to them, one that is softly deleted, and a name that is no good HTML.
const KNOWN_SCHEMAS: &[(&str, &str)] = &[
    (
        r#"{"keytype":"SCHEMA","subject":"orders-value","version":1,"magic":1}"#,
        r#"{"subject":"orders-value","version":1,"id":1,"schema":"{\"type\":\"record\",\"name\":\"Order\",\"fields\":[{\"name\":\"id\",\"type\":\"int\"}]}","deleted":false}"#,
    ),
    (
        r#"{"keytype":"SCHEMA","subject":"orders-value","version":2,"magic":1}"#,
        r#"{"subject":"orders-value","version":2,"id":2,"schema":"{\"type\":\"record\",\"name\":\"Order\",\"fields\":[{\"name\":\"id\",\"type\":\"long\"},{\"name\":\"note\",\"type\":\"string\",\"default\":\"<script>alert(1)</script>\"}]}","deleted":false}"#,
    ),
    (
        r#"{"keytype":"SCHEMA","subject":"bills-value","version":1,"magic":1}"#,
        r#"{"subject":"bills-value","version":1,"id":3,"schemaType":"AVRO","references":[{"name":"Order","subject":"orders-value","version":2}],"schema":"[\"null\",\"Order\"]","deleted":false}"#,
    ),
    (
        r#"{"keytype":"SCHEMA","subject":"gone-value","version":1,"magic":1}"#,
        r#"{"subject":"gone-value","version":1,"id":4,"schemaType":"PROTOBUF","schema":"syntax = \"proto3\";\nmessage Gone {}","deleted":true}"#,
    ),
    (
        r#"{"keytype":"SCHEMA","subject":"<b>bold</b>","version":1,"magic":1}"#,
        r#"{"subject":"<b>bold</b>","version":1,"id":5,"schemaType":"JSON","schema":"{}","deleted":false}"#,
    ),
    (r#"{"keytype":"CONFIG","subject":"orders-value","magic":0}"#, r#"{"compatibilityLevel":"FULL"}"#),
];

#[tokio::test]
async fn the_page_shows_subjects_their_versions_and_what_changed() {
    let bridge = Bridge::new(Compat::Confluent);
    bridge.registry.know(KNOWN_SCHEMAS);
    let bold = "%3Cb%3Ebold%3C%2Fb%3E";
    for (path, words) in [
        (
            "/ui/subjects".to_owned(),
            "<a href=\"/ui/subjects/orders-value\">orders-value</a></th><td><span class=\"state running\">live</span></td><td>AVRO</td><td class=\"n\">2</td><td class=\"n\">2</td>",
        ),
        ("/ui/subjects".to_owned(), "FULL <span class=\"muted\">own</span>"),
        ("/ui/subjects?search=GONE".to_owned(), "soft-deleted"),
        ("/ui/subjects?search=%3CB".to_owned(), bold),
        (format!("/ui/subjects/{bold}"), "&lt;b&gt;bold"),
        // The latest, with lines of their own, and what is new in it.
        ("/ui/subjects/orders-value".to_owned(), "    {&quot;name&quot;: &quot;id&quot;, &quot;type&quot;: &quot;long&quot;},"),
        ("/ui/subjects/orders-value".to_owned(), "&lt;script&gt;alert(1)"),
        ("/ui/subjects/orders-value".to_owned(), "<del>-     {&quot;name&quot;: &quot;id&quot;, &quot;type&quot;: &quot;int&quot;}</del>"),
        (
            "/ui/subjects/orders-value".to_owned(),
            "<ins>+     {&quot;name&quot;: &quot;id&quot;, &quot;type&quot;: &quot;long&quot;},</ins>",
        ),
        ("/ui/subjects/orders-value".to_owned(), "Referred to by <a href=\"/ui/subjects/bills-value?version=1\">bills-value 1</a>"),
        ("/ui/subjects/orders-value?version=1".to_owned(), "<h2>Version 1</h2>"),
        ("/ui/subjects/bills-value".to_owned(), "Order (<a href=\"/ui/subjects/orders-value?version=2\">orders-value 2</a>)"),
        ("/ui/subjects/gone-value".to_owned(), "message Gone {}"),
        ("/ui/subjects/gone-value".to_owned(), "2023-11-14 22:13:20"),
    ] {
        let page = bridge.get(&path).await;
        assert!(page.status == 200 && page.text.contains(words), "{path}: {words:?} is not in {}", page.text);
        assert!(!page.text.contains("<script>alert") && !page.text.contains("<b>"), "{path}: {}", page.text);
        assert!(page.headers["content-security-policy"].to_str().unwrap().contains("default-src 'none'"));
    }
    assert!(!bridge.get("/ui/subjects/orders-value?version=1").await.text.contains("Changed since"), "there is none before it");
    for (path, status, words) in [
        ("/ui/subjects/nowhere", 404, "is not there"),
        ("/ui/subjects/orders-value?version=9", 404, "has no version 9; its latest is 2"),
        ("/ui/subjects/orders-value?version=x", 400, "?version=x"),
        ("/ui/subjects?offset=-1", 400, "?offset=-1"),
    ] {
        let page = bridge.get(path).await;
        assert!(page.status == status && page.text.starts_with("<!DOCTYPE html>") && page.text.contains(words), "{path}: {}", page.text);
    }

    let list = bridge.get("/ui/api/subjects?search=value").await.json();
    assert_eq!(
        (&list["count"], &list["subjects"][1]["subject"], &list["subjects"][1]["versions"]),
        (&json!(3), &json!("gone-value"), &json!(0))
    );
    let one = bridge.get("/ui/api/subjects/orders-value?version=1").await.json();
    assert_eq!(
        (&one["subject"]["compatibility"], &one["versions"][0]["version"], &one["shown"]["version"]),
        (&json!("FULL"), &json!(2), &json!(1))
    );
    bridge.get("/ui/api/subjects/nowhere").await.fails(404, 404, "is not there");
}

#[tokio::test]
async fn thousands_of_subjects_are_shown_some_at_a_time() {
    let bridge = Bridge::new(Compat::Confluent);
    let names: Vec<String> = (0..3_000).map(|number| format!("s-{number:04}")).collect();
    let schemas: Vec<(&str, i32, i32, &str, &str)> = names.iter().map(|name| (name.as_str(), 1, 1, "AVRO", "\"int\"")).collect();
    bridge.registry.hold(&schemas);
    let page = bridge.get("/ui/subjects?offset=2900").await.text;
    assert!(page.contains("3,000 found, 100 shown") && page.contains("offset=2700") && page.contains("s-2999") && !page.contains("s-2899"));
    let list = bridge.get("/ui/api/subjects?search=s-1").await.json();
    assert_eq!((list["subjects"].as_array().unwrap().len(), &list["count"]), (200, &json!(1_000)));
}

#[tokio::test]
async fn the_page_shows_what_the_caller_may_read() {
    let kept = Kept::new("[principals.orders]\nallow = [\"read subject orders-*\"]\n", &["orders"]);
    let app = app(&FakeKafka::with_topic("t", 1), &MemoryOffsets::default(), BridgeConfig::default(), Some(kept.auth.clone()));
    app.registry.know(KNOWN_SCHEMAS);
    let router = router(app);
    let (key, get) = (key_of("orders"), async |path: &str, key: &str| call(&router, "GET", path, &[("x-api-key", key)], "").await);
    assert_eq!(get("/ui/api/subjects", &key).await.json()["count"], 1);
    let page = get("/ui/subjects/orders-value", &key).await;
    // Who refers to it they may not read.
    assert!(page.status == 200 && !page.text.contains("bills-value"), "{}", page.text);
    get("/ui/subjects/bills-value", &key).await.fails(403, 40301, "bills-value");
    get("/ui/subjects", "nobody").await.fails(401, 40101, "send");
}

#[tokio::test]
async fn who_may_not_read_a_subject_cannot_refer_to_it_either() {
    let policy = "[principals.orders]\nallow = [\"read subject orders-*\", \"write subject orders-*\", \"read subject bills-*\"]\n\
                  [principals.other]\nallow = [\"read subject other-*\", \"write subject other-*\", \"read subject bills-*\"]\n";
    let kept = Kept::new(policy, &["orders", "other"]);
    let app = app(&FakeKafka::with_topic("t", 1), &MemoryOffsets::default(), BridgeConfig::default(), Some(kept.auth.clone()));
    app.registry.know(KNOWN_SCHEMAS);
    let router = router(app);
    let with = |subject: &str, version: i32| {
        let references = json!([{"name": "Order", "subject": subject, "version": version}]);
        json!({"schema": r#"["null", "Order"]"#, "references": references}).to_string()
    };
    let post = async |who: &str, path: &str, body: &str| {
        call(&router, "POST", path, &[("x-api-key", &key_of(who)), ("content-type", "application/json")], body).await
    };
    let compatible = post("orders", "/compatibility/subjects/orders-x/versions", &with("orders-value", 2)).await;
    assert_eq!((compatible.status, &compatible.json()["is_compatible"]), (200, &json!(true)));
    // Itself, what it refers to in turn, and one that is not there: all the same.
    for (subject, version, named) in [
        ("orders-value", 2, "orders-value"),
        ("orders-value", -1, "orders-value"),
        ("bills-value", 1, "orders-value"),
        ("nowhere", 1, "nowhere"),
    ] {
        for path in ["/subjects/other-x/versions", "/subjects/other-x", "/compatibility/subjects/other-x/versions?verbose=true"] {
            let refused = post("other", path, &with(subject, version)).await;
            refused.fails(403, 40301, &format!("may not read subject {named:?}"));
            assert!(!refused.text.contains("script"), "{}", refused.text);
        }
    }
    // Nor see it written out in a schema that somebody else registered.
    for path in ["/subjects/bills-value/versions/1", "/subjects/bills-value/versions/1/schema", "/schemas/ids/3", "/schemas/ids/3/schema"] {
        let get = async |who: &str| {
            let path = format!("{path}?format=resolved&subject=bills-value");
            call(&router, "GET", &path, &[("x-api-key", &key_of(who))], "").await
        };
        let (shown, hidden) = (get("orders").await, get("other").await);
        assert!(shown.status == 200 && shown.text.contains("script"), "{path}: {}", shown.text);
        assert!(hidden.status == 200 && hidden.text.contains("Order") && !hidden.text.contains("script"), "{path}: {}", hidden.text);
    }
}

#[tokio::test]
async fn the_registry_takes_the_types_and_fields_that_others_take() {
    let bridge = Bridge::new(Compat::Confluent);
    bridge.registry.know(KNOWN_SCHEMAS);
    let (path, order) = (
        "/subjects/bills-value",
        r#"{"schema":"[\"null\",\"Order\"]","references":[{"name":"Order","subject":"orders-value","version":2}]}"#,
    );
    for kind in [
        "application/vnd.schemaregistry.v1+json",
        "application/vnd.schemaregistry+json",
        "Application/JSON; charset=utf-8",
        "application/octet-stream",
        "",
    ] {
        assert_eq!(bridge.call("POST", path, &[("content-type", kind)], order).await.status, 200, "{kind}");
    }
    assert_eq!(bridge.call("POST", path, &[], order).await.status, 200);
    for (method, path, kind) in
        [("POST", path, "text/plain"), ("PUT", "/config", "application/x-www-form-urlencoded"), ("PUT", "/mode/s", "application/json2")]
    {
        let refused = bridge.call(method, path, &[("content-type", kind)], order).await;
        refused.fails(415, 415, kind);
        assert_eq!(refused.headers["content-type"], "application/vnd.schemaregistry.v1+json");
    }
    let more = order.replacen('{', r#"{"shema":"x","#, 1);
    for path in [path, "/subjects/bills-value/versions", "/compatibility/subjects/bills-value/versions"] {
        bridge.call("POST", path, &[], &more).await.fails(422, 422, "Unrecognized field: shema");
    }
    bridge.call("PUT", "/mode", &[], r#"{"mode":"IMPORT","fource":true}"#).await.fails(422, 422, "fource");
    let lenient = [("confluent-accept-unknown-properties", "true")];
    assert_eq!(bridge.call("POST", path, &lenient, &more).await.status, 200);
}
