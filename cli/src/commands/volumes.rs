//! `volume create`, `export`, `import`, `ls`, `rm`, `update`; `inspect` and `prune` are with their likes.

use super::{App, archive::Target, load, require};
use crate::args::volume::{CreateArgs, ExportArgs, ImportArgs, LsArgs, RmArgs, UpdateArgs};
use crate::client::{Call, call::escape};
use crate::exit::{Failure, Outcome};
use crate::options::envs;
use crate::output::listing::{self, Layout};
use crate::output::template::Context;
use crate::output::value::Value;
use crate::output::{self, order, units};
use crate::terminal;
use serde_json::{Map, json};

const TITLES: &[(&str, &str)] = &[
    ("Name", "VOLUME NAME"),
    ("Driver", "DRIVER"),
    ("Scope", "SCOPE"),
    ("Availability", "AVAILABILITY"),
    ("Mountpoint", "MOUNTPOINT"),
    ("Links", "LINKS"),
    ("Size", "SIZE"),
    ("Labels", "LABELS"),
    ("Group", "GROUP"),
    ("Status", "STATUS"),
];

/// Runs `volume create`.
pub async fn create(app: &App, args: &CreateArgs) -> Outcome {
    if args.name.is_some() && args.volume.is_some() {
        let text = "conflicting options: cannot specify a volume-name through both --name and as a positional arg";
        return Err(Failure::Refused(text.to_owned()));
    }
    let client = app.client().await?;
    let cluster = cluster_flags(args);
    if let Some(flag) = cluster.first() {
        require(&client, flag, true, 42)?;
    }
    let mut body = json!({
        "Name": args.volume.as_ref().or(args.name.as_ref()).map(String::as_str).unwrap_or_default(),
        "Driver": args.driver,
        "DriverOpts": envs::map(&args.opt),
        "Labels": envs::labels(&[], &args.label)?,
    });
    if !cluster.is_empty() {
        body["ClusterVolumeSpec"] = cluster_spec(args);
    }
    let made = client.send(Call::post("/volumes/create").json(&body)).await?.value().await?;
    output::print_line(made.text(&["Name"]))
}

/// Flags that only volumes of a swarm have.
fn cluster_flags(args: &CreateArgs) -> Vec<&'static str> {
    let all = [
        ("--availability", args.availability != "active"),
        ("--group", args.group.is_some()),
        ("--limit-bytes", args.limit_bytes.is_some()),
        ("--required-bytes", args.required_bytes.is_some()),
        ("--scope", args.scope != "single"),
        ("--secret", !args.secret.is_empty()),
        ("--sharing", args.sharing != "none"),
        ("--topology-preferred", !args.topology_preferred.is_empty()),
        ("--topology-required", !args.topology_required.is_empty()),
        ("--type", args.r#type != "block"),
    ];
    all.into_iter().filter(|(_, given)| *given).map(|(flag, _)| flag).collect()
}

fn cluster_spec(args: &CreateArgs) -> serde_json::Value {
    let mut access = json!({ "Scope": args.scope, "Sharing": args.sharing });
    access[if args.r#type == "mount" { "MountVolume" } else { "BlockVolume" }] = json!({});
    let places = |texts: &[String]| -> serde_json::Value {
        let segments = texts.iter().map(|text| {
            let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
            json!({ "Segments": pairs.map(|(k, v)| (k.to_owned(), json!(v))).collect::<Map<_, _>>() })
        });
        segments.collect()
    };
    let mut secrets = args.secret.clone();
    secrets.sort();
    json!({
        "Group": args.group.as_deref().unwrap_or_default(),
        "AccessMode": access,
        "CapacityRange": {
            "RequiredBytes": args.required_bytes.unwrap_or_default().0,
            "LimitBytes": args.limit_bytes.unwrap_or_default().0,
        },
        "Secrets": secrets.iter().map(|(key, secret)| json!({ "Key": key, "Secret": secret })).collect::<Vec<_>>(),
        "AccessibilityRequirements": {
            "Requisite": places(&args.topology_required),
            "Preferred": places(&args.topology_preferred),
        },
        "Availability": args.availability,
    })
}

/// Runs `volume export`: Berth's own.
pub async fn export(app: &App, args: &ExportArgs) -> Outcome {
    let target = Target::new(args.output.as_deref(), "export volume")?;
    let call = Call::get(format!("/volumes/{}/export", escape(&args.volume, false)));
    target.write(app.client().await?.send(call).await?).await
}

/// Runs `volume import`: Berth's own.
pub async fn import(app: &App, args: &ImportArgs) -> Outcome {
    let body = match args.file.as_deref() {
        None | Some("-") if terminal::stdin_is_terminal() => {
            return Err(Failure::Refused("requested import from stdin, but stdin is a terminal".to_owned()));
        }
        None | Some("-") => load::streamed(tokio::io::stdin()),
        Some(path) => load::file(path).await?,
    };
    let call = Call::post(format!("/volumes/{}/import", escape(&args.volume, false)));
    app.client().await?.send(call.header("content-type", "application/x-tar").body(body)).await?;
    Ok(())
}

/// Runs `volume ls`.
pub async fn ls(app: &App, args: &LsArgs) -> Outcome {
    let client = app.client().await?;
    require(&client, "--cluster", args.cluster, 42)?;
    let reply = client.send(Call::get("/volumes").filters(&args.filter)).await?.value().await?;
    for warning in reply.get("Warnings").map(Value::items).unwrap_or_default() {
        output::note(&format!("WARNING: {}", warning.as_str().unwrap_or_default()));
    }
    let mut volumes: Vec<&Value> = reply.get("Volumes").map(Value::items).unwrap_or_default().iter().collect();
    volumes.retain(|volume| !args.cluster || volume.get("ClusterVolume").is_some_and(|c| *c != Value::Null));
    volumes.sort_by(|a, b| order::natural(a.text(&["Name"]), b.text(&["Name"])));
    let format = args.format.as_deref().or(if args.quiet { None } else { app.config.volumes_format() });
    let columns = match args.cluster {
        true => "{{.Name}}\t{{.Group}}\t{{.Driver}}\t{{.Availability}}\t{{.Status}}",
        false => "{{.Driver}}\t{{.Name}}",
    };
    let layout = Layout { columns, titles: TITLES, quiet: "{{.Name}}" };
    let rows: Vec<Context> = volumes.iter().map(|volume| row(volume)).collect();
    output::print(&listing::render(&layout, format, args.quiet, &rows)?)
}

/// Fields of a volume, as the API describes it.
pub fn row(volume: &Value) -> Context {
    let text = |name: &str| volume.text(&[name]).to_owned();
    let number = |name: &str| volume.at(&["UsageData", name]).and_then(Value::as_i64);
    let labels = volume.get("Labels").cloned().unwrap_or_default();
    let cluster = |path: &[&str]| match volume.get("ClusterVolume") {
        Some(Value::Null) | None => "N/A".to_owned(),
        Some(own) => own.text(path).to_owned(),
    };
    let size = number("Size").filter(|size| *size >= 0).map_or("N/A".to_owned(), |size| units::size(size, 4));
    let fields = Value::object([
        ("Availability", cluster(&["Spec", "Availability"]).into()),
        ("Driver", text("Driver").into()),
        ("Group", cluster(&["Spec", "Group"]).into()),
        ("Labels", super::networks::pairs(&labels).into()),
        ("Links", number("RefCount").map_or("N/A".to_owned(), |n| n.to_string()).into()),
        ("Mountpoint", text("Mountpoint").into()),
        ("Name", text("Name").into()),
        ("Scope", text("Scope").into()),
        ("Size", size.into()),
        ("Status", if cluster(&[]) == "N/A" { "N/A" } else { "pending creation" }.into()),
    ]);
    Context { fields, labels }
}

/// Runs `volume rm`, one after the other.
pub async fn rm(app: &App, args: &RmArgs) -> Outcome {
    let client = app.client().await?;
    let mut errors = Vec::new();
    for name in &args.volumes {
        let call = Call::delete(format!("/volumes/{}", escape(name, false))).switch("force", args.force);
        match client.send(call).await {
            Ok(_) => output::print_line(name)?,
            Err(error) => errors.push(error.to_string()),
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(Failure::Several(errors)) }
}

/// Runs `volume update`: only volumes of a swarm have something to change.
pub async fn update(app: &App, args: &UpdateArgs) -> Outcome {
    let client = app.client().await?;
    require(&client, "volume update", true, 42)?;
    let path = format!("/volumes/{}", escape(&args.volume, false));
    let volume = client.send(Call::get(&*path)).await?.value().await?;
    let Some(cluster) = volume.get("ClusterVolume").filter(|cluster| **cluster != Value::Null) else {
        return Err(Failure::Refused("Can only update cluster volumes".to_owned()));
    };
    let mut spec = serde_json::to_value(cluster.get("Spec").unwrap_or(&Value::Null)).unwrap_or_default();
    if spec.is_null() {
        spec = json!({});
    }
    spec["Availability"] = json!(args.availability);
    let version = cluster.at(&["Version", "Index"]).and_then(Value::as_i64).unwrap_or(0);
    client.send(Call::put(path).query("version", version.to_string()).json(&json!({ "Spec": spec }))).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows() {
        let volume: Value = serde_json::from_str(
            r#"{"Name":"v","Driver":"local","Scope":"local","Mountpoint":"/m","Labels":{"b":"2","a":"1"},"UsageData":{"Size":2048,"RefCount":1}}"#,
        )
        .unwrap();
        let row = row(&volume);
        for (field, want) in
            [("Labels", "a=1,b=2"), ("Size", "2.048kB"), ("Links", "1"), ("Group", "N/A"), ("Status", "N/A")]
        {
            assert_eq!(row.fields.text(&[field]), want, "{field}");
        }
    }

    #[test]
    fn cluster_volumes() {
        let args = CreateArgs {
            availability: "pause".into(),
            scope: "multi".into(),
            sharing: "none".into(),
            r#type: "mount".into(),
            secret: vec![("b".into(), "2".into()), ("a".into(), "1".into())],
            topology_required: vec!["zone=1,rack=2".into()],
            ..CreateArgs::default()
        };
        let spec = cluster_spec(&args);
        assert_eq!(spec["AccessMode"], json!({"Scope":"multi","Sharing":"none","MountVolume":{}}));
        assert_eq!(spec["Secrets"][0], json!({"Key":"a","Secret":"1"}));
        assert_eq!(spec["AccessibilityRequirements"]["Requisite"], json!([{"Segments":{"zone":"1","rack":"2"}}]));
        assert_eq!(cluster_flags(&args), ["--availability", "--scope", "--secret", "--topology-required", "--type"]);
    }
}
