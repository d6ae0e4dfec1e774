//! A caller's name on its way to the replica that holds its session.
//!
//! A request that is handed on carries no credential: the replica that it came to has checked it, and says who calls in a header
//! that is signed (HMAC-SHA256) with a secret of all replicas (`auth.forward_secret_file`). The signature holds for this method, path and body,
//! and for [`FRESH`]. So who reads along on a connection without TLS learns no password or key, and can at most have the same request
//! done again within that time; and an address that somebody forged in the directory gets nothing that is good elsewhere.
//!
//! The replica that holds the session asks its own policy whether that principal may. Quotas are counted where the request came in.

use std::{
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::http::{HeaderName, HeaderValue, Method, Uri};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{digest, hmac};
use serde::{Deserialize, Serialize};

use super::Called;

/// Who calls, as one bridge tells another.
pub(super) const CALLER: HeaderName = HeaderName::from_static("millrace-caller");
/// How long a signature is good, and how far the replicas' clocks may differ.
const FRESH: Duration = Duration::from_secs(60);
const SECRET_BYTES_MIN: usize = 32;

/// The first signs, all are taken: so the secret can be changed while replicas run.
pub(super) struct Secrets(Vec<hmac::Key>);

/// What the signature is of, beside method and path.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Handed {
    pub(super) principal: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) roles: Vec<String>,
    /// A token's end; seconds since 1970, as `at`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    until: Option<u64>,
    /// It has a login to Kafka of its own, which does not go along.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) logs_in: bool,
    at: u64,
    /// SHA-256 of the body.
    pub(super) body: String,
}

impl Handed {
    pub(super) fn until(&self) -> Option<SystemTime> {
        self.until.map(|until| UNIX_EPOCH + Duration::from_secs(until))
    }
}

pub(super) fn body_digest(body: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, body))
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Nothing in the parts can look like a line's end.
fn message(method: &Method, uri: &Uri, handed: &str) -> String {
    format!("millrace hand-over\n{method}\n{}\n{handed}", uri.path_and_query().map_or("/", |path| path.as_str()))
}

impl Secrets {
    /// One a line; `#` begins a comment.
    pub(super) fn read(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
        let remedy = "`openssl rand -hex 32` makes a secret, which all bridges that share sessions have";
        if lines.is_empty() {
            return Err(format!("{} has no secret; {remedy}", path.display()));
        }
        if let Some(short) = lines.iter().find(|line| line.len() < SECRET_BYTES_MIN) {
            return Err(format!("{} has a secret of {} bytes, less than {SECRET_BYTES_MIN}; {remedy}", path.display(), short.len()));
        }
        Ok(Self(lines.into_iter().map(|line| hmac::Key::new(hmac::HMAC_SHA256, line.as_bytes())).collect()))
    }

    pub(super) fn sign(&self, called: &Called, method: &Method, uri: &Uri, body: &[u8], now: SystemTime) -> Option<HeaderValue> {
        let handed = Handed {
            principal: called.principal.to_string(),
            roles: called.roles.clone(),
            until: called.until.map(seconds),
            logs_in: called.logs_in,
            at: seconds(now),
            body: body_digest(body),
        };
        let handed = URL_SAFE_NO_PAD.encode(serde_json::to_vec(&handed).ok()?);
        let signature = hmac::sign(self.0.first()?, message(method, uri, &handed).as_bytes());
        HeaderValue::try_from(format!("{handed}.{}", URL_SAFE_NO_PAD.encode(signature))).ok()
    }

    /// The error ends a sentence that begins with "what another bridge says of the caller".
    pub(super) fn verify(&self, value: &HeaderValue, method: &Method, uri: &Uri, now: SystemTime) -> Result<Handed, &'static str> {
        const UNREADABLE: &str = "cannot be read";
        let (handed, signature) = value.to_str().ok().and_then(|text| text.split_once('.')).ok_or(UNREADABLE)?;
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| UNREADABLE)?;
        let message = message(method, uri, handed);
        if !self.0.iter().any(|key| hmac::verify(key, message.as_bytes(), &signature).is_ok()) {
            return Err("is not signed with a secret of this one (auth.forward_secret_file)");
        }
        let handed: Handed = URL_SAFE_NO_PAD.decode(handed).ok().and_then(|text| serde_json::from_slice(&text).ok()).ok_or(UNREADABLE)?;
        if handed.at.abs_diff(seconds(now)) > FRESH.as_secs() {
            return Err("is older than a minute; set the clocks");
        }
        Ok(handed)
    }
}

#[cfg(test)]
mod tests {

    use std::{
        fs,
        sync::{Arc, OnceLock},
    };

    use super::*;
    use crate::auth::{Credential, tests::Kept};

    fn called(until: Option<SystemTime>) -> Called {
        let (auth, asked) = (Kept::new("", &["ann"]).auth, Default::default());
        let roles = vec!["writer".to_owned()];
        Called {
            auth,
            principal: Arc::from("ann"),
            roles,
            by: Credential::Token,
            address: None,
            until,
            logs_in: false,
            connection: OnceLock::new(),
            body: None,
            asked,
        }
    }

    #[test]
    fn a_name_is_good_for_its_request_and_a_minute_and_under_the_same_secret() {
        let directory = tempfile::tempdir().unwrap();
        let read = |lines: &str| {
            let path = directory.path().join("secret");
            fs::write(&path, lines).unwrap();
            Secrets::read(&path)
        };
        let (one, two) = ("1".repeat(32), "2".repeat(64));
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let (secrets, uri) = (read(&one).unwrap(), Uri::from_static("/consumers/g/instances/i/records?timeout=1"));
        let until = now + Duration::from_secs(9);
        let value = secrets.sign(&called(Some(until)), &Method::GET, &uri, b"body", now).unwrap();
        assert!(!value.to_str().unwrap().contains(&one));

        let verify = |secrets: &Secrets, method: Method, uri: &Uri, at: SystemTime| secrets.verify(&value, &method, uri, at);
        let handed = verify(&secrets, Method::GET, &uri, now + FRESH).unwrap();
        assert_eq!((handed.principal.as_str(), handed.roles.len(), handed.until()), ("ann", 1, Some(until)));
        assert!(handed.body == body_digest(b"body") && handed.body != body_digest(b"other"));
        // While the secret changes, the one before is still taken.
        let both = read(&format!("# new\n{two}\n\n{one}\n")).unwrap();
        assert!(verify(&both, Method::GET, &uri, now - FRESH).is_ok());
        let newer = both.sign(&called(None), &Method::GET, &uri, b"", now).unwrap();
        assert!(secrets.verify(&newer, &Method::GET, &uri, now).is_err());

        let other = Uri::from_static("/consumers/g/instances/j/records?timeout=1");
        for (found, expected) in [
            (verify(&secrets, Method::POST, &uri, now), "not signed"),
            (verify(&secrets, Method::GET, &other, now), "not signed"),
            (verify(&read(&two).unwrap(), Method::GET, &uri, now), "not signed"),
            (verify(&secrets, Method::GET, &uri, now + FRESH + Duration::from_secs(1)), "older than a minute"),
            (secrets.verify(&HeaderValue::from_static("x"), &Method::GET, &uri, now), "cannot be read"),
            (secrets.verify(&HeaderValue::from_static("x.%"), &Method::GET, &uri, now), "cannot be read"),
            (secrets.verify(&HeaderValue::from_static("x.AAAA"), &Method::GET, &uri, now), "not signed"),
        ] {
            assert!(found.unwrap_err().contains(expected), "{expected}");
        }
        for (wrong, expected) in [("", "has no secret"), ("# only\n", "has no secret"), ("short", "of 5 bytes")] {
            assert!(read(wrong).err().unwrap().contains(expected), "{wrong:?}");
        }
    }
}
