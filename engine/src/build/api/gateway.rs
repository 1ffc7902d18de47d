//! `moby.buildkit.v1.frontend.LLBBridge`: the builder as a frontend sees it. buildx is one itself: it has its build begin with
//! neither frontend nor graph, and then asks here, naming its build in the metadata [`BUILD`].

use super::{caps, status, workers};
use crate::build::{
    BuildError, Builder,
    backend::ImageWanted,
    frontend,
    running::{Build, Outcome, Reference, References},
};
use proto::{
    moby::buildkit::v1::{
        CacheOptionsEntry, VertexWarning,
        frontend::{
            Attestations, EvaluateRequest, EvaluateResponse, ExecMessage, InputsRequest, InputsResponse,
            NewContainerRequest, NewContainerResponse, PingRequest, PongResponse, ReadDirRequest, ReadDirResponse,
            ReadFileRequest, ReadFileResponse, Ref, RefMap, RefMapDeprecated, ReleaseContainerRequest,
            ReleaseContainerResponse, ResolveImageConfigRequest, ResolveImageConfigResponse, ResolveSourceGitResponse,
            ResolveSourceHttpResponse, ResolveSourceImageResponse, ResolveSourceMetaRequest, ResolveSourceMetaResponse,
            Result as Shown, ReturnRequest, ReturnResponse, SolveRequest, SolveResponse, StatFileRequest,
            StatFileResponse, WarnRequest, WarnResponse, llb_bridge_server::LlbBridge, result,
        },
    },
    pb,
};
use std::{collections::BTreeMap, path::Path, pin::Pin, sync::Arc};
use tonic::{Request, Response, Status, Streaming};

/// The metadata that names a build, as BuildKit's client has it.
const BUILD: &str = "buildkit-controlapi-buildid";

/// The service.
#[derive(Debug, Clone)]
pub struct GatewayService(pub Arc<Builder>);

type Processes = Pin<Box<dyn futures_util::Stream<Item = Result<ExecMessage, Status>> + Send>>;

/// Containers of frontends: they would need the same entitlements and limits as RUN (CVE-2024-23653).
fn no_containers(call: &str) -> Status {
    Status::unimplemented(format!(
        "LLBBridge.{call} is not implemented in berth: frontends can't have containers of their own"
    ))
}

impl GatewayService {
    /// The build that a call belongs to.
    async fn build<T>(&self, request: &Request<T>) -> Result<Arc<Build>, Status> {
        let id = request.metadata().get(BUILD).and_then(|value| value.to_str().ok()).unwrap_or_default();
        if id.is_empty() {
            return Err(Status::invalid_argument("no buildid found in context"));
        }
        let build = self.0.build(id).await?;
        if !build.is_open() {
            return Err(Status::failed_precondition(format!("build {id} isn't driven by its client")));
        }
        Ok(build)
    }

    async fn filesystem(
        &self,
        build: &Arc<Build>,
        reference: &str,
    ) -> Result<Arc<dyn crate::build::backend::Filesystem>, Status> {
        Ok(build.reference(reference)?.filesystem(build, self.0.backend()).await?)
    }

    async fn run(&self, request: &SolveRequest, build: &Arc<Build>) -> Result<Outcome, BuildError> {
        let backend = self.0.backend();
        if request.source_policies.iter().any(|policy| !policy.rules.is_empty()) {
            return Err(BuildError::unsupported("source policies are not implemented in berth yet"));
        }
        for import in &request.cache_imports {
            let entry = CacheOptionsEntry { r#type: import.r#type.clone(), attrs: import.attrs.clone() };
            backend.import_cache(&entry, build).await?;
        }
        let definition = request.definition.as_ref().filter(|definition| !definition.def.is_empty());
        match (definition, request.frontend.as_str()) {
            (Some(_), name) if !name.is_empty() => {
                Err(BuildError::invalid("cannot solve with both Definition and Frontend specified"))
            }
            (Some(definition), _) => {
                let reference = build.refer(definition.clone(), backend)?;
                Ok(Outcome { references: References::One(Some(reference)), ..Outcome::default() })
            }
            (None, "") => Ok(Outcome::default()),
            (None, name) => {
                frontend::check(name, &request.frontend_opt)?;
                let (outcome, plan) =
                    frontend::run(&request.frontend_opt, &request.frontend_inputs, build, backend).await?;
                build.plan.send_replace(Some(Arc::new(plan)));
                Ok(outcome)
            }
        }
    }
}

#[tonic::async_trait]
impl LlbBridge for GatewayService {
    async fn resolve_image_config(
        &self,
        request: Request<ResolveImageConfigRequest>,
    ) -> Result<Response<ResolveImageConfigResponse>, Status> {
        let build = self.build(&request).await?;
        let request = request.into_inner();
        if request.resolver_type != 0 {
            return Err(Status::unimplemented("images of OCI layouts are not implemented in berth yet"));
        }
        let wanted = image(&request.r#ref, request.platform, &request.resolve_mode, &request.log_name);
        let step = build.progress.step(&wanted.step);
        let config = self.0.backend().image(&wanted, &build).await;
        step.end(&config);
        let config = config?;
        Ok(Response::new(ResolveImageConfigResponse {
            digest: config.digest,
            config: config.config,
            r#ref: config.reference.unwrap_or(request.r#ref),
        }))
    }

    async fn resolve_source_meta(
        &self,
        request: Request<ResolveSourceMetaRequest>,
    ) -> Result<Response<ResolveSourceMetaResponse>, Status> {
        let build = self.build(&request).await?;
        let request = request.into_inner();
        let source = request.source.ok_or_else(|| Status::invalid_argument("invalid empty source"))?;
        let (scheme, rest) = source.identifier.split_once("://").unwrap_or(("", &source.identifier));
        let mut answer = ResolveSourceMetaResponse::default();
        match scheme {
            "docker-image" => {
                let wanted = image(rest, request.platform, &request.resolve_mode, &request.log_name);
                if request
                    .image
                    .as_ref()
                    .is_some_and(|image| image.attestation_chain || !image.resolve_attestations.is_empty())
                {
                    return Err(Status::unimplemented("attestations of images are not resolved in berth yet"));
                }
                let step = build.progress.step(&wanted.step);
                let config = self.0.backend().image(&wanted, &build).await;
                step.end(&config);
                let config = config?;
                let no_config = request.image.is_some_and(|image| image.no_config);
                answer.image = Some(ResolveSourceImageResponse {
                    digest: config.digest,
                    config: if no_config { Vec::new() } else { config.config },
                    attestation_chain: None,
                });
                answer.source = Some(source);
            }
            "git" | "http" | "https" => {
                let wants_more = request.git.is_some_and(|git| git.return_object)
                    || request.http.is_some_and(|http| http.checksum_request.is_some());
                if wants_more {
                    return Err(Status::unimplemented(
                        "objects and checksums of sources are not resolved in berth yet",
                    ));
                }
                let pin = self.0.backend().pin(&source, request.platform.as_ref(), &build).await?;
                if scheme == "git" {
                    let commit = pin.source.attrs.get("git.checksum").cloned().unwrap_or_default();
                    answer.git = Some(ResolveSourceGitResponse { checksum: commit, ..Default::default() });
                } else {
                    let checksum =
                        pin.source.attrs.get("http.checksum").cloned().unwrap_or_else(|| pin.key.to_string());
                    answer.http = Some(ResolveSourceHttpResponse { checksum, ..Default::default() });
                }
                answer.source = Some(pin.source);
            }
            _ => answer.source = Some(source),
        }
        Ok(Response::new(answer))
    }

    async fn solve(&self, request: Request<SolveRequest>) -> Result<Response<SolveResponse>, Status> {
        let build = self.build(&request).await?;
        let request = request.into_inner();
        if request.r#final {
            return Err(Status::invalid_argument("a solve that returns at once was given up by BuildKit: use Return"));
        }
        let outcome = self.run(&request, &build).await?;
        if request.evaluate {
            build.make_all(outcome.clone(), self.0.backend()).await?;
        }
        let single = match &outcome.references {
            References::One(reference) => reference.as_ref().map(|r| r.id.clone()).unwrap_or_default(),
            References::Many(_) => String::new(),
        };
        let answer = if request.allow_result_return {
            SolveResponse { r#ref: String::new(), result: Some(show(outcome, request.allow_result_array_ref)) }
        } else {
            SolveResponse { r#ref: single, result: None }
        };
        Ok(Response::new(answer))
    }

    async fn read_file(&self, request: Request<ReadFileRequest>) -> Result<Response<ReadFileResponse>, Status> {
        let build = self.build(&request).await?;
        let request = request.into_inner();
        let tree = self.filesystem(&build, &request.r#ref).await?;
        let range = request.range.unwrap_or_default();
        let (offset, length) = (u64::try_from(range.offset), u64::try_from(range.length));
        let (Ok(offset), Ok(length)) = (offset, length) else {
            return Err(Status::invalid_argument("a range of a file can't be negative"));
        };
        let data = tree.read_file(&request.file_path, offset, (length > 0).then_some(length)).await?;
        Ok(Response::new(ReadFileResponse { data }))
    }

    async fn read_dir(&self, request: Request<ReadDirRequest>) -> Result<Response<ReadDirResponse>, Status> {
        let build = self.build(&request).await?;
        let request = request.into_inner();
        let tree = self.filesystem(&build, &request.r#ref).await?;
        let pattern = Some(request.include_pattern.as_str()).filter(|pattern| !pattern.is_empty());
        let entries = tree.read_dir(&request.dir_path, pattern).await?;
        Ok(Response::new(ReadDirResponse { entries }))
    }

    async fn stat_file(&self, request: Request<StatFileRequest>) -> Result<Response<StatFileResponse>, Status> {
        let build = self.build(&request).await?;
        let request = request.into_inner();
        let tree = self.filesystem(&build, &request.r#ref).await?;
        let stat = tree.stat(&request.path).await?;
        Ok(Response::new(StatFileResponse { stat: Some(stat) }))
    }

    async fn evaluate(&self, request: Request<EvaluateRequest>) -> Result<Response<EvaluateResponse>, Status> {
        let build = self.build(&request).await?;
        build.reference(&request.into_inner().r#ref)?.make(&build, self.0.backend()).await?;
        Ok(Response::new(EvaluateResponse {}))
    }

    async fn ping(&self, request: Request<PingRequest>) -> Result<Response<PongResponse>, Status> {
        self.build(&request).await?;
        let mut worker = self.0.worker.clone();
        worker.platforms = workers::platforms(Path::new("/proc/sys/fs/binfmt_misc"));
        Ok(Response::new(PongResponse {
            frontend_api_caps: caps::frontend(),
            llb_caps: caps::llb(),
            workers: vec![worker],
        }))
    }

    async fn r#return(&self, request: Request<ReturnRequest>) -> Result<Response<ReturnResponse>, Status> {
        let build = self.build(&request).await?;
        let request = request.into_inner();
        let result = match request.error {
            Some(error) => Err(status::told(error)),
            None => Ok(understand(request.result.unwrap_or_default(), &build)?),
        };
        build.give_back(result)?;
        Ok(Response::new(ReturnResponse {}))
    }

    async fn inputs(&self, request: Request<InputsRequest>) -> Result<Response<InputsResponse>, Status> {
        let build = self.build(&request).await?;
        Ok(Response::new(InputsResponse { definitions: build.inputs.clone() }))
    }

    async fn new_container(&self, _: Request<NewContainerRequest>) -> Result<Response<NewContainerResponse>, Status> {
        Err(no_containers("NewContainer"))
    }

    async fn release_container(
        &self,
        _: Request<ReleaseContainerRequest>,
    ) -> Result<Response<ReleaseContainerResponse>, Status> {
        Err(no_containers("ReleaseContainer"))
    }

    type ExecProcessStream = Processes;

    async fn exec_process(
        &self,
        _: Request<Streaming<ExecMessage>>,
    ) -> Result<Response<Self::ExecProcessStream>, Status> {
        Err(no_containers("ExecProcess"))
    }

    async fn read_file_container(&self, _: Request<ReadFileRequest>) -> Result<Response<ReadFileResponse>, Status> {
        Err(no_containers("ReadFileContainer"))
    }

    async fn read_dir_container(&self, _: Request<ReadDirRequest>) -> Result<Response<ReadDirResponse>, Status> {
        Err(no_containers("ReadDirContainer"))
    }

    async fn stat_file_container(&self, _: Request<StatFileRequest>) -> Result<Response<StatFileResponse>, Status> {
        Err(no_containers("StatFileContainer"))
    }

    async fn warn(&self, request: Request<WarnRequest>) -> Result<Response<WarnResponse>, Status> {
        let build = self.build(&request).await?;
        let warning = request.into_inner();
        build.progress.warn(VertexWarning {
            vertex: warning.digest,
            level: warning.level,
            short: warning.short,
            detail: warning.detail,
            url: warning.url,
            info: warning.info,
            ranges: warning.ranges,
        });
        Ok(Response::new(WarnResponse {}))
    }
}

fn image(reference: &str, platform: Option<pb::Platform>, mode: &str, log: &str) -> ImageWanted {
    let host = || frontend::llb_platform(&crate::images::platform::Platform::host());
    ImageWanted {
        reference: reference.to_owned(),
        platform: platform.unwrap_or_else(host),
        mode: if mode.is_empty() { "default".to_owned() } else { mode.to_owned() },
        step: if log.is_empty() { format!("resolve image config for {reference}") } else { log.to_owned() },
    }
}

/// An outcome, for a client; `arrays`: it knows references that bring their graph along.
fn show(outcome: Outcome, arrays: bool) -> Shown {
    let new = |reference: &Option<Arc<Reference>>| match reference {
        Some(reference) => Ref { id: reference.id.clone(), def: Some(pb::Definition::clone(&reference.definition)) },
        None => Ref::default(),
    };
    let old = |reference: &Option<Arc<Reference>>| reference.as_ref().map(|r| r.id.clone()).unwrap_or_default();
    let result = match (&outcome.references, arrays) {
        (References::One(reference), true) => result::Result::Ref(new(reference)),
        (References::One(reference), false) => result::Result::RefDeprecated(old(reference)),
        (References::Many(many), true) => {
            result::Result::Refs(RefMap { refs: many.iter().map(|(name, r)| (name.clone(), new(r))).collect() })
        }
        (References::Many(many), false) => result::Result::RefsDeprecated(RefMapDeprecated {
            refs: many.iter().map(|(name, r)| (name.clone(), old(r))).collect(),
        }),
    };
    let attestations = outcome.attestations.into_iter().map(|(name, attestation)| (name, Attestations { attestation }));
    Shown {
        result: Some(result),
        metadata: outcome.metadata.into_iter().collect(),
        attestations: attestations.collect(),
    }
}

/// The outcome that a client means.
fn understand(shown: Shown, build: &Build) -> Result<Outcome, BuildError> {
    let known = |id: &str| if id.is_empty() { Ok(None) } else { build.reference(id).map(Some) };
    let many = |ids: Vec<(String, String)>| -> Result<References, BuildError> {
        let found = ids.into_iter().map(|(name, id)| Ok((name, known(&id)?)));
        Ok(References::Many(found.collect::<Result<BTreeMap<_, _>, BuildError>>()?))
    };
    let references = match shown.result {
        None => References::default(),
        Some(result::Result::Ref(reference)) => References::One(known(&reference.id)?),
        Some(result::Result::RefDeprecated(id)) => References::One(known(&id)?),
        Some(result::Result::Refs(map)) => many(map.refs.into_iter().map(|(name, r)| (name, r.id)).collect())?,
        Some(result::Result::RefsDeprecated(map)) => many(map.refs.into_iter().collect())?,
    };
    Ok(Outcome {
        references,
        metadata: shown.metadata.into_iter().collect(),
        attestations: shown.attestations.into_iter().map(|(name, all)| (name, all.attestation)).collect(),
    })
}
