//! TLS, and callers whom a client certificate names.
//!
//! The files are read again every minute, so that certificates that live for an hour need no restart. Whether a
//! certificate is of our authorities is the handshake's business; until when it is good is looked at with every call.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject as _};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use tokio_rustls::rustls::{self, RootCertStore, ServerConfig};
use tokio_rustls::server::TlsStream;
use tonic::transport::server::{TcpConnectInfo, TcpIncoming, TlsConnectInfo};
use x509_cert::Certificate;
use x509_cert::der::Decode as _;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

use crate::auth::Caller;
use crate::id::TenantId;
use crate::secret::{Secret, sha256};
use crate::status::{Reason, Refusal};
use crate::time::Time;

/// Handshakes under way, and how long each may take.
const HANDSHAKES: usize = 1024;
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);
/// Certificates that are remembered.
const CERTIFICATES: u64 = 100_000;

/// Where everything is read from, PEM but for the list of callers.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// Our certificate and those between it and its root.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Authorities whose client certificates are taken.
    pub client_ca: Option<PathBuf>,
    /// Whom client certificates name: a JSON list.
    pub callers: Option<PathBuf>,
}

/// The files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {0}: {1}")]
    Read(PathBuf, io::Error),
    /// Not PEM, or nothing of the kind in it.
    #[error("{0}: {1}")]
    Pem(PathBuf, pem::Error),
    /// An authority that cannot be one.
    #[error("{0}: {1}")]
    Authority(PathBuf, rustls::Error),
    /// Nobody's certificate would be taken.
    #[error("{0}: {1}")]
    Authorities(PathBuf, VerifierBuilderError),
    /// Certificate and key do not belong together, or are of no use.
    #[error("{0} and {1}: {2}")]
    Certificate(PathBuf, PathBuf, rustls::Error),
    /// The list of callers is not what it should be.
    #[error("{0}: {1}")]
    Json(PathBuf, serde_json::Error),
    /// An entry of the list of callers.
    #[error("{0}: {1:?}: {2}")]
    Caller(PathBuf, String, String),
}

/// An entry of the list of callers.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Listed {
    san: String,
    tenant: String,
    scopes: BTreeSet<String>,
    #[serde(default)]
    groups: BTreeSet<String>,
    #[serde(default)]
    touchpoints: Option<BTreeSet<String>>,
}

/// A file's path and content.
type Read = (PathBuf, Secret<Vec<u8>>);

/// What the files hold. Content that has not changed is not parsed again.
struct Material {
    digest: [u8; 32],
    config: Arc<ServerConfig>,
    callers: HashMap<String, (TenantId, Listed)>,
    /// By the certificate's digest, with the last instant at which it is good.
    known: moka::sync::Cache<[u8; 32], (Arc<Caller>, Time)>,
}

/// TLS as the files have it now.
pub struct Tls {
    files: TlsFiles,
    material: RwLock<Arc<Material>>,
}

impl Tls {
    /// Reads the files.
    pub fn open(files: TlsFiles) -> Result<Self, TlsError> {
        let material = files.read()?.parse()?;
        Ok(Self { files, material: RwLock::new(Arc::new(material)) })
    }

    /// Reads the files again. What cannot be used changes nothing; new connections are by what can.
    pub fn refresh(&self) {
        let read = self.files.read();
        if read.as_ref().is_ok_and(|content| content.digest() == self.material().digest) {
            return;
        }
        match read.and_then(|content| content.parse()) {
            Ok(material) => {
                *self.material.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(material);
                tracing::info!("TLS files changed");
            }
            Err(error) => tracing::warn!(%error, "TLS files unusable; those known go on working"),
        }
    }

    fn material(&self) -> Arc<Material> {
        Arc::clone(&self.material.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Connections whose handshake succeeded; a slow one keeps back no other.
    pub(crate) fn accept(
        self: Arc<Self>,
        incoming: TcpIncoming,
    ) -> impl Stream<Item = io::Result<TlsStream<TcpStream>>> {
        let handshake = move |connection: io::Result<TcpStream>| {
            let acceptor = TlsAcceptor::from(Arc::clone(&self.material().config));
            async move {
                let connection = match connection {
                    Ok(connection) => connection,
                    Err(error) => return Some(Err(error)),
                };
                match tokio::time::timeout(HANDSHAKE_LIMIT, acceptor.accept(connection)).await {
                    Ok(Ok(stream)) => return Some(Ok(stream)),
                    Ok(Err(error)) => tracing::debug!(%error, "TLS handshake failed"),
                    Err(_) => tracing::debug!("TLS handshake took too long"),
                }
                None
            }
        };
        incoming
            .map(handshake)
            .buffer_unordered(HANDSHAKES)
            .filter_map(std::future::ready)
    }

    /// The caller whom a connection's certificate names, if it is still good.
    pub fn caller(&self, certificate: &[u8], now: Time) -> Result<Arc<Caller>, Refusal> {
        let (material, digest) = (self.material(), sha256(&[certificate]));
        let (caller, not_after) = if let Some(known) = material.known.get(&digest) {
            known
        } else {
            let fresh = material.look_up(certificate)?;
            material.known.insert(digest, fresh.clone());
            fresh
        };
        if now > not_after {
            let text = "the client certificate has expired; connect with a new one";
            return Err(Refusal::new(Reason::CallerCredentialExpired, text));
        }
        Ok(caller)
    }
}

/// The certificate that the other end of a request's connection has shown.
pub(crate) fn certificate<B>(request: &http::Request<B>) -> Option<CertificateDer<'static>> {
    let connection = request.extensions().get::<TlsConnectInfo<TcpConnectInfo>>()?;
    connection.peer_certs()?.first().cloned()
}

impl Material {
    /// The first of the certificate's names that is listed decides.
    fn look_up(&self, certificate: &[u8]) -> Result<(Arc<Caller>, Time), Refusal> {
        let unknown = |text| Refusal::new(Reason::CallerCertificateUnknown, text);
        let (names, not_after) =
            parse(certificate).ok_or_else(|| unknown("the client certificate cannot be read"))?;
        let listed = names.iter().find_map(|name| self.callers.get(name));
        let (tenant, listed) =
            listed.ok_or_else(|| unknown("no name in the client certificate is configured"))?;
        let caller = Caller::workload(
            tenant.clone(),
            format!("mtls|{}", listed.san),
            listed.scopes.clone(),
            listed.groups.clone(),
            listed.touchpoints.clone(),
            not_after,
        );
        Ok((Arc::new(caller), not_after))
    }
}

/// DNS names and URIs of a certificate, in its order, and the last instant at which it is good.
fn parse(certificate: &[u8]) -> Option<(Vec<String>, Time)> {
    let certificate = Certificate::from_der(certificate).ok()?.tbs_certificate;
    let until = certificate.validity.not_after.to_unix_duration().as_secs();
    let not_after = chrono::DateTime::from_timestamp(i64::try_from(until).ok()?, 0)?;
    let names = certificate
        .get::<SubjectAltName>()
        .ok()?
        .map(|(_, names)| names.0)
        .unwrap_or_default();
    let text = |name| match name {
        GeneralName::DnsName(name) | GeneralName::UniformResourceIdentifier(name) => Some(name.to_string()),
        GeneralName::OtherName(_)
        | GeneralName::Rfc822Name(_)
        | GeneralName::DirectoryName(_)
        | GeneralName::EdiPartyName(_)
        | GeneralName::IpAddress(_)
        | GeneralName::RegisteredId(_) => None,
    };
    Some((names.into_iter().filter_map(text).collect(), not_after))
}

/// The files' content.
struct Content {
    certificate: Read,
    key: Read,
    client_ca: Option<Read>,
    callers: Option<Read>,
}

impl TlsFiles {
    fn read(&self) -> Result<Content, TlsError> {
        let read = |path: &PathBuf| match std::fs::read(path) {
            Ok(bytes) => Ok((path.clone(), Secret::new(bytes))),
            Err(error) => Err(TlsError::Read(path.clone(), error)),
        };
        Ok(Content {
            certificate: read(&self.certificate)?,
            key: read(&self.key)?,
            client_ca: self.client_ca.as_ref().map(read).transpose()?,
            callers: self.callers.as_ref().map(read).transpose()?,
        })
    }
}

impl Content {
    fn digest(&self) -> [u8; 32] {
        let files =
            [Some(&self.certificate), Some(&self.key), self.client_ca.as_ref(), self.callers.as_ref()];
        sha256(&files.map(|file| file.map_or(&[][..], |(_, bytes)| bytes.expose())))
    }

    fn parse(&self) -> Result<Material, TlsError> {
        let callers = self.callers.as_ref().map(read_callers).transpose()?;
        Ok(Material {
            digest: self.digest(),
            config: Arc::new(self.server_config()?),
            callers: callers.unwrap_or_default(),
            known: moka::sync::Cache::new(CERTIFICATES),
        })
    }

    fn server_config(&self) -> Result<ServerConfig, TlsError> {
        let (path, key_path) = (&self.certificate.0, &self.key.0);
        let unusable = |error| TlsError::Certificate(path.clone(), key_path.clone(), error);
        let chain = certificates(&self.certificate)?;
        let key = PrivateKeyDer::from_pem_slice(self.key.1.expose())
            .map_err(|error| TlsError::Pem(key_path.clone(), error))?;
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(unusable)?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(file) => {
                let mut roots = RootCertStore::empty();
                for authority in certificates(file)? {
                    roots
                        .add(authority)
                        .map_err(|error| TlsError::Authority(file.0.clone(), error))?;
                }
                // Who shows no certificate may show a bearer; and probes of health show neither.
                let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider)
                    .allow_unauthenticated()
                    .build()
                    .map_err(|error| TlsError::Authorities(file.0.clone(), error))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config = builder.with_single_cert(chain, key).map_err(unusable)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }
}

fn certificates((path, bytes): &Read) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    CertificateDer::pem_slice_iter(bytes.expose())
        .collect::<Result<_, _>>()
        .map_err(|error| TlsError::Pem(path.clone(), error))
}

fn read_callers((path, bytes): &Read) -> Result<HashMap<String, (TenantId, Listed)>, TlsError> {
    let list: Vec<Listed> =
        serde_json::from_slice(bytes.expose()).map_err(|error| TlsError::Json(path.clone(), error))?;
    let mut callers = HashMap::new();
    for listed in list {
        let wrong = |problem: String| TlsError::Caller(path.clone(), listed.san.clone(), problem);
        // Principals are stored; PostgreSQL takes no NUL.
        if !(1..=250).contains(&listed.san.len()) || listed.san.contains(char::is_control) {
            return Err(wrong("a `san` has 1 to 250 bytes, none of them a control character".to_owned()));
        }
        let tenant = listed.tenant.parse().map_err(|error| wrong(format!("tenant {error}")))?;
        if callers.contains_key(&listed.san) {
            return Err(wrong("is listed twice".to_owned()));
        }
        callers.insert(listed.san.clone(), (tenant, listed));
    }
    Ok(callers)
}
