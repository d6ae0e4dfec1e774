//! Whether the files that the TLS settings name can be used.

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::BaseConsumer;
use rdkafka::error::KafkaError as RdError;

use super::properties::{Role, translate};
use super::{KafkaConfig, KafkaError, certificate};

/// Reads the stores that `ssl.*` names, with their passwords, as a client would; connects to nobody. `Err`: the property at
/// fault, and what is wrong.
pub fn check_tls(config: &KafkaConfig) -> Result<(), (&'static str, String)> {
    if !config.tls() {
        return Ok(());
    }
    // What is wrong with the settings themselves is told elsewhere.
    let Ok(native) = translate(config.values(), Role::Admin) else { return Ok(()) };
    // OpenSSL does not say what is wrong with a file that it cannot open.
    for key in ["ssl.truststore.location", "ssl.keystore.location"] {
        if let Some(path) = config.get(key)
            && let Err(error) = std::fs::read(path)
        {
            return Err((key, format!("cannot read {path}: {error}")));
        }
    }
    let mut client = ClientConfig::new();
    // No servers: it never connects.
    client.set("security.protocol", "ssl");
    client.set_log_level(RDKafkaLogLevel::Emerg);
    for (key, value) in native.into_iter().filter(|(key, _)| key.starts_with("ssl.")) {
        client.set(key, value);
    }
    match client.create::<BaseConsumer>() {
        Ok(_) => match certificate::own(config).ok().flatten().and_then(|own| Some((own.out_of_time()?, own.subject))) {
            Some((wrong, subject)) => {
                let key = if config.get("ssl.keystore.certificate.chain").is_some() {
                    "ssl.keystore.certificate.chain"
                } else {
                    "ssl.keystore.location"
                };
                Err((key, format!("the client's certificate ({subject}) {wrong}")))
            }
            None => Ok(()),
        },
        Err(RdError::ClientCreation(reason)) => Err((at_fault(&reason), reason)),
        Err(error) => Err(("ssl.*", KafkaError::from_rd(&error, "TLS settings").to_string())),
    }
}

/// In Java's words; OpenSSL's reason names librdkafka's property.
fn at_fault(reason: &str) -> &'static str {
    let names = |words: &[&str]| words.iter().any(|word| reason.contains(word));
    if names(&["ssl.ca.pem"]) {
        "ssl.truststore.certificates"
    } else if names(&["ssl.ca."]) {
        "ssl.truststore.location"
    } else if names(&["bad decrypt", "bad password", "mac verify", "PKCS#12"]) && names(&["ssl.key."]) {
        "ssl.key.password"
    } else if names(&["mac verify", "invalid password"]) {
        "ssl.keystore.password"
    } else if names(&["ssl.certificate.pem"]) {
        "ssl.keystore.certificate.chain"
    } else if names(&["ssl.key.pem"]) {
        "ssl.keystore.key"
    } else {
        "ssl.keystore.location"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_named_in_javas_words() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("not.pem");
        std::fs::write(&file, "nothing").unwrap();
        let file = file.to_str().unwrap();
        for (settings, expected) in [
            (vec![("security.protocol", "plaintext"), ("ssl.truststore.location", "/nowhere.pem")], None),
            (vec![("security.protocol", "ssl")], None),
            (vec![("security.protocol", "ssl"), ("ssl.truststore.location", "/nowhere.pem")], Some("ssl.truststore.location")),
            (vec![("security.protocol", "ssl"), ("ssl.truststore.location", file)], Some("ssl.truststore.location")),
            (vec![("security.protocol", "sasl_ssl"), ("ssl.keystore.location", "/nowhere.pem")], Some("ssl.keystore.location")),
            (
                vec![("security.protocol", "ssl"), ("ssl.keystore.location", file), ("ssl.keystore.type", "PKCS12")],
                Some("ssl.keystore.location"),
            ),
        ] {
            let mut config = KafkaConfig::new("h:9092");
            settings.iter().for_each(|(key, value)| config.set(*key, *value));
            if settings.iter().any(|(_, value)| *value == "sasl_ssl") {
                config.set("sasl.mechanism", "PLAIN");
                config.set(
                    "sasl.jaas.config",
                    "org.apache.kafka.common.security.plain.PlainLoginModule required username=\"u\" password=\"p\";",
                );
            }
            let told = check_tls(&config);
            assert_eq!(told.as_ref().err().map(|(key, _)| *key), expected, "{settings:?}: {told:?}");
        }
    }
}
