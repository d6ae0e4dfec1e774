# syntax=docker/dockerfile:1
# millrace-engine: micro-batch jobs over Kafka. Build from the repository's root:
#   docker build -f deploy/images/engine.Dockerfile -t millrace-engine:0.1.0 .
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
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked --mount=type=cache,target=/target,id=millrace-engine,sharing=locked \
    CARGO_TARGET_DIR=/target cargo build --release --locked -p stream-engine --bin millrace-engine \
    && install -s /target/release/millrace-engine /millrace-engine
COPY deploy/images/rootfs /rootfs.sh
RUN /rootfs.sh /millrace-engine /rootfs

FROM scratch
COPY --from=build /rootfs /
USER 65532:65532
WORKDIR /var/lib/millrace
EXPOSE 7103 4040
ENTRYPOINT ["/usr/bin/millrace-engine"]
CMD ["serve", "--config=/etc/millrace/engine.toml"]
