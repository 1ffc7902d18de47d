//! `-info`: what this shim and its OCI runtime can do.

use std::process::{Command, Stdio};

use proto::{
    containerd::types::{RuntimeInfo, RuntimeVersion},
    typeurl,
};

use crate::{bootstrap, oci, options};

/// Type url of a runtime's features as JSON.
const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// The answer for a caller that wrote `stdin`: runtime options as `Any`, or nothing.
pub(crate) fn info(stdin: &[u8]) -> RuntimeInfo {
    let options = options::read(bootstrap::options(stdin).as_ref()).unwrap_or_default();
    let program =
        if options.binary_name.is_empty() { oci::default_program() } else { options.binary_name.as_str().into() };
    // A runtime that has no such command has no features to tell of.
    let output = Command::new(program).arg("features").stdin(Stdio::null()).stderr(Stdio::null()).output().ok();
    let features =
        output.filter(|output| output.status.success() && output.stdout.trim_ascii_start().starts_with(b"{"));
    RuntimeInfo {
        name: "io.containerd.berth.v1".to_owned(),
        version: Some(RuntimeVersion { version: env!("CARGO_PKG_VERSION").to_owned(), revision: String::new() }),
        options: Some(typeurl::pack(&options)),
        features: features.map(|output| typeurl::pack_json(FEATURES, output.stdout)),
        ..RuntimeInfo::default()
    }
}
