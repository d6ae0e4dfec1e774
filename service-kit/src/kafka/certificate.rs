//! What stands in certificates: the client's own, and the one that a broker shows.

use std::io;
use std::net::{IpAddr, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection};
use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;

use super::KafkaConfig;
use super::access::{name, subject};
use crate::verifier::Verifier;

/// The names and the time of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Certificate {
    pub(super) subject: String,
    issuer: String,
    /// Seconds since 1970.
    from: i64,
    until: i64,
    until_text: String,
    dns: Vec<String>,
    addresses: Vec<IpAddr>,
}

impl Certificate {
    fn read(der: &[u8]) -> Option<Self> {
        let (_, parsed) = parse_x509_certificate(der).ok()?;
        let (mut dns, mut addresses) = (Vec::new(), Vec::new());
        if let Ok(Some(names)) = parsed.subject_alternative_name() {
            for name in &names.value.general_names {
                match name {
                    GeneralName::DNSName(name) => dns.push((*name).to_owned()),
                    GeneralName::IPAddress(bytes) => match (<[u8; 4]>::try_from(*bytes), <[u8; 16]>::try_from(*bytes)) {
                        (Ok(four), _) => addresses.push(four.into()),
                        (_, Ok(sixteen)) => addresses.push(sixteen.into()),
                        _ => {}
                    },
                    _ => {}
                }
            }
        }
        if dns.is_empty() && addresses.is_empty() {
            // OpenSSL looks there then.
            dns.extend(parsed.subject().iter_common_name().filter_map(|name| name.as_str().ok().map(str::to_owned)));
        }
        let validity = parsed.validity();
        Some(Self {
            subject: subject(&parsed),
            issuer: name(parsed.issuer()),
            from: validity.not_before.timestamp(),
            until: validity.not_after.timestamp(),
            until_text: validity.not_after.to_string(),
            dns,
            addresses,
        })
    }

    /// What is wrong with its time now.
    pub(super) fn out_of_time(&self) -> Option<String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX));
        if now > self.until {
            return Some(format!("ended on {}", self.until_text));
        }
        (now < self.from).then(|| "is not valid yet: look at this machine's clock".to_owned())
    }

    fn is_for(&self, host: &str) -> bool {
        if let Ok(address) = host.trim_matches(['[', ']']).parse::<IpAddr>() {
            return self.addresses.contains(&address);
        }
        let matches = |name: &String| match name.strip_prefix("*.") {
            Some(parent) => host.split_once('.').is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(parent)),
            None => name.eq_ignore_ascii_case(host),
        };
        self.dns.iter().any(matches)
    }

    fn names(&self) -> String {
        let all: Vec<String> = self.dns.iter().cloned().chain(self.addresses.iter().map(IpAddr::to_string)).collect();
        all.join(", ")
    }
}

/// Whether the client has a certificate of its own.
pub(super) fn is_set(config: &KafkaConfig) -> bool {
    ["ssl.keystore.location", "ssl.keystore.certificate.chain"].iter().any(|key| config.get(key).is_some())
}

/// The client's own certificate; `None` where it has none, or one that is not in PEM.
pub(super) fn own(config: &KafkaConfig) -> io::Result<Option<Certificate>> {
    let pem = match (config.get("ssl.keystore.certificate.chain"), config.get("ssl.keystore.location")) {
        (Some(text), _) => text.as_bytes().to_vec(),
        (None, Some(path)) => std::fs::read(path)?,
        (None, None) => return Ok(None),
    };
    Ok(CertificateDer::pem_slice_iter(&pem).flatten().next().and_then(|der| Certificate::read(&der)))
}

/// What is wrong with the certificate that the broker shows, in words and with the setting; `None` where it cannot be looked at.
/// Asks the broker for it once more: OpenSSL says only that it does not verify.
pub(super) fn judge(config: &KafkaConfig, host: &str, port: u16) -> Option<String> {
    let shown = shown(host, port).ok()??;
    let whose = format!("the certificate of {host}:{port} ({})", shown.subject);
    if let Some(wrong) = shown.out_of_time() {
        return Some(format!("{whose} {wrong}; give the broker a new one (its ssl.keystore.location)"));
    }
    if config.get("ssl.endpoint.identification.algorithm") != Some("") && !shown.is_for(host) {
        return Some(format!(
            "{whose} is for {}, not for {host}; name the broker so in bootstrap.servers and its advertised.listeners, or turn this check off \
             with an empty ssl.endpoint.identification.algorithm",
            shown.names()
        ));
    }
    let store = match (config.get("ssl.truststore.location"), config.get("ssl.truststore.certificates")) {
        (Some(path), _) => format!("ssl.truststore.location ({path}) has"),
        (None, Some(_)) => "ssl.truststore.certificates has".to_owned(),
        (None, None) => "this system has, and ssl.truststore.location is not set".to_owned(),
    };
    Some(format!("{whose} is signed by {}, which is no authority that {store}; name a PEM file with its certificate there", shown.issuer))
}

const LOOK: Duration = Duration::from_secs(2);

/// The broker's certificate, whatever it is worth. Nothing is sent to it beyond the handshake.
fn shown(host: &str, port: u16) -> io::Result<Option<Certificate>> {
    let provider = Arc::new(ring::default_provider());
    let seen = Arc::new(Mutex::new(None));
    let kept = Arc::clone(&seen);
    let verifier = Verifier::of(Arc::clone(&provider), move |certificate, _, _, _| {
        *kept.lock() = Some(certificate.clone().into_owned());
        Ok(())
    });
    let tls = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().map_err(io::Error::other)?;
    let tls = tls.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
    let bare = host.trim_matches(['[', ']']);
    let server = ServerName::try_from(bare.to_owned()).map_err(io::Error::other)?;
    let mut connection = ClientConnection::new(Arc::new(tls), server).map_err(io::Error::other)?;
    let mut addresses = (bare, port).to_socket_addrs()?;
    let address = addresses.next().ok_or_else(|| io::Error::other("no address"))?;
    let mut stream = TcpStream::connect_timeout(&address, LOOK)?;
    stream.set_read_timeout(Some(LOOK))?;
    stream.set_write_timeout(Some(LOOK))?;
    while connection.is_handshaking() && seen.lock().is_none() {
        connection.complete_io(&mut stream)?;
    }
    let certificate: Option<CertificateDer<'_>> = seen.lock().take();
    Ok(certificate.and_then(|der| Certificate::read(&der)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_for_its_names_alone() {
        let certificate = Certificate {
            subject: "CN=a".into(),
            issuer: "CN=ca".into(),
            from: 0,
            until: i64::MAX,
            until_text: String::new(),
            dns: vec!["kafka.example".into(), "*.brokers.example".into()],
            addresses: vec![[127, 0, 0, 1].into()],
        };
        for (host, expected) in [
            ("kafka.example", true),
            ("KAFKA.example", true),
            ("one.brokers.example", true),
            ("brokers.example", false),
            ("a.one.brokers.example", false),
            ("127.0.0.1", true),
            ("127.0.0.2", false),
            ("[::1]", false),
            ("other.example", false),
        ] {
            assert_eq!(certificate.is_for(host), expected, "{host}");
        }
        assert_eq!(certificate.names(), "kafka.example, *.brokers.example, 127.0.0.1");
        assert_eq!(certificate.out_of_time(), None);
        assert!(Certificate { until: 1, ..certificate.clone() }.out_of_time().is_some_and(|text| text.starts_with("ended")));
        assert!(Certificate { from: i64::MAX, ..certificate }.out_of_time().is_some_and(|text| text.contains("clock")));
    }
}
