//! Plugins of the engine. berth-engine has none and says so; dockerd's are managed as its own client does it.

use super::{App, cp, prune};
use crate::args::rare::Invocation;
use crate::client::{Call, Client, call::escape};
use crate::exit::{Failure, Outcome};
use crate::output::listing::{self, Layout};
use crate::output::progress::{self, Sink};
use crate::output::template::Context;
use crate::output::value::Value;
use crate::output::{self, json, order, units};
use proto::image_ref::ImageRef;
use std::path::Path;
use std::sync::Arc;

const LAYOUT: Layout<'_> = Layout {
    columns: "{{.ID}}\t{{.Name}}\t{{.Description}}\t{{.Enabled}}",
    titles: &[
        ("ID", "ID"),
        ("Name", "NAME"),
        ("Description", "DESCRIPTION"),
        ("Enabled", "ENABLED"),
        ("PluginReference", "PLUGIN REFERENCE"),
    ],
    quiet: "{{.ID}}",
};

/// Runs `plugin ...`.
pub async fn run(app: &App, call: &Invocation) -> Outcome {
    let client = app.client().await?;
    let first = call.words.first().map(String::as_str).unwrap_or_default();
    let path = |verb: &str| format!("/plugins/{}{verb}", escape(first, true));
    match call.command.as_str() {
        "ls" => ls(&client, call).await,
        "inspect" => inspect(&client, call).await,
        "rm" => rm(&client, call).await,
        "enable" => {
            let timeout = call.value("timeout").unwrap_or("30");
            client.send(Call::post(path("/enable")).query("timeout", timeout)).await?;
            output::print_line(first)
        }
        "disable" => {
            client.send(Call::post(path("/disable")).switch("force", call.is_on("force"))).await?;
            output::print_line(first)
        }
        "set" => {
            client.send(Call::post(path("/set")).json(&&call.words[1..])).await?;
            Ok(())
        }
        "create" => create(&client, call).await,
        "push" => {
            let reference = first.parse::<ImageRef>()?.with_default_tag();
            let auth = app.config.credentials.header(reference.domain());
            let push = Call::post(format!("/plugins/{}/push", escape(&reference.familiar(), true)));
            progress::show(client.send(push.header("x-registry-auth", auth)).await?, Sink::Stdout).await
        }
        "install" => {
            let name = match call.value("alias") {
                Some(alias) => alias.parse::<ImageRef>()?.with_default_tag().familiar(),
                None => first.parse::<ImageRef>()?.with_default_tag().familiar(),
            };
            pull(app, &client, call, first, &name, "/plugins/pull").await?;
            let own = |verb: &str| format!("/plugins/{}/{verb}", escape(&name, true));
            if call.words.len() > 1 {
                client.send(Call::post(own("set")).json(&&call.words[1..])).await?;
            }
            if !call.is_on("disable") {
                client.send(Call::post(own("enable")).query("timeout", "0")).await?;
            }
            output::print_line(&format!("Installed plugin {first}"))
        }
        _ => upgrade(app, &client, call, first).await,
    }
}

async fn ls(client: &Client, call: &Invocation) -> Outcome {
    let reply = client.send(Call::get("/plugins").filters(&call.filters())).await?.value().await?;
    let mut plugins = reply.items().to_vec();
    plugins.sort_by(|a, b| order::natural(a.text(&["Name"]), b.text(&["Name"])));
    let short = !call.is_on("no-trunc");
    let rows: Vec<Context> = plugins
        .iter()
        .map(|plugin| {
            let id = plugin.text(&["Id"]);
            let description = plugin.text(&["Config", "Description"]).replace(['\n', '\r'], "");
            let enabled = plugin.get("Enabled").and_then(Value::as_bool).unwrap_or(false);
            let fields = Value::object([
                ("Description", if short { units::ellipsis(&description, 45) } else { description }.into()),
                ("Enabled", enabled.into()),
                ("ID", if short { units::short_id(id) } else { id }.into()),
                ("Name", plugin.text(&["Name"]).into()),
                ("PluginReference", plugin.text(&["PluginReference"]).into()),
            ]);
            Context { fields, labels: Value::Null }
        })
        .collect();
    output::print(&listing::render(&LAYOUT, call.value("format"), call.is_on("quiet"), &rows)?)
}

async fn inspect(client: &Client, call: &Invocation) -> Outcome {
    let (mut found, mut errors) = (Vec::new(), Vec::new());
    for name in &call.words {
        match client.send(Call::get(format!("/plugins/{}/json", escape(name, true)))).await {
            Ok(reply) => found.push(reply.value().await?),
            Err(error) => errors.push(error.to_string()),
        }
    }
    match call.value("format") {
        Some(format) => found.into_iter().try_for_each(|value| super::print_formatted(format, value))?,
        None => output::print_line(&json::pretty(&Value::Array(found)))?,
    }
    if errors.is_empty() { Ok(()) } else { Err(Failure::Several(errors)) }
}

async fn rm(client: &Client, call: &Invocation) -> Outcome {
    let mut errors = Vec::new();
    for name in &call.words {
        let delete = Call::delete(format!("/plugins/{}", escape(name, true))).switch("force", call.is_on("force"));
        match client.send(delete).await {
            Ok(_) => output::print_line(name)?,
            Err(error) => errors.push(error.to_string()),
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(Failure::Several(errors)) }
}

async fn create(client: &Client, call: &Invocation) -> Outcome {
    let [name, dir] = &call.words[..] else { return Ok(()) };
    if call.is_on("compress") {
        let text =
            "berth: 'plugin create --compress' is not part of Berth: leave the flag out, the engine takes it as it is";
        return Err(Failure::Refused(text.to_owned()));
    }
    let reference = name.parse::<ImageRef>()?.with_default_tag().familiar();
    for needed in ["config.json", "rootfs"] {
        if !Path::new(dir).join(needed).exists() {
            return Err(Failure::Refused(format!("{dir} has no {needed}: it is not the folder of a plugin")));
        }
    }
    let root = dir.clone();
    let write =
        move |out: &mut dyn std::io::Write| cp::pack::folder(Path::new(&root), &|_, _| cp::pack::Keep::Yes, &[], out);
    let (body, packing) = cp::streamed(write, Arc::default());
    let send = Call::post("/plugins/create").query("name", &reference).header("content-type", "application/x-tar");
    let result = client.send(send.body(body)).await;
    if let Ok(Err(error)) = packing.await {
        return Err(Failure::Refused(error.to_string()));
    }
    result?;
    output::print_line(&reference)
}

/// Downloads a plugin after the user has agreed to what it wants.
async fn pull(app: &App, client: &Client, call: &Invocation, remote: &str, name: &str, path: &str) -> Outcome {
    let reference = remote.parse::<ImageRef>()?.with_default_tag();
    let auth = app.config.credentials.header(reference.domain());
    let ask = Call::get("/plugins/privileges").query("remote", reference.to_string()).header("x-registry-auth", &*auth);
    let wanted = client.send(ask).await?.value().await?;
    if !wanted.items().is_empty() && !call.is_on("grant-all-permissions") {
        let lines: String = wanted
            .items()
            .iter()
            .map(|privilege| {
                let values = privilege.get("Value").map(json::line).unwrap_or_default();
                format!(" - {}: {}\n", privilege.text(&["Name"]), values.replace('"', "").replace(',', " "))
            })
            .collect();
        let question = format!(
            "Plugin \"{remote}\" is requesting the following privileges:\n{lines}Do you grant the above permissions?"
        );
        if !prune::ask_user(&question)? {
            return Err(Failure::Refused(format!("permission denied while installing plugin {remote}")));
        }
    }
    let pull =
        Call::post(path).query("remote", reference.to_string()).query("name", name).header("x-registry-auth", auth);
    progress::show(client.send(pull.json(&wanted)).await?, Sink::Stdout).await
}

async fn upgrade(app: &App, client: &Client, call: &Invocation, name: &str) -> Outcome {
    let plugin = client.send(Call::get(format!("/plugins/{}/json", escape(name, true)))).await?.value().await?;
    if plugin.get("Enabled").and_then(Value::as_bool).unwrap_or(false) {
        return Err(Failure::Refused("the plugin must be disabled before upgrading".to_owned()));
    }
    let old = plugin.text(&["PluginReference"]).to_owned();
    let remote = call.words.get(1).map_or(old.as_str(), String::as_str).to_owned();
    if remote != old && !call.is_on("skip-remote-check") {
        let question =
            format!("Plugin images do not match: {old} is to be replaced by {remote}. Do you want to proceed?");
        if !prune::ask_user(&question)? {
            return Err(Failure::Refused("canceling upgrade request".to_owned()));
        }
    }
    let path = format!("/plugins/{}/upgrade", escape(name, true));
    pull(app, client, call, &remote, name, &path).await?;
    output::print_line(&format!("Upgraded plugin {name} to {remote}"))
}
