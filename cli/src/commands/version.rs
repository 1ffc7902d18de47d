//! `version`

use super::{App, print_formatted};
use crate::args::system::FormatArgs;
use crate::client::{Call, ClientError, NEWEST};
use crate::exit::{Failure, Outcome};
use crate::output::{self, time, value::Value};
use std::fmt::Write as _;

/// What `berth --version` says.
pub const LINE: &str = concat!("Berth version ", env!("CARGO_PKG_VERSION"));

/// Runs `version`. The client's half is printed even when no engine answers.
pub async fn run(app: &App, args: &FormatArgs) -> Outcome {
    let (server, spoken, error) = match ask(app).await {
        Ok((server, spoken)) => (server, spoken, None),
        Err(error) => (Value::Null, NEWEST.to_string(), Some(error)),
    };
    let client = Value::object([
        ("Version", env!("CARGO_PKG_VERSION").into()),
        ("ApiVersion", spoken.into()),
        ("DefaultAPIVersion", NEWEST.to_string().into()),
        ("Os", "linux".into()),
        ("Arch", go_arch().into()),
        ("Context", app.config.context_name().into()),
    ]);
    let printed = match args.format.as_deref() {
        Some(format) if !format.is_empty() => {
            print_formatted(format, Value::object([("Client", client), ("Server", server)]))
        }
        _ => output::print(&text(&client, &server)),
    };
    // Why there is no server says more than what a template misses of it.
    error.map_or(printed, Err)
}

async fn ask(app: &App) -> Result<(Value, String), Failure> {
    let client = app.client().await?;
    let version = client.version().to_string();
    let server: Result<Value, ClientError> = async { client.send(Call::get("/version")).await?.value().await }.await;
    Ok((server?, version))
}

/// The architecture by the name that images and Go use.
pub fn go_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn or<'t>(text: &'t str, other: &'t str) -> &'t str {
    if text.is_empty() { other } else { text }
}

fn text(client: &Value, server: &Value) -> String {
    let mut out = String::from("Client:\n");
    let (spoken, newest) = (client.text(&["ApiVersion"]), client.text(&["DefaultAPIVersion"]));
    let downgraded = if spoken == newest { String::new() } else { format!(" (downgraded from {newest})") };
    for (name, value) in [
        ("Version", client.text(&["Version"]).to_owned()),
        ("API version", format!("{spoken}{downgraded}")),
        ("OS/Arch", format!("linux/{}", client.text(&["Arch"]))),
        ("Context", or(client.text(&["Context"]), "default").to_owned()),
    ] {
        let _ = writeln!(out, " {:<18} {value}", format!("{name}:"));
    }
    if *server == Value::Null {
        return out;
    }
    let platform = server.text(&["Platform", "Name"]);
    let _ = write!(out, "\nServer:{}{platform}\n", if platform.is_empty() { "" } else { " " });
    for component in server.get("Components").map(Value::items).unwrap_or_default() {
        let _ = writeln!(out, " {}:", component.text(&["Name"]));
        let detail = |name| component.text(&["Details", name]);
        let _ = writeln!(out, "  {:<17} {}", "Version:", component.text(&["Version"]));
        if component.text(&["Name"]) != "Engine" {
            for (name, value) in component.get("Details").map(Value::fields).unwrap_or_default() {
                let _ = writeln!(out, "  {:<17} {}", format!("{name}:"), value.as_str().unwrap_or_default());
            }
            continue;
        }
        let api = format!("{} (minimum version {})", detail("ApiVersion"), detail("MinAPIVersion"));
        let arch = format!("{}/{}", detail("Os"), detail("Arch"));
        for (name, value) in [
            ("API version", api.as_str()),
            ("Go version", detail("GoVersion")),
            ("Git commit", detail("GitCommit")),
            ("Built", &time::ansi(detail("BuildTime"))),
            ("OS/Arch", &arch),
            ("Experimental", detail("Experimental")),
        ] {
            // An engine that isn't written in Go has no such version.
            if !value.is_empty() {
                let _ = writeln!(out, "  {:<17} {value}", format!("{name}:"));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout() {
        let client = Value::object([
            ("Version", "1".into()),
            ("ApiVersion", "1.41".into()),
            ("DefaultAPIVersion", "1.51".into()),
            ("Arch", "amd64".into()),
        ]);
        let server = serde_json::from_str(
            r#"{"Platform":{"Name":""},"Components":[{"Name":"Engine","Version":"20","Details":{"ApiVersion":"1.41","MinAPIVersion":"1.12","Os":"linux","Arch":"amd64","Experimental":"false"}},
            {"Name":"runc","Version":"1.1","Details":{"GitCommit":"x"}}]}"#,
        )
        .unwrap();
        assert_eq!(
            text(&client, &server),
            "Client:\n Version:           1\n API version:       1.41 (downgraded from 1.51)\n OS/Arch:           linux/amd64\n Context:           default\n\
             \nServer:\n Engine:\n  Version:          20\n  API version:      1.41 (minimum version 1.12)\n  OS/Arch:          linux/amd64\n  Experimental:     false\n runc:\n  Version:          1.1\n  GitCommit:        x\n"
        );
    }
}
