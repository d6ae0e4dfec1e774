# syntax=docker/dockerfile:1
# millrace-bridge: Kafka over HTTP and gRPC. Build from the repository's root:
#   docker build -f deploy/images/bridge.Dockerfile -t millrace-bridge:0.1.0 .
# A release pins the base by digest: --build-arg RUST=rust:1.95.0-bookworm@sha256:…
ARG RUST=rust:1.95.0-bookworm

FROM ${RUST} AS build
# The linker of .cargo/config.toml, and what librdkafka is built with.
RUN --mount=type=cache,target=/var/cache/apt,sharing=locked --mount=type=cache,target=/var/lib/apt,sharing=locked \
    apt-get update && apt-get install -y --no-install-recommends ca-certificates clang cmake libssl-dev mold pkg-config zlib1g-dev
# The toolchain of the image, instead of another download for rust-toolchain.toml.
ENV RUSTUP_TOOLCHAIN=1.95.0
WORKDIR /src
COPY Cargo.toml Cargo.lock rust-toolchain.toml ./
COPY .cargo .cargo
COPY proto proto
COPY service-kit service-kit
COPY collector collector
COPY broker-bridge broker-bridge
COPY stream-engine stream-engine
COPY admin-cli admin-cli
COPY examples examples
COPY integration-tests integration-tests
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked --mount=type=cache,target=/target,id=millrace-bridge,sharing=locked \
    CARGO_TARGET_DIR=/target cargo build --release --locked -p broker-bridge --bin millrace-bridge \
    && install -s /target/release/millrace-bridge /millrace-bridge
COPY deploy/images/rootfs /rootfs.sh
RUN /rootfs.sh /millrace-bridge /rootfs

FROM scratch
COPY --from=build /rootfs /
USER 65532:65532
WORKDIR /var/lib/millrace
EXPOSE 7102 8081 8082
ENTRYPOINT ["/usr/bin/millrace-bridge"]
CMD ["serve", "--config=/etc/millrace/bridge.toml"]
