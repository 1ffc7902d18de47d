//! The frontend `dockerfile.v0`.
