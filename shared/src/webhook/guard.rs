//! Where webhooks may be sent: to public addresses by https, and to networks that the configuration names by http, too.
//!
//! It is the address connected to that is checked, when it is connected to: a name that is looked up twice may lead to
//! two places.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::Uri;
use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use tokio::net::TcpStream;

/// What is not for everyone: IANA's registry of special IPv4 addresses, multicast, and the reserved rest.
const SPECIAL_V4: [([u8; 4], u8); 15] = [
    ([0, 0, 0, 0], 8),       // this network
    ([10, 0, 0, 0], 8),      // private
    ([100, 64, 0, 0], 10),   // behind carriers' NAT
    ([127, 0, 0, 0], 8),     // loopback
    ([169, 254, 0, 0], 16),  // link-local, with clouds' metadata
    ([172, 16, 0, 0], 12),   // private
    ([192, 0, 0, 0], 24),    // protocol assignments
    ([192, 0, 2, 0], 24),    // documentation
    ([192, 88, 99, 0], 24),  // 6to4 relays
    ([192, 168, 0, 0], 16),  // private
    ([198, 18, 0, 0], 15),   // benchmarks
    ([198, 51, 100, 0], 24), // documentation
    ([203, 0, 113, 0], 24),  // documentation
    ([224, 0, 0, 0], 4),     // multicast
    ([240, 0, 0, 0], 4),     // reserved, and broadcast
];
/// Of `2000::/3`, outside of which nothing is public: what leads elsewhere or nowhere.
const SPECIAL_V6: [([u16; 2], u8); 4] = [
    ([0x2001, 0], 23),     // protocol assignments, with Teredo
    ([0x2001, 0xdb8], 32), // documentation
    ([0x2002, 0], 16),     // 6to4
    ([0x3fff, 0], 20),     // documentation
];

/// Networks that may be called though they are private, written `10.1.0.0/16,fd00:1::/64`.
#[derive(Debug, Clone, Default)]
pub struct Networks(Vec<IpNet>);

impl FromStr for Networks {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = |network: &str| {
            network
                .trim()
                .parse()
                .map_err(|_| format!("{network:?} is no network such as 10.1.0.0/16"))
        };
        text.split(',').map(parse).collect::<Result<_, _>>().map(Self)
    }
}

/// Decides where webhooks may go.
#[derive(Debug, Clone, Default)]
pub struct Guard {
    networks: Networks,
}

/// Why a URL cannot be connected to.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unreachable {
    /// It may not be. Does not say what the name leads to, which is not everyone's business.
    #[error("the host leads to an address that webhooks may not be sent to")]
    Refused,
    /// Anybody on the way could read it.
    #[error("plain http is only for networks that the server is configured for; use https")]
    PlainHttp,
    /// No such name, or nobody who knows.
    #[error("the host's name leads nowhere")]
    Unknown(#[source] std::io::Error),
    /// Nobody listens there, or nobody answers.
    #[error("the host takes no connection")]
    Deaf(#[source] std::io::Error),
}

impl Guard {
    /// Lets webhooks go to these networks beside all that is public.
    pub fn new(networks: Networks) -> Self {
        Self { networks }
    }

    fn admit(&self, address: IpAddr, is_tls: bool) -> Result<(), Unreachable> {
        // An IPv4 address in IPv6's clothes is one.
        let address = address.to_canonical();
        if self.networks.0.iter().any(|network| network.contains(&address)) {
            return Ok(());
        }
        match (is_public(address), is_tls) {
            (true, true) => Ok(()),
            (true, false) => Err(Unreachable::PlainHttp),
            (false, _) => Err(Unreachable::Refused),
        }
    }

    /// Where the URL leads, if it may be gone to. One bad address among good ones spoils them.
    pub(super) async fn resolve(&self, uri: &Uri) -> Result<Vec<SocketAddr>, Unreachable> {
        let is_tls = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let host = uri.host().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let addresses: Vec<_> = tokio::net::lookup_host((host, port))
            .await
            .map_err(Unreachable::Unknown)?
            .collect();
        for address in &addresses {
            self.admit(address.ip(), is_tls)?;
        }
        Ok(addresses)
    }
}

fn is_public(address: IpAddr) -> bool {
    let v4_in = |address: Ipv4Addr, (network, bits): ([u8; 4], u8)| {
        (address.to_bits() ^ u32::from_be_bytes(network)) >> (32 - u32::from(bits)) == 0
    };
    let v6_in = |address: Ipv6Addr, ([a, b], bits): ([u16; 2], u8)| {
        let network = Ipv6Addr::new(a, b, 0, 0, 0, 0, 0, 0);
        (address.to_bits() ^ network.to_bits()) >> (128 - u32::from(bits)) == 0
    };
    match address {
        IpAddr::V4(address) => !SPECIAL_V4.into_iter().any(|network| v4_in(address, network)),
        IpAddr::V6(address) => {
            v6_in(address, ([0x2000, 0], 3)) && !SPECIAL_V6.into_iter().any(|network| v6_in(address, network))
        }
    }
}

/// Connects where the guard lets it.
#[derive(Clone)]
pub(super) struct Connector(pub(super) Arc<Guard>);

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connector")
    }
}

impl tower::Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = Unreachable;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Unreachable>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Unreachable>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let guard = Arc::clone(&self.0);
        Box::pin(async move {
            let addresses = guard.resolve(&uri).await?;
            Ok(TokioIo::new(TcpStream::connect(&*addresses).await.map_err(Unreachable::Deaf)?))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admits(networks: &str, address: &str, is_tls: bool) -> bool {
        let networks = if networks.is_empty() { Networks::default() } else { networks.parse().unwrap() };
        Guard::new(networks).admit(address.parse().unwrap(), is_tls).is_ok()
    }

    #[test]
    fn what_is_not_public_is_refused_in_every_clothing() {
        let private = [
            "0.0.0.0",
            "10.0.0.1",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.255.255",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
        ];
        for address in private {
            assert!(!admits("", address, true), "{address}");
            assert!(!admits("", &format!("::ffff:{address}"), true), "{address} in IPv6");
            assert!(!admits("", &format!("::{address}"), true), "{address} as a compatible one");
            assert!(!admits("", &format!("64:ff9b::{address}"), true), "{address} behind NAT64");
        }
        let private = [
            "::",
            "::1",
            "fe80::1",
            "fec0::1",
            "fc00::1",
            "fd00:ec2::254",
            "ff02::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "3fff::1",
            "100::1",
            "5f00::1",
            "64:ff9b:1::1",
            "4000::1",
        ];
        for address in private {
            assert!(!admits("", address, true), "{address}");
        }
    }

    #[test]
    fn what_is_public_is_called_by_https_only() {
        for address in
            ["1.1.1.1", "8.8.8.8", "100.63.255.255", "172.32.0.1", "2606:4700::1111", "2001:4860::8888"]
        {
            assert!(admits("", address, true), "{address}");
            assert!(!admits("", address, false), "{address} in plain text");
        }
    }

    #[test]
    fn networks_that_are_named_may_be_called_and_no_others() {
        let networks = "10.1.0.0/16, fd00:1::/64";
        for address in ["10.1.2.3", "::ffff:10.1.2.3", "fd00:1::5"] {
            assert!(admits(networks, address, true) && admits(networks, address, false), "{address}");
        }
        for address in ["10.2.0.1", "127.0.0.1", "169.254.169.254", "fd00:2::5"] {
            assert!(!admits(networks, address, true), "{address}");
        }
        for bad in ["yes", "10.1.0.0/33", "10.1.0.0/16,", ""] {
            assert!(bad.parse::<Networks>().is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn names_and_odd_spellings_are_judged_by_where_they_lead() {
        let guard = Guard::default();
        for url in [
            "https://localhost/",
            "https://127.1/",
            "https://2130706433/",
            "https://0x7f000001/",
            "https://[::1]/",
        ] {
            let refused = guard.resolve(&url.parse().unwrap()).await;
            assert!(
                matches!(refused, Err(Unreachable::Refused | Unreachable::Unknown(_))),
                "{url} {refused:?}"
            );
        }
    }
}
