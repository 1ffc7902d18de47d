//! Swarms, checkpoints, and what belongs to them.
//!
//! Berth runs containers on one machine. What a swarm is asked is passed on to the engine as far as one call answers it: an engine
//! outside a swarm (berth-engine always, dockerd mostly) says so in its own words. What a manager would have to be told in detail
//! is left to docker's own client, by name.

use super::{App, engine_plugins, print_formatted};
use crate::args::rare::Invocation;
use crate::client::{Call, Client, call::escape};
use crate::exit::{Failure, Outcome};
use crate::output::listing::{self, Layout};
use crate::output::template::Context;
use crate::output::value::Value;
use crate::output::{self, json, table};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::json;
use std::io::Read;

/// Runs a command of the table.
pub async fn run(app: &App, call: &Invocation) -> Outcome {
    match call.group {
        "plugin" => engine_plugins::run(app, call).await,
        "checkpoint" => checkpoint(app, call).await,
        "swarm" => swarm(app, call).await,
        _ => resource(app, call).await,
    }
}

async fn checkpoint(app: &App, call: &Invocation) -> Outcome {
    let client = app.client().await?;
    let path = format!("/containers/{}/checkpoints", escape(&call.words[0], false));
    let dir = call.value("checkpoint-dir");
    match (call.command.as_str(), call.words.get(1)) {
        ("create", Some(name)) => {
            let body = json!({
                "CheckpointID": name,
                "CheckpointDir": dir.unwrap_or_default(),
                "Exit": !call.is_on("leave-running"),
            });
            client.send(Call::post(path).json(&body)).await?;
            output::print_line(name)
        }
        ("rm", Some(name)) => {
            client.send(Call::delete(format!("{path}/{}", escape(name, false))).maybe("dir", dir)).await?;
            Ok(())
        }
        _ => {
            let all = client.send(Call::get(path).maybe("dir", dir)).await?.value().await?;
            let names = all.items().iter().map(|one| vec![one.text(&["Name"]).to_owned()]);
            let rows: Vec<Vec<String>> = std::iter::once(vec!["CHECKPOINT NAME".to_owned()]).chain(names).collect();
            output::print(&table::align(&rows))
        }
    }
}

async fn swarm(app: &App, call: &Invocation) -> Outcome {
    let client = app.client().await?;
    match call.command.as_str() {
        "leave" => {
            client.send(Call::post("/swarm/leave").switch("force", call.is_on("force"))).await?;
            output::print_line("Node left the swarm.")
        }
        "init" => {
            // The engine refuses what it can't do; one that can is told all that was said, or nothing.
            refuse_flags(
                call,
                &["advertise-addr", "listen-addr", "availability", "force-new-cluster", "data-path-addr", "autolock"],
            )?;
            let body = json!({
                "ListenAddr": call.value("listen-addr"),
                "AdvertiseAddr": call.value("advertise-addr").unwrap_or_default(),
                "DataPathAddr": call.value("data-path-addr").unwrap_or_default(),
                "ForceNewCluster": call.is_on("force-new-cluster"),
                "AutoLockManagers": call.is_on("autolock"),
                "Availability": call.value("availability"),
                "Spec": { "EncryptionConfig": { "AutoLockManagers": call.is_on("autolock") } },
            });
            let id: String = client.send(Call::post("/swarm/init").json(&body)).await?.json().await?;
            output::print_line(&format!("Swarm initialized: current node ({id}) is now a manager."))
        }
        "join" => {
            let body = json!({
                "ListenAddr": call.value("listen-addr"),
                "AdvertiseAddr": call.value("advertise-addr").unwrap_or_default(),
                "DataPathAddr": call.value("data-path-addr").unwrap_or_default(),
                "RemoteAddrs": call.words,
                "JoinToken": call.value("token").unwrap_or_default(),
                "Availability": call.value("availability"),
            });
            client.send(Call::post("/swarm/join").json(&body)).await?;
            output::print_line("This node joined a swarm as a worker or manager.")
        }
        "join-token" if !call.is_on("rotate") => {
            let cluster = client.send(Call::get("/swarm")).await?.value().await?;
            let token = match call.words[0].as_str() {
                "worker" => cluster.text(&["JoinTokens", "Worker"]),
                "manager" => cluster.text(&["JoinTokens", "Manager"]),
                _ => return Err(Failure::Refused("unknown role ".to_owned() + &call.words[0])),
            };
            output::print_line(token)
        }
        "unlock" => {
            let info = client.send(Call::get("/info")).await?.value().await?;
            match info.text(&["Swarm", "LocalNodeState"]) {
                "" | "inactive" => Err(Failure::Refused("Error: This node is not part of a swarm".to_owned())),
                "locked" => Err(left_to_docker(call)),
                _ => Err(Failure::Refused("Error: swarm is not locked".to_owned())),
            }
        }
        "unlock-key" if !call.is_on("rotate") => {
            let key = client.send(Call::get("/swarm/unlockkey")).await?.value().await?;
            output::print_line(key.text(&["UnlockKey"]))
        }
        _ => {
            client.send(Call::get("/swarm")).await?;
            Err(left_to_docker(call))
        }
    }
}

/// Nodes, services, secrets, configs; stacks are labels of services.
async fn resource(app: &App, call: &Invocation) -> Outcome {
    let client = app.client().await?;
    let kind = Kind::of(call.group);
    match call.command.as_str() {
        "ls" if call.group != "stack" => kind.ls(&client, call).await,
        "inspect" if !call.is_on("pretty") => kind.inspect(&client, call).await,
        "rm" if call.group != "stack" => kind.rm(&client, call).await,
        "create" if matches!(call.group, "secret" | "config") => kind.create(&client, call).await,
        "config" => Err(left_to_docker(call)),
        _ => {
            client.send(Call::get(kind.path)).await?;
            Err(left_to_docker(call))
        }
    }
}

fn left_to_docker(call: &Invocation) -> Failure {
    let name = format!("{} {}", call.group, call.command);
    Failure::Refused(format!(
        "berth: '{name}' is not part of Berth, which manages one machine: use docker's own client for it"
    ))
}

fn refuse_flags(call: &Invocation, known: &[&str]) -> Outcome {
    match call.given().find(|flag| !known.contains(flag)) {
        None => Ok(()),
        Some(flag) => {
            let name = format!("{} {}", call.group, call.command);
            Err(Failure::Refused(format!(
                "berth: '{name} --{flag}' is not part of Berth: use docker's own client for it"
            )))
        }
    }
}

struct Kind {
    path: &'static str,
    columns: &'static str,
    titles: &'static [(&'static str, &'static str)],
    /// Fields, and where they are in what the API gives.
    fields: &'static [(&'static str, &'static [&'static str])],
}

impl Kind {
    fn of(group: &str) -> Self {
        match group {
            "node" => Self {
                path: "/nodes",
                columns: "{{.ID}}\t{{.Hostname}}\t{{.Status}}\t{{.Availability}}\t{{.ManagerStatus}}\t{{.EngineVersion}}",
                titles: &[
                    ("ID", "ID"),
                    ("Hostname", "HOSTNAME"),
                    ("Status", "STATUS"),
                    ("Availability", "AVAILABILITY"),
                    ("ManagerStatus", "MANAGER STATUS"),
                    ("EngineVersion", "ENGINE VERSION"),
                ],
                fields: &[
                    ("ID", &["ID"]),
                    ("Hostname", &["Description", "Hostname"]),
                    ("Status", &["Status", "State"]),
                    ("Availability", &["Spec", "Availability"]),
                    ("ManagerStatus", &["ManagerStatus", "Reachability"]),
                    ("EngineVersion", &["Description", "Engine", "EngineVersion"]),
                ],
            },
            "secret" | "config" => Self {
                path: if group == "secret" { "/secrets" } else { "/configs" },
                columns: "{{.ID}}\t{{.Name}}\t{{.CreatedAt}}\t{{.UpdatedAt}}",
                titles: &[("ID", "ID"), ("Name", "NAME"), ("CreatedAt", "CREATED"), ("UpdatedAt", "UPDATED")],
                fields: &[
                    ("ID", &["ID"]),
                    ("Name", &["Spec", "Name"]),
                    ("CreatedAt", &["CreatedAt"]),
                    ("UpdatedAt", &["UpdatedAt"]),
                ],
            },
            _ => Self {
                path: "/services",
                columns: "{{.ID}}\t{{.Name}}\t{{.Image}}",
                titles: &[("ID", "ID"), ("Name", "NAME"), ("Image", "IMAGE")],
                fields: &[
                    ("ID", &["ID"]),
                    ("Name", &["Spec", "Name"]),
                    ("Image", &["Spec", "TaskTemplate", "ContainerSpec", "Image"]),
                ],
            },
        }
    }

    async fn ls(&self, client: &Client, call: &Invocation) -> Outcome {
        let all = client.send(Call::get(self.path).filters(&call.filters())).await?.value().await?;
        let rows: Vec<Context> = all
            .items()
            .iter()
            .map(|one| {
                let fields = self.fields.iter().map(|(name, path)| ((*name).to_owned(), one.text(path).into()));
                Context {
                    fields: Value::Object(fields.collect()),
                    labels: one.at(&["Spec", "Labels"]).cloned().unwrap_or_default(),
                }
            })
            .collect();
        let layout = Layout { columns: self.columns, titles: self.titles, quiet: "{{.ID}}" };
        output::print(&listing::render(&layout, call.value("format"), call.is_on("quiet"), &rows)?)
    }

    async fn inspect(&self, client: &Client, call: &Invocation) -> Outcome {
        let (mut found, mut errors) = (Vec::new(), Vec::new());
        for name in &call.words {
            let answer = match client.send(Call::get(format!("{}/{}", self.path, escape(name, false)))).await {
                Ok(reply) => reply.value().await,
                Err(error) => Err(error),
            };
            match answer {
                Ok(value) => found.push(value),
                Err(error) => errors.push(error.to_string()),
            }
        }
        match call.value("format") {
            Some(format) => found.into_iter().try_for_each(|value| print_formatted(format, value))?,
            None => output::print_line(&json::pretty(&Value::Array(found)))?,
        }
        if errors.is_empty() { Ok(()) } else { Err(Failure::Several(errors)) }
    }

    async fn rm(&self, client: &Client, call: &Invocation) -> Outcome {
        let mut errors = Vec::new();
        for name in &call.words {
            let delete = Call::delete(format!("{}/{}", self.path, escape(name, false)));
            match client.send(delete.switch("force", call.is_on("force"))).await {
                Ok(_) => output::print_line(name)?,
                Err(error) => errors.push(error.to_string()),
            }
        }
        if errors.is_empty() { Ok(()) } else { Err(Failure::Several(errors)) }
    }

    async fn create(&self, client: &Client, call: &Invocation) -> Outcome {
        let data = match call.words.get(1).map(String::as_str) {
            None if call.value("driver").is_some() => None,
            None | Some("-") => {
                let mut data = Vec::new();
                std::io::stdin().read_to_end(&mut data).map_err(|cause| Failure::io("read standard input", cause))?;
                Some(data)
            }
            Some(path) => Some(std::fs::read(path).map_err(|cause| Failure::io(format!("open {path}"), cause))?),
        };
        let mut body = json!({
            "Name": call.words[0],
            "Labels": crate::options::envs::labels(&[], call.values("label"))?,
            "Data": data.map(|data| STANDARD.encode(data)),
        });
        for (flag, field) in [("driver", "Driver"), ("template-driver", "Templating")] {
            if let Some(name) = call.value(flag) {
                body[field] = json!({ "Name": name });
            }
        }
        let made = client.send(Call::post(format!("{}/create", self.path)).json(&body)).await?.value().await?;
        output::print_line(made.text(&["ID"]))
    }
}
