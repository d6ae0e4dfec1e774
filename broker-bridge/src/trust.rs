//! TLS as a client: whom it trusts, and what it shows of itself.

use std::{path::Path, sync::Arc};

use tokio_rustls::rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

/// `ca`: a PEM file of authorities; empty: the system's. `identity`: certificate and key, for a server that asks.
pub(crate) fn client(ca: &Path, identity: Option<(&Path, &Path)>) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    if ca.as_os_str().is_empty() {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    } else {
        roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&read(ca)?).filter_map(Result::ok));
    }
    if roots.is_empty() {
        return Err("there are no certificates of authorities; name a PEM file that has them".to_owned());
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
    let builder = builder.with_root_certificates(roots);
    let Some((certificate, key)) = identity else { return Ok(builder.with_no_client_auth()) };
    let bad = |path: &Path| format!("{} cannot be used", path.display());
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(certificate)?).collect();
    let chain = chain.map_err(|error| format!("{}: {error:?}", bad(certificate)))?;
    let key = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|error| format!("{}: {error:?}", bad(key)))?;
    builder.with_client_auth_cert(chain, key).map_err(|error| format!("{}: {error}", bad(certificate)))
}

/// Without certificates of authorities: for addresses without TLS.
pub(crate) fn nobody() -> Result<ClientConfig, String> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
    Ok(builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth())
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
}
