//! Access control lists: `DescribeAcls`, `CreateAcls` and `DeleteAcls`, all v1 (with pattern types).

use super::{Answer, Manage, Need, To};
use crate::kafka::{
    KafkaError,
    wire::{Input, Output},
};

const DESCRIBE: (i16, i16) = (29, 1);
const CREATE: (i16, i16) = (30, 1);
const DELETE: (i16, i16) = (31, 1);

/// An enumeration of the protocol: its names, and the numbers by their order.
macro_rules! names {
    ($(#[$attribute:meta])* $name:ident { $($variant:ident = $text:literal),+ }) => {
        $(#[$attribute])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name { $($variant),+ }

        impl $name {
            const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// In capitals, as Kafka's tools and the REST proxy write it.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }

            /// Case does not matter.
            pub fn parse(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|one| one.name().eq_ignore_ascii_case(name))
            }

            /// All names, for an error that says what is possible.
            pub fn names() -> String {
                Self::ALL.iter().map(|one| one.name()).collect::<Vec<_>>().join(", ")
            }

            fn code(self) -> i8 {
                self as i8
            }

            fn of(code: i8) -> Self {
                usize::try_from(code).ok().and_then(|code| Self::ALL.get(code).copied()).unwrap_or(Self::Unknown)
            }
        }
    };
}

names! {
    /// What is protected.
    AclResource { Unknown = "UNKNOWN", Any = "ANY", Topic = "TOPIC", Group = "GROUP", Cluster = "CLUSTER", TransactionalId = "TRANSACTIONAL_ID", DelegationToken = "DELEGATION_TOKEN", User = "USER" }
}
names! {
    /// How the resource's name is meant.
    AclPattern { Unknown = "UNKNOWN", Any = "ANY", Match = "MATCH", Literal = "LITERAL", Prefixed = "PREFIXED" }
}
names! {
    AclOperation {
        Unknown = "UNKNOWN", Any = "ANY", All = "ALL", Read = "READ", Write = "WRITE", Create = "CREATE", Delete = "DELETE", Alter = "ALTER", Describe = "DESCRIBE",
        ClusterAction = "CLUSTER_ACTION", DescribeConfigs = "DESCRIBE_CONFIGS", AlterConfigs = "ALTER_CONFIGS", IdempotentWrite = "IDEMPOTENT_WRITE",
        CreateTokens = "CREATE_TOKENS", DescribeTokens = "DESCRIBE_TOKENS", TwoPhaseCommit = "TWO_PHASE_COMMIT"
    }
}
names! {
    AclPermission { Unknown = "UNKNOWN", Any = "ANY", Deny = "DENY", Allow = "ALLOW" }
}

/// One entry: who may, or may not, do what with which resources, from where.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Acl {
    pub resource: AclResource,
    pub name: String,
    pub pattern: AclPattern,
    /// As `User:alice`.
    pub principal: String,
    /// An address, or `*`.
    pub host: String,
    pub operation: AclOperation,
    pub permission: AclPermission,
}

/// `None` and `Any` match everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AclFilter {
    pub resource: AclResource,
    pub name: Option<String>,
    pub pattern: AclPattern,
    pub principal: Option<String>,
    pub host: Option<String>,
    pub operation: AclOperation,
    pub permission: AclPermission,
}

impl AclFilter {
    fn write(&self, body: &mut Output) {
        body.i8(self.resource.code()).nullable(self.name.as_deref()).i8(self.pattern.code()).nullable(self.principal.as_deref());
        body.nullable(self.host.as_deref()).i8(self.operation.code()).i8(self.permission.code());
    }
}

impl Manage {
    /// Those that match, ascending.
    pub async fn acls(&self, filter: &AclFilter) -> Result<Vec<Acl>, KafkaError> {
        let mut body = Output::default();
        filter.write(&mut body);
        let (code, message, mut found) = self.ask(To::Any, DESCRIBE, body.bytes(), parse_described).await?;
        if code != 0 {
            return Err(self.denied(code, message, "reading access control lists", &Need::cluster("DESCRIBE")));
        }
        found.sort();
        Ok(found)
    }

    /// An entry that exists already stays as it is. The result is that of the first that was refused; the others are created.
    pub async fn create_acls(&self, acls: &[Acl]) -> Result<(), KafkaError> {
        let mut body = Output::default();
        body.count(acls.len());
        for acl in acls {
            body.i8(acl.resource.code()).string(&acl.name).i8(acl.pattern.code()).string(&acl.principal).string(&acl.host);
            body.i8(acl.operation.code()).i8(acl.permission.code());
        }
        let results = self.ask(To::Controller, CREATE, body.bytes(), parse_created).await?;
        match results.into_iter().find(|(code, _)| *code != 0) {
            None => Ok(()),
            Some((code, message)) => Err(self.denied(code, message, "creating access control lists", &Need::cluster("ALTER"))),
        }
    }

    /// Deletes those that match, and tells which they were; ascending.
    pub async fn delete_acls(&self, filter: &AclFilter) -> Result<Vec<Acl>, KafkaError> {
        let mut body = Output::default();
        body.count(1);
        filter.write(&mut body);
        let (code, message, mut deleted) = self.ask(To::Controller, DELETE, body.bytes(), parse_deleted).await?;
        if code != 0 {
            return Err(self.denied(code, message, "deleting access control lists", &Need::cluster("ALTER")));
        }
        deleted.sort();
        Ok(deleted)
    }
}

fn parse_described(input: &mut Input<'_>) -> Answer<(i16, Option<String>, Vec<Acl>)> {
    let _throttle_ms = input.i32()?;
    let (code, message) = (input.i16()?, input.string()?);
    let mut found = Vec::new();
    for _ in 0..input.count()? {
        let (resource, name, pattern) = resource(input)?;
        for _ in 0..input.count()? {
            found.push(entry(input, resource, name.clone(), pattern)?);
        }
    }
    Ok((code, message, found))
}

fn parse_created(input: &mut Input<'_>) -> Answer<Vec<(i16, Option<String>)>> {
    let _throttle_ms = input.i32()?;
    (0..input.count()?).map(|_| Ok((input.i16()?, input.string()?))).collect()
}

/// Of the only filter; an entry's own error stands for all.
fn parse_deleted(input: &mut Input<'_>) -> Answer<(i16, Option<String>, Vec<Acl>)> {
    let _throttle_ms = input.i32()?;
    if input.count()? == 0 {
        return Err("no result".to_owned());
    }
    let (mut code, mut message) = (input.i16()?, input.string()?);
    let mut deleted = Vec::new();
    for _ in 0..input.count()? {
        let own = (input.i16()?, input.string()?);
        let (resource, name, pattern) = resource(input)?;
        let acl = entry(input, resource, name, pattern)?;
        match own.0 {
            0 => deleted.push(acl),
            _ => (code, message) = own,
        }
    }
    Ok((code, message, deleted))
}

fn resource(input: &mut Input<'_>) -> Answer<(AclResource, String, AclPattern)> {
    Ok((AclResource::of(input.i8()?), input.string()?.unwrap_or_default(), AclPattern::of(input.i8()?)))
}

fn entry(input: &mut Input<'_>, resource: AclResource, name: String, pattern: AclPattern) -> Answer<Acl> {
    let (principal, host) = (input.string()?.unwrap_or_default(), input.string()?.unwrap_or_default());
    let (operation, permission) = (AclOperation::of(input.i8()?), AclPermission::of(input.i8()?));
    Ok(Acl { resource, name, pattern, principal, host, operation, permission })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_the_protocols() {
        assert_eq!((AclResource::TransactionalId.code(), AclPattern::Prefixed.code()), (5, 4));
        assert_eq!((AclOperation::IdempotentWrite.code(), AclPermission::Allow.code()), (12, 3));
        assert_eq!(AclOperation::parse("cluster_action"), Some(AclOperation::ClusterAction));
        assert_eq!(
            (AclOperation::of(99), AclOperation::of(-1), AclOperation::parse("x")),
            (AclOperation::Unknown, AclOperation::Unknown, None)
        );
    }

    #[test]
    fn lists_are_read() {
        let mut answer = Output::default();
        answer.i32(0).i16(0).nullable(None).count(1).i8(2).string("orders-").i8(4).count(2);
        answer.string("User:a").string("*").i8(3).i8(3).string("User:b").string("10.0.0.1").i8(2).i8(2);
        let (code, _, found) = parse_described(&mut Input(answer.bytes())).unwrap();
        assert_eq!((code, found.len()), (0, 2));
        assert_eq!(
            (found[0].resource, found[0].pattern, found[0].operation),
            (AclResource::Topic, AclPattern::Prefixed, AclOperation::Read)
        );
        assert_eq!((found[1].host.as_str(), found[1].permission), ("10.0.0.1", AclPermission::Deny));
        for length in 0..answer.bytes().len() {
            assert!(parse_described(&mut Input(&answer.bytes()[..length])).is_err(), "{length}");
        }

        let mut answer = Output::default();
        answer.i32(0).count(1).i16(0).nullable(None).count(2);
        answer.i16(0).nullable(None).i8(2).string("t").i8(3).string("User:a").string("*").i8(3).i8(3);
        answer.i16(31).nullable(Some("no")).i8(2).string("u").i8(3).string("User:a").string("*").i8(3).i8(3);
        let (code, message, deleted) = parse_deleted(&mut Input(answer.bytes())).unwrap();
        assert_eq!((code, message.as_deref(), deleted.len()), (31, Some("no"), 1));
    }
}
