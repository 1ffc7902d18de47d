//! `manifest inspect`: what a registry has under a name.
//!
//! docker's own client asks the registry itself. Here the engine does, which knows mirrors, certificates and proxies: with
//! `manifest=1` the answer of GET /distribution/NAME/json carries the manifest's bytes in one field more, `Manifest` (base64).

use super::App;
use crate::args::registry::ManifestInspectArgs;
use crate::client::{Call, Client, call::escape};
use crate::exit::{Failure, Outcome};
use crate::output::{self, json, value::Value};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use proto::digest::Digest;
use proto::image_ref::ImageRef;
use serde::Deserialize;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Distribution {
    descriptor: Descriptor,
    #[serde(default)]
    platforms: Option<Vec<Value>>,
    #[serde(default)]
    manifest: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Descriptor {
    #[serde(rename = "mediaType", default)]
    media_type: String,
    digest: String,
    size: i64,
}

/// A manifest and what is known of it.
struct Fetched {
    reference: ImageRef,
    /// In full, by the name it was asked for.
    shown: String,
    descriptor: Descriptor,
    platform: Option<Value>,
    /// Its bytes, base64.
    raw: String,
    manifest: Value,
}

/// What is said of `manifest create`, `annotate`, `push` and `rm`.
pub fn left_out(command: &str) -> Failure {
    Failure::Refused(format!(
        "berth: 'manifest {command}' is not part of Berth: build or copy the image for all its platforms under one name and push that, or use docker's own client"
    ))
}

/// Runs `manifest inspect`.
pub async fn inspect(app: &App, args: &ManifestInspectArgs) -> Outcome {
    let reference: ImageRef = args.second.as_ref().unwrap_or(&args.first).parse()?;
    let reference = reference.with_default_tag();
    if args.second.is_some() {
        args.first.parse::<ImageRef>()?;
    }
    let source = Source { client: app.client().await?, app, insecure: args.insecure };
    let top = source.fetch(reference).await?;
    let list = top.manifest.get("manifests").map(Value::items);
    let text = match (args.verbose, list) {
        (false, None) => json::indented(&top.manifest, "\t"),
        (false, Some(_)) => json::indented(&top.manifest, "   "),
        (true, None) => json::indented(&top.described(), "\t"),
        (true, Some(manifests)) => {
            let mut all = Vec::new();
            for entry in manifests {
                let digest: Digest = entry.text(&["digest"]).parse().map_err(|_| {
                    let name = top.reference.familiar();
                    Failure::Refused(format!("{name} lists a manifest without a valid digest: {}", json::line(entry)))
                })?;
                let mut one = source.fetch(top.reference.with_digest(digest)).await?;
                one.shown = format!("{}@{digest}", top.shown);
                one.platform = entry.get("platform").cloned().or(one.platform);
                all.push(one.described());
            }
            json::indented(&Value::Array(all), "\t")
        }
    };
    output::print_line(&text)
}

struct Source<'a> {
    client: Client,
    app: &'a App,
    insecure: bool,
}

impl Source<'_> {
    async fn fetch(&self, reference: ImageRef) -> Outcome<Fetched> {
        let name = reference.familiar();
        let call = Call::get(format!("/distribution/{}/json", escape(&name, true)))
            .switch("insecure", self.insecure)
            .query("manifest", "1")
            .header("x-registry-auth", self.app.config.credentials.header(reference.domain()));
        let answer: Distribution = match self.client.send(call).await {
            Err(error) if error.is_not_found() => {
                return Err(Failure::Refused(format!("no such manifest: {name}")));
            }
            other => other?.json().await?,
        };
        let Some(raw) = answer.manifest else {
            let text = "manifest inspect needs an engine that passes manifests on (berth-engine does): this one tells only their descriptors";
            return Err(Failure::Refused(text.to_owned()));
        };
        let bad = |what: &str| Failure::Refused(format!("the engine's answer for {name} holds {what}"));
        let bytes = STANDARD.decode(&raw).map_err(|_| bad("a manifest that is not base64"))?;
        let manifest = serde_json::from_slice(&bytes).map_err(|_| bad("a manifest that is not JSON"))?;
        let platform = answer.platforms.unwrap_or_default().into_iter().next();
        Ok(Fetched { shown: reference.to_string(), reference, descriptor: answer.descriptor, platform, raw, manifest })
    }
}

impl Fetched {
    /// What `--verbose` shows of it.
    fn described(&self) -> Value {
        let mut descriptor = vec![
            ("mediaType".to_owned(), self.descriptor.media_type.as_str().into()),
            ("digest".to_owned(), self.descriptor.digest.as_str().into()),
            ("size".to_owned(), self.descriptor.size.into()),
        ];
        descriptor.extend(self.platform.clone().map(|platform| ("platform".to_owned(), platform)));
        let kind = match self.descriptor.media_type.as_str() {
            "application/vnd.oci.image.manifest.v1+json" => "OCIManifest",
            _ => "SchemaV2Manifest",
        };
        Value::object([
            ("Ref", self.shown.as_str().into()),
            ("Descriptor", Value::Object(descriptor)),
            ("Raw", self.raw.as_str().into()),
            (kind, self.manifest.clone()),
        ])
    }
}
