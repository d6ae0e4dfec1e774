//! Every route with every kind of credentials that is none, or is not enough: nobody comes further than health.

use std::{collections::BTreeMap, fs, process::Stdio};

use serde_json::{Value, json};
use tokio::process::Command;

use crate::{
    auth::Site,
    eventually,
    process::{Bridge, unique},
};

/// What everybody may ask.
const OPEN: &[&str] = &["/healthy", "/ready", "/burrow/admin", "/burrow/admin/ready"];
/// What everybody who is somebody may ask.
const KNOWN: &[&str] = &[
    "/",
    "/openapi",
    "/openapi/v3",
    "/schemas/types",
    "/ui/assets/page.js",
    "/ui/assets/style.css",
    "/v1/metadata/id",
    "/v1/metadata/version",
];

/// What is shown, in words and as curl's arguments; the status of what everybody who is somebody may ask, and of the rest.
type Kind<'a> = (&'a str, Vec<(&'a str, String)>, (u16, u16));

/// Method and path of every route, as the bridge's document says; a test beside the table of routes sees to it that it has all of them.
async fn routes(site: &Site, bridge: &Bridge) -> Vec<(String, String)> {
    let document = site.curl(bridge, &["-H", "x-api-key: key-of-root"], "/openapi").await.is(200);
    let mut routes = Vec::new();
    for (path, operations) in document["paths"].as_object().unwrap() {
        let filled: Vec<String> = path
            .split('/')
            .map(|part| match (part.find('{'), part.find('}')) {
                (Some(begin), Some(end)) => format!("{}some{}", &part[..begin], &part[end + 1..]),
                _ => part.to_owned(),
            })
            .collect();
        for method in
            operations.as_object().unwrap().keys().filter(|name| ["get", "post", "put", "patch", "delete"].contains(&name.as_str()))
        {
            routes.push((method.to_uppercase(), filled.join("/")));
        }
    }
    routes
}

/// The status of each route with these arguments of curl's, which asks all of them; 0 where there is no answer.
async fn statuses(site: &Site, bridge: &Bridge, routes: &[(String, String)], arguments: &[(&str, &str)]) -> Vec<u16> {
    let mut config = String::new();
    for (method, path) in routes {
        if !config.is_empty() {
            config.push_str("next\n");
        }
        config.push_str("silent\nmax-time = 30\noutput = \"/dev/null\"\nwrite-out = \"%{http_code}\\n\"\n");
        let (ca, url) = (site.path("ca.pem"), format!("https://{}{path}", bridge.http));
        let own = [("cacert", ca.as_str()), ("request", method.as_str()), ("url", url.as_str())];
        for (name, value) in own.into_iter().chain(arguments.iter().copied()) {
            config.push_str(&format!("{name} = \"{value}\"\n"));
        }
    }
    let file = site.path("curl.conf");
    fs::write(&file, config).unwrap();
    let output = Command::new("curl").args(["-K", &file]).stdin(Stdio::null()).output().await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let found: Vec<u16> = text.lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(found.len(), routes.len(), "{}", String::from_utf8_lossy(&output.stderr));
    found
}

async fn topics(site: &Site, bridge: &Bridge, topic: &str) -> (bool, u16) {
    let root = ["-H", "x-api-key: key-of-root"];
    let all = site.curl(bridge, &root, "/topics").await.is(200);
    let groups = site.curl(bridge, &root, "/consumers/some/instances/some/records").await.status;
    (all.as_array().unwrap().contains(&json!(topic)) || all.as_array().unwrap().contains(&json!("some")), groups)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_route_is_reached_with_credentials_that_are_none_or_not_enough() {
    let topic = unique("never");
    let site = Site::new(&topic, "some");
    let bridge = site.bridge().await;
    let routes = routes(&site, &bridge).await;
    assert!(routes.len() > 90, "{} routes", routes.len());
    eventually("all of it is ready", async || site.curl(&bridge, &[], "/burrow/admin/ready").await.status == 200).await;
    let before = topics(&site, &bridge, &topic).await;

    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let token = |audience: &str, until: u64| site.token(&json!({"sub": "nothing", "aud": audience, "exp": until}));
    let good = token("bridge", now + 600);
    let lower = good.replace("Bearer", "bearer");
    let (expired, other) = (token("bridge", now - 600), token("else", now + 600));
    let forged = {
        let (rest, signature) = good.rsplit_once('.').unwrap();
        let turned: String = signature.chars().rev().collect();
        format!("{rest}.{turned}")
    };
    let certificate = |name: &str| [("cert", site.path(&format!("{name}.pem"))), ("key", site.path(&format!("{name}.key")))];
    let header = |text: &str| vec![("header", text.to_owned())];
    const NOBODY: (u16, u16) = (401, 401);
    const POWERLESS: (u16, u16) = (200, 403);
    const NO_TLS: (u16, u16) = (0, 0);
    let kinds: Vec<Kind<'_>> = vec![
        ("nothing", vec![], NOBODY),
        ("a certificate of another authority", certificate("stranger").to_vec(), NO_TLS),
        ("an expired certificate", certificate("expired").to_vec(), NO_TLS),
        ("the certificate of somebody without a right", certificate("nothing").to_vec(), POWERLESS),
        ("an empty header", header("authorization;"), NOBODY),
        ("an empty token", header("authorization: Bearer "), NOBODY),
        ("a garbled token", header("authorization: Bearer no.such.token"), NOBODY),
        ("a forged token", header(&forged), NOBODY),
        ("an expired token", header(&expired), NOBODY),
        ("a token for somebody else", header(&other), NOBODY),
        ("a good token of somebody without a right", header(&good), POWERLESS),
        ("the same, its scheme in small letters", header(&lower), POWERLESS),
        ("the same twice", [header(&good), header(&good)].concat(), NOBODY),
        ("a good one behind a bad one", [header(&expired), header(&good)].concat(), NOBODY),
        ("a bad one behind a certificate", [certificate("nothing").to_vec(), header(&expired)].concat(), NOBODY),
        ("an API key that is none", header("x-api-key: guess"), NOBODY),
        ("an empty API key", header("x-api-key;"), NOBODY),
        ("a password that is none", header("authorization: Basic YWxpY2U6d3Jvbmc="), NOBODY),
    ];
    let (mut wrong, mut counted) = (Vec::new(), BTreeMap::new());
    for (kind, arguments, (known, rest)) in &kinds {
        let arguments: Vec<(&str, &str)> = arguments.iter().map(|(name, value)| (*name, value.as_str())).collect();
        for ((method, path), found) in routes.iter().zip(statuses(&site, &bridge, &routes, &arguments).await) {
            let expected = match path.as_str() {
                path if OPEN.contains(&path) && *rest != 0 => 200,
                path if KNOWN.contains(&path) => *known,
                _ => *rest,
            };
            if found != expected {
                wrong.push(format!("{method} {path} with {kind}: {found}, not {expected}"));
            }
            *counted.entry(found).or_insert(0) += 1;
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), kinds.len() * routes.len(), wrong.join("\n"));
    assert_eq!(topics(&site, &bridge, &topic).await, before, "nothing has come of it");
    assert_eq!(before, (false, 404));
    // Each refusal is in the log, once.
    let lines = |outcome: &str| {
        let outcome = format!("outcome=\"{outcome}\"");
        bridge.log().lines().filter(|line| line.contains("audit") && line.contains(&outcome)).count()
    };
    eventually("each refusal is logged", async || (lines("unauthenticated"), lines("denied")) == (counted[&401], counted[&403])).await;
    let _: Value = site.curl(&bridge, &["-H", "x-api-key: key-of-root"], "/topics").await.is(200);
    bridge.stop().await;
}
