//! TLS as Flume's files set it: `ssl`, `keystore`, `truststore` and what may be spoken.
//!
//! Java's stores are not read: they are refused with the commands that turn them into PEM, which is named by
//! `keystore-type = PEM` and `truststore-type = PEM`. Versions before TLS 1.2 do not exist here.

use std::{collections::BTreeMap, io, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use service_kit::verifier::Verifier;
use tokio_rustls::rustls::{
    self, CertificateError, ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion,
    client::verify_server_cert_signed_by_trust_anchor,
    client::verify_server_name,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::ParsedCertificate,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::flume_conf::component::Setting;
use crate::flume_conf::{Component, Finding, Property, Role};
use crate::source::Output;

pub const SSL: Property = Property::boolean("ssl", "false", "Speak TLS.");
pub const KEYSTORE: Property =
    Property::text("keystore", None, "With `ssl`: a PEM file with the certificate, those that signed it, and the private key.");
pub const KEYSTORE_PASSWORD: Property = Property::text("keystore-password", None, "Of no use for a PEM file, whose key is not encrypted.");
pub const KEYSTORE_TYPE: Property =
    Property::text("keystore-type", Some("JKS"), "`PEM`. Java's JKS and PKCS12 are refused with the command that converts them.");
pub const TRUSTSTORE: Property = Property::text(
    "truststore",
    None,
    "With `ssl`: a PEM file of certificates to trust, authorities' or the server's own. Without it the system's authorities are trusted.",
);
pub const TRUSTSTORE_PASSWORD: Property = Property::text("truststore-password", None, "Of no use for a PEM file.");
pub const TRUSTSTORE_TYPE: Property =
    Property::text("truststore-type", Some("JKS"), "`PEM`. Java's JKS and PKCS12 are refused with the command that converts them.");
pub const TRUST_ALL: Property =
    Property::boolean("trust-all-certs", "false", "With `ssl`: take any certificate, also from somebody in between.");
pub const VERIFY_HOSTNAME: Property = Property::boolean(
    "verify-hostname",
    "true",
    "With `ssl`: the certificate must be for `hostname`, unless it is in the truststore itself. Flume never looks.",
)
.own();
pub const INCLUDE_PROTOCOLS: Property =
    Property::text("include-protocols", None, "TLS versions to speak, separated by blanks: TLSv1.2, TLSv1.3. Without it both.");
pub const EXCLUDE_PROTOCOLS: Property =
    Property::text("exclude-protocols", Some("SSLv3"), "TLS versions not to speak. Those before TLSv1.2 are never spoken.");
pub const INCLUDE_CIPHERS: Property =
    Property::text("include-cipher-suites", None, "Cipher suites to offer, by their names in Java, separated by blanks.");
pub const EXCLUDE_CIPHERS: Property = Property::text("exclude-cipher-suites", None, "Cipher suites not to offer.");

/// Flume's settings for all components: the system property, the variable that counts where it is not set, and what they are
/// the default of, in a component with `ssl` and in a Kafka client.
const GLOBAL: &[(&str, &str, &str, Option<&str>)] = &[
    ("javax.net.ssl.keyStore", "FLUME_SSL_KEYSTORE_PATH", KEYSTORE.name, Some("ssl.keystore.location")),
    ("javax.net.ssl.keyStorePassword", "FLUME_SSL_KEYSTORE_PASSWORD", KEYSTORE_PASSWORD.name, Some("ssl.keystore.password")),
    ("javax.net.ssl.keyStoreType", "FLUME_SSL_KEYSTORE_TYPE", KEYSTORE_TYPE.name, Some("ssl.keystore.type")),
    ("javax.net.ssl.trustStore", "FLUME_SSL_TRUSTSTORE_PATH", TRUSTSTORE.name, Some("ssl.truststore.location")),
    ("javax.net.ssl.trustStorePassword", "FLUME_SSL_TRUSTSTORE_PASSWORD", TRUSTSTORE_PASSWORD.name, Some("ssl.truststore.password")),
    ("javax.net.ssl.trustStoreType", "FLUME_SSL_TRUSTSTORE_TYPE", TRUSTSTORE_TYPE.name, Some("ssl.truststore.type")),
    ("flume.ssl.include.protocols", "FLUME_SSL_INCLUDE_PROTOCOLS", INCLUDE_PROTOCOLS.name, None),
    ("flume.ssl.exclude.protocols", "FLUME_SSL_EXCLUDE_PROTOCOLS", EXCLUDE_PROTOCOLS.name, None),
    ("flume.ssl.include.cipherSuites", "FLUME_SSL_INCLUDE_CIPHERSUITES", INCLUDE_CIPHERS.name, None),
    ("flume.ssl.exclude.cipherSuites", "FLUME_SSL_EXCLUDE_CIPHERSUITES", EXCLUDE_CIPHERS.name, None),
];

/// Fills what the component does not set and Flume's global settings do; tells what came from them.
pub fn fill_from_global(
    component: &mut Component,
    sys: &BTreeMap<String, String>,
    env: &dyn Fn(&str) -> Option<String>,
) -> Option<Finding> {
    let kind = component.kind;
    let mut filled = Vec::new();
    for (property, variable, own, client) in GLOBAL {
        let Some((name, value)) = sys.get(*property).map(|value| (*property, value.clone())).or_else(|| Some((*variable, env(variable)?)))
        else {
            continue;
        };
        let mut keys = Vec::new();
        if component.boolean(SSL.name) && kind.property(own).is_some() {
            keys.push((*own).to_owned());
        }
        for prefix in ["kafka.producer.", "kafka.consumer."] {
            let protocol = component.set(&format!("{prefix}security.protocol")).unwrap_or_default().trim().to_ascii_uppercase();
            keys.extend(client.filter(|_| ["SSL", "SASL_SSL"].contains(&protocol.as_str())).map(|client| format!("{prefix}{client}")));
        }
        keys.retain(|key| !component.settings.contains_key(key));
        for key in keys {
            filled.push(format!("{key} from {name}"));
            component.settings.insert(key, Setting { value: value.clone(), place: None });
        }
    }
    (!filled.is_empty())
        .then(|| Finding::note("global-tls", format!("taken from Flume's settings for all components: {}", filled.join(", "))))
}

/// The properties of a listener.
pub const LISTENER: &[Property] =
    &[SSL, KEYSTORE, KEYSTORE_PASSWORD, KEYSTORE_TYPE, INCLUDE_PROTOCOLS, EXCLUDE_PROTOCOLS, INCLUDE_CIPHERS, EXCLUDE_CIPHERS];

/// A kind's properties with those of a [`LISTENER`].
macro_rules! with_listener {
    ($($own:expr),* $(,)?) => {{
        const OWN: &[$crate::flume_conf::Property] = &[$($own),*];
        const ALL: [$crate::flume_conf::Property; OWN.len() + $crate::tls::LISTENER.len()] =
            $crate::flume_conf::kinds::join(OWN, $crate::tls::LISTENER);
        &ALL
    }};
}
pub(crate) use with_listener;

/// What is wrong with a listener's settings.
pub fn review_server(component: &Component, _strict: bool) -> Vec<Finding> {
    if !component.boolean(SSL.name) {
        return Vec::new();
    }
    let mut findings = review_spoken(component);
    match component.set(KEYSTORE.name) {
        Some(file) => findings.extend(review_store(component, &KEYSTORE_TYPE, file, "the key and its certificates")),
        None => findings.push(
            Finding::error("missing-key", "`ssl` needs a key")
                .key(format!("{}.keystore", component.name))
                .flume("drops the source")
                .remedy(
                    "set keystore = /path/of.pem and keystore-type = PEM, or FLUME_SSL_KEYSTORE_PATH and FLUME_SSL_KEYSTORE_TYPE for all",
                ),
        ),
    }
    findings
}

/// What is wrong with a caller's settings.
pub fn review_client(component: &Component, _strict: bool) -> Vec<Finding> {
    if !component.boolean(SSL.name) {
        return Vec::new();
    }
    let mut findings = review_spoken(component);
    if component.boolean(TRUST_ALL.name) {
        let setting = component.settings.get(TRUST_ALL.name).and_then(|setting| setting.place.as_ref());
        findings.push(
            Finding::warning("trust-all", "any certificate is taken: whoever stands in between can read and change events")
                .maybe_at(setting)
                .key(format!("{}.trust-all-certs", component.name))
                .remedy("name the server's certificate or its authority in truststore"),
        );
    } else if let Some(file) = component.set(TRUSTSTORE.name) {
        findings.extend(review_store(component, &TRUSTSTORE_TYPE, file, "the certificates"));
    }
    findings
}

/// Files of the settings that cannot be used.
pub fn look(component: &Component) -> Option<Finding> {
    let has = |property: &Property| component.kind.property(property.name).is_some();
    let ssl = !has(&SSL) || component.boolean(SSL.name);
    let (keystore, calls) = (ssl && component.set(KEYSTORE.name).is_some(), component.kind.role == Role::Sink);
    let (property, fault) = if keystore
        && calls
        && let Err(fault) = identity(component)
    {
        (KEYSTORE.name, fault)
    } else if keystore && !calls {
        (KEYSTORE.name, acceptor(component, &[]).err()?)
    } else if has(&TRUSTSTORE) && ssl && component.set(TRUSTSTORE.name).is_some() && !component.boolean(TRUST_ALL.name) {
        (TRUSTSTORE.name, client(component, &[]).err()?)
    } else {
        return None;
    };
    let finding = Finding::error("tls-file", format!("{fault:#}"))
        .maybe_at(component.settings.get(property).and_then(|setting| setting.place.as_ref()))
        .key(format!("{}.{property}", component.name))
        .flume(format!("fails when the {} starts", component.kind.role));
    Some(finding.remedy("correct the path, and let the collector's user read the file"))
}

/// A store in another form than PEM, and how it becomes PEM.
fn review_store(component: &Component, property: &Property, file: &str, content: &str) -> Option<Finding> {
    let kind = component.text(property.name).trim().to_ascii_uppercase();
    if kind == "PEM" {
        return None;
    }
    let stem = file.rsplit_once('.').map_or(file, |(stem, _)| stem);
    let to_pem = |from: &str| match property.name {
        "keystore-type" => format!("`openssl pkcs12 -in {from} -out {stem}.pem -nodes`"),
        _ => format!("`openssl pkcs12 -in {from} -out {stem}.pem -nokeys`"),
    };
    let convert = match kind.as_str() {
        "PKCS12" | "P12" | "PFX" => to_pem(file),
        _ => format!(
            "`keytool -importkeystore -srckeystore {file} -destkeystore {stem}.p12 -deststoretype PKCS12`, then {}",
            to_pem(&format!("{stem}.p12"))
        ),
    };
    let store = property.name.trim_end_matches("-type");
    let remedy = if file.ends_with(".pem") {
        format!("set {store}-type = PEM")
    } else {
        format!("{convert}; then set {store} = {stem}.pem and {store}-type = PEM")
    };
    Some(
        Finding::error("java-store", format!("{content} must be in PEM; {kind} is Java's"))
            .maybe_at(component.settings.get(store).and_then(|setting| setting.place.as_ref()))
            .key(format!("{}.{}", component.name, property.name))
            .remedy(remedy),
    )
}

fn review_spoken(component: &Component) -> Vec<Finding> {
    let error = |key: &str, error: anyhow::Error| {
        Finding::error("wrong-value", format!("{error:#}"))
            .maybe_at(component.settings.get(key).and_then(|setting| setting.place.as_ref()))
            .key(format!("{}.{key}", component.name))
            .remedy("leave the line out, or name what both sides have")
    };
    let versions = versions(component).err().map(|fault| error(INCLUDE_PROTOCOLS.name, fault));
    versions.into_iter().chain(provider(component).err().map(|fault| error(INCLUDE_CIPHERS.name, fault))).collect()
}

/// Names, by Java's habit separated by blanks, or by commas.
fn names<'a>(component: &'a Component, property: &Property) -> Vec<&'a str> {
    component.text(property.name).split([' ', ',']).filter(|name| !name.is_empty()).collect()
}

fn versions(component: &Component) -> anyhow::Result<Vec<&'static SupportedProtocolVersion>> {
    let (include, exclude) = (names(component, &INCLUDE_PROTOCOLS), names(component, &EXCLUDE_PROTOCOLS));
    let spoken: Vec<_> = [("TLSv1.3", &rustls::version::TLS13), ("TLSv1.2", &rustls::version::TLS12)]
        .into_iter()
        .filter(|(name, _)| (include.is_empty() || include.contains(name)) && !exclude.contains(name))
        .map(|(_, version)| version)
        .collect();
    anyhow::ensure!(!spoken.is_empty(), "neither TLSv1.2 nor TLSv1.3 is left");
    Ok(spoken)
}

fn provider(component: &Component) -> anyhow::Result<Arc<CryptoProvider>> {
    let (include, exclude) = (names(component, &INCLUDE_CIPHERS), names(component, &EXCLUDE_CIPHERS));
    let mut provider = ring::default_provider();
    provider.cipher_suites.retain(|suite| {
        let name = format!("{:?}", suite.suite()).replace("TLS13_", "TLS_");
        (include.is_empty() || include.contains(&name.as_str())) && !exclude.contains(&name.as_str())
    });
    anyhow::ensure!(!provider.cipher_suites.is_empty(), "no cipher suite is left");
    Ok(Arc::new(provider))
}

fn read(path: &str) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {path}"))
}

fn certificates(path: &str, pem: &[u8]) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|error| anyhow::anyhow!("{path} is not PEM: {error:?}"))?;
    anyhow::ensure!(
        !found.is_empty(),
        "{path} has no certificate; it needs one between -----BEGIN CERTIFICATE----- and -----END CERTIFICATE-----"
    );
    Ok(found)
}

/// The certificates and the key of `keystore`.
fn identity(component: &Component) -> anyhow::Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let path = component.text(KEYSTORE.name).trim();
    let pem = read(path)?;
    let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|error| {
        anyhow::anyhow!(
            "{path} has no private key that can be read ({error:?}); an encrypted one is decrypted by `openssl pkey -in KEY -out KEY.pem`"
        )
    })?;
    Ok((certificates(path, &pem)?, key))
}

/// The listening side, where `ssl` is set. `protocols`: what is spoken above TLS, for clients that ask (ALPN).
pub fn acceptor(component: &Component, protocols: &[&str]) -> anyhow::Result<Option<TlsAcceptor>> {
    if !component.boolean(SSL.name) {
        return Ok(None);
    }
    let (certificates, key) = identity(component)?;
    let config = ServerConfig::builder_with_provider(provider(component)?).with_protocol_versions(&versions(component)?)?;
    let config = config.with_no_client_auth().with_single_cert(certificates, key);
    let mut config = config.with_context(|| format!("{} cannot be used", component.text(KEYSTORE.name).trim()))?;
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    Ok(Some(TlsAcceptor::from(Arc::new(config))))
}

/// How long a client may take for its part of a handshake.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// Waits for a handshake with `peer`. One that fails is counted and told, and ends the connection.
pub async fn shaken<T>(out: &Output, peer: SocketAddr, handshake: impl Future<Output = io::Result<T>>) -> anyhow::Result<T> {
    let late = |_| Err(io::Error::new(io::ErrorKind::TimedOut, format!("none within {} s", HANDSHAKE_MAX.as_secs())));
    let shaken = tokio::time::timeout(HANDSHAKE_MAX, handshake).await.unwrap_or_else(late);
    shaken.inspect_err(|error| out.no_tls(peer, error)).context("TLS handshake")
}

/// The calling side, where `ssl` is set.
pub fn connector(component: &Component) -> anyhow::Result<Option<TlsConnector>> {
    component.boolean(SSL.name).then(|| client(component, &[])).transpose()
}

/// A calling side that always speaks TLS, with the certificate of `keystore` where it has one. `protocols`: what is spoken
/// above TLS (ALPN).
pub fn client(component: &Component, protocols: &[&str]) -> anyhow::Result<TlsConnector> {
    let provider = provider(component)?;
    let (anybody, hostname) = (component.boolean(TRUST_ALL.name), component.boolean(VERIFY_HOSTNAME.name));
    let (mut roots, mut known) = (RootCertStore::empty(), Vec::new());
    if !anybody {
        known = match component.set(TRUSTSTORE.name) {
            Some(path) => certificates(path.trim(), &read(path.trim())?)?,
            None => rustls_native_certs::load_native_certs().certs,
        };
        roots.add_parsable_certificates(known.iter().cloned());
        anyhow::ensure!(!known.is_empty(), "the system has no certificates of authorities; name them in truststore");
    }
    let algorithms = provider.signature_verification_algorithms.all;
    let verifier =
        Verifier::of(Arc::clone(&provider), move |certificate, intermediates, server, now| {
            // As in Java, a server's own certificate may be in the truststore.
            if anybody || known.iter().any(|known| known == certificate) {
                return Ok(());
            }
            let parsed = ParsedCertificate::try_from(certificate)?;
            verify_server_cert_signed_by_trust_anchor(&parsed, &roots, intermediates, now, algorithms)?;
            match verify_server_name(&parsed, server) {
                Err(rustls::Error::InvalidCertificate(
                    CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
                )) if !hostname => Ok(()),
                verified => verified,
            }
        });
    let config = ClientConfig::builder_with_provider(provider).with_protocol_versions(&versions(component)?)?;
    let config = config.dangerous().with_custom_certificate_verifier(verifier);
    let mut config = if component.set(KEYSTORE.name).is_some() {
        let (certificates, key) = identity(component)?;
        let config = config.with_client_auth_cert(certificates, key);
        config.with_context(|| format!("{} cannot be used", component.text(KEYSTORE.name).trim()))?
    } else {
        config.with_no_client_auth()
    };
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    Ok(TlsConnector::from(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn component(settings: &[(&str, &str)]) -> Component {
        let mut component = Component::new(&crate::sink::avro::KIND, "k", "avro");
        let kind =
            if settings.iter().any(|(key, _)| key.starts_with("trust")) { &crate::sink::avro::KIND } else { &crate::source::avro::KIND };
        component.kind = kind;
        for (key, value) in settings {
            component.settings.insert((*key).to_owned(), Setting { value: (*value).to_owned(), place: None });
        }
        component
    }

    #[test]
    fn javas_stores_are_refused_with_the_commands_that_convert_them() {
        for (settings, expected) in [
            (&[("keystore", "/k.jks")][..], ""),
            (
                &[("ssl", "true")],
                "k.keystore: `ssl` needs a key; Flume: drops the source; set keystore = /path/of.pem and keystore-type = PEM, or FLUME_SSL_KEYSTORE_PATH and FLUME_SSL_KEYSTORE_TYPE for all",
            ),
            (
                &[("ssl", "true"), ("keystore", "/k.jks")],
                "k.keystore-type: the key and its certificates must be in PEM; JKS is Java's; `keytool -importkeystore -srckeystore /k.jks -destkeystore /k.p12 -deststoretype PKCS12`, then `openssl pkcs12 -in /k.p12 -out /k.pem -nodes`; then set keystore = /k.pem and keystore-type = PEM",
            ),
            (
                &[("ssl", "true"), ("keystore", "/k.p12"), ("keystore-type", "pkcs12")],
                "k.keystore-type: the key and its certificates must be in PEM; PKCS12 is Java's; `openssl pkcs12 -in /k.p12 -out /k.pem -nodes`; then set keystore = /k.pem and keystore-type = PEM",
            ),
            (
                &[("ssl", "true"), ("keystore", "/k.pem")],
                "k.keystore-type: the key and its certificates must be in PEM; JKS is Java's; set keystore-type = PEM",
            ),
            (&[("ssl", "true"), ("keystore", "/k.pem"), ("keystore-type", "PEM")], ""),
            (
                &[("ssl", "true"), ("keystore", "/k.pem"), ("keystore-type", "PEM"), ("include-protocols", "TLSv1.1 TLSv1")],
                "k.include-protocols: neither TLSv1.2 nor TLSv1.3 is left; leave the line out, or name what both sides have",
            ),
            (
                &[("ssl", "true"), ("keystore", "/k.pem"), ("keystore-type", "PEM"), ("include-cipher-suites", "TLS_RSA_WITH_NULL_SHA")],
                "k.include-cipher-suites: no cipher suite is left; leave the line out, or name what both sides have",
            ),
        ] {
            let findings: Vec<String> = review_server(&component(settings), false).iter().map(ToString::to_string).collect();
            assert_eq!(findings.join("\n"), expected, "{settings:?}");
        }
        for (settings, expected) in [
            (&[("ssl", "true"), ("truststore-type", "PEM")][..], ""),
            (&[("ssl", "true"), ("truststore", "/t.jks")], "openssl pkcs12 -in /t.p12 -out /t.pem -nokeys"),
            (&[("ssl", "true"), ("trust-all-certs", "true")], "any certificate is taken"),
        ] {
            let findings: Vec<String> = review_client(&component(settings), false).iter().map(ToString::to_string).collect();
            assert!(findings.join("\n").contains(expected) && findings.is_empty() == expected.is_empty(), "{findings:?}");
        }
    }

    #[test]
    fn flumes_global_settings_are_the_defaults_of_what_speaks_tls() {
        let text = "a.sources = r s\na.channels = c\na.sinks = k\na.channels.c.type = memory\na.sinks.k.channel = c\n\
                    a.sources.r.type = avro\na.sources.r.bind = 0.0.0.0\na.sources.r.port = 1\na.sources.r.channels = c\na.sources.r.ssl = true\n\
                    a.sources.r.exclude-protocols = TLSv1.2\na.sources.s.type = avro\na.sources.s.bind = 0.0.0.0\na.sources.s.port = 2\n\
                    a.sources.s.channels = c\na.sinks.k.type = org.apache.flume.sink.kafka.KafkaSink\na.sinks.k.kafka.bootstrap.servers = h:1\n\
                    a.sinks.k.kafka.topic = t\na.sinks.k.kafka.producer.security.protocol = SSL\n";
        let set = |name: &str| {
            let value = match name {
                "FLUME_SSL_KEYSTORE_PATH" => "/env.pem",
                "FLUME_SSL_KEYSTORE_TYPE" | "FLUME_SSL_TRUSTSTORE_TYPE" => "PEM",
                "FLUME_SSL_TRUSTSTORE_PATH" => "/trust.pem",
                "FLUME_SSL_EXCLUDE_PROTOCOLS" => "TLSv1.3",
                _ => return None,
            };
            Some(value.to_owned())
        };
        let read = |env: &dyn Fn(&str) -> Option<String>, sys: &[(&str, &str)]| {
            let options = crate::flume_conf::Options {
                agent: None,
                strict: false,
                env,
                run: &|_, _| Err(String::new()),
                sys: &sys.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
                now: chrono::Local::now(),
            };
            crate::flume_conf::read(&[crate::flume_conf::ConfFile { name: "f", bytes: text.as_bytes() }], &options)
        };
        let none = read(&|_| None, &[]);
        assert!(none.findings.iter().any(|finding| finding.message == "`ssl` needs a key"));
        let outcome = read(&set, &[("javax.net.ssl.keyStore", "/sys.pem")]);
        assert!(!outcome.failed(), "{:?}", outcome.findings);
        let plan = &outcome.plans[0];
        let (tls, plain, kafka) = (&plan.sources[0], &plan.sources[1], &plan.sinks[0]);
        assert_eq!((tls.set("keystore"), tls.set("keystore-type")), (Some("/sys.pem"), Some("PEM")));
        // What the file says counts, and a listener trusts nobody.
        assert_eq!((tls.set("exclude-protocols"), tls.set("truststore")), (Some("TLSv1.2"), None));
        assert_eq!(plain.set("keystore"), None);
        let of_kafka = |key: &str| kafka.set(&format!("kafka.producer.ssl.{key}"));
        assert_eq!(of_kafka("truststore.location"), Some("/trust.pem"));
        assert_eq!((of_kafka("keystore.location"), of_kafka("truststore.type")), (Some("/sys.pem"), Some("PEM")));
        let told: Vec<String> = outcome.findings.iter().filter(|finding| finding.code == "global-tls").map(ToString::to_string).collect();
        let keys = "keystore from javax.net.ssl.keyStore, keystore-type from FLUME_SSL_KEYSTORE_TYPE";
        assert!(told.len() == 2 && told[0].starts_with("a.sources.r.ssl: ") && told[0].ends_with(keys), "{told:?}");
    }

    #[test]
    fn versions_and_ciphers_are_called_as_in_java() {
        let spoken = |settings: &[(&str, &str)]| {
            versions(&component(settings)).unwrap().iter().map(|version| format!("{:?}", version.version)).collect::<Vec<_>>()
        };
        assert_eq!(spoken(&[]), ["TLSv1_3", "TLSv1_2"]);
        assert_eq!(spoken(&[("include-protocols", "TLSv1.2 TLSv1.1")]), ["TLSv1_2"]);
        assert_eq!(spoken(&[("exclude-protocols", "SSLv3 TLSv1.2")]), ["TLSv1_3"]);
        let only = [("include-cipher-suites", "TLS_AES_128_GCM_SHA256 TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384")];
        assert_eq!(provider(&component(&only)).unwrap().cipher_suites.len(), 2);
    }

    #[test]
    fn what_is_not_pem_is_said_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k.pem");
        let build = |text: &str| {
            std::fs::write(&path, text).unwrap();
            let settings = [("ssl", "true"), ("keystore", path.to_str().unwrap()), ("keystore-type", "PEM")];
            acceptor(&component(&settings), &[]).err().map(|error| format!("{error:#}")).unwrap()
        };
        assert!(build("nothing").contains("k.pem has no private key"));
        assert!(build("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n").contains("k.pem has no certificate"));
        let missing = component(&[("ssl", "true"), ("keystore", "/nowhere.pem"), ("keystore-type", "PEM")]);
        assert_eq!(
            look(&missing).unwrap().to_string(),
            "k.keystore: cannot read /nowhere.pem: No such file or directory (os error 2); Flume: fails when the source starts; correct the path, and let the collector's user read the file"
        );
        assert_eq!(look(&component(&[("ssl", "false"), ("keystore", "/nowhere.pem")])), None);
        let missing_trust = component(&[("ssl", "true"), ("truststore", "/nowhere.pem"), ("truststore-type", "PEM")]);
        assert_eq!(look(&missing_trust).unwrap().key.as_deref(), Some("k.truststore"));
        assert!(format!("{:#}", acceptor(&missing, &[]).err().unwrap()).contains("cannot read /nowhere.pem"));
        assert!(connector(&component(&[])).unwrap().is_none());
    }
}
