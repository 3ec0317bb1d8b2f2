//! A storefront to deploy: a small HTTP server that answers which version it is. `deploy.sh` beside it starts and stops it
//! for `tandem executor`.

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use clap::Parser as _;
use hyper::Response;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;

/// A shop that says its version
#[derive(clap::Parser)]
struct Args {
    /// Which it is
    version: String,
    /// File to write the address to, once it listens
    #[arg(long, value_name = "FILE")]
    address_file: PathBuf,
}

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let Args { version, address_file } = Args::parse();
    // Any free port, so that versions run side by side.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    std::fs::write(address_file, listener.local_addr()?.to_string())?;
    let answer = format!("storefront {version}\n");
    let connections = TaskTracker::new();
    loop {
        let (stream, _) = listener.accept().await?;
        let answer = answer.clone();
        let answer = service_fn(move |_| {
            let answer = answer.clone();
            async move { Ok::<_, Infallible>(Response::new(answer)) }
        });
        connections.spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
    }
}
