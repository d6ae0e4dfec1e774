//! The only vocabulary that Millrace's services and clients share: messages, services, and the error table.

// Generated code is not held to this crate's lints.
#[allow(clippy::all, missing_docs, unreachable_pub, unused_qualifications)]
pub mod control {
    pub mod v1 {
        tonic::include_proto!("millrace.control.v1");
    }
}

#[allow(clippy::all, missing_docs, unreachable_pub, unused_qualifications)]
pub mod data {
    pub mod v1 {
        tonic::include_proto!("millrace.data.v1");
    }
}

mod status;
pub use status::{ErrorKind, ServiceError};

/// Every file above, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
