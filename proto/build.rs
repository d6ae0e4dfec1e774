//! Compiles the protocol definitions without an installed `protoc`.

use std::{env, fs, path::PathBuf};

use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "control/v1/common.proto",
        "control/v1/collector.proto",
        "control/v1/bridge.proto",
        "control/v1/engine.proto",
        "data/v1/bridge.proto",
    ];
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().bytes(".millrace.data.v1").compile_fds(descriptors)?;
    Ok(())
}
