# syntax=docker/dockerfile:1

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
# How the allocator is built.
COPY .cargo/config.toml .cargo/
# Members of the workspace, which are not built here.
COPY fuzz/Cargo.toml fuzz/
COPY benches/Cargo.toml benches/
COPY src src
COPY sql sql
# What the program carries in itself.
COPY examples examples
# The caches keep a second build short; what leaves them is copied out.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --bin rowcast && cp target/release/rowcast /rowcast

FROM debian:bookworm-slim
# For the health check alone.
RUN apt-get update \
 && apt-get install -y --no-install-recommends curl \
 && rm -rf /var/lib/apt/lists/*
RUN useradd --system --uid 10001 --home-dir /var/lib/rowcast --create-home rowcast
COPY --from=build /rowcast /usr/local/bin/rowcast
USER rowcast
WORKDIR /var/lib/rowcast
# The log of changes: without a volume, a new container means a new log, and devices sync anew.
ENV ROWCAST_DATA_DIR=/var/lib/rowcast/data \
    ROWCAST_LISTEN=0.0.0.0:4000
RUN mkdir data
VOLUME /var/lib/rowcast/data
EXPOSE 4000
# Whether the process answers. Whether devices get what commits now is /ready, for the load balancer.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
    CMD ["curl", "-fsS", "-o", "/dev/null", "http://127.0.0.1:4000/health"]
# SIGTERM ends it in order, within shutdown_grace (10 s).
STOPSIGNAL SIGTERM
ENTRYPOINT ["rowcast"]
CMD ["serve"]
