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
use service_kit::kafka::{Acl, AclFilter, AclOperation, AclPattern, AclPermission, AclResource};

use super::{App, Cluster, Reply, body, ok, segment};
use crate::error::{BridgeError, Code, Result};

type Options = Query<HashMap<String, String>>;

/// One of an enumeration's names, or what is possible.
macro_rules! known {
    ($kind:ident, $field:literal, $text:expr) => {
        $kind::parse($text).ok_or_else(|| {
            BridgeError::new(Code::BadRequest, format!("{} = {:?} is not known; there are {}", $field, $text, $kind::names()))
        })
    };
}

/// The query's filter. What is left out takes `unspecified`, which is not the same for searching and deleting.
fn filter(options: &HashMap<String, String>, unspecified: &str) -> Result<AclFilter> {
    let text = |name: &str| options.get(name).filter(|value| !value.is_empty()).cloned();
    let one = |name: &str| text(name).unwrap_or_else(|| unspecified.to_owned());
    let filter = AclFilter {
        resource: known!(AclResource, "resource_type", &one("resource_type"))?,
        name: text("resource_name"),
        pattern: known!(AclPattern, "pattern_type", &one("pattern_type"))?,
        principal: text("principal"),
        host: text("host"),
        operation: known!(AclOperation, "operation", &one("operation"))?,
        permission: known!(AclPermission, "permission", &one("permission"))?,
    };
    let unknown = [
        ("resource_type", filter.resource == AclResource::Unknown),
        ("pattern_type", filter.pattern == AclPattern::Unknown),
        ("operation", filter.operation == AclOperation::Unknown),
        ("permission", filter.permission == AclPermission::Unknown),
    ];
    match unknown.into_iter().find(|(_, unknown)| *unknown) {
        None => Ok(filter),
        Some((field, _)) => Err(BridgeError::new(Code::BadRequest, format!("{field} cannot be unspecified or UNKNOWN"))),
    }
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
    let filter = filter(&options, "ANY")?;
    let found = app.kafka.of_caller()?.manage().acls(&filter).await?;
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
struct Create {
    resource_type: String,
    resource_name: String,
    pattern_type: String,
    principal: String,
    host: String,
    operation: String,
    permission: String,
}

impl Create {
    fn acl(self) -> Result<Acl> {
        let wrong = |message: String| Err(BridgeError::new(Code::BadRequest, message));
        let resource = known!(AclResource, "resource_type", &self.resource_type)?;
        let pattern = known!(AclPattern, "pattern_type", &self.pattern_type)?;
        let operation = known!(AclOperation, "operation", &self.operation)?;
        let permission = known!(AclPermission, "permission", &self.permission)?;
        // What only a search can mean.
        if matches!(resource, AclResource::Unknown | AclResource::Any) {
            return wrong(format!("resource_type cannot be {} in a new entry; name one kind", resource.name()));
        }
        if !matches!(pattern, AclPattern::Literal | AclPattern::Prefixed) {
            return wrong(format!("pattern_type cannot be {} in a new entry; give LITERAL or PREFIXED", pattern.name()));
        }
        if matches!(operation, AclOperation::Unknown | AclOperation::Any) {
            return wrong(format!("operation cannot be {} in a new entry; name one, or ALL", operation.name()));
        }
        if !matches!(permission, AclPermission::Allow | AclPermission::Deny) {
            return wrong(format!("permission cannot be {} in a new entry; give ALLOW or DENY", permission.name()));
        }
        if resource == AclResource::Cluster && self.resource_name != "kafka-cluster" {
            return Err(BridgeError::new(Code::Unprocessable, "The only valid name for the CLUSTER resource is kafka-cluster"));
        }
        Ok(Acl { resource, name: self.resource_name, pattern, principal: self.principal, host: self.host, operation, permission })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateAll {
    data: Vec<Create>,
}

pub(in crate::http) async fn create_acl(State(app): State<App>, Path(name): Path<String>, headers: HeaderMap, bytes: Bytes) -> Reply {
    let cluster = Cluster::named(&app, &headers, &name).await?;
    let acl = body::<Create>(&headers, &bytes)?.acl()?;
    let place = format!("{}{}", cluster.url, place(&acl));
    create(&app, vec![acl]).await?;
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
    let acls = data.into_iter().map(Create::acl).collect::<Result<Vec<_>>>()?;
    create(&app, acls).await?;
    Ok(StatusCode::CREATED.into_response())
}

async fn create(app: &App, acls: Vec<Acl>) -> Result<()> {
    app.kafka.of_caller()?.manage().create_acls(&acls).await?;
    for acl in &acls {
        tracing::info!(acl = place(acl), "access control list created");
    }
    Ok(())
}

pub(in crate::http) async fn delete_acls(
    State(app): State<App>,
    Path(name): Path<String>,
    Query(options): Options,
    headers: HeaderMap,
) -> Reply {
    let cluster = Cluster::named(&app, &headers, &name).await?;
    let deleted = app.kafka.of_caller()?.manage().delete_acls(&filter(&options, "UNKNOWN")?).await?;
    for acl in &deleted {
        tracing::info!(acl = place(acl), "access control list deleted");
    }
    ok(&json!({"data": deleted.iter().map(|acl| acl_json(&cluster, acl)).collect::<Vec<_>>()}))
}

#[cfg(test)]
mod tests {

    use super::*;

    #[test]
    fn a_search_takes_everything_and_a_deletion_must_say_what() {
        let none = HashMap::new();
        let all = filter(&none, "ANY").unwrap();
        assert_eq!((all.resource, all.name, all.operation), (AclResource::Any, None, AclOperation::Any));
        let error = filter(&none, "UNKNOWN").unwrap_err();
        assert_eq!((error.code, error.message.as_str()), (Code::BadRequest, "resource_type cannot be unspecified or UNKNOWN"));
        let wrong = HashMap::from([("operation".to_owned(), "FLY".to_owned())]);
        assert!(filter(&wrong, "ANY").unwrap_err().message.contains("IDEMPOTENT_WRITE"));
    }
}
