//! Whose token is good: JSON Web Tokens in their compact form (RFC 7515, 7519), checked by ring.
//!
//! Only algorithms with a public key exist here, and of those only the ones that `auth.jwt.algorithms` pins; a key serves its own family alone. So a
//! token cannot choose how it is checked: `none` and a shared secret cannot even be said.
//! Asked of each: signature, `exp`, `nbf` (with `auth.jwt.leeway`), `aud`, and `iss` where one is set; a claim of the wrong type is a wrong claim.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::signature::{self, RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Known, jwks::Keys};
use crate::config::{self, Algorithm};

/// Why a token is not taken.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum TokenError {
    Refused(String),
    /// They were never read yet, so nothing is known of the token.
    NoKeys,
}

fn refused<T>(reason: impl Into<String>) -> Result<T, TokenError> {
    Err(TokenError::Refused(format!("the token {}", reason.into())))
}

/// A public key.
#[derive(Clone, Debug)]
pub(super) struct Key {
    id: Option<String>,
    /// Where the key says it.
    algorithm: Option<String>,
    material: Material,
}

#[derive(Clone, Debug)]
enum Material {
    Rsa { n: Vec<u8>, e: Vec<u8> },
    P256(Vec<u8>),
    P384(Vec<u8>),
    Ed25519(Vec<u8>),
}

/// A key of a set, as RFC 7517 writes it.
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    #[serde(rename = "use")]
    purpose: Option<String>,
    alg: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

/// Keys of one set.
const KEYS_MAX: usize = 100;

/// The usable keys of a set; those of other kinds are left out. The error is about the set as a whole.
pub(super) fn parse_keys(text: &[u8]) -> Result<Vec<Key>, String> {
    #[derive(Deserialize)]
    struct Set {
        keys: Vec<Value>,
    }
    let set: Set = serde_json::from_slice(text).map_err(|error| format!("is no set of keys: {error}; it begins with {{\"keys\": ["))?;
    if set.keys.len() > KEYS_MAX {
        return Err(format!("has {} keys; {KEYS_MAX} are possible", set.keys.len()));
    }
    let keys: Vec<Key> = set.keys.into_iter().filter_map(|value| serde_json::from_value::<Jwk>(value).ok()?.key()).collect();
    if keys.is_empty() {
        return Err("has no key that signs by RSA, an elliptic curve (P-256, P-384) or Ed25519".to_owned());
    }
    Ok(keys)
}

impl Jwk {
    fn key(self) -> Option<Key> {
        if self.purpose.as_deref().is_some_and(|purpose| purpose != "sig") {
            return None;
        }
        let decode = |text: &Option<String>| URL_SAFE_NO_PAD.decode(text.as_deref()?).ok();
        // As SEC 1 writes a point: 4, then x and y, each as long as the curve says.
        let point = |length: usize| {
            let (x, y) = (decode(&self.x)?, decode(&self.y)?);
            (x.len() == length && y.len() == length).then(|| [&[4], x.as_slice(), y.as_slice()].concat())
        };
        let material = match (self.kty.as_str(), self.crv.as_deref()) {
            ("RSA", _) => Material::Rsa { n: decode(&self.n)?, e: decode(&self.e)? },
            ("EC", Some("P-256")) => Material::P256(point(32)?),
            ("EC", Some("P-384")) => Material::P384(point(48)?),
            ("OKP", Some("Ed25519")) => Material::Ed25519(decode(&self.x)?),
            _ => return None,
        };
        Some(Key { id: self.kid, algorithm: self.alg, material })
    }
}

impl Key {
    fn fits(&self, algorithm: Algorithm) -> bool {
        let family = match algorithm {
            Algorithm::RS256 | Algorithm::RS384 | Algorithm::RS512 | Algorithm::PS256 | Algorithm::PS384 | Algorithm::PS512 => {
                matches!(self.material, Material::Rsa { .. })
            }
            Algorithm::ES256 => matches!(self.material, Material::P256(_)),
            Algorithm::ES384 => matches!(self.material, Material::P384(_)),
            Algorithm::EdDSA => matches!(self.material, Material::Ed25519(_)),
        };
        family && self.algorithm.as_deref().is_none_or(|own| own == algorithm.name())
    }

    /// Whether the key made this signature.
    fn signed(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        let by_rsa = |how: &signature::RsaParameters| match &self.material {
            Material::Rsa { n, e } => RsaPublicKeyComponents { n, e }.verify(how, message, signature).is_ok(),
            _ => false,
        };
        let by_point =
            |how: &'static dyn VerificationAlgorithm, key: &[u8]| UnparsedPublicKey::new(how, key).verify(message, signature).is_ok();
        match (algorithm, &self.material) {
            (Algorithm::RS256, _) => by_rsa(&signature::RSA_PKCS1_2048_8192_SHA256),
            (Algorithm::RS384, _) => by_rsa(&signature::RSA_PKCS1_2048_8192_SHA384),
            (Algorithm::RS512, _) => by_rsa(&signature::RSA_PKCS1_2048_8192_SHA512),
            (Algorithm::PS256, _) => by_rsa(&signature::RSA_PSS_2048_8192_SHA256),
            (Algorithm::PS384, _) => by_rsa(&signature::RSA_PSS_2048_8192_SHA384),
            (Algorithm::PS512, _) => by_rsa(&signature::RSA_PSS_2048_8192_SHA512),
            (Algorithm::ES256, Material::P256(key)) => by_point(&signature::ECDSA_P256_SHA256_FIXED, key),
            (Algorithm::ES384, Material::P384(key)) => by_point(&signature::ECDSA_P384_SHA384_FIXED, key),
            (Algorithm::EdDSA, Material::Ed25519(key)) => by_point(&signature::ED25519, key),
            _ => false,
        }
    }
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    crit: Option<Value>,
}

/// What tokens are checked with.
pub(super) struct Tokens {
    config: config::Jwt,
    keys: Keys,
}

impl Tokens {
    /// The error names the key of the configuration.
    pub(super) fn open(config: &config::Jwt) -> Result<Self, (&'static str, String)> {
        if config.audience.is_empty() {
            let message = "is missing; a token for somebody else would be taken: name what tokens for this bridge have in `aud`";
            return Err(("audience", message.to_owned()));
        }
        if config.algorithms.is_empty() {
            return Err(("algorithms", "is empty; name at least one, as RS256".to_owned()));
        }
        Ok(Self { keys: Keys::open(config)?, config: config.clone() })
    }

    /// Reads the keys again where it is time for it.
    pub(super) async fn look(&self) {
        self.keys.look().await;
    }

    pub(super) fn has_keys(&self) -> bool {
        self.keys.now().is_some()
    }

    pub(super) async fn verify(&self, token: &str, now: SystemTime) -> Result<Known, TokenError> {
        let Some((message, signature)) = token.rsplit_once('.') else { return refused("is no JSON Web Token") };
        let Some((header, claims)) = message.split_once('.') else { return refused("is no JSON Web Token") };
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).ok();
        let (Some(header), Some(claims), Some(signature)) = (decode(header), decode(claims), decode(signature)) else {
            return refused("is no JSON Web Token: its parts are not base64url");
        };
        let Ok(Header { alg, kid, crit }) = serde_json::from_slice(&header) else { return refused("has no header with an algorithm") };
        if crit.is_some() {
            return refused("demands extensions (crit) that are not understood");
        }
        let Some(algorithm) = self.config.algorithms.iter().copied().find(|own| own.name() == alg) else {
            let own: Vec<&str> = self.config.algorithms.iter().map(|own| own.name()).collect();
            return refused(format!("is signed by {alg:?}; taken is {}", own.join(", ")));
        };
        let key = self.key(kid.as_deref(), algorithm).await?;
        if !key.signed(algorithm, message.as_bytes(), &signature) {
            return refused("has a wrong signature");
        }
        match serde_json::from_slice(&claims) {
            Ok(claims) => self.known(&claims, now),
            Err(_) => refused("has no JSON object for its claims"),
        }
    }

    /// The key that a token names; where it names none, the only one that could be meant.
    async fn key(&self, id: Option<&str>, algorithm: Algorithm) -> Result<Key, TokenError> {
        let find = |keys: &[Key]| {
            let mut fitting = keys.iter().filter(|key| key.fits(algorithm) && (id.is_none() || key.id.as_deref() == id));
            match (fitting.next(), fitting.next(), id) {
                (Some(key), None, _) | (Some(key), Some(_), Some(_)) => Some(key.clone()),
                _ => None,
            }
        };
        let Some(keys) = self.keys.now() else { return Err(TokenError::NoKeys) };
        if let Some(key) = find(&keys) {
            return Ok(key);
        }
        let Some(id) = id else { return refused("names no key (kid), and there is not exactly one that it could mean") };
        // It may be newer than the set.
        match self.keys.newer_than(&keys).await.and_then(|keys| find(&keys)) {
            Some(key) => Ok(key),
            None => refused(format!("is signed with a key (kid {id:?}) that is not in the set, or not for {}", algorithm.name())),
        }
    }

    fn known(&self, claims: &Map<String, Value>, now: SystemTime) -> Result<Known, TokenError> {
        let config = &self.config;
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let leeway = config.leeway.as_secs_f64();
        let Some(expires) = claims.get("exp").and_then(Value::as_f64) else { return refused("has no time of expiry (exp)") };
        if expires + leeway <= now {
            return refused("has expired");
        }
        match claims.get("nbf").map(Value::as_f64) {
            None => {}
            Some(Some(begins)) if begins - leeway <= now => {}
            Some(_) => return refused("does not hold yet (nbf)"),
        }
        let audience = match claims.get("aud") {
            Some(Value::String(one)) => vec![one.as_str()],
            Some(Value::Array(several)) => several.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        if !audience.iter().any(|one| config.audience.iter().any(|own| own == one)) {
            return refused("is for somebody else (aud)");
        }
        if !config.issuer.is_empty() && claims.get("iss").and_then(Value::as_str) != Some(&config.issuer) {
            return refused("is from somebody else (iss)");
        }
        let Some(principal) = find(claims, &config.principal_claim).and_then(Value::as_str) else {
            return refused(format!("has no {:?} (auth.jwt.principal_claim) that is text", config.principal_claim));
        };
        let roles = match find(claims, &config.roles_claim) {
            Some(Value::String(text)) => text.split_whitespace().map(str::to_owned).collect(),
            Some(Value::Array(all)) => all.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            _ => Vec::new(),
        };
        // Bounded: what is further away than a year is asked about again then.
        let left = Duration::from_secs_f64((expires + leeway - now).clamp(0.0, 366.0 * 86_400.0));
        Ok(Known { roles, until: Some(UNIX_EPOCH + Duration::from_secs_f64(now) + left), ..Known::principal(principal.to_owned()) })
    }
}

/// A claim, below others where dots say so: `realm_access.roles`.
fn find<'a>(claims: &'a Map<String, Value>, path: &str) -> Option<&'a Value> {
    if let Some(found) = claims.get(path) {
        return Some(found);
    }
    let mut parts = path.split('.');
    let mut at = claims.get(parts.next()?)?;
    for part in parts {
        at = at.get(part)?;
    }
    Some(at)
}

#[cfg(test)]
#[path = "jwt_tests.rs"]
mod tests;
