//! `create`: makes a container, and pulls its image when it is missing.

use super::{App, pull, require};
use crate::args::run::CreateArgs;
use crate::client::{Call, Client, Host};
use crate::config::own_variable;
use crate::exit::{Failure, Outcome};
use crate::options::create::{Request, Surroundings, request};
use crate::output;
use crate::terminal;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use proto::image_ref::ImageRef;
use serde::Deserialize;
use serde_json::json;
use std::fs::{File, OpenOptions};
use std::io::Write;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Created {
    id: String,
    #[serde(default)]
    warnings: Option<Vec<String>>,
}

/// Runs `create`.
pub async fn run(app: &App, args: &CreateArgs) -> Outcome {
    let client = app.client().await?;
    let wanted = prepare(app, &client, args, false)?;
    let id = create(app, &client, args, &wanted).await?;
    output::print_line(&id)
}

/// Works out what is to be created.
pub fn prepare(app: &App, client: &Client, args: &CreateArgs, detached: bool) -> Outcome<Request> {
    require(client, "--annotation", !args.process.annotation.is_empty(), 43)?;
    require(client, "--health-start-interval", args.health.health_start_interval.is_some(), 44)?;
    if !matches!(args.pull.as_str(), "always" | "missing" | "never" | "") {
        let text = format!("invalid pull option: '{}': must be one of \"always\", \"missing\" or \"never\"", args.pull);
        return Err(Failure::Refused(text).in_run_flags());
    }
    let cwd = std::env::current_dir().unwrap_or_default();
    let around = Surroundings {
        cwd: &cwd,
        env: &own_variable,
        extra_env: &app.config.proxy_variables(),
        version: client.version(),
        console: if args.process.tty { terminal::size() } else { (0, 0) },
    };
    let mut wanted = request(args, detached, &around).map_err(|error| Failure::from(error).in_run_flags())?;
    if args.use_api_socket {
        mount_socket(&app.config.endpoint()?.host, &mut wanted.body)?;
    }
    wanted.warnings.iter().for_each(|warning| output::note(warning));
    Ok(wanted)
}

/// Creates the container and gives its id.
pub async fn create(app: &App, client: &Client, args: &CreateArgs, wanted: &Request) -> Outcome<String> {
    let cidfile = args.process.cidfile.as_deref().filter(|path| !path.is_empty()).map(CidFile::reserve).transpose()?;
    let reference = reference(&wanted.image)?;
    let platform = args.platform.clone().or_else(|| app.config.default_platform.clone());
    let pull =
        async |reference: &ImageRef| pull::implicit(app, client, reference, platform.as_deref(), args.quiet).await;
    if let (Some(reference), "always") = (&reference, args.pull.as_str()) {
        pull(reference).await?;
    }
    let call = || {
        Call::post("/containers/create")
            .maybe("name", args.name.as_deref())
            .maybe("platform", platform.as_deref().filter(|p| !p.is_empty()))
            .json(&wanted.body)
    };
    let reply = match (client.send(call()).await, &reference) {
        (Err(error), Some(reference))
            if is_missing_image(&error) && !matches!(args.pull.as_str(), "never" | "always") =>
        {
            if !args.quiet {
                output::note(&format!("Unable to find image '{}' locally", reference.familiar()));
            }
            pull(reference).await?;
            client.send(call()).await?
        }
        (result, _) => result?,
    };
    let created: Created = reply.json().await?;
    for warning in created.warnings.iter().flatten() {
        output::note(&format!("WARNING: {warning}"));
    }
    if args.use_api_socket {
        copy_credentials(app, client, &created.id).await?;
    }
    if let Some(file) = cidfile {
        file.write(&created.id)?;
    }
    Ok(created.id)
}

/// Where a container finds the client's credentials.
const CREDENTIALS: &str = "/run/secrets/docker";

/// The engine's socket where clients look for it, and where the credentials will be.
fn mount_socket(host: &Host, body: &mut serde_json::Value) -> Outcome {
    let Host::Unix(socket) = host else {
        let text =
            format!("flag --use-api-socket can only be used with unix sockets: docker endpoint {host} incompatible");
        return Err(Failure::Refused(text).in_run_flags());
    };
    let mount = json!({ "Type": "bind", "Source": socket, "Target": "/var/run/docker.sock", "BindOptions": {} });
    for (list, item) in
        [("/HostConfig", ("Mounts", mount)), ("", ("Env", json!(format!("DOCKER_CONFIG={CREDENTIALS}"))))]
    {
        let Some(object) = body.pointer_mut(list) else { continue };
        match &mut object[item.0] {
            serde_json::Value::Array(items) => items.push(item.1),
            empty => *empty = json!([item.1]),
        }
    }
    Ok(())
}

/// Puts a config.json with nothing but credentials into the container.
async fn copy_credentials(app: &App, client: &Client, id: &str) -> Outcome {
    let auths: serde_json::Map<String, serde_json::Value> = app
        .config
        .credentials
        .all()
        .into_iter()
        .map(|(key, auth)| {
            let pair = STANDARD.encode(format!("{}:{}", auth.username, auth.password));
            let entry = match auth.identity_token.as_str() {
                "" => json!({ "auth": pair }),
                token => json!({ "auth": pair, "identitytoken": token }),
            };
            (key, entry)
        })
        .collect();
    let fault = |cause| Failure::io("pack the credentials for the container", cause);
    let mut archive = tar::Builder::new(Vec::new());
    let text = json!({ "auths": auths }).to_string();
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o600);
    header.set_size(text.len() as u64);
    let path = CREDENTIALS.trim_start_matches('/').to_owned() + "/config.json";
    archive.append_data(&mut header, path, text.as_bytes()).map_err(fault)?;
    let archive = archive.into_inner().map_err(fault)?;
    let call = Call::put(format!("/containers/{id}/archive"))
        .query("path", "/")
        .header("content-type", "application/x-tar")
        .body(super::load::streamed(std::io::Cursor::new(archive)));
    client.send(call).await?;
    Ok(())
}

fn is_missing_image(error: &crate::client::ClientError) -> bool {
    error.is_not_found() && error.to_string().to_ascii_lowercase().contains("no such image")
}

/// The image as something to pull; an id can't be.
fn reference(image: &str) -> Outcome<Option<ImageRef>> {
    let hex = image.strip_prefix("sha256:").unwrap_or(image);
    if hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(None);
    }
    Ok(Some(image.parse::<ImageRef>()?.with_default_tag()))
}

/// The file of `--cidfile`; removed again unless an id was written.
struct CidFile<'a> {
    path: &'a str,
    file: File,
    written: bool,
}

impl<'a> CidFile<'a> {
    fn reserve(path: &'a str) -> Outcome<Self> {
        let file = OpenOptions::new().write(true).create_new(true).open(path).map_err(|cause| match cause.kind() {
            std::io::ErrorKind::AlreadyExists => Failure::Refused(format!(
                "container ID file found, make sure the other container isn't running or delete {path}"
            )),
            _ => Failure::io(format!("failed to create the container ID file: open {path}"), cause),
        })?;
        Ok(Self { path, file, written: false })
    }

    fn write(mut self, id: &str) -> Outcome {
        self.file
            .write_all(id.as_bytes())
            .map_err(|cause| Failure::io(format!("failed to write the container ID to {}", self.path), cause))?;
        self.written = true;
        Ok(())
    }
}

impl Drop for CidFile<'_> {
    fn drop(&mut self) {
        if !self.written {
            // An empty file would be taken for a container; if it can't be removed, the next run says so.
            let _ = std::fs::remove_file(self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reserved_file_goes_unless_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cid");
        let path = path.to_str().unwrap();
        drop(CidFile::reserve(path).unwrap());
        assert!(!std::path::Path::new(path).exists());
        CidFile::reserve(path).unwrap().write("abc").unwrap();
        assert_eq!(std::fs::read_to_string(path).unwrap(), "abc");
        let error = CidFile::reserve(path).err().unwrap().to_string();
        assert!(error.starts_with("container ID file found"), "{error}");
    }

    #[test]
    fn ids_are_not_pulled() {
        assert!(reference(&"a".repeat(64)).unwrap().is_none());
        assert_eq!(reference("busybox").unwrap().unwrap().to_string(), "docker.io/library/busybox:latest");
        assert!(reference("UP").is_err());
    }
}
