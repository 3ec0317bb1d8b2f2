//! An OTLP collector that forgets what it is told, so that servers are measured with their telemetry on. It runs in the
//! load tool: what it costs is nobody's but the tool's.

use std::net::{Ipv4Addr, SocketAddr};

use opentelemetry_proto::tonic::collector::metrics::v1 as metrics;
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1 as trace;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use tokio::net::TcpListener;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use crate::Outcome;

struct Collector;

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        _: Request<trace::ExportTraceServiceRequest>,
    ) -> Result<Response<trace::ExportTraceServiceResponse>, Status> {
        Ok(Response::new(trace::ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Collector {
    async fn export(
        &self,
        _: Request<metrics::ExportMetricsServiceRequest>,
    ) -> Result<Response<metrics::ExportMetricsServiceResponse>, Status> {
        Ok(Response::new(metrics::ExportMetricsServiceResponse::default()))
    }
}

/// Where it listens, and itself, to be polled for as long as it is needed.
pub(crate) async fn collector() -> Outcome<(SocketAddr, impl Future<Output = ()> + Send + 'static)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    let serving = tonic::transport::Server::builder()
        .add_service(TraceServiceServer::new(Collector))
        .add_service(MetricsServiceServer::new(Collector))
        .serve_with_incoming(TcpIncoming::from(listener));
    Ok((address, async move { drop(serving.await) }))
}
