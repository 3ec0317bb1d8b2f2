# syntax=docker/dockerfile:1
# One image for both services: `serve session` and `serve release`. Dependencies are built in a layer of their own,
# which only a change of Cargo.lock or of a manifest makes stale.
FROM rust:1.95-bookworm AS chef
RUN cargo install cargo-chef --version 0.1.78 --locked
WORKDIR /src
ENV SQLX_OFFLINE=true

FROM chef AS plan
COPY . .
RUN cargo chef prepare

FROM chef AS build
COPY --from=plan /src/recipe.json .
RUN cargo chef cook --release --locked --bin tandem
COPY . .
RUN cargo build --release --locked --bin tandem

FROM debian:bookworm-slim
ARG VERSION=dev
LABEL org.opencontainers.image.title="Tandem" \
      org.opencontainers.image.description="gRPC services for sessions that survive releases, and the releases" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /src/target/release/tandem /usr/local/bin/
# A named volume mounted here takes over the folder's owner, so that `tandem init` may write into it.
RUN install -d -o 10001 -g 10001 -m 0700 /etc/tandem
USER 10001:10001
# A container serves one service, on one port; `serve release` is given its own.
ENV TANDEM_LISTEN=0.0.0.0:50051
EXPOSE 50051 50052
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s --retries=3 \
  CMD ["sh", "-c", "exec tandem check \"$TANDEM_LISTEN\""]
ENTRYPOINT ["tandem"]
CMD ["--help"]
