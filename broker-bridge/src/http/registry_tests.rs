//! The registry's own port: its paths, its form of errors, and what it leaves out.

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
