//! Who a client is to the brokers, and what it has to be granted where they refuse it.

use rdkafka::error::RDKafkaErrorCode as Code;
use x509_parser::certificate::X509Certificate;
use x509_parser::oid_registry as oid;
use x509_parser::x509::X509Name;

use super::{KafkaConfig, certificate, jaas};

/// What a request has to be allowed, by what it is about. A refusal says which of them it is.
#[derive(Clone, Debug, Default)]
pub(super) struct Need {
    /// Operation, and topic or topics.
    pub(super) topic: Option<(&'static str, String)>,
    pub(super) group: Option<(&'static str, String)>,
    pub(super) transactional_id: Option<String>,
    pub(super) cluster: Option<&'static str>,
}

impl Need {
    pub(super) fn topic(operation: &'static str, topic: &str) -> Self {
        Self { topic: Some((operation, topic.to_owned())), ..Self::default() }
    }

    pub(super) fn and_group(self, operation: &'static str, group: &str) -> Self {
        Self { group: Some((operation, group.to_owned())), ..self }
    }

    pub(super) fn cluster(operation: &'static str) -> Self {
        Self { cluster: Some(operation), ..Self::default() }
    }
}

/// The sentence for a refused request; `None` where the code is none of a refusal.
pub(super) fn denied(code: Code, what: &str, need: &Need, config: &KafkaConfig) -> Option<String> {
    let (kind, grant) = match code {
        Code::TopicAuthorizationFailed => ("topic", need.topic.clone()),
        Code::GroupAuthorizationFailed => ("group", need.group.clone()),
        Code::TransactionalIdAuthorizationFailed => {
            ("transactional id", need.transactional_id.clone().map(|id| ("WRITE and DESCRIBE", id)))
        }
        Code::ClusterAuthorizationFailed => match (need.cluster, &need.topic) {
            (Some(operation), _) => ("the cluster", Some((operation, String::new()))),
            // Who may write to some topic may be an idempotent producer.
            (None, topic) => ("topic", topic.clone()),
        },
        _ => return None,
    };
    let principal = principal(config);
    let grant = match grant {
        Some((operation, name)) if name.is_empty() => format!("grant {operation} on {kind} to {principal}"),
        Some((operation, name)) => format!("grant {operation} on {kind} \"{name}\" to {principal}"),
        None => format!("grant {principal} what it needs there ({code})"),
    };
    Some(format!("{what}: not authorised: {grant}"))
}

/// As access control lists name it, where the brokers have no rules of their own for that (`principal.builder.class`,
/// `ssl.principal.mapping.rules`).
pub(super) fn principal(config: &KafkaConfig) -> String {
    let protocol = config.protocol();
    if protocol.starts_with("sasl_") {
        let name = jaas::login(config.values()).map(|login| login.username);
        return format!("User:{}", name.unwrap_or_default());
    }
    if protocol != "ssl" {
        return "User:ANONYMOUS".to_owned();
    }
    match certificate::own(config) {
        Ok(Some(certificate)) => format!("User:{}", certificate.subject),
        Ok(None) if certificate::is_set(config) => "the principal of the client's certificate".to_owned(),
        Ok(None) | Err(_) => "User:ANONYMOUS".to_owned(),
    }
}

/// The subject as Java writes it (RFC 2253): the most particular part first.
pub(super) fn subject(certificate: &X509Certificate<'_>) -> String {
    name(certificate.subject())
}

pub(super) fn name(name: &X509Name<'_>) -> String {
    let mut parts: Vec<String> = name
        .iter_rdn()
        .map(|rdn| {
            let attributes = rdn.iter().map(|attribute| {
                let value = attribute.as_str().unwrap_or_default();
                format!("{}={}", keyword(attribute.attr_type()), escaped(value))
            });
            attributes.collect::<Vec<_>>().join("+")
        })
        .collect();
    parts.reverse();
    parts.join(",")
}

fn keyword(id: &oid::Oid<'_>) -> String {
    let known = [
        (oid::OID_X509_COMMON_NAME, "CN"),
        (oid::OID_X509_COUNTRY_NAME, "C"),
        (oid::OID_X509_LOCALITY_NAME, "L"),
        (oid::OID_X509_STATE_OR_PROVINCE_NAME, "ST"),
        (oid::OID_X509_STREET_ADDRESS, "STREET"),
        (oid::OID_X509_ORGANIZATION_NAME, "O"),
        (oid::OID_X509_ORGANIZATIONAL_UNIT, "OU"),
        (oid::OID_DOMAIN_COMPONENT, "DC"),
        (oid::OID_USERID, "UID"),
    ];
    known.iter().find(|(known, _)| known == id).map_or_else(|| id.to_id_string(), |(_, word)| (*word).to_owned())
}

fn escaped(value: &str) -> String {
    let mut out = String::new();
    for (at, c) in value.char_indices() {
        let at_end = at == 0 || at + c.len_utf8() == value.len();
        if matches!(c, ',' | '+' | '"' | '\\' | '<' | '>' | ';') || (c == '#' && at == 0) || (c == ' ' && at_end) {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(settings: &[(&str, &str)]) -> KafkaConfig {
        let mut config = KafkaConfig::new("h:9092");
        settings.iter().for_each(|(key, value)| config.set(*key, *value));
        config
    }

    #[test]
    fn a_refusal_names_principal_operation_and_object() {
        let jaas = "org.apache.kafka.common.security.scram.ScramLoginModule required username=\"app\" password=\"p\";";
        let config = config(&[("security.protocol", "sasl_ssl"), ("sasl.mechanism", "SCRAM-SHA-512"), ("sasl.jaas.config", jaas)]);
        let need = Need { transactional_id: Some("x".to_owned()), ..Need::topic("WRITE", "t").and_group("READ", "g") };
        let told = |code, need: &Need| denied(code, "doing", need, &config);
        for (code, expected) in [
            (Code::TopicAuthorizationFailed, "doing: not authorised: grant WRITE on topic \"t\" to User:app"),
            (Code::GroupAuthorizationFailed, "doing: not authorised: grant READ on group \"g\" to User:app"),
            (
                Code::TransactionalIdAuthorizationFailed,
                "doing: not authorised: grant WRITE and DESCRIBE on transactional id \"x\" to User:app",
            ),
            (Code::ClusterAuthorizationFailed, "doing: not authorised: grant WRITE on topic \"t\" to User:app"),
        ] {
            assert_eq!(told(code, &need).as_deref(), Some(expected));
        }
        assert_eq!(
            told(Code::ClusterAuthorizationFailed, &Need::cluster("ALTER")).as_deref(),
            Some("doing: not authorised: grant ALTER on the cluster to User:app")
        );
        assert!(told(Code::TopicAuthorizationFailed, &Need::default()).is_some_and(|text| text.contains("User:app")));
        assert_eq!(told(Code::NotEnoughReplicas, &need), None);
    }

    #[test]
    fn who_has_no_certificate_and_no_login_is_anonymous() {
        assert_eq!(principal(&config(&[])), "User:ANONYMOUS");
        assert_eq!(principal(&config(&[("security.protocol", "ssl")])), "User:ANONYMOUS");
    }

    #[test]
    fn names_are_escaped_as_java_does() {
        assert_eq!(escaped("a, b"), "a\\, b");
        assert_eq!(escaped(" a#"), "\\ a#");
        assert_eq!(escaped("#a+"), "\\#a\\+");
    }
}
