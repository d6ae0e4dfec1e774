//! Whether a server is believed, where that is not just its certificate's authority and name.

use std::{fmt, sync::Arc};

use tokio_rustls::rustls::{
    DigitallySignedStruct, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};

/// Asks a function about the certificate, those that signed it, the server's name and the time; checks signatures as always.
pub struct Verifier<F> {
    provider: Arc<CryptoProvider>,
    believed: F,
}

impl<F> Verifier<F>
where
    F: Fn(&CertificateDer<'_>, &[CertificateDer<'_>], &ServerName<'_>, UnixTime) -> Result<(), Error> + Send + Sync + 'static,
{
    /// For `dangerous().with_custom_certificate_verifier`.
    pub fn of(provider: Arc<CryptoProvider>, believed: F) -> Arc<dyn ServerCertVerifier> {
        Arc::new(Self { provider, believed })
    }
}

impl<F> fmt::Debug for Verifier<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verifier")
    }
}

impl<F> ServerCertVerifier for Verifier<F>
where
    F: Fn(&CertificateDer<'_>, &[CertificateDer<'_>], &ServerName<'_>, UnixTime) -> Result<(), Error> + Send + Sync,
{
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        (self.believed)(certificate, intermediates, server, now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
