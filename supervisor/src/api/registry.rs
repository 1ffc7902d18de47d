//! `berth.registry.v1`: questions to registries that containerd's services have no call for.

use std::sync::Arc;

use proto::{
    berth::registry::v1::{
        Auth, LoginRequest, LoginResponse, ResolveRequest, ResolveResponse, SearchRequest, SearchResponse,
        SearchResult, TagsRequest, TagsResponse, registry_server,
    },
    image_ref::ImageRef,
};
use tonic::{Request, Response, Status, async_trait};

use crate::{
    failure::status,
    images::manifest::Platform,
    registry::{Access, Credential, Credentials, Known, Registries, Registry, Wish, log_in, own_authority, search},
};

/// The registry whose images have no host in their names.
const HUB: &str = "docker.io";
/// Results of a search, unless another number is asked for.
const RESULTS: i32 = 25;
/// Results of a search at most (docker's rule).
const MOST_RESULTS: i32 = 100;

/// The service over the configured registries.
pub(crate) struct RegistryService {
    registries: Arc<Registries>,
}

impl RegistryService {
    /// The service over these.
    pub(crate) fn new(registries: Arc<Registries>) -> Self {
        Self { registries }
    }

    fn open(&self, reference: &str, host_dir: &str, auth: Option<Auth>) -> Result<(ImageRef, Registry), Status> {
        let image: ImageRef = reference
            .parse()
            .map_err(|error: proto::image_ref::ImageRefError| Status::invalid_argument(error.to_string()))?;
        let image = image.with_default_tag();
        let access = Access {
            host_dir: host_dir.to_owned(),
            scheme: String::new(),
            headers: Default::default(),
            credentials: known(auth, image.domain()),
        };
        let registry = self.registries.open(&image, &access).map_err(status)?;
        Ok((image, registry))
    }
}

fn known(auth: Option<Auth>, domain: &str) -> Arc<dyn Credentials> {
    let credential = auth.and_then(|auth| {
        let Auth { username, password, identity_token, registry_token } = auth;
        if !registry_token.is_empty() {
            Some(Credential::Header(format!("Bearer {registry_token}")))
        } else if !identity_token.is_empty() {
            Some(Credential::Refresh(identity_token))
        } else {
            let given = !username.is_empty() || !password.is_empty();
            given.then_some(Credential::Password { user: username, secret: password })
        }
    });
    Arc::new(Known { host: own_authority(domain), credential })
}

/// The registry of an address: `https://HOST/v1/` and `HOST` mean the same, and the hub has three names.
pub(crate) fn domain_of(address: &str) -> String {
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    let host = rest.split('/').next().unwrap_or_default();
    match host {
        "" => HUB.to_owned(),
        host if host.strip_suffix(HUB).is_some_and(|name| matches!(name, "index." | "registry-1.")) => HUB.to_owned(),
        host => host.to_owned(),
    }
}

#[async_trait]
impl registry_server::Registry for RegistryService {
    async fn resolve(&self, request: Request<ResolveRequest>) -> Result<Response<ResolveResponse>, Status> {
        let ResolveRequest { reference, with_config, platform, host_dir, auth } = request.into_inner();
        let (image, registry) = self.open(&reference, &host_dir, auth)?;
        // A digest counts before a tag: it says which image is meant.
        let reference = match (image.digest(), image.tag()) {
            (Some(digest), _) => digest.to_string(),
            (None, tag) => tag.unwrap_or_default().to_owned(),
        };
        let resolved = registry.resolve(&reference).await.map_err(status)?;
        let mut answer = ResolveResponse {
            media_type: resolved.media_type.clone(),
            digest: resolved.digest.to_string(),
            size: resolved.bytes.len() as i64,
            ..Default::default()
        };
        if with_config {
            let platform = platform.map_or_else(Platform::host, Platform::from_proto);
            let (image, config) = registry.image_of(&resolved, &platform).await.map_err(status)?;
            answer.image_media_type = image.media_type;
            answer.image_digest = image.digest.to_string();
            answer.image_manifest = image.bytes;
            answer.config = config;
        }
        answer.manifest = resolved.bytes;
        Ok(Response::new(answer))
    }

    async fn tags(&self, request: Request<TagsRequest>) -> Result<Response<TagsResponse>, Status> {
        let TagsRequest { reference, host_dir, auth } = request.into_inner();
        let (_, registry) = self.open(&reference, &host_dir, auth)?;
        let tags = registry.tags().await.map_err(status)?;
        Ok(Response::new(TagsResponse { tags }))
    }

    async fn search(&self, request: Request<SearchRequest>) -> Result<Response<SearchResponse>, Status> {
        let SearchRequest { term, host, limit, filters, host_dir, auth } = request.into_inner();
        let limit = if limit == 0 { RESULTS } else { limit };
        if !(1..=MOST_RESULTS).contains(&limit) {
            return Err(Status::invalid_argument(format!("limit {limit} is outside the range of [1, {MOST_RESULTS}]")));
        }
        if term.is_empty() {
            return Err(Status::invalid_argument("search term is required"));
        }
        let filters = filters.unwrap_or_default();
        let host = if host.is_empty() { host } else { domain_of(&host) };
        let asked = if host.is_empty() || host == HUB { format!("index.{HUB}") } else { host.clone() };
        let wish = Wish {
            term,
            host,
            limit: limit.unsigned_abs(),
            is_official: filters.is_official,
            is_automated: filters.is_automated,
            stars: filters.stars,
        };
        let found = search(&self.registries, &wish, &host_dir, known(auth, &asked)).await.map_err(status)?;
        let results = found.into_iter().map(|found| SearchResult {
            name: found.name,
            description: found.description,
            star_count: found.star_count,
            is_official: found.is_official,
            is_automated: found.is_automated,
        });
        Ok(Response::new(SearchResponse { results: results.collect() }))
    }

    async fn login(&self, request: Request<LoginRequest>) -> Result<Response<LoginResponse>, Status> {
        let LoginRequest { host, host_dir, auth } = request.into_inner();
        let domain = domain_of(&host);
        let identity = log_in(&self.registries, &domain, &host_dir, known(auth, &domain)).await.map_err(status)?;
        let identity_token = identity.unwrap_or_default();
        Ok(Response::new(LoginResponse { status: "Login Succeeded".into(), identity_token }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_registries() {
        for (address, wanted) in [
            ("", "docker.io"),
            ("https://index.docker.io/v1/", "docker.io"),
            ("registry-1.docker.io", "docker.io"),
            ("docker.io", "docker.io"),
            ("https://reg.example:5000/v2/", "reg.example:5000"),
            ("reg.example", "reg.example"),
            ("mydocker.io", "mydocker.io"),
        ] {
            assert_eq!(domain_of(address), wanted);
        }
    }
}
