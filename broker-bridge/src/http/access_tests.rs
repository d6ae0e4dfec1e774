//! Every authorisation pair: each route and each gRPC method with each verb on each kind of thing, with a caller who may do nothing, and with none.

use std::collections::BTreeSet;

use axum::{body::Body, http::Request, routing::MethodFilter};
use prost::Message as _;
use serde_json::Value;
use tower::ServiceExt as _;

use super::{tests::app, *};
use crate::{
    auth::{
        Kind, METHODS, Verb, guard_grpc,
        tests::{Kept, key_of},
    },
    testing::{FakeKafka, MemoryOffsets},
};

/// What a verb includes beside itself.
const INCLUDED: &[(Verb, Verb)] =
    &[(Read, Describe), (Write, Describe), (Delete, Describe), (Alter, Describe), (AlterConfigs, DescribeConfigs)];

/// A principal for each verb on each kind, allowed that and nothing else.
fn grants() -> Vec<(String, Verb, Kind)> {
    let all = Verb::ALL.into_iter().flat_map(|verb| Kind::ALL.into_iter().map(move |kind| (verb, kind)));
    all.map(|(verb, kind)| (format!("{}-{}", verb.name(), kind.name()), verb, kind)).collect()
}

/// All of them, `nothing`, `elsewhere` (everything, but of other names) and `root`.
fn kept() -> Kept {
    let mut policy = String::from(
        "[principals.nothing]\n[principals.root]\nallow = [\"all\"]\n[principals.elsewhere]\nallow = [\"all topic other-*\", \"all group other-*\", \"all subject other-*\"]\n",
    );
    let grants = grants();
    for (name, verb, kind) in &grants {
        let pattern = if *kind == Kind::Cluster { "" } else { " *" };
        policy.push_str(&format!("[principals.{name}]\nallow = [\"{} {}{pattern}\"]\n", verb.name(), kind.name()));
    }
    let names: Vec<&str> = grants.iter().map(|(name, ..)| name.as_str()).chain(["nothing", "root", "elsewhere"]).collect();
    Kept::new(&policy, &names)
}

/// Whether who has only this grant may pass.
fn passes(access: Access, granted: Verb, on: Kind) -> bool {
    let includes = |needed: Verb| granted == needed || INCLUDED.contains(&(granted, needed));
    match access {
        Access::Open | Access::Known => true,
        Access::Cluster(needed) => on == Kind::Cluster && includes(needed),
        Access::Of(needed, kind, _) | Access::Any(needed, kind) | Access::All(needed, kind) => on == kind && includes(needed),
    }
}

/// A path with something for each of its parameters.
fn filled(path: &str) -> String {
    let parts = path.split('/').map(|part| match part.strip_prefix('{').and_then(|part| part.strip_suffix('}')) {
        Some(name) => format!("some-{name}"),
        None => part.to_owned(),
    });
    parts.collect::<Vec<_>>().join("/")
}

async fn status(router: &Router, method: &str, path: &str, principal: Option<&str>) -> (u16, HeaderMap, Value) {
    let mut request = Request::builder().method(method).uri(path);
    if let Some(principal) = principal {
        request = request.header("x-api-key", key_of(principal));
    }
    let response = router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    (parts.status.as_u16(), parts.headers, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

#[tokio::test]
async fn every_route_passes_exactly_those_who_have_what_it_declares() {
    let (kept, grants) = (kept(), grants());
    let mut pairs = 0;
    for Route { method, path, access, .. } in routes() {
        if let Access::Of(_, kind, param) = access {
            assert!(path.contains(&format!("{{{param}}}")), "{method} {path} does not name its {kind:?}");
        }
        let filter = MethodFilter::try_from(Method::from_bytes(method.as_bytes()).unwrap()).unwrap();
        let inside = guarded(Some(&kept.auth), access, axum::routing::on(filter, async || "inside"));
        let router: Router = Router::new().route(path, inside);
        let path = filled(path);
        for (name, verb, kind) in &grants {
            let expected = if passes(access, *verb, *kind) { 200 } else { 403 };
            let (found, _, body) = status(&router, method, &path, Some(name)).await;
            assert_eq!(found, expected, "{method} {path} ({access:?}) as {name}: {body}");
            if found == 403 {
                let message = body["message"].as_str().unwrap();
                assert!(body["error_code"] == 40301 && message.contains(name.as_str()) && message.contains("may not"), "{body}");
            }
            pairs += 1;
        }
        // Everything, but of other names: where the body has the names, it is asked later.
        let elsewhere = if matches!(access, Access::Open | Access::Known | Access::Any(..)) { 200 } else { 403 };
        let open = access == Access::Open;
        for (principal, expected) in [
            (Some("root"), 200),
            (Some("elsewhere"), elsewhere),
            (Some("nothing"), if matches!(access, Access::Open | Access::Known) { 200 } else { 403 }),
            (Some("nobody-has-heard-of"), if open { 200 } else { 401 }),
            (None, if open { 200 } else { 401 }),
        ] {
            assert_eq!(status(&router, method, &path, principal).await.0, expected, "{method} {path} ({access:?}) as {principal:?}");
            pairs += 1;
        }
    }
    assert!(pairs > 4_000, "{pairs}");
}

/// With the handlers that are really served: nobody, and who may do nothing, come to none of them.
#[tokio::test]
async fn no_handler_is_reached_without_being_asked() {
    for compat in [Compat::Confluent, Compat::Strimzi] {
        let kept = kept();
        let kafka = FakeKafka::with_topic("t", 1);
        let mut config = BridgeConfig::default();
        config.http.compat = compat;
        let router = router(app(&kafka, &MemoryOffsets::default(), config, Some(kept.auth.clone())));
        let mut open = BTreeSet::new();
        for Route { method, path, access, .. } in routes() {
            let path = filled(path);
            let (nobody, headers, body) = status(&router, method, &path, None).await;
            if access == Access::Open {
                assert!(nobody != 401 && nobody != 403, "{method} {path}: {nobody}");
                open.insert(path);
                continue;
            }
            let number = |code: u64, strimzi: u64| if compat == Compat::Strimzi { strimzi } else { code };
            assert_eq!((nobody, body["error_code"].as_u64()), (401, Some(number(40101, 401))), "{method} {path}: {body}");
            assert_eq!(headers["www-authenticate"], "ApiKey realm=\"millrace\"");
            if access != Access::Known {
                let (nothing, _, body) = status(&router, method, &path, Some("nothing")).await;
                assert_eq!((nothing, body["error_code"].as_u64()), (403, Some(number(40301, 403))), "{method} {path}: {body}");
            }
        }
        assert_eq!(open.into_iter().collect::<Vec<_>>(), ["/burrow/admin", "/burrow/admin/ready", "/healthy", "/ready"]);
    }
}

#[tokio::test]
async fn every_method_passes_exactly_those_who_have_what_is_declared() {
    let (kept, grants) = (kept(), grants());
    let router = guard_grpc(kept.auth.clone(), Router::new().fallback(async || "inside"));
    let call = async |path: &str, principal: Option<&str>| {
        let mut request = Request::post(path).header("content-type", "application/grpc");
        if let Some(principal) = principal {
            request = request.header("x-api-key", key_of(principal));
        }
        let response = router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        response.headers().get("grpc-status").map(|code| code.to_str().unwrap().parse::<i32>().unwrap())
    };
    const DENIED: Option<i32> = Some(7);
    const UNKNOWN_CALLER: Option<i32> = Some(16);
    for (path, access) in METHODS {
        for (name, verb, kind) in &grants {
            let expected = if passes(*access, *verb, *kind) { None } else { DENIED };
            assert_eq!(call(path, Some(name)).await, expected, "{path} ({access:?}) as {name}");
        }
        let open = *access == Access::Open;
        assert_eq!(call(path, None).await, if open { None } else { UNKNOWN_CALLER }, "{path} as nobody");
        let nothing = if matches!(access, Access::Open | Access::Known) { None } else { DENIED };
        assert_eq!(call(path, Some("nothing")).await, nothing, "{path}");
        assert_eq!(call(path, Some("root")).await, None, "{path}");
    }
    // What is not declared nobody may call.
    assert_eq!(call("/millrace.control.v1.Bridge/Conquer", Some("root")).await, DENIED);

    let mut served = BTreeSet::new();
    for file in prost_types::FileDescriptorSet::decode(proto::FILE_DESCRIPTOR_SET).unwrap().file {
        for service in file.service.iter().filter(|service| ["Bridge", "BridgeData", "Control"].contains(&service.name())) {
            served.extend(service.method.iter().map(|method| format!("/{}.{}/{}", file.package(), service.name(), method.name())));
        }
    }
    let declared: BTreeSet<String> =
        METHODS.iter().map(|(path, _)| (*path).to_owned()).filter(|path| path.starts_with("/millrace.")).collect();
    assert_eq!(declared, served, "every method of the bridge's services is declared");
}
