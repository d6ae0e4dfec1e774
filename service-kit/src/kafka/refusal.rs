//! Connections that a broker or TLS refuses: librdkafka's words → what is wrong, and in which of Kafka's settings.

use super::{KafkaConfig, access, certificate, jaas};

/// A broker's certificate does not verify: the reason has to be looked for.
pub(super) fn is_unverified(reason: &str) -> bool {
    reason.contains("certificate verify failed") || reason.contains("0A000086") || reason.contains("Failed to verify broker certificate")
}

/// The server ended TLS and said why.
pub(super) fn is_alert(reason: &str) -> bool {
    reason.contains("SSL routines") && reason.contains(" alert ")
}

/// What is the same from one try to the next.
pub(super) fn kind(reason: &str) -> &str {
    reason.split(" (after ").next().unwrap_or(reason)
}

/// `host:port` of librdkafka's `sasl_ssl://host:port/bootstrap: …`.
pub(super) fn server(reason: &str) -> Option<(&str, u16)> {
    let (_, rest) = reason.split_once("://")?;
    let (host, port) = rest.split('/').next()?.rsplit_once(':')?;
    // An address that is followed by no `/` runs on into the reason.
    Some((host, port.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()?))
}

/// In one sentence, without asking anybody.
pub(super) fn told(config: &KafkaConfig, reason: &str) -> String {
    let at = server(reason).map_or_else(|| config.servers().join(","), |(host, port)| format!("{host}:{port}"));
    let has = |words: &[&str]| words.iter().any(|word| reason.contains(word));
    if is_unverified(reason) {
        return format!("the certificate of {at} cannot be verified; see ssl.truststore.location");
    }
    if has(&["nsupported SASL mechanism", "mechanism handshake failed", "nsupported mechanism"]) {
        let mechanism = config.get("sasl.mechanism").unwrap_or_default();
        let offered = reason.rsplit_once("mechanisms: ").map_or_else(String::new, |(_, list)| format!(": it offers {}", kind(list)));
        return format!("{at} does not take logins by {mechanism}{offered}; correct sasl.mechanism, or enable it in the brokers");
    }
    if config.protocol().starts_with("sasl_") && !has(&["SSL handshake", "SSL routines", "ssl/"]) {
        let mechanism = jaas::login(config.values()).map(|login| login.mechanism).unwrap_or_default();
        let principal = access::principal(config);
        return format!(
            "{at} refuses the login of {principal} by {mechanism}: user or password of sasl.jaas.config are wrong, or not known there"
        );
    }
    if has(&["wrong version number", "packet length too long", "http request", "unknown protocol", "record layer failure"]) {
        return format!("{at} does not speak TLS; correct security.protocol, or the port in bootstrap.servers");
    }
    if has(&["alert", "unexpected message", "client SSL authentication"]) {
        return match certificate::own(config) {
            Ok(Some(own)) => match own.out_of_time() {
                Some(wrong) => format!("{at} refuses the certificate of ssl.keystore.location ({}): it {wrong}", own.subject),
                None => format!(
                    "{at} refuses the certificate of ssl.keystore.location ({}): it must be signed by an authority that the broker trusts (its \
                     ssl.truststore.location)",
                    own.subject
                ),
            },
            _ if certificate::is_set(config) => format!("{at} refuses the certificate of ssl.keystore.location"),
            _ => format!("{at} asks for a client certificate; set ssl.keystore.location to a PEM file with key and certificate"),
        };
    }
    format!("{at} refuses the connection: {reason}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_setting_at_fault_is_named() {
        let jaas = "org.apache.kafka.common.security.plain.PlainLoginModule required username=\"app\" password=\"p\";";
        let sasl = [("security.protocol", "sasl_ssl"), ("sasl.mechanism", "PLAIN"), ("sasl.jaas.config", jaas)];
        let ssl = [("security.protocol", "ssl")];
        for (settings, reason, expected) in [
            (
                &sasl[..],
                "sasl_ssl://k1:9093/bootstrap: SASL authentication error: Authentication failed: Invalid username or password (after 7ms in state AUTH_REQ)",
                &["k1:9093", "User:app", "PLAIN", "sasl.jaas.config"][..],
            ),
            (
                &sasl,
                "sasl_ssl://k1:9093/1: SASL authentication error: SASL mechanism handshake failed: Broker: Unsupported SASL mechanism: broker's supported mechanisms: SCRAM-SHA-512 (after 2ms in state AUTH_HANDSHAKE)",
                &["k1:9093 does not take logins by PLAIN: it offers SCRAM-SHA-512;", "sasl.mechanism"],
            ),
            (
                &sasl,
                "sasl_ssl://k1:9093/1: SSL handshake failed: error:0A000086:SSL routines::certificate verify failed: broker certificate could not be verified, verify that ssl.ca.location is correctly configured or root CA certificates are installed",
                &["k1:9093", "ssl.truststore.location"],
            ),
            (&ssl, "ssl://k1:9093/1: SSL handshake failed: error:0A00010B:SSL routines::wrong version number", &["security.protocol"]),
            (
                &ssl,
                "ssl://[::1]:9093/1: Receive failed: error:0A000412:SSL routines::sslv3 alert bad certificate: SSL alert number 42 (after 5ms in state APIVERSION_QUERY)",
                &["[::1]:9093", "set ssl.keystore.location"],
            ),
        ] {
            let mut config = KafkaConfig::new("h:9092");
            settings.iter().for_each(|(key, value)| config.set(*key, *value));
            let told = told(&config, reason);
            for part in expected {
                assert!(told.contains(part), "{told:?} lacks {part:?}");
            }
            assert!(!told.contains("ssl.ca.location"), "librdkafka's words: {told}");
        }
    }
}
