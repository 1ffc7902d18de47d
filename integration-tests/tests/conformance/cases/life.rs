//! From start to removal: states, codes, refusals.

use super::fields::ready;
use crate::{
    cases,
    run::{Run, sh, waiting, with_host},
};
use serde_json::json;

cases!(
    start_and_stop,
    states,
    failed_starts,
    kill,
    pause,
    restart,
    wait,
    remove,
    auto_remove,
    restart_policies,
    update,
    top,
    stats,
    changes,
    export,
    prune,
    commit,
    health,
    resize,
    running_inspect,
    checkpoints,
    ambiguous
);

fn start_and_stop(run: &mut Run) {
    run.create("web", &waiting());
    run.post(304, "/containers/web/stop");
    run.post(204, "/containers/web/start");
    run.post(304, "/containers/web/start");
    run.post(204, "/containers/web/stop?t=10");
    run.post(304, "/containers/web/stop");
    run.inspect("web", &["/State"]);
    run.post(204, "/containers/web/start");
    run.post(400, "/containers/web/stop?t=odd");
    run.post(404, "/containers/nobody/start");
    run.post(404, "/containers/nobody/stop");
    run.refused(404, "POST", "/containers/nobody/restart", None, "No such container: nobody");
    run.ask(400, "POST", "/containers/web/start", Some(&json!({"Binds": ["/a:/b"]})));
    run.post(204, "/containers/web/stop?t=10");
    run.ask(204, "POST", "/containers/web/start", Some(&json!({})));
}

fn states(run: &mut Run) {
    run.create("life", &sh("exit 7"));
    run.inspect("life", &["/State", "/RestartCount"]);
    run.post(204, "/containers/life/start");
    run.ended("life");
    run.inspect("life", &["/State", "/RestartCount"]);
    run.get(200, "/containers/json?all=1");
    run.get(200, "/containers/json");
}

fn failed_starts(run: &mut Run) {
    run.create("lost", &json!({"Image": "busybox", "Cmd": ["no-such-program"]}));
    run.refused(400, "POST", "/containers/lost/start", None, "executable file not found");
    run.inspect("lost", &["/State/Status", "/State/ExitCode", "/State/Running"]);
    run.create("path", &json!({"Image": "busybox", "Cmd": ["/no/such/program"]}));
    run.refused(400, "POST", "/containers/path/start", None, "no such file or directory");
    run.inspect("path", &["/State/Status", "/State/ExitCode"]);
    run.create("folder", &json!({"Image": "busybox", "Cmd": ["/etc"]}));
    run.refused(400, "POST", "/containers/folder/start", None, "permission denied");
    run.inspect("folder", &["/State/Status", "/State/ExitCode"]);
    run.create("unix", &json!({"Image": "busybox", "Cmd": ["/etc/passwd"]}));
    run.refused(400, "POST", "/containers/unix/start", None, "permission denied");
    run.delete(204, "/containers/lost");
}

fn kill(run: &mut Run) {
    run.create("web", &sh("trap 'echo hup' HUP; trap 'exit 9' USR2; echo ready; while :; do usleep 20000; done"));
    run.refused(409, "POST", "/containers/web/kill", None, "is not running");
    run.post(204, "/containers/web/start");
    ready(run, "web");
    run.post(400, "/containers/web/kill?signal=ODD");
    run.post(400, "/containers/web/kill?signal=99");
    run.post(400, "/containers/web/kill?signal=-1");
    run.post(204, "/containers/web/kill?signal=HUP");
    run.post(204, "/containers/web/kill?signal=sigusr2");
    run.ended("web");
    run.inspect("web", &["/State/ExitCode", "/State/Status"]);
    run.post(204, "/containers/web/start");
    run.post(204, "/containers/web/kill");
    run.ended("web");
    run.inspect("web", &["/State/ExitCode", "/State/OOMKilled"]);
    run.post(204, "/containers/web/start");
    run.post(204, "/containers/web/kill?signal=9");
    run.ended("web");
    run.post(404, "/containers/nobody/kill");
}

fn pause(run: &mut Run) {
    run.create("web", &waiting());
    run.refused(409, "POST", "/containers/web/pause", None, "is not running");
    run.post(500, "/containers/web/unpause");
    run.post(204, "/containers/web/start");
    run.post(500, "/containers/web/unpause");
    run.post(204, "/containers/web/pause");
    run.refused(409, "POST", "/containers/web/pause", None, "is already paused");
    run.inspect("web", &["/State/Status", "/State/Running", "/State/Paused"]);
    run.get(200, "/containers/json");
    run.refused(
        409,
        "POST",
        "/containers/web/exec",
        Some(&json!({"Cmd": ["true"]})),
        "is paused, unpause the container before exec",
    );
    run.refused(409, "DELETE", "/containers/web", None, "paused");
    run.post(409, "/containers/web/start");
    run.post(204, "/containers/web/unpause");
    run.inspect("web", &["/State/Status", "/State/Running", "/State/Paused"]);
    run.post(204, "/containers/web/pause");
    run.delete(204, "/containers/web?force=1");
    run.post(404, "/containers/web/pause");
    run.post(404, "/containers/web/unpause");
}

fn restart(run: &mut Run) {
    run.create("web", &sh("trap 'exit 0' TERM; echo started; while :; do usleep 20000; done"));
    run.post(204, "/containers/web/restart?t=5");
    run.post(204, "/containers/web/restart?t=5");
    run.post(400, "/containers/web/restart?t=odd");
    run.inspect("web", &["/State/Status", "/RestartCount"]);
    run.post(204, "/containers/web/stop?t=5");
    run.post(204, "/containers/web/restart");
    run.post(204, "/containers/web/stop?t=5");
    run.output("web");
}

fn wait(run: &mut Run) {
    run.create("web", &sh("exit 3"));
    run.post(200, "/containers/web/wait");
    run.post(200, "/containers/web/wait?condition=not-running");
    run.post(200, "/containers/web/wait?condition=odd");
    let mut next = run.open("POST", "/containers/web/wait?condition=next-exit", None, "");
    let mut removed = run.open("POST", "/containers/web/wait?condition=removed", None, "");
    run.post(204, "/containers/web/start");
    let said = next.chunk().map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    run.note("next-exit says", json!(said));
    run.post(200, "/containers/web/wait");
    run.delete(204, "/containers/web");
    let said = removed.chunk().map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    run.note("removed says", json!(said));
    run.post(404, "/containers/web/wait");
}

fn remove(run: &mut Run) {
    run.start("web", &waiting());
    run.delete(409, "/containers/web");
    run.delete(204, "/containers/web?force=1");
    run.refused(404, "DELETE", "/containers/web", None, "No such container: web");
    run.delete(404, "/containers/web?force=1");
    let mut body = with_host(json!({"Image": "busybox"}), json!({"Binds": ["named:/n"]}));
    body["Volumes"] = json!({"/anonymous": {}});
    run.create("volumes", &body);
    run.delete(204, "/containers/volumes?v=1");
    let left = run.quietly("GET", "/volumes", None).json()["Volumes"].as_array().map_or(0, Vec::len);
    run.note("volumes that are left", json!(left));
    run.create("keeps", &json!({"Image": "busybox", "Volumes": {"/anonymous": {}}}));
    run.delete(204, "/containers/keeps");
    let left = run.quietly("GET", "/volumes", None).json()["Volumes"].as_array().map_or(0, Vec::len);
    run.note("volumes that are left now", json!(left));
    run.create("links", &json!({"Image": "busybox"}));
    run.delete(400, "/containers/links?link=1&v=1&force=odd&x=");
}

fn auto_remove(run: &mut Run) {
    run.create("gone", &with_host(sh("exit 5"), json!({"AutoRemove": true})));
    let mut removed = run.open("POST", "/containers/gone/wait?condition=removed", None, "");
    run.post(204, "/containers/gone/start");
    let said = removed.chunk().map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    run.note("removed says", json!(said));
    run.get(404, "/containers/gone/json");
    run.start("stopped", &with_host(waiting(), json!({"AutoRemove": true})));
    run.post(204, "/containers/stopped/stop?t=5");
}

fn restart_policies(run: &mut Run) {
    let policy = |name: &str, count: i64| json!({"RestartPolicy": {"Name": name, "MaximumRetryCount": count}});
    run.start("twice", &with_host(sh("echo run; exit 2"), policy("on-failure", 2)));
    run.until("twice", "/RestartCount", &json!(2));
    run.until("twice", "/State/Status", &json!("exited"));
    run.inspect("twice", &["/State/ExitCode", "/State/Restarting"]);
    run.output("twice");
    run.start("fine", &with_host(sh("exit 0"), policy("on-failure", 0)));
    run.until("fine", "/State/Status", &json!("exited"));
    run.inspect("fine", &["/RestartCount"]);
    run.start("always", &with_host(sh("exit 0"), policy("always", 0)));
    run.until("always", "/RestartCount", &json!(2));
    run.post(204, "/containers/always/stop");
    run.inspect("always", &["/State/Restarting", "/State/Running"]);
    run.delete(204, "/containers/always");
}

fn update(run: &mut Run) {
    run.start("web", &with_host(waiting(), json!({"Memory": 134_217_728, "MemorySwap": 268_435_456})));
    run.ask(
        200,
        "POST",
        "/containers/web/update",
        Some(&json!({"Memory": 67_108_864, "CpuShares": 300, "PidsLimit": 50})),
    );
    run.inspect(
        "web",
        &["/HostConfig/Memory", "/HostConfig/MemorySwap", "/HostConfig/CpuShares", "/HostConfig/PidsLimit"],
    );
    run.ask(
        200,
        "POST",
        "/containers/web/update",
        Some(&json!({"RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 3}})),
    );
    run.inspect("web", &["/HostConfig/RestartPolicy", "/HostConfig/Memory"]);
    run.ask(
        200,
        "POST",
        "/containers/web/update",
        Some(&json!({"CpuPeriod": 100_000, "CpuQuota": 50_000, "CpusetCpus": "0"})),
    );
    run.ask(400, "POST", "/containers/web/update", Some(&json!({"Memory": 1024})));
    run.ask(400, "POST", "/containers/web/update", Some(&json!({"RestartPolicy": {"Name": "odd"}})));
    run.send(400, "POST", "/containers/web/update", b"{", "Content-Type: application/json\r\n");
    run.ask(200, "POST", "/containers/web/update", Some(&json!({})));
    run.ask(404, "POST", "/containers/nobody/update", Some(&json!({})));
    run.create("rm", &with_host(waiting(), json!({"AutoRemove": true})));
    run.ask(409, "POST", "/containers/rm/update", Some(&json!({"RestartPolicy": {"Name": "always"}})));
    run.create("made", &waiting());
    run.ask(200, "POST", "/containers/made/update", Some(&json!({"Memory": 67_108_864, "MemorySwap": -1})));
    run.inspect("made", &["/HostConfig/Memory", "/HostConfig/MemorySwap"]);
}

fn top(run: &mut Run) {
    run.create("web", &sh("sleep 1000"));
    run.refused(409, "GET", "/containers/web/top", None, "is not running");
    run.post(204, "/containers/web/start");
    let top = run.quietly("GET", "/containers/web/top", None).json();
    run.note("titles", top["Titles"].clone());
    run.note("rows have as many columns", json!(top["Processes"][0].as_array().map(Vec::len)));
    let custom = run.quietly("GET", "/containers/web/top?ps_args=-o%20pid,comm", None).json();
    run.note("titles of own columns", custom["Titles"].clone());
    run.note("own columns", json!(custom["Processes"][0][1]));
    run.get(500, "/containers/web/top?ps_args=-o%20comm");
    run.get(404, "/containers/nobody/top");
}

fn stats(run: &mut Run) {
    run.create("web", &with_host(waiting(), json!({"Memory": 67_108_864, "MemorySwap": 67_108_864})));
    let zero = run.quietly("GET", "/containers/web/stats?stream=0", None).json();
    run.note("stats of what doesn't run", zero);
    run.post(204, "/containers/web/start");
    for query in ["stream=0&one-shot=1", "stream=0"] {
        let stats = run.quietly("GET", &format!("/containers/web/stats?{query}"), None).json();
        run.note(&format!("keys with {query}"), keys(&stats, 2));
        run.note(&format!("limit with {query}"), stats["memory_stats"]["limit"].clone());
        run.note(&format!("something is used with {query}"), json!(stats["memory_stats"]["usage"].as_u64() > Some(0)));
        run.note(&format!("name with {query}"), stats["name"].clone());
        run.note(
            &format!("a first sample with {query}"),
            json!(stats["precpu_stats"]["cpu_usage"]["total_usage"].as_u64() > Some(0)),
        );
        run.note(&format!("processes with {query}"), json!(stats["pids_stats"]["current"].as_u64() > Some(0)));
    }
    let mut stream = run.open("GET", "/containers/web/stats", None, "");
    let lines = (0..2).filter(|_| stream.chunk().is_some()).count();
    run.note("samples that came", json!(lines));
    run.get(404, "/containers/nobody/stats");
    run.get(404, "/containers/nobody/stats?stream=0");
}

fn keys(value: &serde_json::Value, depth: usize) -> serde_json::Value {
    match value.as_object().filter(|_| depth > 0) {
        Some(fields) => {
            fields.iter().filter(|(key, _)| *key != "stats").map(|(k, v)| (k.clone(), keys(v, depth - 1))).collect()
        }
        None => json!(match value {
            serde_json::Value::Null => "null",
            serde_json::Value::Number(_) => "number",
            serde_json::Value::String(_) => "string",
            serde_json::Value::Array(_) => "array",
            _ => "other",
        }),
    }
}

fn changes(run: &mut Run) {
    run.create("web", &sh("echo x > /new; rm /www/index.html; mkdir /folder; touch /folder/in; echo more >> /etc/passwd; mkdir -p /tmp/a/b"));
    run.get(200, "/containers/web/changes");
    run.post(204, "/containers/web/start");
    run.ended("web");
    run.get(200, "/containers/web/changes");
    run.get(404, "/containers/nobody/changes");
}

fn export(run: &mut Run) {
    run.runs("web", &sh("echo x > /new; rm /www/index.html"));
    let answer = run.quietly("GET", "/containers/web/export", None);
    run.note("status and kind", json!([answer.status, answer.header("content-type")]));
    let mut archive = tar::Archive::new(&answer.body[..]);
    let mut names: Vec<String> = archive
        .entries()
        .unwrap()
        .map(|e| e.unwrap().path().unwrap().display().to_string().trim_end_matches('/').to_owned())
        .collect();
    names.retain(|name| !name.starts_with("bin/") && name != "." && !name.is_empty());
    names.sort();
    run.note("files", json!(names));
    run.get(404, "/containers/nobody/export");
}

fn prune(run: &mut Run) {
    let mut labelled = sh("true");
    labelled["Labels"] = json!({"keep": "1"});
    run.create("kept", &labelled);
    run.create("gone", &sh("true"));
    run.start("runs", &waiting());
    let pruned = run.ask(200, "POST", "/containers/prune?filters=%7B%22label%21%22%3A%5B%22keep%22%5D%7D", None);
    run.note("how many", json!(pruned["ContainersDeleted"].as_array().map(Vec::len)));
    run.get(200, "/containers/json?all=1");
    run.post(400, "/containers/prune?filters=%7B%22odd%22%3A%5B%22x%22%5D%7D");
    run.post(200, "/containers/prune?filters=%7B%22until%22%3A%5B%221h%22%5D%7D");
    run.post(400, "/containers/prune?filters=%7B%22until%22%3A%5B%22odd%22%5D%7D");
    run.post(200, "/containers/prune");
    run.post(200, "/containers/prune");
}

fn commit(run: &mut Run) {
    run.runs("web", &sh("echo x > /new"));
    run.post(201, "/commit?container=web&repo=made&tag=1&comment=why&author=me");
    run.get(200, "/images/made:1/json");
    run.get(200, "/images/made:1/history");
    run.ask(
        201,
        "POST",
        "/commit?container=web&repo=made&tag=2&changes=CMD%20%5B%22echo%22%5D&changes=ENV%20X%3D1",
        Some(&json!({"Labels": {"l": "1"}, "WorkingDir": "/tmp"})),
    );
    let image = run.quietly("GET", "/images/made:2/json", None).json();
    let parts = ["Cmd", "Env", "Labels", "WorkingDir", "Entrypoint"].map(|key| image["Config"][key].clone());
    run.note("config", json!(parts));
    run.runs("child", &json!({"Image": "made:1", "Cmd": ["cat", "/new"]}));
    run.post(404, "/commit?container=nobody");
    run.post(400, "/commit");
    run.post(400, "/commit?container=web&repo=Bad%20Name");
    run.post(400, "/commit?container=web&repo=made&changes=ODD%20x");
    run.post(400, "/commit?container=web&repo=made&changes=RUN%20x");
    run.post(201, "/commit?container=web");
}

fn health(run: &mut Run) {
    let check = |test: &str, retries: i64| json!({"Test": ["CMD-SHELL", test], "Interval": 200_000_000, "Timeout": 2_000_000_000_i64, "Retries": retries});
    let mut good = waiting();
    good["Healthcheck"] = check("echo fine", 3);
    run.start("good", &good);
    run.inspect("good", &["/Config/Healthcheck"]);
    run.until("good", "/State/Health/Status", &json!("healthy"));
    run.inspect("good", &["/State/Health/FailingStreak", "/State/Health/Log/0"]);
    let listed = run.quietly("GET", "/containers/json", None).json();
    run.note("status in the list", listed[0]["Status"].clone());
    let mut bad = waiting();
    bad["Healthcheck"] = check("echo broken; exit 3", 2);
    run.start("bad", &bad);
    run.until("bad", "/State/Health/Status", &json!("unhealthy"));
    run.inspect("bad", &["/State/Health/Log/0", "/State/Status"]);
    for value in ["healthy", "unhealthy", "none", "starting"] {
        let filters = format!("%7B%22health%22%3A%5B%22{value}%22%5D%7D");
        let found = run.quietly("GET", &format!("/containers/json?filters={filters}"), None).json();
        let names: Vec<_> = found.as_array().into_iter().flatten().map(|c| c["Names"][0].clone()).collect();
        run.note(&format!("health={value}"), json!(names));
    }
    run.post(204, "/containers/good/stop?t=5");
    run.inspect("good", &["/State/Health/Status"]);
}

fn resize(run: &mut Run) {
    let mut tty = sh("echo ready; while :; do usleep 20000; done");
    tty["Tty"] = json!(true);
    run.create("tty", &tty);
    run.post(409, "/containers/tty/resize?h=10&w=20");
    run.post(204, "/containers/tty/start");
    run.post(200, "/containers/tty/resize?h=30&w=100");
    run.post(400, "/containers/tty/resize?h=odd&w=20");
    run.post(400, "/containers/tty/resize?h=10");
    run.post(400, "/containers/tty/resize");
    run.post(404, "/containers/nobody/resize?h=1&w=1");
}

fn running_inspect(run: &mut Run) {
    run.start("web", &waiting());
    run.get(200, "/containers/web/json");
    run.get(200, "/containers/json");
}

fn checkpoints(run: &mut Run) {
    run.create("web", &waiting());
    run.get(501, "/containers/web/checkpoints");
    run.ask(501, "POST", "/containers/web/checkpoints", Some(&json!({"CheckpointID": "x"})));
}

fn ambiguous(run: &mut Run) {
    let mut first: Vec<String> = Vec::new();
    // Two of seventeen ids share their first character.
    let prefix = loop {
        let made = run.quietly("POST", "/containers/create", Some(&json!({"Image": "busybox"}))).json();
        let id = made["Id"].as_str().unwrap().to_owned();
        if let Some(other) = first.iter().find(|other| other[..1] == id[..1]) {
            break other[..1].to_owned();
        }
        first.push(id);
    };
    let answer = run.quietly("GET", &format!("/containers/{prefix}/json"), None);
    let says = answer.text().contains("multiple IDs found with provided prefix");
    run.note("an ambiguous prefix", json!([answer.status, says]));
}
