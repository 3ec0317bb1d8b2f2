//! TLS, and callers whom a client certificate names: what is not good never gets as far as a call, and what ends being good
//! ends on a living connection.

use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chrono::TimeDelta;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType, date_time_ymd};
use serde_json::json;
use shared::pb::session::ListTouchpointsRequest;
use shared::tls::{Tls, TlsFiles};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Response, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::harness::shop::{create_catalog, ship};
use crate::harness::{Answer as _, Caller, Options, Service, Stack, person, reason_of, workload};

const STOREFRONT: &str = "spiffe://shop.example/storefront";

/// An authority of certificates.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = pem("CERTIFICATE", params.self_signed(&key).unwrap().der());
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A certificate with these names until the end of the century, and its key; both DER.
    fn issue(&self, names: Vec<SanType>) -> (Vec<u8>, Vec<u8>) {
        let mut params = CertificateParams::default();
        (params.subject_alt_names, params.not_after) = (names, date_time_ymd(2100, 1, 1));
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.der().to_vec(), key.serialize_der())
    }

    /// One for a program of this name, which is not the only one.
    fn issue_to(&self, name: &str) -> (Vec<u8>, Vec<u8>) {
        let (other, uri) = ("other.example".try_into().unwrap(), name.try_into().unwrap());
        self.issue(vec![SanType::DnsName(other), SanType::URI(uri)])
    }

    fn identity(&self, name: &str) -> Identity {
        let (certificate, key) = self.issue_to(name);
        Identity::from_pem(pem("CERTIFICATE", &certificate), pem("PRIVATE KEY", &key))
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der))
}

/// A certificate of the server's, and whom client certificates name.
fn files(folder: &Path, authority: &Authority, callers: &serde_json::Value) -> TlsFiles {
    let (certificate, key) = authority.issue(vec![SanType::IpAddress([127, 0, 0, 1].into())]);
    let write = |name: &str, content: &str| {
        let path = folder.join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    TlsFiles {
        certificate: write("server.pem", &pem("CERTIFICATE", &certificate)),
        key: write("server-key.pem", &pem("PRIVATE KEY", &key)),
        client_ca: Some(write("clients.pem", &authority.pem)),
        callers: Some(write("callers.json", &callers.to_string())),
    }
}

fn callers() -> serde_json::Value {
    json!([{"san": STOREFRONT, "tenant": "shop", "scopes": ["touchpoint.read"]}])
}

/// A session-svc that takes client certificates.
struct Secured {
    stack: Stack,
    service: Service,
    authority: Authority,
}

impl Secured {
    fn start() -> Self {
        let (stack, authority) = (Stack::prepare(), Authority::new());
        let tls = Some(files(stack.folder(), &authority, &callers()));
        let service = stack.session_svc(&Options { tls, ..Options::default() });
        Self { stack, service, authority }
    }

    /// A connection of its own that shows this certificate.
    fn connect(&self, identity: impl Into<Option<Identity>>) -> Channel {
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&self.authority.pem));
        let tls = match identity.into() {
            Some(identity) => tls.identity(identity),
            None => tls,
        };
        let endpoint = Endpoint::from_shared(format!("https://{}", self.service.address)).unwrap();
        endpoint.tls_config(tls).unwrap().connect_lazy()
    }

    /// Someone on this connection who shows no bearer.
    fn caller(&self, channel: Channel) -> Caller {
        let token = self.stack.token(&workload("reader"));
        Caller::new(&token, Some(channel), None).with_header(None)
    }
}

async fn list(caller: &Caller) -> Result<Response<()>, Status> {
    let request = ListTouchpointsRequest::default();
    let answer = caller.touchpoints().list_touchpoints(request).await;
    answer.map(|response| response.map(drop))
}

#[tokio::test]
async fn a_listed_name_may_do_what_its_entry_says() {
    let secured = Secured::start();
    let caller = secured.caller(secured.connect(secured.authority.identity(STOREFRONT)));
    list(&caller).await.answer();
    let status = caller
        .sessions()
        .list_sessions(shared::pb::session::ListSessionsRequest::default())
        .await;
    status.refused(Code::PermissionDenied, "CALLER_SCOPE_MISSING");
}

#[tokio::test]
async fn whoever_shows_neither_name_nor_bearer_is_nobody() {
    let secured = Secured::start();
    let unknown = secured.connect(secured.authority.identity("spiffe://shop.example/storefront2"));
    list(&secured.caller(unknown.clone()))
        .await
        .refused(Code::Unauthenticated, "CALLER_CERTIFICATE_UNKNOWN");
    let bare = secured.connect(None);
    list(&secured.caller(bare.clone()))
        .await
        .refused(Code::Unauthenticated, "CALLER_CREDENTIAL_MISSING");
    HealthClient::new(bare.clone())
        .check(HealthCheckRequest::default())
        .await
        .answer();
    for channel in [unknown, bare] {
        // A bearer counts before the certificate.
        let header = format!("Bearer {}", secured.stack.token(&workload("reader")));
        list(&secured.caller(channel).with_header(Some(&header))).await.answer();
    }
    let bad = secured.connect(secured.authority.identity(STOREFRONT));
    list(&secured.caller(bad).with_header(Some("Bearer nonsense")))
        .await
        .refused(Code::Unauthenticated, "CALLER_CREDENTIAL_MALFORMED");
}

#[tokio::test]
async fn a_certificate_of_another_authority_and_plain_text_do_not_get_in() {
    let secured = Secured::start();
    let foreign = secured.connect(Authority::new().identity(STOREFRONT));
    let plain = Endpoint::from_shared(format!("http://{}", secured.service.address)).unwrap();
    for channel in [foreign, plain.connect_lazy()] {
        let status = list(&secured.caller(channel)).await.unwrap_err();
        // How the transport words it depends on which side is faster; no service of ours answered.
        assert_eq!(reason_of(&status), "", "{status:?}");
    }
    list(&secured.caller(secured.connect(secured.authority.identity(STOREFRONT))))
        .await
        .answer();
}

#[tokio::test]
async fn a_certificate_expires_on_a_living_connection() {
    let secured = Secured::start();
    let caller = secured.caller(secured.connect(secured.authority.identity(STOREFRONT)));
    list(&caller).await.answer();
    secured.stack.advance(TimeDelta::days(27_000));
    list(&caller).await.refused(Code::Unauthenticated, "CALLER_CREDENTIAL_EXPIRED");
}

#[tokio::test]
async fn session_svc_follows_a_release_svc_behind_tls() {
    let (mut stack, authority) = (Stack::prepare(), Authority::new());
    let tls = Some(files(stack.folder(), &authority, &json!([])));
    let release = stack.release_svc(&Options { tls, ..Options::default() });
    let linked =
        |pem| Options { release: Some(release.address), release_ca: Some(pem), ..Options::default() };
    stack.session = Some(stack.session_svc(&linked(authority.pem.clone())));
    let deceived = stack.session_svc(&linked(Authority::new().pem));
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&authority.pem));
    let endpoint = Endpoint::from_shared(format!("https://{}", release.address)).unwrap();
    let channel = endpoint.tls_config(tls).unwrap().connect_lazy();
    let ada = Caller::new(&stack.token(&person("ada")), None, Some(channel));
    create_catalog(&ada).await;
    ship(&ada, "1.0", &[]).await;
    let mut db = stack.database.connect().await;
    let mut replicas = async || -> i64 {
        let sql = "select count(distinct replica_id) from release.routes_applied where revision > 0";
        sqlx::query_scalar(sql).fetch_one(&mut db).await.unwrap()
    };
    let began = std::time::Instant::now();
    while replicas().await == 0 {
        assert!(began.elapsed() < Duration::from_secs(15), "no report came over TLS");
        tokio::time::sleep(Duration::from_millis(15)).await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(replicas().await, 1, "one trusts another authority, and is not linked");
    drop(deceived);
}

#[test]
fn files_that_cannot_be_used_are_refused_by_name() {
    let (stack, authority) = (Stack::prepare(), Authority::new());
    let files = files(stack.folder(), &authority, &callers());
    let refused = |changed: &TlsFiles| Tls::open(changed.clone()).err().expect("is refused").to_string();
    let other = authority.issue(vec![]).1;
    std::fs::write(stack.folder().join("other-key.pem"), pem("PRIVATE KEY", &other)).unwrap();
    refused(&TlsFiles { key: stack.folder().join("other-key.pem"), ..files.clone() });
    refused(&TlsFiles { certificate: files.key.clone(), ..files.clone() });
    refused(&TlsFiles { client_ca: Some(files.key.clone()), ..files.clone() });
    let list = files.callers.clone().unwrap();
    let twice = json!([callers()[0], callers()[0]]).to_string();
    let no_tenant = json!([{"san": "a", "tenant": "No Tenant", "scopes": []}]).to_string();
    for (bad, named) in [("{}", "callers.json"), (&twice, STOREFRONT), (&no_tenant, "tenant")] {
        std::fs::write(&list, bad).unwrap();
        assert!(refused(&files).contains(named), "{bad}");
    }
}

#[test]
fn files_are_read_again_and_what_cannot_be_used_changes_nothing() {
    let (stack, authority) = (Stack::prepare(), Authority::new());
    let files = files(stack.folder(), &authority, &callers());
    let tls = Tls::open(files.clone()).unwrap();
    let (certificate, _) = authority.issue_to(STOREFRONT);
    let is_known = || {
        tls.refresh();
        tls.caller(&certificate, stack.now()).is_ok()
    };
    assert!(is_known());
    let write = |content: &str| std::fs::write(files.callers.as_ref().unwrap(), content).unwrap();
    write("[");
    assert!(is_known());
    write("[]");
    assert!(!is_known());
    write(&callers().to_string());
    assert!(is_known());
}
