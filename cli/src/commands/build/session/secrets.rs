//! Secrets: read when a step asks for them, and kept nowhere.

use crate::commands::build::specs::SecretSource;
use proto::moby::buildkit::secrets::v1::secrets_server::Secrets as SecretsService;
use proto::moby::buildkit::secrets::v1::{GetSecretRequest, GetSecretResponse};
use std::collections::BTreeMap;
use std::io::Read;
use tonic::{Request, Response, Status};

/// Largest secret, as BuildKit has it.
const LARGEST: u64 = 500 << 10;

/// Secrets by name.
pub struct Secrets {
    sources: BTreeMap<String, SecretSource>,
}

impl Secrets {
    /// These, and no others.
    pub fn new(sources: BTreeMap<String, SecretSource>) -> Self {
        Self { sources }
    }
}

#[tonic::async_trait]
impl SecretsService for Secrets {
    async fn get_secret(&self, request: Request<GetSecretRequest>) -> Result<Response<GetSecretResponse>, Status> {
        let id = request.into_inner().id;
        let Some(source) = self.sources.get(&id) else {
            return Err(Status::not_found(format!("secret {id}: not found")));
        };
        let data = read(source).map_err(|text| Status::unknown(format!("secret {id}: {text}")))?;
        if data.len() as u64 > LARGEST {
            return Err(Status::unknown(format!("secret {id}: larger than {LARGEST} bytes")));
        }
        Ok(Response::new(GetSecretResponse { data }))
    }
}

fn read(source: &SecretSource) -> Result<Vec<u8>, String> {
    match source {
        SecretSource::Variable(name) => {
            use std::os::unix::ffi::OsStringExt;
            std::env::var_os(name).map(OsStringExt::into_vec).ok_or_else(|| format!("the variable {name} is not set"))
        }
        SecretSource::File(path) => {
            let failed = |cause| format!("read {}: {cause}", path.display());
            let mut data = Vec::new();
            let file = std::fs::File::open(path).map_err(failed)?;
            file.take(LARGEST + 1).read_to_end(&mut data).map_err(failed)?;
            Ok(data)
        }
    }
}
