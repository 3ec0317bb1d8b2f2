//! Flags and `TANDEM_*` variables. clap takes them as text; we parse, so that every bad one is reported at once.
//!
//! The one place that reads the environment.

use std::fmt::Display;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use chrono::TimeDelta;

use crate::auth::Authenticator;
use crate::edge::Limits;
use crate::keyring::KeyRing;
use crate::keys::Keys;
use crate::secret::Secret;
use crate::tls::{Tls, TlsFiles};
use crate::webhook::Networks;

/// Settings of either service.
#[derive(Clone, clap::Args)]
pub struct ServiceArgs {
    /// Address to listen on, IP:PORT; port 0 lets the system choose
    #[arg(long, env = "TANDEM_LISTEN", value_name = "ADDRESS")]
    pub listen: Option<String>,
    /// PostgreSQL to keep data in: postgres://user:password@host:port/database
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL")]
    pub database_url: Option<String>,
    /// Most connections to PostgreSQL, 2 to 500 [default: 16]
    #[arg(long, env = "TANDEM_DATABASE_CONNECTIONS", value_name = "N")]
    pub database_connections: Option<String>,
    /// JSON file that names the issuers of callers' access tokens (docs/configuration.md)
    #[arg(long, env = "TANDEM_ISSUERS", value_name = "FILE")]
    pub issuers: Option<String>,
    /// PEM file with the server's certificate and those between it and its root; without one it speaks plain text
    #[arg(long, env = "TANDEM_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<String>,
    /// PEM file with the certificate's key
    #[arg(long, env = "TANDEM_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<String>,
    /// PEM file with the authorities whose client certificates are taken
    #[arg(long, env = "TANDEM_TLS_CLIENT_CA", value_name = "FILE")]
    pub tls_client_ca: Option<String>,
    /// JSON file that says whom client certificates name (docs/configuration.md)
    #[arg(long, env = "TANDEM_TLS_CALLERS", value_name = "FILE")]
    pub tls_callers: Option<String>,
    /// JSON file with the key ring (docs/configuration.md), read again when it changes; `TANDEM_KEYRING_JSON`, its
    /// content, goes before it and is read once
    #[arg(long, env = "TANDEM_KEYRING", value_name = "FILE")]
    pub keyring: Option<String>,
    /// Whether to answer gRPC reflection, true or false [default: false]
    #[arg(long, env = "TANDEM_REFLECTION", value_name = "BOOL")]
    pub reflection: Option<String>,
    /// Most calls in flight; beyond it callers are told to retry, 1 to 100000 [default: 1024]
    #[arg(long, env = "TANDEM_IN_FLIGHT_MAX", value_name = "N")]
    pub in_flight_max: Option<String>,
    /// Most event and route streams open; beyond it callers are told to retry, 1 to 100000 [default: 2000]
    #[arg(long, env = "TANDEM_STREAMS_MAX", value_name = "N")]
    pub streams_max: Option<String>,
    /// Calls a second that one caller may make; beyond it it is told to retry, 1 to 10000000 [default: 10000]
    #[arg(long, env = "TANDEM_CALLER_RATE", value_name = "N")]
    pub caller_rate: Option<String>,
    /// Longest to wait for calls in flight on shutdown, in seconds, 0 to 300 [default: 20]
    #[arg(long, env = "TANDEM_DRAIN_SECONDS", value_name = "SECONDS")]
    pub drain_seconds: Option<String>,
    /// For how many hours events are kept, 1 to 8760 [default: 72 in session-svc; release-svc, whose events are its audit
    /// trail, keeps them all]
    #[arg(long, env = "TANDEM_EVENT_RETENTION_HOURS", value_name = "HOURS")]
    pub event_retention_hours: Option<String>,
    /// Private networks that webhooks may be sent to, also by plain http, such as `10.1.0.0/16,fd00:1::/64`
    /// [default: none]
    #[arg(long, env = "TANDEM_WEBHOOK_ALLOW_PRIVATE", value_name = "NETWORKS")]
    pub webhook_allow_private: Option<String>,
    /// Which logs to write, such as `info` or `warn,session_svc=debug` [default: info]
    #[arg(long, env = "TANDEM_LOG", value_name = "FILTER")]
    pub log: Option<String>,
    /// How to write logs, text or json [default: text]
    #[arg(long, env = "TANDEM_LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// Stop when standard input is closed, as the local stack wants it
    #[arg(long, hide = true)]
    pub stop_with_stdin: bool,
    /// Write the address to this file once listening, as the local stack wants it
    #[arg(long, hide = true, value_name = "FILE")]
    pub address_file: Option<PathBuf>,
}

/// [`ServiceArgs`], parsed.
pub struct ServiceConfig {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Where data is.
    pub database_url: Secret<String>,
    /// Most connections there.
    pub database_connections: u32,
    /// Who may call.
    pub authenticator: Authenticator,
    /// Our certificate, and callers known by theirs.
    pub tls: Option<Tls>,
    /// Keys of ours.
    pub keys: Keys,
    /// Whether to describe ourselves.
    pub reflection: bool,
    /// What is taken at once, and of each caller.
    pub limits: Limits,
    /// Patience on shutdown.
    pub drain: std::time::Duration,
    /// For how long events are kept, if that was set.
    pub event_retention: Option<TimeDelta>,
    /// Private networks that webhooks may be sent to.
    pub webhook_networks: Networks,
    /// Whether the end of standard input is a signal to stop.
    pub stop_with_stdin: bool,
    /// Where to write the address.
    pub address_file: Option<PathBuf>,
}

/// How logs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines, one object a line.
    Json,
}

impl FromStr for LogFormat {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("must be text or json"),
        }
    }
}

/// Everything that is wrong with the settings, each a sentence.
#[derive(Debug, Default, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct Problems(Vec<String>);

impl Problems {
    /// Notes what is wrong with a setting.
    pub fn add(&mut self, setting: &str, problem: impl Display) {
        self.0.push(format!("{setting}: {problem}"));
    }

    /// The value, or a note that it is missing or wrong.
    pub fn required<T: FromStr<Err: Display>>(&mut self, setting: &str, text: Option<&str>) -> Option<T> {
        if text.is_none() {
            self.add(setting, "is required");
        }
        self.optional(setting, text)
    }

    /// The value if there is one, or a note that it is wrong.
    pub fn optional<T: FromStr<Err: Display>>(&mut self, setting: &str, text: Option<&str>) -> Option<T> {
        match text?.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.add(setting, format_args!("{:?}: {error}", text.unwrap_or_default()));
                None
            }
        }
    }

    /// The number in its range, or the default, or a note that it is wrong.
    pub fn number(&mut self, setting: &str, text: Option<&str>, default: u32, min: u32, max: u32) -> u32 {
        let number = self.optional(setting, text).unwrap_or(default);
        if !(min..=max).contains(&number) {
            self.add(setting, format_args!("must be {min} to {max}"));
        }
        number
    }

    /// What was parsed elsewhere, if nothing was wrong there or here.
    pub fn and<T>(mut self, other: Result<T, Self>) -> Result<T, Self> {
        match other {
            Ok(value) => self.check(Some(value)),
            Err(problems) => {
                self.0.extend(problems.0);
                Err(self)
            }
        }
    }

    /// The value, if nothing at all was wrong.
    pub fn check<T>(self, value: Option<T>) -> Result<T, Self> {
        match value {
            Some(value) if self.0.is_empty() => Ok(value),
            _ => Err(self),
        }
    }
}

impl ServiceArgs {
    /// Parses everything; `service_url` is the service's own database variable and goes before `DATABASE_URL`.
    pub fn parse(
        self,
        default_listen: &str,
        service_url: Option<String>,
        problems: &mut Problems,
    ) -> Option<ServiceConfig> {
        let listen =
            problems.required("TANDEM_LISTEN", Some(self.listen.as_deref().unwrap_or(default_listen)));
        let url: Option<String> =
            problems.required("DATABASE_URL", service_url.or(self.database_url).as_deref());
        let connections = self.database_connections.as_deref();
        let database_connections = problems.number("TANDEM_DATABASE_CONNECTIONS", connections, 16, 2, 500);
        let reflection = problems
            .optional("TANDEM_REFLECTION", self.reflection.as_deref())
            .unwrap_or(false);
        let in_flight_max =
            problems.number("TANDEM_IN_FLIGHT_MAX", self.in_flight_max.as_deref(), 1024, 1, 100_000);
        let streams = problems.number("TANDEM_STREAMS_MAX", self.streams_max.as_deref(), 2000, 1, 100_000);
        let caller_rate =
            problems.number("TANDEM_CALLER_RATE", self.caller_rate.as_deref(), 10_000, 1, 10_000_000);
        let drain_seconds =
            problems.number("TANDEM_DRAIN_SECONDS", self.drain_seconds.as_deref(), 20, 0, 300);
        let event_retention = self.event_retention_hours.as_deref().map(|hours| {
            let hours = problems.number("TANDEM_EVENT_RETENTION_HOURS", Some(hours), 72, 1, 8760);
            TimeDelta::hours(hours.into())
        });
        let webhook_networks =
            problems.optional("TANDEM_WEBHOOK_ALLOW_PRIVATE", self.webhook_allow_private.as_deref());
        let issuers: Option<PathBuf> = problems.required("TANDEM_ISSUERS", self.issuers.as_deref());
        let authenticator = issuers.and_then(|path| {
            Authenticator::open(&path)
                .map_err(|error| problems.add("TANDEM_ISSUERS", error))
                .ok()
        });
        let tls = read_tls([self.tls_cert, self.tls_key, self.tls_client_ca, self.tls_callers], problems);
        let keys = read_keys(self.keyring.as_deref(), problems);
        Some(ServiceConfig {
            listen: listen?,
            database_url: Secret::new(url?),
            database_connections,
            authenticator: authenticator?,
            tls,
            keys: keys?,
            reflection,
            limits: Limits {
                in_flight: in_flight_max as usize,
                streams: streams as usize,
                caller_rate: NonZeroU32::new(caller_rate)?,
            },
            drain: std::time::Duration::from_secs(drain_seconds.into()),
            event_retention,
            webhook_networks: webhook_networks.unwrap_or_default(),
            stop_with_stdin: self.stop_with_stdin,
            address_file: self.address_file,
        })
    }
}

/// Certificate, key, authorities of clients, callers. What is given in part is a problem, not half of a protection.
fn read_tls(files: [Option<String>; 4], problems: &mut Problems) -> Option<Tls> {
    match files.map(|file| file.map(PathBuf::from)) {
        [None, None, None, None] => {}
        [None, _, _, _] | [_, None, _, _] => {
            problems.add("TANDEM_TLS_CERT", "goes with TANDEM_TLS_KEY, and the other TANDEM_TLS_* need both");
        }
        [_, _, None, Some(_)] => problems.add("TANDEM_TLS_CALLERS", "needs TANDEM_TLS_CLIENT_CA"),
        [Some(certificate), Some(key), client_ca, callers] => {
            let tls = Tls::open(TlsFiles { certificate, key, client_ca, callers });
            return tls.map_err(|error| problems.add("TANDEM_TLS_*", error)).ok();
        }
    }
    None
}

/// From the variable, which shows in no list of processes and stays as it is, or from the file, which is followed.
fn read_keys(file: Option<&str>, problems: &mut Problems) -> Option<Keys> {
    let (setting, keys) = match (variable("TANDEM_KEYRING_JSON").map(Secret::new), file) {
        (Some(json), _) => {
            ("TANDEM_KEYRING_JSON", KeyRing::parse(json.expose()).map(Keys::fixed).map_err(Into::into))
        }
        (None, Some(file)) => ("TANDEM_KEYRING", Keys::open(Path::new(file))),
        (None, None) => {
            problems.add("TANDEM_KEYRING", "is required (or TANDEM_KEYRING_JSON)");
            return None;
        }
    };
    keys.map_err(|error| problems.add(setting, error)).ok()
}

/// A variable of the environment; what is not Unicode counts as unset.
#[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Whether an OTLP endpoint is configured.
pub fn exports_telemetry() -> bool {
    let endpoints = [
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
    ];
    endpoints.into_iter().any(|name| variable(name).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bad_setting_is_reported_at_once() {
        let args = ServiceArgs {
            listen: Some("nowhere".to_owned()),
            database_url: None,
            database_connections: Some("1".to_owned()),
            issuers: Some("/no/such/file".to_owned()),
            tls_cert: Some("/no/such/file".to_owned()),
            tls_key: None,
            tls_client_ca: None,
            tls_callers: None,
            keyring: Some("/no/such/file".to_owned()),
            reflection: Some("perhaps".to_owned()),
            in_flight_max: None,
            streams_max: None,
            caller_rate: None,
            drain_seconds: None,
            event_retention_hours: Some("0".to_owned()),
            webhook_allow_private: Some("yes".to_owned()),
            log: None,
            log_format: None,
            stop_with_stdin: false,
            address_file: None,
        };
        let mut problems = Problems::default();
        assert!(args.parse("127.0.0.1:0", None, &mut problems).is_none());
        let text = problems.to_string();
        for setting in [
            "LISTEN",
            "DATABASE_URL",
            "CONNECTIONS",
            "ISSUERS",
            "TLS_CERT",
            "KEYRING",
            "REFLECTION",
            "RETENTION",
            "ALLOW_PRIVATE",
        ] {
            assert_eq!(text.matches(setting).count(), 1, "{setting} in {text}");
        }
    }
}
