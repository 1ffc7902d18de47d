//! `info`

use super::{App, print_formatted};
use crate::args::system::FormatArgs;
use crate::client::{Call, ClientError};
use crate::exit::{Failure, Outcome};
use crate::output::{self, units, value::Value};
use crate::plugins::{Plugin, Plugins};
use std::fmt::Write as _;

/// Runs `info`. The client's half is printed even when no engine answers.
pub async fn run(app: &App, args: &FormatArgs) -> Outcome {
    let (info, error) = match ask(app).await {
        Ok(info) => (info, None),
        Err(error) => (Value::Null, Some(error)),
    };
    if let Some(format) = args.format.as_deref().filter(|f| !f.is_empty()) {
        let client = Value::object([
            ("Debug", output::log::debug_is_on().into()),
            ("Version", env!("CARGO_PKG_VERSION").into()),
            ("Context", app.config.context_name().into()),
            ("Plugins", Value::Array(plugins(app).iter().map(described).collect())),
        ]);
        let mut info = if info == Value::Null { Value::Object(Vec::new()) } else { info };
        info.add_missing("ClientInfo", client);
        print_formatted(format, info)?;
        return error.map_or(Ok(()), Err);
    }
    let version = env!("CARGO_PKG_VERSION");
    let mut out = format!(
        "Client:\n Version:    {version}\n Context:    {}\n Debug Mode: {}\n",
        app.config.context_name(),
        output::log::debug_is_on()
    );
    list_plugins(&mut out, &plugins(app));
    out.push_str("\nServer:\n");
    if error.is_none() {
        server(&mut out, &info);
        out.push('\n');
    }
    output::print(&out)?;
    for warning in info.get("Warnings").map(Value::items).unwrap_or_default() {
        output::note(warning.as_str().unwrap_or_default());
    }
    error.map_or(Ok(()), Err)
}

fn plugins(app: &App) -> Vec<Plugin> {
    Plugins::find(&app.config).all()
}

fn described(plugin: &Plugin) -> Value {
    let path = ("Path", Value::from(plugin.path.display().to_string()));
    let name = ("Name", plugin.name.as_str().into());
    match &plugin.metadata {
        Ok(metadata) => Value::object([
            ("SchemaVersion", metadata.schema_version.as_str().into()),
            ("Vendor", metadata.vendor.as_str().into()),
            ("Version", metadata.version.as_str().into()),
            ("ShortDescription", metadata.short_description.as_str().into()),
            ("URL", metadata.url.as_str().into()),
            name,
            path,
        ]),
        Err(fault) => Value::object([name, path, ("Err", fault.as_str().into())]),
    }
}

fn list_plugins(out: &mut String, plugins: &[Plugin]) {
    let known = || plugins.iter().filter_map(|plugin| Some((plugin, plugin.metadata.as_ref().ok()?)));
    if known().next().is_some() {
        out.push_str(" Plugins:\n");
    }
    for (plugin, metadata) in known() {
        let _ = writeln!(out, "  {}: {} ({})", plugin.name, metadata.short_description, metadata.vendor);
        if !metadata.version.is_empty() {
            let _ = writeln!(out, "    Version:  {}", metadata.version);
        }
        let _ = writeln!(out, "    Path:     {}", plugin.path.display());
    }
    for plugin in plugins {
        if let Err(fault) = &plugin.metadata {
            output::note(&format!("WARNING: Plugin {:?} is not valid: {fault}", plugin.path.display().to_string()));
        }
    }
}

async fn ask(app: &App) -> Result<Value, Failure> {
    let client = app.client().await?;
    let info: Result<Value, ClientError> = async { client.send(Call::get("/info")).await?.value().await }.await;
    Ok(info?)
}

fn server(out: &mut String, info: &Value) {
    let text = |name: &str| show(info.get(name));
    let mut page = Page { out };
    page.line(1, "Containers", &text("Containers"));
    page.line(2, "Running", &text("ContainersRunning"));
    page.line(2, "Paused", &text("ContainersPaused"));
    page.line(2, "Stopped", &text("ContainersStopped"));
    page.line(1, "Images", &text("Images"));
    page.optional(1, "Server Version", &text("ServerVersion"));
    page.optional(1, "Storage Driver", &text("Driver"));
    for pair in info.get("DriverStatus").map(Value::items).unwrap_or_default() {
        if let [name, value] = pair.items() {
            page.line(2, name.as_str().unwrap_or_default(), &show(Some(value)));
        }
    }
    page.optional(1, "Logging Driver", &text("LoggingDriver"));
    page.optional(1, "Cgroup Driver", &text("CgroupDriver"));
    page.optional(1, "Cgroup Version", &text("CgroupVersion"));
    page.line(1, "Plugins", "");
    for name in ["Volume", "Network", "Authorization", "Log"] {
        page.optional(2, name, &words(info.at(&["Plugins", name])));
    }
    page.line(1, "Swarm", or(info.text(&["Swarm", "LocalNodeState"]), "inactive"));
    let mut runtimes: Vec<&str> =
        info.get("Runtimes").map(Value::fields).unwrap_or_default().iter().map(|(name, _)| name.as_str()).collect();
    runtimes.sort_unstable();
    page.optional(1, "Runtimes", &runtimes.join(" "));
    page.optional(1, "Default Runtime", &text("DefaultRuntime"));
    page.optional(1, "Init Binary", &text("InitBinary"));
    for (title, name) in
        [("containerd version", "ContainerdCommit"), ("runc version", "RuncCommit"), ("init version", "InitCommit")]
    {
        if let Some(commit) = info.get(name) {
            page.commit(title, commit.text(&["ID"]));
        }
    }
    let security = info.get("SecurityOptions").map(Value::items).unwrap_or_default();
    if !security.is_empty() {
        page.line(1, "Security Options", "");
    }
    security.iter().filter_map(Value::as_str).for_each(|option| security_option(&mut page, option));
    for (title, name) in [
        ("Kernel Version", "KernelVersion"),
        ("Operating System", "OperatingSystem"),
        ("OSType", "OSType"),
        ("Architecture", "Architecture"),
        ("CPUs", "NCPU"),
    ] {
        page.optional(1, title, &text(name));
    }
    if let Some(bytes) = info.get("MemTotal").and_then(Value::as_i64) {
        page.line(1, "Total Memory", &units::binary_size(bytes));
    }
    for (title, name) in [("Name", "Name"), ("ID", "ID"), ("Docker Root Dir", "DockerRootDir")] {
        page.optional(1, title, &text(name));
    }
    page.line(1, "Debug Mode", or(&text("Debug"), "false"));
    for (title, name) in [("HTTP Proxy", "HttpProxy"), ("HTTPS Proxy", "HttpsProxy"), ("No Proxy", "NoProxy")] {
        page.optional(1, title, &text(name));
    }
    page.list("Labels", info.get("Labels"));
    page.line(1, "Experimental", or(&text("ExperimentalBuild"), "false"));
    registries(&mut page, info);
    page.line(1, "Live Restore Enabled", or(&text("LiveRestoreEnabled"), "false"));
    page.optional(1, "Product License", &text("ProductLicense"));
}

fn registries(page: &mut Page<'_>, info: &Value) {
    let mut insecure: Vec<&str> = info
        .at(&["RegistryConfig", "IndexConfigs"])
        .map(Value::fields)
        .unwrap_or_default()
        .iter()
        .filter(|(_, index)| index.get("Secure").and_then(Value::as_bool) == Some(false))
        .map(|(name, _)| name.as_str())
        .collect();
    let networks = info.at(&["RegistryConfig", "InsecureRegistryCIDRs"]).map(Value::items).unwrap_or_default();
    insecure.extend(networks.iter().filter_map(Value::as_str));
    if !insecure.is_empty() {
        page.line(1, "Insecure Registries", "");
        insecure.iter().for_each(|name| page.bare(name));
    }
    if let Some(mirrors @ [_, ..]) = info.at(&["RegistryConfig", "Mirrors"]).map(Value::items) {
        page.line(1, "Registry Mirrors", "");
        mirrors.iter().filter_map(Value::as_str).for_each(|name| page.bare(name));
    }
}

/// "name=seccomp,profile=default": the name, and what else is said below it.
fn security_option(page: &mut Page<'_>, option: &str) {
    for pair in option.split(',') {
        match pair.split_once('=') {
            Some(("name", name)) => page.bare(name),
            Some(("profile", profile)) => page.line(3, "Profile", profile),
            Some((key, value)) => page.line(3, key, value),
            None => page.bare(pair),
        }
    }
}

/// Lines of "name: value", indented.
struct Page<'o> {
    out: &'o mut String,
}

impl Page<'_> {
    fn line(&mut self, depth: usize, name: &str, value: &str) {
        let gap = if value.is_empty() { "" } else { " " };
        let _ = writeln!(self.out, "{}{name}:{gap}{value}", " ".repeat(depth));
    }

    fn optional(&mut self, depth: usize, name: &str, value: &str) {
        if !value.is_empty() {
            self.line(depth, name, value);
        }
    }

    /// A version, which docker's output shows even when nobody knows it.
    fn commit(&mut self, name: &str, id: &str) {
        let _ = writeln!(self.out, " {name}: {id}");
    }

    /// A word on a line of its own, below a title.
    fn bare(&mut self, word: &str) {
        let _ = writeln!(self.out, "  {word}");
    }

    fn list(&mut self, title: &str, values: Option<&Value>) {
        if let Some(values @ [_, ..]) = values.map(Value::items) {
            self.line(1, title, "");
            values.iter().filter_map(Value::as_str).for_each(|value| self.bare(value));
        }
    }
}

fn or<'a>(text: &'a str, default: &'a str) -> &'a str {
    if text.is_empty() { default } else { text }
}

fn show(value: Option<&Value>) -> String {
    match value {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) => number.to_string(),
        Some(Value::Bool(value)) => value.to_string(),
        _ => String::new(),
    }
}

fn words(value: Option<&Value>) -> String {
    value.map(Value::items).unwrap_or_default().iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout() {
        let info = serde_json::from_str(
            r#"{"Containers":2,"ContainersRunning":1,"ContainersPaused":0,"ContainersStopped":1,"Images":3,"ServerVersion":"1",
            "Driver":"overlayfs","DriverStatus":[["Backing","ext4"]],"Plugins":{"Log":["json-file","none"]},"InitCommit":{"ID":""},
            "SecurityOptions":["name=seccomp,profile=builtin"],"NCPU":2,"MemTotal":67108864,
            "RegistryConfig":{"InsecureRegistryCIDRs":["127.0.0.0/8"]}}"#,
        )
        .unwrap();
        let mut out = String::new();
        server(&mut out, &info);
        assert_eq!(
            out,
            " Containers: 2\n  Running: 1\n  Paused: 0\n  Stopped: 1\n Images: 3\n Server Version: 1\n Storage Driver: overlayfs\n  Backing: ext4\n Plugins:\n  Log: json-file none\n Swarm: inactive\n init version: \n Security Options:\n  seccomp\n   Profile: builtin\n CPUs: 2\n Total Memory: 64MiB\n Debug Mode: false\n Experimental: false\n Insecure Registries:\n  127.0.0.0/8\n Live Restore Enabled: false\n"
        );
    }
}
