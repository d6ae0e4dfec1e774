//! `[auth]`: who may call, and what.

use std::{path::PathBuf, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use service_kit::config::{at_least_one, duration, period};

/// `[auth]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Auth {
    /// TOML file that says who may do what. Empty: authentication is off, and everybody may do everything.
    pub policy_file: PathBuf,
    /// Names and password hashes, `name:$2y$…` or `name:$argon2id$…` a line (`htpasswd -nB NAME`), for Basic.
    pub users_file: PathBuf,
    /// Names and hashes of API keys, `name:` and 128 hex digits of SHA-512 a line (`printf %s KEY | sha512sum`), for `X-API-Key`.
    pub api_keys_file: PathBuf,
    /// A secret a line, of 32 bytes or more; all bridges that share consumer instances have the same. What one hands on to another carries the
    /// caller's name signed with the first, and no credential. Empty: requests are not handed on.
    pub forward_secret_file: PathBuf,
    /// What in a client's certificate is its principal.
    pub certificate_name: CertificateName,
    /// What the log has with the target `audit`.
    pub audit: Audit,
    /// Password hashes that are computed at a time; each takes a processor for a while.
    #[serde(deserialize_with = "at_least_one")]
    pub hashes_at_once: usize,
    /// How long a right password is right without computing its hash again, and how many are remembered.
    #[serde(with = "duration")]
    pub remembered: Duration,
    pub remembered_max: usize,
    /// Listen without authentication on addresses that other machines can reach.
    pub allow_open: bool,
    pub jwt: Jwt,
    pub pass_through: PassThrough,
    pub quota: Quota,
}

impl Default for Auth {
    fn default() -> Self {
        Self {
            policy_file: PathBuf::new(),
            users_file: PathBuf::new(),
            api_keys_file: PathBuf::new(),
            forward_secret_file: PathBuf::new(),
            certificate_name: CertificateName::CommonName,
            audit: Audit::Admin,
            hashes_at_once: 2,
            remembered: Duration::from_secs(300),
            remembered_max: 10_000,
            allow_open: false,
            jwt: Jwt::default(),
            pass_through: PassThrough::default(),
            quota: Quota::default(),
        }
    }
}

/// What in a client's certificate is its principal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CertificateName {
    CommonName,
    /// The first DNS name of its alternative names.
    Dns,
    /// The first URI, as SPIFFE has it.
    Uri,
}

impl CertificateName {
    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::CommonName => "common name",
            Self::Dns => "DNS name",
            Self::Uri => "URI",
        }
    }
}

/// Each with those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Audit {
    Off,
    /// What was refused: unknown callers, and what the policy does not allow.
    Denied,
    /// What was created, deleted and altered.
    Admin,
    /// What was written.
    Writes,
    /// What was read and described.
    All,
}

/// `[auth.jwt]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Jwt {
    /// The keys that sign tokens (a JSON Web Key Set): a file, or an http(s) URL. Empty: no tokens.
    pub jwks: String,
    /// PEM file of the authorities that the URL's certificate must come from. Empty: the system's.
    pub ca: PathBuf,
    /// Ask an http URL of another machine: whoever stands in between could have any token taken.
    pub allow_plaintext: bool,
    /// What `iss` must be. Empty: anything.
    pub issuer: String,
    /// What `aud` must name one of. Required with `jwks`.
    pub audience: Vec<String>,
    /// The only algorithms that are taken.
    pub algorithms: Vec<Algorithm>,
    /// The claim with the principal's name; dots lead into objects.
    pub principal_claim: String,
    /// A claim with names of the policy's roles, an array or a text with blanks; as `realm_access.roles`. Empty: none.
    pub roles_claim: String,
    /// How far clocks may differ.
    #[serde(with = "duration")]
    pub leeway: Duration,
    /// How often the URL is asked.
    #[serde(with = "period")]
    pub refresh: Duration,
    /// It is asked no sooner again, whatever keys tokens name.
    #[serde(with = "period")]
    pub refresh_min: Duration,
    /// How long its answer may take.
    #[serde(with = "period")]
    pub timeout: Duration,
    /// Largest answer.
    #[serde(deserialize_with = "at_least_one")]
    pub bytes_max: usize,
}

impl Default for Jwt {
    fn default() -> Self {
        Self {
            jwks: String::new(),
            ca: PathBuf::new(),
            allow_plaintext: false,
            issuer: String::new(),
            audience: Vec::new(),
            algorithms: vec![Algorithm::RS256, Algorithm::ES256],
            principal_claim: "sub".to_owned(),
            roles_claim: String::new(),
            leeway: Duration::from_secs(30),
            refresh: Duration::from_secs(300),
            refresh_min: Duration::from_secs(10),
            timeout: Duration::from_secs(5),
            bytes_max: 256 * 1024,
        }
    }
}

/// How a token may be signed: by a private key, whose public half is in the set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Algorithm {
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
    ES256,
    ES384,
    EdDSA,
}

impl Algorithm {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::RS256 => "RS256",
            Self::RS384 => "RS384",
            Self::RS512 => "RS512",
            Self::PS256 => "PS256",
            Self::PS384 => "PS384",
            Self::PS512 => "PS512",
            Self::ES256 => "ES256",
            Self::ES384 => "ES384",
            Self::EdDSA => "EdDSA",
        }
    }
}

/// `[auth.pass_through]`: callers log in to Kafka themselves.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PassThrough {
    /// Basic is a user and password of Kafka's, in place of `users_file`; what the caller does is done with that login.
    pub enabled: bool,
    /// Logins whose clients are kept; beyond, those that were unused longest go.
    #[serde(deserialize_with = "at_least_one")]
    pub principals_max: usize,
    /// How long they are kept unused.
    #[serde(with = "period")]
    pub idle: Duration,
    /// Logins under way at a time.
    #[serde(deserialize_with = "at_least_one")]
    pub logins_at_once: usize,
}

impl Default for PassThrough {
    fn default() -> Self {
        Self { enabled: false, principals_max: 64, idle: Duration::from_secs(300), logins_at_once: 16 }
    }
}

/// `[auth.quota]`: of each principal that the policy gives none of its own.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Quota {
    /// 0: no limit.
    #[serde(deserialize_with = "rate")]
    pub requests_per_second: f64,
    /// Of requests' and answers' bodies; 0: no limit.
    #[serde(deserialize_with = "rate")]
    pub bytes_per_second: f64,
    /// So much may be saved up, and used at once.
    #[serde(with = "period")]
    pub burst: Duration,
    /// Principals whose use is kept; beyond, the one that was quiet longest begins anew.
    #[serde(deserialize_with = "at_least_one")]
    pub principals_max: usize,
}

impl Default for Quota {
    fn default() -> Self {
        Self { requests_per_second: 0.0, bytes_per_second: 0.0, burst: Duration::from_secs(2), principals_max: 10_000 }
    }
}

fn rate<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    let rate = f64::deserialize(deserializer)?;
    if rate.is_finite() && rate >= 0.0 {
        Ok(rate)
    } else {
        Err(D::Error::custom(format!("`{rate}` is no rate; give 0 (no limit) or more")))
    }
}
