//! `…/acls`: Kafka's access control lists, searched, created and deleted.

use std::collections::HashMap;

use axum::{
    extract::{Path, Query, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::IntoResponse as _,
};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use service_kit::kafka::{Acl, AclFilter};

use super::{App, Cluster, Reply, body, ok, segment};
use crate::{
    error::{BridgeError, Code, Result},
    manage::{self, ANY, AclNames, MUST_BE_SAID},
};

type Options = Query<HashMap<String, String>>;

/// The query's filter.
fn filter(options: &HashMap<String, String>, unspecified: &str) -> Result<AclFilter> {
    let one = |name: &str| options.get(name).cloned().unwrap_or_default();
    let names = AclNames {
        resource_type: one("resource_type"),
        resource_name: one("resource_name"),
        pattern_type: one("pattern_type"),
        principal: one("principal"),
        host: one("host"),
        operation: one("operation"),
        permission: one("permission"),
    };
    names.filter(unspecified)
}

/// The address that finds these entries again.
fn search(fields: [(&str, &str); 7]) -> String {
    let pairs: Vec<String> = fields.iter().map(|(name, value)| format!("{name}={}", segment(value))).collect();
    format!("/acls?{}", pairs.join("&"))
}

fn place(acl: &Acl) -> String {
    search([
        ("resource_type", acl.resource.name()),
        ("resource_name", &acl.name),
        ("pattern_type", acl.pattern.name()),
        ("principal", &acl.principal),
        ("host", &acl.host),
        ("operation", acl.operation.name()),
        ("permission", acl.permission.name()),
    ])
}

fn acl_json(cluster: &Cluster, acl: &Acl) -> Value {
    json!({
        "kind": "KafkaAcl",
        "metadata": {"self": format!("{}{}", cluster.url, place(acl))},
        "cluster_id": cluster.id(),
        "resource_type": acl.resource.name(),
        "resource_name": acl.name,
        "pattern_type": acl.pattern.name(),
        "principal": acl.principal,
        "host": acl.host,
        "operation": acl.operation.name(),
        "permission": acl.permission.name(),
    })
}

pub(in crate::http) async fn acls(State(app): State<App>, Path(name): Path<String>, Query(options): Options, headers: HeaderMap) -> Reply {
    let cluster = Cluster::named(&app, &headers, &name).await?;
    let filter = filter(&options, ANY)?;
    let found = manage::acls(&app.kafka, &filter).await?;
    let own = search([
        ("resource_type", filter.resource.name()),
        ("resource_name", filter.name.as_deref().unwrap_or_default()),
        ("pattern_type", filter.pattern.name()),
        ("principal", filter.principal.as_deref().unwrap_or_default()),
        ("host", filter.host.as_deref().unwrap_or_default()),
        ("operation", filter.operation.name()),
        ("permission", filter.permission.name()),
    ]);
    Ok(cluster.list("KafkaAclList", &own, found.iter().map(|acl| acl_json(&cluster, acl)).collect()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateAll {
    data: Vec<AclNames>,
}

pub(in crate::http) async fn create_acl(State(app): State<App>, Path(name): Path<String>, headers: HeaderMap, bytes: Bytes) -> Reply {
    let cluster = Cluster::named(&app, &headers, &name).await?;
    let acl = body::<AclNames>(&headers, &bytes)?.acl()?;
    let place = format!("{}{}", cluster.url, place(&acl));
    manage::create_acls(&app.kafka, &[acl]).await?;
    let mut response = StatusCode::CREATED.into_response();
    if let Ok(place) = HeaderValue::from_str(&place) {
        response.headers_mut().insert(header::LOCATION, place);
    }
    Ok(response)
}

/// All are checked before the first is created.
pub(in crate::http) async fn create_acls(State(app): State<App>, Path(name): Path<String>, headers: HeaderMap, bytes: Bytes) -> Reply {
    Cluster::named(&app, &headers, &name).await?;
    let CreateAll { data } = body(&headers, &bytes)?;
    if data.is_empty() {
        return Err(BridgeError::new(Code::BadRequest, "data is empty; send at least one entry").into());
    }
    let acls = data.into_iter().map(AclNames::acl).collect::<Result<Vec<_>>>()?;
    manage::create_acls(&app.kafka, &acls).await?;
    Ok(StatusCode::CREATED.into_response())
}

pub(in crate::http) async fn delete_acls(
    State(app): State<App>,
    Path(name): Path<String>,
    Query(options): Options,
    headers: HeaderMap,
) -> Reply {
    let cluster = Cluster::named(&app, &headers, &name).await?;
    let deleted = manage::delete_acls(&app.kafka, &filter(&options, MUST_BE_SAID)?).await?;
    ok(&json!({"data": deleted.iter().map(|acl| acl_json(&cluster, acl)).collect::<Vec<_>>()}))
}
