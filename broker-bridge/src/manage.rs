//! What operators change beside topics: settings, and Kafka's access control lists by the names of its tools. HTTP and gRPC are its two faces.

use std::collections::BTreeMap;

use serde::Deserialize;
use service_kit::kafka::{Acl, AclFilter, AclOperation, AclPattern, AclPermission, AclResource, ConfigChange, ConfigOf};

use crate::{
    connect::Connection,
    error::{BridgeError, Code, Result},
};

/// Changes these settings and no other; all or none.
pub(crate) async fn alter_configs(kafka: &Connection, of: ConfigOf<'_>, changes: &[ConfigChange], dry_run: bool) -> Result<()> {
    kafka.of_caller()?.manage().alter_configs(of, changes, dry_run).await?;
    if !dry_run {
        let names: Vec<&str> = changes.iter().map(|change| change.name.as_str()).collect();
        tracing::info!(?of, settings = names.join(", "), "configuration changed");
    }
    Ok(())
}

/// By broker. Where the connection does not tell the racks, the brokers are still there.
pub(crate) async fn racks(kafka: &Connection) -> Result<BTreeMap<i32, String>> {
    Ok(kafka.of_caller()?.manage().racks().await.unwrap_or_else(|error| {
        tracing::debug!(%error, "the brokers' racks are not known");
        BTreeMap::new()
    }))
}

/// One of an enumeration's names, or what is possible.
macro_rules! known {
    ($kind:ident, $field:literal, $text:expr) => {{
        let text: &str = $text;
        let unknown = || BridgeError::new(Code::BadRequest, format!("{} = {text:?} is not known; there are {}", $field, $kind::names()));
        $kind::parse(text).ok_or_else(unknown)
    }};
}

/// An entry, or what to look for, as a request names it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AclNames {
    pub(crate) resource_type: String,
    pub(crate) resource_name: String,
    pub(crate) pattern_type: String,
    pub(crate) principal: String,
    pub(crate) host: String,
    pub(crate) operation: String,
    pub(crate) permission: String,
}

impl From<&Acl> for AclNames {
    fn from(acl: &Acl) -> Self {
        let Acl { resource, name, pattern, principal, host, operation, permission } = acl;
        Self {
            resource_type: resource.name().to_owned(),
            resource_name: name.clone(),
            pattern_type: pattern.name().to_owned(),
            principal: principal.clone(),
            host: host.clone(),
            operation: operation.name().to_owned(),
            permission: permission.name().to_owned(),
        }
    }
}

impl AclNames {
    /// A new entry.
    pub(crate) fn acl(self) -> Result<Acl> {
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

    /// A search. A name, principal or host that is empty matches every one; what else is empty takes `unspecified`, which is not the same for
    /// searching and deleting.
    pub(crate) fn filter(self, unspecified: &str) -> Result<AclFilter> {
        let text = |text: String| (!text.is_empty()).then_some(text);
        let one = |name: String| text(name).unwrap_or_else(|| unspecified.to_owned());
        let filter = AclFilter {
            resource: known!(AclResource, "resource_type", &one(self.resource_type))?,
            name: text(self.resource_name),
            pattern: known!(AclPattern, "pattern_type", &one(self.pattern_type))?,
            principal: text(self.principal),
            host: text(self.host),
            operation: known!(AclOperation, "operation", &one(self.operation))?,
            permission: known!(AclPermission, "permission", &one(self.permission))?,
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
}

/// In a search, and in a deletion: see [`AclNames::filter`].
pub(crate) const ANY: &str = "ANY";
pub(crate) const MUST_BE_SAID: &str = "UNKNOWN";

pub(crate) async fn acls(kafka: &Connection, filter: &AclFilter) -> Result<Vec<Acl>> {
    Ok(kafka.of_caller()?.manage().acls(filter).await?)
}

pub(crate) async fn create_acls(kafka: &Connection, acls: &[Acl]) -> Result<()> {
    kafka.of_caller()?.manage().create_acls(acls).await?;
    acls.iter().for_each(|acl| tracing::info!(acl = told(acl), "access control list created"));
    Ok(())
}

/// Gives those that were deleted.
pub(crate) async fn delete_acls(kafka: &Connection, filter: &AclFilter) -> Result<Vec<Acl>> {
    let deleted = kafka.of_caller()?.manage().delete_acls(filter).await?;
    deleted.iter().for_each(|acl| tracing::info!(acl = told(acl), "access control list deleted"));
    Ok(deleted)
}

fn told(acl: &Acl) -> String {
    let Acl { resource, name, pattern, principal, host, operation, permission } = acl;
    let [resource, pattern, operation, permission] = [resource.name(), pattern.name(), operation.name(), permission.name()];
    format!("{permission} {operation} on {pattern} {resource} {name:?} to {principal:?} from {host:?}")
}

#[cfg(test)]
mod tests {

    use super::*;

    #[test]
    fn a_search_takes_everything_and_a_deletion_must_say_what() {
        let all = AclNames::default().filter(ANY).unwrap();
        assert_eq!((all.resource, all.name, all.operation), (AclResource::Any, None, AclOperation::Any));
        let error = AclNames::default().filter(MUST_BE_SAID).unwrap_err();
        assert_eq!((error.code, error.message.as_str()), (Code::BadRequest, "resource_type cannot be unspecified or UNKNOWN"));
        let wrong = AclNames { operation: "FLY".to_owned(), ..AclNames::default() };
        assert!(wrong.filter(ANY).unwrap_err().message.contains("IDEMPOTENT_WRITE"));
    }
}
