use std::fs;

use ring::{
    hmac,
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RSA_PSS_SHA256, RsaEncoding,
        RsaKeyPair,
    },
};
use serde_json::json;

use super::*;

/// Made for this test, and of no other use.
const RSA: &str = include_str!("testdata/rsa-test-key.pk8.base64");

const NOW: u64 = 1_800_000_000;

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(NOW)
}

enum Signer {
    Rsa(RsaKeyPair),
    P256(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

impl Signer {
    fn rsa() -> Self {
        let text: String = RSA.split_whitespace().collect();
        Self::Rsa(RsaKeyPair::from_pkcs8(&base64::engine::general_purpose::STANDARD.decode(text).unwrap()).unwrap())
    }

    fn p256() -> Self {
        let (how, random) = (&ECDSA_P256_SHA256_FIXED_SIGNING, SystemRandom::new());
        let document = EcdsaKeyPair::generate_pkcs8(how, &random).unwrap();
        Self::P256(EcdsaKeyPair::from_pkcs8(how, document.as_ref(), &random).unwrap())
    }

    fn ed25519() -> Self {
        Self::Ed25519(Ed25519KeyPair::from_pkcs8(Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap().as_ref()).unwrap())
    }

    fn jwk(&self, id: &str) -> Value {
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        match self {
            Self::Rsa(key) => {
                let public = RsaPublicKeyComponents::<Vec<u8>>::from(key.public_key());
                json!({"kty": "RSA", "kid": id, "use": "sig", "n": text(&public.n), "e": text(&public.e)})
            }
            Self::P256(key) => {
                let point = key.public_key().as_ref();
                json!({"kty": "EC", "crv": "P-256", "kid": id, "alg": "ES256", "x": text(&point[1..33]), "y": text(&point[33..])})
            }
            Self::Ed25519(key) => json!({"kty": "OKP", "crv": "Ed25519", "kid": id, "x": text(key.public_key().as_ref())}),
        }
    }

    fn sign(&self, algorithm: &str, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match self {
            Self::Rsa(key) => {
                let how: &dyn RsaEncoding = if algorithm == "PS256" { &RSA_PSS_SHA256 } else { &RSA_PKCS1_SHA256 };
                let mut signature = vec![0; key.public().modulus_len()];
                key.sign(how, &random, message, &mut signature).unwrap();
                signature
            }
            Self::P256(key) => key.sign(&random, message).unwrap().as_ref().to_vec(),
            Self::Ed25519(key) => key.sign(message).as_ref().to_vec(),
        }
    }

    fn token(&self, header: Value, claims: &Value) -> String {
        let algorithm = header["alg"].as_str().unwrap().to_owned();
        let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims.to_string()));
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(self.sign(&algorithm, message.as_bytes())))
    }
}

fn claims() -> Value {
    json!({"sub": "alice", "aud": "bridge", "iss": "https://id", "exp": NOW + 60, "realm": {"roles": ["writer", "reader"]}})
}

fn with(key: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[key] = value;
    claims
}

fn without(key: &str) -> Value {
    let mut claims = claims();
    claims.as_object_mut().unwrap().remove(key);
    claims
}

/// A checker of a set with these keys, and the directory that its file is in.
fn tokens(keys: &[Value], algorithms: &[Algorithm]) -> (Tokens, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("jwks.json");
    fs::write(&path, json!({"keys": keys}).to_string()).unwrap();
    let config = config::Jwt {
        jwks: path.display().to_string(),
        issuer: "https://id".to_owned(),
        audience: vec!["bridge".to_owned(), "other".to_owned()],
        algorithms: algorithms.to_vec(),
        roles_claim: "realm.roles".to_owned(),
        leeway: Duration::from_secs(10),
        ..config::Jwt::default()
    };
    (Tokens::open(&config).unwrap_or_else(|(key, message)| panic!("{key}: {message}")), directory)
}

async fn refusal(tokens: &Tokens, token: &str) -> String {
    match tokens.verify(token, now()).await {
        Err(TokenError::Refused(reason)) => reason,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_good_token_names_its_principal_and_roles() {
    let (rsa, p256, ed25519) = (Signer::rsa(), Signer::p256(), Signer::ed25519());
    let all = [Algorithm::RS256, Algorithm::PS256, Algorithm::ES256, Algorithm::EdDSA];
    let (tokens, _directory) =
        tokens(&[rsa.jwk("r"), p256.jwk("p"), ed25519.jwk("e"), json!({"kty": "oct", "kid": "o", "k": "AAAA"})], &all);
    for (signer, header) in [
        (&rsa, json!({"alg": "RS256", "kid": "r"})),
        (&rsa, json!({"alg": "PS256", "kid": "r"})),
        (&p256, json!({"alg": "ES256", "kid": "p"})),
        (&ed25519, json!({"alg": "EdDSA", "kid": "e"})),
        // Each is the only one of its kind.
        (&p256, json!({"alg": "ES256"})),
    ] {
        let known = tokens.verify(&signer.token(header.clone(), &claims()), now()).await.unwrap();
        assert_eq!((known.principal.as_str(), known.roles), ("alice", vec!["writer".to_owned(), "reader".to_owned()]), "{header}");
        assert_eq!(known.until, Some(UNIX_EPOCH + Duration::from_secs(NOW + 70)), "{header}");
    }
    let several = with("aud", json!(["someone", "other"]));
    assert!(tokens.verify(&rsa.token(json!({"alg": "RS256", "kid": "r"}), &several), now()).await.is_ok());
}

#[tokio::test]
async fn a_claim_that_is_wrong_missing_or_of_another_type_refuses_the_token() {
    let signer = Signer::ed25519();
    let (tokens, _directory) = tokens(&[signer.jwk("e")], &[Algorithm::EdDSA]);
    for (claims, reason) in [
        (with("exp", json!(NOW - 10)), "has expired"),
        (with("exp", json!("2100-01-01")), "no time of expiry"),
        (without("exp"), "no time of expiry"),
        (with("nbf", json!(NOW + 11)), "does not hold yet"),
        (with("nbf", json!("soon")), "does not hold yet"),
        (with("aud", json!("someone")), "for somebody else"),
        (with("aud", json!(["someone"])), "for somebody else"),
        (with("aud", json!({"bridge": true})), "for somebody else"),
        (without("aud"), "for somebody else"),
        (with("iss", json!("https://id.evil")), "from somebody else"),
        (without("iss"), "from somebody else"),
        (without("sub"), "has no \"sub\""),
        (with("sub", json!(7)), "has no \"sub\""),
    ] {
        let told = refusal(&tokens, &signer.token(json!({"alg": "EdDSA"}), &claims)).await;
        assert!(told.contains(reason), "{claims}: {told}");
    }
    // Within the leeway.
    for claims in [with("exp", json!(NOW - 9)), with("nbf", json!(NOW + 9))] {
        assert!(tokens.verify(&signer.token(json!({"alg": "EdDSA"}), &claims), now()).await.is_ok(), "{claims}");
    }
}

#[tokio::test]
async fn a_token_does_not_choose_how_it_is_checked() {
    let (rsa, p256) = (Signer::rsa(), Signer::p256());
    let (tokens, _directory) = tokens(&[rsa.jwk("r"), p256.jwk("p")], &[Algorithm::RS256, Algorithm::ES256]);
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    for none in ["none", "None", "NONE", ""] {
        let unsigned = format!("{}.{}.", part(&json!({"alg": none, "kid": "r"})), part(&claims()));
        assert!(refusal(&tokens, &unsigned).await.contains("taken is RS256, ES256"), "{none}");
    }
    // The public key as if it were a shared secret: as its modulus, and as the set writes it.
    let jwk = rsa.jwk("r");
    let modulus = URL_SAFE_NO_PAD.decode(jwk["n"].as_str().unwrap()).unwrap();
    for secret in [modulus, jwk.to_string().into_bytes()] {
        let message = format!("{}.{}", part(&json!({"alg": "HS256", "kid": "r"})), part(&claims()));
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &secret), message.as_bytes());
        let forged = format!("{message}.{}", URL_SAFE_NO_PAD.encode(tag.as_ref()));
        assert!(refusal(&tokens, &forged).await.contains("signed by \"HS256\""));
    }
    // Taken algorithms, and the key of another family, or one that is not pinned.
    assert!(refusal(&tokens, &rsa.token(json!({"alg": "RS256", "kid": "p"}), &claims())).await.contains("not for RS256"));
    assert!(refusal(&tokens, &p256.token(json!({"alg": "ES256", "kid": "r"}), &claims())).await.contains("not for ES256"));
    assert!(refusal(&tokens, &rsa.token(json!({"alg": "PS256", "kid": "r"}), &claims())).await.contains("signed by \"PS256\""));
    // Somebody else's key under a known name; a changed claim; a signature cut short; extensions.
    let other = Signer::p256().token(json!({"alg": "ES256", "kid": "p"}), &claims());
    assert!(refusal(&tokens, &other).await.contains("wrong signature"));
    let good = p256.token(json!({"alg": "ES256", "kid": "p"}), &claims());
    let parts: Vec<&str> = good.split('.').collect();
    let changed = format!("{}.{}.{}", parts[0], part(&with("sub", json!("root"))), parts[2]);
    assert!(refusal(&tokens, &changed).await.contains("wrong signature"));
    assert!(refusal(&tokens, &good[..good.len() - 6]).await.contains("wrong signature"));
    assert!(refusal(&tokens, &p256.token(json!({"alg": "ES256", "kid": "p", "crit": ["x"]}), &claims())).await.contains("crit"));
    for text in ["", "a", "a.b", "a.b.c", "..", "a.b.c.d"] {
        assert!(refusal(&tokens, text).await.starts_with("the token "), "{text}");
    }
}

#[tokio::test]
async fn a_token_in_another_form_is_refused_whoever_signed_it() {
    let signer = Signer::ed25519();
    let (tokens, _directory) = tokens(&[signer.jwk("e")], &[Algorithm::EdDSA]);
    let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
    // Signed as it stands.
    let signed = |header: &str, claims: &str| {
        let message = format!("{}.{}", part(header), part(claims));
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signer.sign("EdDSA", message.as_bytes())))
    };
    let (header, claims) = (r#"{"alg":"EdDSA"}"#, claims().to_string());
    let good = signed(header, &claims);
    assert!(tokens.verify(&good, now()).await.is_ok());
    let twice = claims.replacen('{', r#"{"exp":1,"#, 1);
    for (token, reason) in [
        (format!("{good}="), "not base64url"),
        (format!("{good} "), "not base64url"),
        (format!("{good}.{}", part("x")), "not base64url"),
        (good.replacen('.', "..", 1), "is no JSON Web Token"),
        (good.replacen('.', "=.", 1), "not base64url"),
        (format!("{good}AAAA"), "wrong signature"),
        (signed("{}", &claims), "no header with an algorithm"),
        (signed("[]", &claims), "no header with an algorithm"),
        (signed(r#"{"alg":["EdDSA"]}"#, &claims), "no header with an algorithm"),
        (signed(r#"{"alg":"EdDSA","kid":7}"#, &claims), "no header with an algorithm"),
        (signed(r#"{"alg":"EdDSA","alg":"none"}"#, &claims), "no header with an algorithm"),
        (signed(r#"{"alg":"eddsa"}"#, &claims), "signed by \"eddsa\""),
        (signed(r#"{"alg":"EdDSA","kid":""}"#, &claims), "kid \"\""),
        (signed(header, "[]"), "no JSON object"),
        (signed(header, "7"), "no JSON object"),
        (signed(header, &format!("{claims}x")), "no JSON object"),
        (signed(header, r#"{"exp":-1}"#), "has expired"),
        (signed(header, r#"{"exp":1e400}"#), "no JSON object"),
        (signed(header, &claims.replace("\"alice\"", "[\"alice\"]")), "has no \"sub\""),
        (signed(header, &claims.replace("\"bridge\"", "[[\"bridge\"]]")), "for somebody else (aud)"),
        (signed(header, &claims.replace("\"https://id\"", "[\"https://id\"]")), "from somebody else"),
    ] {
        assert!(refusal(&tokens, &token).await.contains(reason), "{reason}: {:?}", refusal(&tokens, &token).await);
    }
    // What stands twice counts as it stands last, as everywhere where JSON is read.
    assert!(tokens.verify(&signed(header, &twice), now()).await.is_ok());
    // Far away is far away, and not for ever.
    let far = claims.replace(&(NOW + 60).to_string(), "1e300");
    let until = tokens.verify(&signed(header, &far), now()).await.unwrap().until.unwrap();
    assert!(until < now() + Duration::from_secs(400 * 86_400));
}

#[tokio::test]
async fn a_key_that_is_not_there_is_refused_until_the_set_has_it() {
    let (old, new) = (Signer::p256(), Signer::p256());
    let (tokens, directory) = tokens(&[old.jwk("old")], &[Algorithm::ES256]);
    let header = json!({"alg": "ES256", "kid": "new"});
    assert!(refusal(&tokens, &new.token(header.clone(), &claims())).await.contains("kid \"new\""));
    let path = directory.path().join("jwks.json");
    fs::write(&path, json!({"keys": [old.jwk("old"), new.jwk("new")]}).to_string()).unwrap();
    assert!(tokens.verify(&new.token(header.clone(), &claims()), now()).await.is_ok(), "read again for the key that was missing");
    // Two could be meant now.
    assert!(refusal(&tokens, &new.token(json!({"alg": "ES256"}), &claims())).await.contains("names no key"));
    fs::write(&path, json!({"keys": [new.jwk("new")]}).to_string()).unwrap();
    tokens.look().await;
    assert!(
        refusal(&tokens, &old.token(json!({"alg": "ES256", "kid": "old"}), &claims())).await.contains("kid \"old\""),
        "what was taken out"
    );
    fs::write(&path, "{}").unwrap();
    tokens.look().await;
    assert!(tokens.verify(&new.token(header, &claims()), now()).await.is_ok(), "a broken file changes nothing");
}

#[tokio::test]
async fn a_url_is_asked_in_bounded_time_and_not_too_often() {
    let (old, new) = (Signer::ed25519(), Signer::ed25519());
    let served = std::sync::Arc::new(parking_lot::Mutex::new((0, json!({"keys": [old.jwk("old")]}).to_string())));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let answers = std::sync::Arc::clone(&served);
    let router = axum::Router::new().route(
        "/keys",
        axum::routing::get(async move || {
            let mut served = answers.lock();
            served.0 += 1;
            served.1.clone()
        }),
    );
    let (limits, stop) = (service_kit::config::LimitsConfig::default(), tokio_util::sync::CancellationToken::new());
    let server = tokio::spawn(service_kit::listen::serve_http("test", listener, None, router, limits, stop.clone(), stop));
    let config = config::Jwt {
        jwks: format!("http://{address}/keys"),
        audience: vec!["bridge".to_owned()],
        algorithms: vec![Algorithm::EdDSA],
        refresh: Duration::from_secs(3600),
        // Longer than a hundred refusals take on a busy machine.
        refresh_min: Duration::from_secs(2),
        bytes_max: 4096,
        ..config::Jwt::default()
    };
    let tokens = Tokens::open(&config).unwrap_or_else(|(key, message)| panic!("{key}: {message}"));
    let by = |signer: &Signer, id: &str| signer.token(json!({"alg": "EdDSA", "kid": id}), &claims());
    assert_eq!(tokens.verify(&by(&old, "old"), now()).await.unwrap_err(), TokenError::NoKeys);
    tokens.look().await;
    assert!(tokens.verify(&by(&old, "old"), now()).await.is_ok());
    // A hundred tokens with an unknown key, at once, right after a question: no further one.
    served.lock().1 = json!({"keys": [old.jwk("old"), new.jwk("new")]}).to_string();
    let unknown = by(&new, "new");
    let refused = futures::future::join_all((0..100).map(|_| tokens.verify(&unknown, now()))).await;
    assert!(refused.iter().all(Result::is_err));
    assert_eq!(served.lock().0, 1);
    // Later: one.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while tokens.verify(&unknown, now()).await.is_err() {
        assert!(tokio::time::Instant::now() < deadline, "the new key is not taken");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(served.lock().0, 2);
    // Too large, then away: what was known stays.
    served.lock().1 = " ".repeat(5000);
    let unknown_too = by(&new, "else");
    while served.lock().0 < 3 {
        assert!(tokens.verify(&unknown_too, now()).await.is_err());
        assert!(tokio::time::Instant::now() < deadline, "it is not asked again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(tokens.verify(&unknown, now()).await.is_ok());
    server.abort();
    assert!(tokens.verify(&unknown, now()).await.is_ok());
}

#[test]
fn a_set_is_read_for_what_can_be_used() {
    let (rsa, p256) = (Signer::rsa(), Signer::p256());
    let mut encryption = rsa.jwk("enc");
    encryption["use"] = "enc".into();
    let mut short = p256.jwk("short");
    short["x"] = "AA".into();
    let set = json!({"keys": [rsa.jwk("r"), encryption, short, {"kty": "oct", "k": "AAAA"}, {"kty": "EC", "crv": "secp256k1"}, 7]});
    assert_eq!(parse_keys(set.to_string().as_bytes()).unwrap().len(), 1);
    for (text, reason) in [
        ("{\"keys\": []}".to_owned(), "has no key that signs"),
        ("[]".to_owned(), "is no set of keys"),
        (json!({"keys": vec![7; 101]}).to_string(), "has 101 keys"),
    ] {
        assert!(parse_keys(text.as_bytes()).unwrap_err().contains(reason));
    }
}

#[test]
fn what_would_take_any_token_cannot_be_configured() {
    let open = |config: config::Jwt| Tokens::open(&config).err().unwrap();
    let config = config::Jwt { jwks: "/nowhere/jwks.json".to_owned(), ..config::Jwt::default() };
    assert_eq!(open(config.clone()).0, "audience");
    let config = config::Jwt { audience: vec!["a".to_owned()], ..config };
    assert!(open(config.clone()).1.contains("cannot read /nowhere/jwks.json"));
    assert_eq!(open(config::Jwt { algorithms: Vec::new(), ..config.clone() }).0, "algorithms");
    assert_eq!(open(config::Jwt { jwks: "https://a b/".to_owned(), ..config.clone() }).0, "jwks");
    let url = |jwks: &str, allow_plaintext: bool| Tokens::open(&config::Jwt { jwks: jwks.to_owned(), allow_plaintext, ..config.clone() });
    for far in ["http://id.example/keys", "http://10.0.0.1/keys", "http://localhost.example/keys", "http://127.0.0.1.example/keys"] {
        let (key, message) = url(far, false).err().unwrap();
        assert!(key == "jwks" && message.contains("auth.jwt.allow_plaintext"), "{far}: {message}");
        assert!(url(far, true).is_ok(), "{far}");
    }
    for near in ["http://localhost:1/keys", "http://127.0.0.9/keys", "http://[::1]:1/keys"] {
        assert!(url(near, false).is_ok(), "{near}");
    }
    for algorithm in ["HS256", "none"] {
        let error = toml::from_str::<config::Jwt>(&format!("algorithms = [\"{algorithm}\"]")).unwrap_err().to_string();
        assert!(error.contains("unknown variant") && error.contains("RS256"), "{error}");
    }
}
