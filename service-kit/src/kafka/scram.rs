//! The client's side of SCRAM (RFC 5802, RFC 7677), for connections of our own.

use std::{num::NonZeroU32, ops::RangeInclusive};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::{digest, hmac, pbkdf2, rand};

/// A broker that asks for fewer or more rounds is not answered: with few, who listens could guess the password; many keep this process busy. Kafka's own bounds
/// are 4,096 and 16,384.
const ITERATIONS: RangeInclusive<u32> = 4_096..=100_000;

pub(super) struct Scram {
    derive: pbkdf2::Algorithm,
    sign: hmac::Algorithm,
    hash: &'static digest::Algorithm,
    /// The client's first message without its header.
    first: String,
    nonce: String,
}

impl Scram {
    /// `None` where the mechanism is none of SCRAM's.
    pub(super) fn new(mechanism: &str, username: &str) -> Option<Self> {
        let mut nonce = [0; 24];
        rand::SecureRandom::fill(&rand::SystemRandom::new(), &mut nonce).ok()?;
        Self::with_nonce(mechanism, username, STANDARD.encode(nonce))
    }

    fn with_nonce(mechanism: &str, username: &str, nonce: String) -> Option<Self> {
        let (derive, sign, hash) = match mechanism {
            "SCRAM-SHA-256" => (pbkdf2::PBKDF2_HMAC_SHA256, hmac::HMAC_SHA256, &digest::SHA256),
            "SCRAM-SHA-512" => (pbkdf2::PBKDF2_HMAC_SHA512, hmac::HMAC_SHA512, &digest::SHA512),
            _ => return None,
        };
        let user = username.replace('=', "=3D").replace(',', "=2C");
        Some(Self { derive, sign, hash, first: format!("n={user},r={nonce}"), nonce })
    }

    pub(super) fn first(&self) -> String {
        format!("n,,{}", self.first)
    }

    /// The last message, and the signature with which the broker has to answer it.
    pub(super) fn last(&self, password: &str, challenge: &str) -> Result<(String, String), String> {
        let part = |name: &str| challenge.split(',').find_map(|part| part.strip_prefix(name));
        if let Some(error) = part("e=") {
            return Err(error.to_owned());
        }
        let nonce = part("r=").filter(|nonce| nonce.starts_with(&self.nonce)).ok_or("its nonce is not ours")?;
        let salt = part("s=").and_then(|salt| STANDARD.decode(salt).ok()).ok_or("its salt cannot be read")?;
        let iterations = part("i=").and_then(|count| count.parse().ok()).filter(|count| ITERATIONS.contains(count));
        let iterations = iterations.and_then(NonZeroU32::new).ok_or("its number of iterations cannot be used")?;

        let mut salted = vec![0; self.hash.output_len()];
        pbkdf2::derive(self.derive, iterations, &salt, password.as_bytes(), &mut salted);
        let salted = hmac::Key::new(self.sign, &salted);
        let client_key = hmac::sign(&salted, b"Client Key");
        let stored = digest::digest(self.hash, client_key.as_ref());
        let bare = format!("c=biws,r={nonce}");
        let all = format!("{},{challenge},{bare}", self.first);
        let signature = hmac::sign(&hmac::Key::new(self.sign, stored.as_ref()), all.as_bytes());
        let proof: Vec<u8> = client_key.as_ref().iter().zip(signature.as_ref()).map(|(a, b)| a ^ b).collect();
        let server_key = hmac::sign(&salted, b"Server Key");
        let expected = hmac::sign(&hmac::Key::new(self.sign, server_key.as_ref()), all.as_bytes());
        Ok((format!("{bare},p={}", STANDARD.encode(proof)), format!("v={}", STANDARD.encode(expected))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 7677.
    #[test]
    fn the_exchange_of_the_rfc() {
        let scram = Scram::with_nonce("SCRAM-SHA-256", "user", "rOprNGfwEbeRWgbNEkqO".into()).unwrap();
        assert_eq!(scram.first(), "n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
        let challenge = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
        let (last, signature) = scram.last("pencil", challenge).unwrap();
        assert_eq!(last, "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=");
        assert_eq!(signature, "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
    }

    #[test]
    fn what_a_broker_must_not_say_is_refused() {
        let scram = Scram::with_nonce("SCRAM-SHA-512", "a=b,c", "n".into()).unwrap();
        assert_eq!(scram.first(), "n,,n=a=3Db=2Cc,r=n");
        for (challenge, expected) in [
            ("r=other,s=AAAA,i=4096", "nonce"),
            ("r=n1,s=?,i=4096", "salt"),
            ("r=n1,s=AAAA,i=0", "iterations"),
            ("r=n1,s=AAAA,i=1", "iterations"),
            ("r=n1,s=AAAA,i=4095", "iterations"),
            ("r=n1,s=AAAA,i=100001", "iterations"),
            ("r=n1,s=AAAA,i=4000000000", "iterations"),
            ("e=unknown-user", "unknown-user"),
            ("", "nonce"),
        ] {
            assert!(scram.last("p", challenge).unwrap_err().contains(expected), "{challenge}");
        }
        assert!(Scram::new("PLAIN", "a").is_none());
    }
}
