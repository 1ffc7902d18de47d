//! `context`: named ways to an engine. No engine is asked.

use super::App;
use crate::args::context::{
    ContextCommand, CreateArgs, ExportArgs, ImportArgs, InspectArgs, LsArgs, RmArgs, UpdateArgs,
};
use crate::client::Host;
use crate::config::host_variable;
use crate::context::{Context, ContextError, DEFAULT, Store, archive, check};
use crate::credentials::file;
use crate::exit::{Failure, Outcome};
use crate::options::{Plain, mounts::csv};
use crate::output::listing::{self, Layout};
use crate::output::template::{Context as Row, Template};
use crate::output::{self, json, value::Value};
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

const LAYOUT: Layout<'_> = Layout {
    columns: "{{.Name}}{{if .Current}} *{{end}}\t{{.Description}}\t{{.DockerEndpoint}}\t{{.Error}}",
    titles: &[
        ("Name", "NAME"),
        ("Description", "DESCRIPTION"),
        ("DockerEndpoint", "DOCKER ENDPOINT"),
        ("Error", "ERROR"),
        ("Current", ""),
    ],
    quiet: "{{.Name}}",
};
/// What the context of flags and variables is called in lists.
const BY_HOST: &str = "Current DOCKER_HOST based configuration";

/// Runs `context ...`.
pub fn run(app: &App, command: &ContextCommand) -> Outcome {
    match command {
        ContextCommand::Create(args) => create(app, args),
        ContextCommand::Update(args) => update(app, args),
        ContextCommand::Export(args) => export(app, args),
        ContextCommand::Import(args) => import(app, args),
        ContextCommand::Inspect(args) => inspect(app, args),
        ContextCommand::Ls(args) => ls(app, args),
        ContextCommand::Rm(args) => rm(app, args),
        ContextCommand::Show(_) => output::print_line(&app.config.context_name()),
        ContextCommand::Use(args) => choose(app, &args.name),
    }
}

fn create(app: &App, args: &CreateArgs) -> Outcome {
    let store = app.config.contexts()?;
    check(&args.name)?;
    if store.has(&args.name) {
        return Err(ContextError::Exists(args.name.clone()).into());
    }
    if args.from.is_some() && !args.docker.is_empty() {
        return Err(Failure::Refused("cannot use --docker flag when --from is set".to_owned()));
    }
    let mut context = match &args.from {
        Some(from) => Context { name: args.name.clone(), ..stored(app, &store, from)? },
        None => Context::new(&args.name),
    };
    context.rename(&args.name);
    if let Some(text) = &args.description {
        context.describe(text);
    }
    if !args.docker.is_empty() {
        point(app, &store, &mut context, &args.docker)?;
    }
    store.save(&context)?;
    done(&args.name, &format!("Successfully created context {:?}", args.name))
}

fn update(app: &App, args: &UpdateArgs) -> Outcome {
    let store = app.config.contexts()?;
    let mut context = store.load(&args.name)?;
    if let Some(text) = &args.description {
        context.describe(text);
    }
    if !args.docker.is_empty() {
        point(app, &store, &mut context, &args.docker)?;
    }
    store.save(&context)?;
    done(&args.name, &format!("Successfully updated context {:?}", args.name))
}

fn done(name: &str, text: &str) -> Outcome {
    output::print_line(name)?;
    output::note(text);
    Ok(())
}

/// A context by name, "default" included.
fn stored(app: &App, store: &Store, name: &str) -> Result<Context, Failure> {
    if name != DEFAULT {
        return Ok(store.load(name)?);
    }
    let mut context = Context { name: DEFAULT.to_owned(), ..Context::new(DEFAULT) };
    context.point_to(&app.config.default_host(), false);
    Ok(context)
}

/// Applies `--docker host=...,ca=...`.
fn point(app: &App, store: &Store, context: &mut Context, given: &[String]) -> Outcome {
    let refused = |why: String| Failure::Refused(format!("unable to create docker endpoint config: {why}"));
    let mut pairs = Vec::new();
    for text in given {
        for field in csv(text).map_err(|error| refused(error.to_string()))? {
            let (key, value) = field
                .split_once('=')
                .ok_or_else(|| Failure::Refused(format!("{field} must be formatted as key=value")))?;
            pairs.push((key.to_owned(), value.to_owned()));
        }
    }
    let known = ["from", "host", "ca", "cert", "key", "skip-tls-verify"];
    if let Some((key, _)) = pairs.iter().find(|(key, _)| !known.contains(&key.as_str())) {
        return Err(refused(format!("unrecognized config key: {key}")));
    }
    let value = |name: &str| pairs.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    if let Some(from) = value("from").filter(|from| !from.is_empty()) {
        let from = stored(app, store, from)?;
        context.point_to(from.host(), from.skip_tls_verify());
        context.tls = from.tls;
        return Ok(());
    }
    let skip = match value("skip-tls-verify") {
        None | Some("") => false,
        Some(text) => crate::args::values::boolean(text)
            .map_err(|_| refused(format!("skip-tls-verify: parsing {text:?}: invalid syntax")))?,
    };
    let host = value("host").unwrap_or_default();
    if !host.is_empty() {
        host.parse::<Host>().map_err(|error| refused(format!("unable to apply docker endpoint options: {error}")))?;
    }
    let mut tls = Vec::new();
    for (key, name) in [("ca", "ca.pem"), ("cert", "cert.pem"), ("key", "key.pem")] {
        if let Some(path) = value(key).filter(|path| !path.is_empty()) {
            let data = fs::read(path).map_err(|cause| refused(format!("open {path}: {}", Plain(cause))))?;
            tls.push((name.to_owned(), data));
        }
    }
    context.point_to(host, skip);
    context.tls = tls;
    Ok(())
}

fn export(app: &App, args: &ExportArgs) -> Outcome {
    let context = stored(app, &app.config.contexts()?, &args.name)?;
    let data = archive::pack(&context).map_err(|cause| Failure::io("pack the context", cause))?;
    if args.file.as_deref() == Some("-") {
        if crate::terminal::stdout_is_terminal() {
            return Err(Failure::Refused("cowardly refusing to export to a terminal, specify a file path".to_owned()));
        }
        return io::stdout().lock().write_all(&data).map_err(|cause| Failure::io("write /dev/stdout", cause));
    }
    let path = args.file.clone().unwrap_or_else(|| format!("{}.dockercontext", args.name));
    let fault = |cause| Failure::io(format!("open {path}"), cause);
    // It may hold a key.
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(fault)?;
    file.write_all(&data).map_err(|cause| Failure::io(format!("write {path}"), cause))?;
    output::note(&format!("Written file {path:?}"));
    Ok(())
}

fn import(app: &App, args: &ImportArgs) -> Outcome {
    let store = app.config.contexts()?;
    check(&args.name)?;
    if store.has(&args.name) {
        return Err(ContextError::Exists(args.name.clone()).into());
    }
    let input: Box<dyn Read> = match args.file.as_str() {
        "-" => Box::new(io::stdin()),
        path => Box::new(fs::File::open(path).map_err(|cause| Failure::io(format!("open {path}"), cause))?),
    };
    store.save(&archive::unpack(&args.name, input)?)?;
    done(&args.name, &format!("Successfully imported context {:?}", args.name))
}

fn inspect(app: &App, args: &InspectArgs) -> Outcome {
    let store = app.config.contexts()?;
    let current = [app.config.context_name()];
    let names = if args.names.is_empty() { &current[..] } else { &args.names };
    let (mut found, mut failures) = (Vec::new(), Vec::new());
    for name in names {
        match stored(app, &store, name) {
            Ok(context) => found.push(described(&store, &context)),
            Err(failure) => failures.push(failure.to_string()),
        }
    }
    match args.format.as_deref().filter(|format| !format.is_empty()) {
        None => output::print_line(&json::escape_html(&json::pretty(&Value::Array(found))))?,
        Some("json") => output::print_line(&json::line(&Value::Array(found)))?,
        Some(format) => {
            let template = Template::parse(format)?;
            for fields in found {
                let text = template.execute(&Row { fields, labels: Value::Null });
                if text.is_err() {
                    output::print_line("")?;
                }
                output::print_line(&text?)?;
            }
        }
    }
    if failures.is_empty() { Ok(()) } else { Err(Failure::Several(failures)) }
}

fn described(store: &Store, context: &Context) -> Value {
    let default = context.name == DEFAULT;
    let place = |path: &Path| if default { "<IN MEMORY>".into() } else { Value::from(path.display().to_string()) };
    let files = context.tls.iter().map(|(name, _)| Value::from(name.as_str())).collect();
    let tls = if context.tls.is_empty() { Vec::new() } else { vec![("docker".to_owned(), Value::Array(files))] };
    let part = |name: &str| context.meta.get(name).cloned().unwrap_or_else(|| Value::Object(Vec::new()));
    Value::object([
        ("Name", context.name.as_str().into()),
        ("Metadata", part("Metadata")),
        ("Endpoints", part("Endpoints")),
        ("TLSMaterial", Value::Object(tls)),
        (
            "Storage",
            Value::object([
                ("MetadataPath", place(&store.meta_path(&context.name))),
                ("TLSPath", place(&store.tls_path(&context.name))),
            ]),
        ),
    ])
}

fn ls(app: &App, args: &LsArgs) -> Outcome {
    let store = app.config.contexts()?;
    let current = app.config.context_name();
    let row = |name: &str, description: &str, host: &str, error: &str| {
        let fields = Value::object([
            ("Current", (name == current).into()),
            ("Description", description.into()),
            ("DockerEndpoint", host.into()),
            ("Error", error.into()),
            ("Name", name.into()),
        ]);
        (name.to_owned(), Row { fields, labels: Value::Null })
    };
    let mut rows = vec![row(DEFAULT, BY_HOST, &app.config.default_host(), "")];
    let names = store.names();
    for name in &names {
        rows.push(match store.load(name) {
            Ok(context) => row(name, context.description(), context.host(), ""),
            Err(error) => row(name, "", "", &shortened(&error.to_string())),
        });
    }
    if current != DEFAULT && !names.contains(&current) {
        let error = store.load(&current).err().map(|error| error.to_string()).unwrap_or_default();
        rows.push(row(&current, "", "", &shortened(&error)));
    }
    rows.sort_by(|a, b| a.0.cmp(&b.0));
    let rows: Vec<Row> = rows.into_iter().map(|(_, row)| row).collect();
    output::print(&listing::render(&LAYOUT, args.format.as_deref(), args.quiet, &rows)?)?;
    if host_variable().is_some() && app.config.globals().context.is_none() {
        output::note(OVERRIDES);
    }
    Ok(())
}

const OVERRIDES: &str = "Warning: DOCKER_HOST environment variable overrides the active context. To use a context, either set the global --context flag, or unset DOCKER_HOST environment variable.";

fn shortened(text: &str) -> String {
    const LONGEST: usize = 45;
    match text.chars().count() {
        0..=LONGEST => text.to_owned(),
        _ => text.chars().take(LONGEST - 1).chain(['…']).collect(),
    }
}

fn rm(app: &App, args: &RmArgs) -> Outcome {
    let store = app.config.contexts()?;
    let current = app.config.context_name();
    let mut failures = Vec::new();
    for name in &args.names {
        let refusal = if name == DEFAULT {
            Some("context \"default\" cannot be removed".to_owned())
        } else if !store.has(name) && !args.force {
            Some(format!("context {name:?} does not exist"))
        } else if *name == current && !args.force {
            Some(format!("context {name:?} is in use, set -f flag to force remove"))
        } else {
            None
        };
        let removed = match refusal {
            Some(refusal) => Err(Failure::Refused(refusal)),
            None => remember(app, name, &current).and_then(|()| Ok(store.remove(name)?)),
        };
        match removed {
            Ok(()) => output::print_line(name)?,
            Err(failure) => failures.push(failure.to_string()),
        }
    }
    if failures.is_empty() { Ok(()) } else { Err(Failure::Several(failures)) }
}

/// A context that goes is nobody's current one.
fn remember(app: &App, name: &str, current: &str) -> Outcome {
    if name == current && app.config.file.text("currentContext") == Some(name) {
        write_current(app, "")?;
    }
    Ok(())
}

fn choose(app: &App, name: &str) -> Outcome {
    if name != DEFAULT {
        app.config.contexts()?.load(name)?;
    }
    write_current(app, if name == DEFAULT { "" } else { name })?;
    done(name, &format!("Current context is now {name:?}"))?;
    if name != DEFAULT && host_variable().is_some() {
        output::note(OVERRIDES);
    }
    Ok(())
}

fn write_current(app: &App, name: &str) -> Outcome {
    let path = app.config.dir.as_ref().ok_or(crate::config::ConfigError::NoHome)?.join("config.json");
    file::edit(&path, |config| file::put_text(config, "currentContext", name))
        .map_err(crate::credentials::CredentialsError::from)?;
    Ok(())
}
