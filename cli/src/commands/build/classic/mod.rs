//! `build` by the engine's classic builder: POST /build. For engines without BuildKit, and for DOCKER_BUILDKIT=0.

pub mod context;
mod ignore;

use super::super::App;
use crate::args::build::BuildArgs;
use crate::client::{Call, Reply};
use crate::exit::{Failure, Outcome};
use crate::options::envs;
use crate::output::{self, units};
use base64::{Engine as _, engine::general_purpose::URL_SAFE};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::sync::atomic::Ordering;

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Message {
    stream: String,
    status: String,
    id: String,
    progress_detail: Option<Map<String, Value>>,
    error: String,
    error_detail: Option<ErrorDetail>,
    aux: Option<Aux>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ErrorDetail {
    code: i64,
    message: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Aux {
    #[serde(rename = "ID")]
    id: String,
}

/// Runs `build`.
pub async fn run(app: &App, args: &BuildArgs) -> Outcome {
    refuse_buildkit_flags(args)?;
    let query = query(args, &app.config.proxy_variables(), &crate::config::own_variable)?;
    let client = app.client().await?;
    let context = context::prepare(args).await?;
    let platform = args.platform.first().map(String::as_str).or(app.config.default_platform.as_deref());
    let platform = platform.filter(|p| !p.is_empty());
    let auths = serde_json::to_string(&app.config.credentials.all()).unwrap_or_default();
    let mut call = Call::post("/build")
        .query("version", "1")
        .maybe("dockerfile", (!context.dockerfile.is_empty()).then_some(&context.dockerfile))
        .maybe("remote", context.remote.as_deref())
        .maybe("platform", platform)
        .header("x-registry-config", URL_SAFE.encode(auths))
        .header("content-type", "application/x-tar");
    for (key, value) in &query {
        call = call.query(key, value);
    }
    if let Some(body) = context.body {
        call = call.body(body);
    }
    let result = client.send(call).await;
    if let Some(packing) = context.packing {
        match packing.await {
            Ok(Err(error)) if !error.is_consequence() => return Err(Failure::Refused(error.to_string())),
            _ => {}
        }
    }
    let reply = result?;
    if !args.quiet && context.remote.is_none() {
        let sent = i64::try_from(context.sent.load(Ordering::Relaxed)).unwrap_or(i64::MAX);
        output::print_line(&format!("Sending build context to Docker daemon  {}", units::size(sent, 4)))?;
    }
    let id = show(reply, args.quiet).await?;
    if let Some(path) = args.iidfile.as_deref().filter(|path| !path.is_empty()) {
        let Some(id) = id else {
            return Err(Failure::Refused(format!("cannot write {path} because no image was built")));
        };
        std::fs::write(path, id).map_err(|cause| Failure::io(format!("write {path}"), cause))?;
    }
    Ok(())
}

/// What only BuildKit can do.
fn refuse_buildkit_flags(args: &BuildArgs) -> Outcome {
    let given = [
        ("--allow", !args.allow.is_empty()),
        ("--annotation", !args.annotation.is_empty()),
        ("--attest", !args.attest.is_empty()),
        ("--build-context", !args.build_context.is_empty()),
        ("--cache-to", !args.cache_to.is_empty()),
        ("--call", args.call != "build" && !args.call.is_empty()),
        ("--check", args.check),
        ("--load", args.load),
        ("--metadata-file", args.metadata_file.is_some()),
        ("--no-cache-filter", !args.no_cache_filter.is_empty()),
        ("--output", !args.output.is_empty()),
        ("--platform with several platforms", args.platform.len() > 1),
        ("--provenance", args.provenance.is_some()),
        ("--push", args.push),
        ("--sbom", args.sbom.is_some()),
        ("--secret", !args.secret.is_empty()),
        ("--ssh", !args.ssh.is_empty()),
    ];
    match given.iter().find(|(_, given)| *given) {
        Some((flag, _)) => Err(Failure::Refused(format!("{flag} needs BuildKit, which DOCKER_BUILDKIT=0 turns off"))),
        None => Ok(()),
    }
}

/// Shows what the builder says; with `quiet`, only when it fails. Gives the image's id.
async fn show(mut reply: Reply, quiet: bool) -> Outcome<Option<String>> {
    let (mut id, mut said) = (None, String::new());
    while let Some(message) = reply.object::<Message>().await? {
        if let Some(aux) = message.aux.filter(|aux| !aux.id.is_empty()) {
            id = Some(aux.id);
            continue;
        }
        let text = match &message.error_detail {
            Some(ErrorDetail { code, message }) => {
                if quiet {
                    eprint_all(&said);
                }
                let code = if *code == 0 { 1 } else { u8::try_from(*code & 0xff).unwrap_or(1) };
                output::note(message);
                return Err(Failure::Exit(code));
            }
            None if !message.error.is_empty() => return Err(Failure::Refused(message.error)),
            None if !message.stream.is_empty() => message.stream,
            // Lines of a download that only move a bar are left out.
            None if message.status.is_empty() || message.progress_detail.is_some_and(|detail| !detail.is_empty()) => {
                continue;
            }
            None if message.id.is_empty() => message.status + "\n",
            None => format!("{}: {}\n", message.id, message.status),
        };
        if quiet {
            said.push_str(&text);
        } else {
            output::print(&text)?;
        }
    }
    if quiet {
        // With q=1 the engine says nothing else.
        let last = said.lines().rev().find(|line| line.starts_with("sha256:")).map(str::to_owned);
        id = id.or(last);
        output::print_line(id.as_deref().unwrap_or_default())?;
    }
    Ok(id)
}

fn eprint_all(text: &str) {
    if !text.is_empty() {
        output::note(text.trim_end());
    }
}

/// The flags as the query of POST /build.
fn query(
    args: &BuildArgs,
    proxies: &[(String, String)],
    own: &dyn Fn(&str) -> Option<String>,
) -> Outcome<Vec<(&'static str, String)>> {
    let mut query: Vec<(&'static str, String)> = args.tag.iter().map(|tag| ("t", tag.clone())).collect();
    query.extend(args.add_host.iter().map(|host| ("extrahosts", host.clone())));
    query.extend(args.security_opt.iter().map(|option| ("securityopt", option.clone())));
    let switches = [
        ("q", args.quiet),
        ("nocache", args.no_cache),
        ("forcerm", args.force_rm),
        ("pull", args.pull),
        ("squash", args.squash),
    ];
    query.extend(switches.into_iter().filter(|(_, on)| *on).map(|(key, _)| (key, "1".to_owned())));
    query.push(("rm", if args.rm { "1" } else { "0" }.to_owned()));
    let texts = [
        ("cgroupparent", &args.cgroup_parent),
        ("cpusetcpus", &args.cpuset_cpus),
        ("cpusetmems", &args.cpuset_mems),
        ("isolation", &args.isolation),
        ("target", &args.target),
    ];
    query.extend(texts.into_iter().filter_map(|(key, text)| Some((key, text.clone()?))));
    query.push(("networkmode", args.network.clone()));
    let numbers = [
        ("cpuperiod", args.cpu_period),
        ("cpuquota", args.cpu_quota),
        ("cpushares", args.cpu_shares),
        ("memory", args.memory.map(|size| size.0)),
        ("memswap", args.memory_swap.map(|size| size.0)),
        ("shmsize", args.shm_size.map(|size| size.0)),
    ];
    query.extend(numbers.into_iter().filter_map(|(key, number)| Some((key, number?.to_string()))));
    let mut variables = Map::new();
    for (name, value) in proxies {
        variables.insert(name.clone(), json!(value));
    }
    for text in &args.build_arg {
        match text.split_once('=') {
            Some((name, value)) => variables.insert(name.to_owned(), json!(value)),
            // A bare name stands for the client's own value; without one the Dockerfile's default counts.
            None => variables.insert(text.clone(), json!(own(text))),
        };
    }
    let ulimits: Vec<Value> =
        args.ulimit.iter().map(|u| json!({ "Name": u.name, "Soft": u.soft, "Hard": u.hard })).collect();
    let labels = envs::labels(&[], &args.label)?;
    let cache_from: Vec<&str> = args.cache_from.iter().flat_map(|text| text.split(',')).collect();
    query.push(("buildargs", Value::Object(variables).to_string()));
    query.push(("labels", Value::Object(labels).to_string()));
    query.push(("cachefrom", json!(cache_from).to_string()));
    query.push(("ulimits", Value::Array(ulimits).to_string()));
    Ok(query)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_become_a_query() {
        let args = BuildArgs {
            tag: vec!["a:1".into(), "b".into()],
            build_arg: vec!["A=b=c".into(), "HOME".into(), "NONE".into()],
            label: vec!["k=v".into()],
            cache_from: vec!["x".into()],
            memory: Some(crate::args::values::ByteSize(64)),
            cpu_period: Some(5),
            no_cache: true,
            rm: true,
            network: "default".into(),
            target: Some("t".into()),
            ulimit: vec![crate::options::limits::parse("nofile=1:2").unwrap()],
            ..BuildArgs::default()
        };
        let own = |name: &str| (name == "HOME").then(|| "/h".to_owned());
        let query = query(&args, &[("HTTP_PROXY".into(), "p".into())], &own).unwrap();
        let of = |key: &str| query.iter().filter(|(k, _)| *k == key).map(|(_, v)| v.as_str()).collect::<Vec<_>>();
        assert_eq!(of("t"), ["a:1", "b"]);
        assert_eq!(of("buildargs"), [r#"{"A":"b=c","HOME":"/h","HTTP_PROXY":"p","NONE":null}"#]);
        assert_eq!(
            (of("memory"), of("cpuperiod"), of("nocache"), of("rm")),
            (vec!["64"], vec!["5"], vec!["1"], vec!["1"])
        );
        assert_eq!(of("ulimits"), [r#"[{"Hard":2,"Name":"nofile","Soft":1}]"#]);
        assert_eq!((of("labels"), of("cachefrom"), of("target")), (vec![r#"{"k":"v"}"#], vec![r#"["x"]"#], vec!["t"]));
        assert!(of("squash").is_empty() && of("isolation").is_empty());
    }
}
