//! `create`: makes a container, and pulls its image when it is missing.

use super::{App, pull, require};
use crate::args::run::CreateArgs;
use crate::client::{Call, Client};
use crate::config::own_variable;
use crate::exit::{Failure, Outcome};
use crate::options::create::{Request, Surroundings, request};
use crate::output;
use crate::terminal;
use proto::image_ref::ImageRef;
use serde::Deserialize;
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
    let wanted = request(args, detached, &around).map_err(|error| Failure::from(error).in_run_flags())?;
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
    if let Some(file) = cidfile {
        file.write(&created.id)?;
    }
    Ok(created.id)
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
            _ => Failure::io(format!("failed to create the container ID file {path}"), cause),
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
