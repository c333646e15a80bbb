//! Certificates: read again when their files change, for the next connections. Those that are open
//! go on with what they began with.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject as _},
    },
    server::{VerifierBuilderError, WebPkiClientVerifier},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tracing::{error, info};

use super::{
    files::{Files, Stamp},
    settings::Tls,
};
use crate::causes::with_causes;

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file.
    #[error("{}: expected {expected} in PEM", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What should stand in it.
        expected: &'static str,
        /// What the parser says.
        source: pem::Error,
    },
    /// A file without certificates.
    #[error("{}: there is no certificate in it", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// Certificate and key.
    #[error("certificate and key cannot be used together")]
    Unusable(#[from] rustls::Error),
    /// The client's authorities.
    #[error("the certificates of `client-ca` cannot be used")]
    ClientCa(#[from] VerifierBuilderError),
}

/// What connections are encrypted with.
#[derive(Debug)]
pub(super) struct Certificates {
    settings: Tls,
    config: ArcSwap<ServerConfig>,
    seen: Mutex<Stamp>,
    /// Why the files as they are now cannot be used, if they cannot.
    problem: Mutex<Option<String>>,
}

impl Certificates {
    pub(super) fn load(settings: Tls) -> Result<Self, TlsError> {
        let seen = Mutex::new(files(&settings).stamp());
        let config = ArcSwap::new(read(&settings)?);
        Ok(Self { settings, config, seen, problem: Mutex::default() })
    }

    /// Why the files as they are now cannot be used; then those of before hold.
    pub(super) fn problem(&self) -> Option<String> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the files again if they have changed. What cannot be used changes nothing.
    pub(super) fn refresh(&self) {
        let now = files(&self.settings).stamp();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if *seen == now {
            return;
        }
        *seen = now;
        let problem = match read(&self.settings) {
            Ok(config) => {
                self.config.store(config);
                info!(cert = %self.settings.cert.display(), "new certificates hold");
                None
            }
            // Certificate and key are often written one after the other.
            Err(problem) => {
                let problem = with_causes(&problem);
                error!(problem, "certificates cannot be used; those of before hold");
                Some(problem)
            }
        };
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = problem;
    }

    /// Agrees with a client on a key; its name, if it had to prove one.
    pub(super) async fn accept<I>(
        &self,
        io: I,
        patience: Duration,
    ) -> io::Result<(TlsStream<I>, Option<Arc<str>>)>
    where
        I: AsyncRead + AsyncWrite + Unpin,
    {
        let stream = timeout(patience, TlsAcceptor::from(self.config.load_full()).accept(io))
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        let certificates = stream.get_ref().1.peer_certificates();
        let Some(certificate) = certificates.and_then(<[_]>::first) else {
            return Ok((stream, None));
        };
        let names = names(certificate);
        let wanted = &self.settings.client_names;
        let name = names.into_iter().find(|name| wanted.is_empty() || wanted.contains(name));
        match name {
            None if !wanted.is_empty() => Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "the client's certificate has none of `client-names`",
            )),
            name => Ok((stream, name.map(Arc::from))),
        }
    }
}

/// The subject alternative names: of hosts first, then URIs, as SPIFFE has them.
fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok(certificate) = webpki::EndEntityCert::try_from(certificate) else { return Vec::new() };
    let hosts = certificate.valid_dns_names();
    hosts.chain(certificate.valid_uri_names()).map(str::to_owned).collect()
}

fn files(Tls { cert, key, client_ca, .. }: &Tls) -> Files {
    Files([cert, key].into_iter().chain(client_ca).cloned().collect())
}

fn read(settings: &Tls) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?;
    let builder = match &settings.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots.add(certificate)?;
            }
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let key = PrivateKeyDer::from_pem_file(&settings.key).map_err(|source| TlsError::File {
        path: settings.key.clone(),
        expected: "a private key",
        source,
    })?;
    let mut config = builder.with_single_cert(certificates(&settings.cert)?, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let file = |source| TlsError::File { path: path.to_owned(), expected: "certificates", source };
    let certificates: Vec<_> =
        CertificateDer::pem_file_iter(path).and_then(Iterator::collect).map_err(file)?;
    if certificates.is_empty() {
        return Err(TlsError::Empty { path: path.to_owned() });
    }
    Ok(certificates)
}
