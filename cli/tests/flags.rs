//! Flags of the commands and what they become: the request that the engine gets, word for word.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

#[allow(dead_code, reason = "part of it is for the other tests")]
mod fake;

use fake::{Answer, Engine};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};

type Requests = Arc<Mutex<Vec<(String, Value)>>>;

/// An engine that agrees to everything, and what it was asked: line and JSON body.
fn engine() -> (Engine, Requests) {
    let seen = Requests::default();
    let log = seen.clone();
    let engine = Engine::new(move |request| {
        let body = serde_json::from_slice(&request.body).unwrap_or(Value::Null);
        log.lock().unwrap().push((request.line.clone(), body));
        let path = request.line.split(['?', ' ']).nth(1).unwrap_or_default();
        let text = match path {
            "/networks" | "/containers/json" | "/images/json" | "/plugins" | "/images/search" | "/nodes"
            | "/services" | "/secrets" | "/configs" => "[]",
            "/volumes" => r#"{"Volumes":null}"#,
            path if path.ends_with("/archive") => "",
            path if path.ends_with("/history") || path.ends_with("/checkpoints") && request.line.starts_with("GET") => {
                "[]"
            }
            path if path.ends_with("/changes") => "null",
            path if path.ends_with("/top") => r#"{"Titles":["PID"],"Processes":[["1"]]}"#,
            path if path.starts_with("/images/") && request.line.starts_with("DELETE") => "[]",
            path if path.ends_with("/logs") || path == "/events" || path == "/build" => "",
            path if path.ends_with("/push") || path == "/images/create" || path == "/images/load" => "",
            path if path.ends_with("/wait") => r#"{"StatusCode":0}"#,
            "/images/get" => "archive",
            path if path.ends_with("/export") => "archive",
            "/swarm/init" => r#""node""#,
            _ => {
                r#"{"Id":"abc","ID":"abc","Name":"made","Config":{"Tty":false,"OpenStdin":true},"State":{"Running":true},"SpaceReclaimed":0,"ClusterVolume":{"Spec":{},"Version":{"Index":3}}}"#
            }
        };
        Answer::Json(200, text)
    });
    (engine, seen)
}

/// Runs a line and gives the requests it led to.
fn asked(line: &str) -> Vec<(String, Value)> {
    let (engine, seen) = engine();
    let words: Vec<String> = line.split(' ').map(|word| word.replace('+', " ")).collect();
    let mut command = engine.command(&words.iter().map(String::as_str).collect::<Vec<_>>());
    // By BuildKit, a build is no request that could be looked at.
    let run = fake::finish(
        {
            command.env("DOCKER_BUILDKIT", "0");
            command
        },
        b"",
    );
    assert_eq!(run.code, Some(0), "{line}: {run:?}");
    let seen = seen.lock().unwrap();
    seen.clone()
}

/// A line leads to this request, among others.
fn leads_to(line: &str, request: &str, body: &Value) {
    let all = asked(line);
    let fits = |(seen, own): &(String, Value)| seen == request && (body.is_null() || own == body);
    assert!(all.iter().any(fits), "{line}\n  is to lead to {request} {body}\n  and led to {all:?}");
}

fn lines_lead_to(table: &[(&str, &str)]) {
    for (line, request) in table {
        leads_to(line, request, &Value::Null);
    }
}

#[test]
fn flags_of_container_commands_reach_the_engine() {
    lines_lead_to(&[
        (
            "ps -a -n 3 -s -f status=exited",
            "GET /containers/json?all=1&limit=3&size=1&filters=%7B%22status%22:%7B%22exited%22:true%7D%7D",
        ),
        ("container ls --latest", "GET /containers/json?limit=1"),
        ("ps --format {{.Size}}", "GET /containers/json?size=1"),
        ("stop -s INT -t 3 x", "POST /containers/x/stop?signal=INT&t=3"),
        ("stop --time 4 x", "POST /containers/x/stop?t=4"),
        ("restart --signal HUP --timeout -1 x", "POST /containers/x/restart?signal=HUP&t=-1"),
        ("kill -s TERM x", "POST /containers/x/kill?signal=TERM"),
        ("kill x", "POST /containers/x/kill?signal=KILL"),
        ("rm -f -l -v /x", "DELETE /containers/x?force=1&link=1&v=1"),
        ("rename x y", "POST /containers/x/rename?name=y"),
        ("pause x", "POST /containers/x/pause"),
        ("unpause x", "POST /containers/x/unpause"),
        ("wait x", "POST /containers/x/wait"),
        ("top x", "GET /containers/x/top"),
        ("top x -o pid,args", "GET /containers/x/top?ps_args=-o%20pid%2Cargs"),
        ("diff x", "GET /containers/x/changes"),
        ("export x", "GET /containers/x/export"),
        ("start x", "POST /containers/x/start"),
        ("container inspect -s x", "GET /containers/x/json?size=1"),
        ("inspect --type container -s x", "GET /containers/x/json?size=1"),
        (
            "logs --details -f --since 1700000000 -n 5 -t --until 1700000001.5 x",
            "GET /containers/abc/logs?details=1&follow=1&since=1700000000&stderr=1&stdout=1&tail=5&timestamps=1&until=1700000001.5",
        ),
        ("stats --no-stream -a", "GET /containers/json?all=1"),
        (
            "commit -a me -c CMD+x -m msg --no-pause x repo:t",
            "POST /commit?author=me&container=x&comment=msg&repo=repo&tag=t&changes=CMD%20x&pause=0",
        ),
        ("commit --pause=false x", "POST /commit?container=x&pause=0"),
        (
            "container prune -f --filter until=1h --filter label!=a",
            "POST /containers/prune?filters=%7B%22label%21%22:%7B%22a%22:true%7D%2C%22until%22:%7B%221h%22:true%7D%7D",
        ),
        ("start --checkpoint c1 --checkpoint-dir /d x", "POST /containers/x/start?checkpoint=c1&checkpoint-dir=%2Fd"),
        ("checkpoint create --checkpoint-dir /d x c", "POST /containers/x/checkpoints"),
        ("checkpoint ls --checkpoint-dir /d x", "GET /containers/x/checkpoints?dir=%2Fd"),
        ("checkpoint rm --checkpoint-dir /d x c", "DELETE /containers/x/checkpoints/c?dir=%2Fd"),
    ]);
    let update = "update --blkio-weight 10 --cpu-period 1 --cpu-quota 2 --cpu-rt-period 3 --cpu-rt-runtime 4 -c 5 --cpus 1.5 --cpuset-cpus 0 --cpuset-mems 1 -m 64m --memory-reservation 32m --memory-swap -1 --pids-limit 6 --restart always x";
    let body = json!({"BlkioWeight":10,"CpuPeriod":1,"CpuQuota":2,"CpuRealtimePeriod":3,"CpuRealtimeRuntime":4,"CpuShares":5,
        "NanoCpus":1_500_000_000,"CpusetCpus":"0","CpusetMems":"1","Memory":67_108_864,"MemoryReservation":33_554_432,
        "MemorySwap":-1,"PidsLimit":6,"RestartPolicy":{"Name":"always","MaximumRetryCount":0}});
    leads_to(update, "POST /containers/x/update", &body);
    let body = json!({"CheckpointID":"c","CheckpointDir":"","Exit":false});
    leads_to("checkpoint create --leave-running x c", "POST /containers/x/checkpoints", &body);
}

#[test]
fn flags_of_exec_reach_the_engine() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "F=1\n").unwrap();
    let line = format!(
        "exec -d --detach-keys a,b -e A=b --env-file {} --privileged -t -u me -w /tmp x cmd -l",
        file.path().display()
    );
    let body = json!({"User":"me","Privileged":true,"Tty":true,"AttachStdin":false,"AttachStdout":false,"AttachStderr":false,
        "DetachKeys":"a,b","Env":["F=1","A=b"],"WorkingDir":"/tmp","Cmd":["cmd","-l"]});
    leads_to(&line, "POST /containers/x/exec", &body);
    leads_to(&line, "POST /exec/abc/start", &json!({"Detach":true,"Tty":true}));
}

#[test]
fn flags_of_image_commands_reach_the_engine() {
    let platform = "%7B%22architecture%22:%22arm64%22%2C%22os%22:%22linux%22%7D";
    let cases = [
        ("images -a -f dangling=true repo".to_owned(), "GET /images/json?all=1&filters=%7B%22dangling%22:%7B%22true%22:true%7D%2C%22reference%22:%7B%22repo%22:true%7D%7D".to_owned()),
        ("history --platform linux/arm64 i".into(), format!("GET /images/i/history?platform={platform}")),
        ("image inspect --platform linux/arm64 i".into(), format!("GET /images/i/json?platform={platform}")),
        ("rmi -f --no-prune --platform linux/arm64 i".into(), format!("DELETE /images/i?force=1&noprune=1&platforms={platform}")),
        ("tag a b:c".into(), "POST /images/a/tag?repo=b&tag=c".into()),
        ("image prune -a -f --filter label=x".into(), "POST /images/prune?filters=%7B%22dangling%22:%7B%22false%22:true%7D%2C%22label%22:%7B%22x%22:true%7D%7D".into()),
        ("save --platform linux/arm64 a b".into(), format!("GET /images/get?names=a&names=b&platform={platform}")),
        ("import -c CMD+x -m msg --platform linux/arm64 http://h/x r:t".into(), "POST /images/create?fromSrc=http:%2F%2Fh%2Fx&repo=r:t&message=msg&platform=linux%2Farm64&changes=CMD%20x".into()),
        ("search --limit 3 -f stars=2 term".into(), "GET /images/search?filters=%7B%22stars%22:%7B%222%22:true%7D%7D&limit=3&term=term".into()),
        ("pull -q --platform linux/arm64 a:b".into(), "POST /images/create?fromImage=docker.io%2Flibrary%2Fa&platform=linux%2Farm64&tag=b".into()),
        ("pull -q -a a".into(), "POST /images/create?fromImage=docker.io%2Flibrary%2Fa".into()),
    ];
    for (line, request) in &cases {
        leads_to(line, request, &Value::Null);
    }
}

#[test]
fn flags_of_volume_commands_reach_the_engine() {
    lines_lead_to(&[
        ("volume ls -f dangling=true -q", "GET /volumes?filters=%7B%22dangling%22:%7B%22true%22:true%7D%7D"),
        ("volume ls --cluster", "GET /volumes"),
        ("volume rm -f v", "DELETE /volumes/v?force=1"),
        ("volume export v", "GET /volumes/v/export"),
        ("volume import v Cargo.toml", "POST /volumes/v/import"),
        ("volume inspect -f {{.Name}} v", "GET /volumes/v"),
        (
            "volume prune -f -a --filter label=x",
            "POST /volumes/prune?filters=%7B%22all%22:%7B%22true%22:true%7D%2C%22label%22:%7B%22x%22:true%7D%7D",
        ),
    ]);
    let body = json!({"Name":"v","Driver":"d","DriverOpts":{"o":"addr=1,rw","type":"nfs"},"Labels":{"a":"b","c":""}});
    leads_to("volume create -d d -o type=nfs --opt o=addr=1,rw --label a=b --label c v", "POST /volumes/create", &body);
    let cluster = "volume create --availability drain --group g --limit-bytes 2k --required-bytes 1k --scope multi --secret k=s --sharing all --topology-preferred a=1 --topology-required b=2 --type mount v";
    let body = json!({"Name":"v","Driver":"local","DriverOpts":{},"Labels":{},"ClusterVolumeSpec":{"Group":"g",
        "AccessMode":{"Scope":"multi","Sharing":"all","MountVolume":{}},"CapacityRange":{"RequiredBytes":1024,"LimitBytes":2048},
        "Secrets":[{"Key":"k","Secret":"s"}],"AccessibilityRequirements":{"Requisite":[{"Segments":{"b":"2"}}],
        "Preferred":[{"Segments":{"a":"1"}}]},"Availability":"drain"}});
    leads_to(cluster, "POST /volumes/create", &body);
    let body = json!({"Spec":{"Availability":"pause"}});
    leads_to("volume update --availability pause v", "PUT /volumes/v?version=3", &body);
}

#[test]
fn flags_of_network_commands_reach_the_engine() {
    lines_lead_to(&[
        (
            "network ls -f driver=bridge --no-trunc -q",
            "GET /networks?filters=%7B%22driver%22:%7B%22bridge%22:true%7D%7D",
        ),
        ("network inspect -v n", "GET /networks/n?verbose=1"),
        ("network rm -f n", "DELETE /networks/n"),
        ("network prune -f --filter until=1h", "POST /networks/prune?filters=%7B%22until%22:%7B%221h%22:true%7D%7D"),
    ]);
    let create = "network create --attachable --aux-address r=10.1.0.9 --config-from c --config-only -d macvlan --gateway 10.1.0.1 --ingress --internal --ip-range 10.1.1.0/24 --ipam-driver i --ipam-opt a=b --ipv4=false --ipv6 --label k=v -o x=y --scope swarm --subnet 10.1.0.0/16 n";
    let body = json!({"Name":"n","CheckDuplicate":true,"Driver":"macvlan","Scope":"swarm","EnableIPv4":false,"EnableIPv6":true,
        "IPAM":{"Driver":"i","Options":{"a":"b"},"Config":[{"Subnet":"10.1.0.0/16","IPRange":"10.1.1.0/24","Gateway":"10.1.0.1",
        "AuxiliaryAddresses":{"r":"10.1.0.9"}}]},"Internal":true,"Attachable":true,"Ingress":true,"ConfigOnly":true,
        "ConfigFrom":{"Network":"c"},"Options":{"x":"y"},"Labels":{"k":"v"}});
    leads_to(create, "POST /networks/create", &body);
    let connect = "network connect --alias a,b --driver-opt o=p --gw-priority 2 --ip 10.1.0.3 --ip6 fd00::3 --link c:d --link-local-ip 169.254.0.3 n x";
    let body = json!({"Container":"x","EndpointConfig":{"IPAMConfig":{"IPv4Address":"10.1.0.3","IPv6Address":"fd00::3",
        "LinkLocalIPs":["169.254.0.3"]},"Links":["c:d"],"Aliases":["a","b"],"DriverOpts":{"o":"p"},"GwPriority":2}});
    leads_to(connect, "POST /networks/n/connect", &body);
    leads_to("network disconnect -f n x", "POST /networks/n/disconnect", &json!({"Container":"x","Force":true}));
}

#[test]
fn flags_of_system_commands_reach_the_engine() {
    lines_lead_to(&[
        (
            "events --since 1 --until 2 -f type=container",
            "GET /events?since=1&until=2&filters=%7B%22type%22:%7B%22container%22:true%7D%7D",
        ),
        ("system df -v", "GET /system/df"),
        (
            "builder prune -a -f --keep-storage 1k --filter until=1h",
            "POST /build/prune?all=1&filters=%7B%22until%22:%7B%221h%22:true%7D%7D&keep-storage=1024",
        ),
        (
            "system prune -f --volumes --filter label=x",
            "POST /volumes/prune?filters=%7B%22label%22:%7B%22x%22:true%7D%7D",
        ),
        ("system prune -f -a", "POST /images/prune?filters=%7B%22dangling%22:%7B%22false%22:true%7D%7D"),
        ("system prune -f -a", "POST /build/prune?all=1"),
        ("system prune -f", "POST /networks/prune"),
        ("plugin ls -f enabled=true", "GET /plugins?filters=%7B%22enabled%22:%7B%22true%22:true%7D%7D"),
        ("plugin enable --timeout 5 p", "POST /plugins/p/enable?timeout=5"),
        ("plugin disable -f p", "POST /plugins/p/disable?force=1"),
        ("plugin rm -f p", "DELETE /plugins/p?force=1"),
        ("plugin push p", "POST /plugins/p:latest/push"),
        ("plugin inspect -f {{.Name}} p", "GET /plugins/p/json"),
        ("swarm leave -f", "POST /swarm/leave?force=1"),
        ("node ls -f name=x", "GET /nodes?filters=%7B%22name%22:%7B%22x%22:true%7D%7D"),
        ("node rm -f x", "DELETE /nodes/x?force=1"),
        ("service ls -f name=x", "GET /services?filters=%7B%22name%22:%7B%22x%22:true%7D%7D"),
        ("secret rm x", "DELETE /secrets/x"),
        ("config inspect -f {{.ID}} x", "GET /configs/x"),
    ]);
    leads_to("plugin set p a=1 b=2", "POST /plugins/p/set", &json!(["a=1", "b=2"]));
}

#[test]
fn flags_of_build_reach_the_engine() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("D"), "FROM scratch\n").unwrap();
    let at = dir.path().display();
    let line = format!(
        "build --add-host a:1.2.3.4 --build-arg A=b --cache-from c1,c2 --cgroup-parent cg --compress --cpu-period 1 --cpu-quota 2 -c 3 --cpuset-cpus 0 --cpuset-mems 1 -f {at}/D --force-rm --isolation default --label k=v -m 1k --memory-swap -1 --network none --no-cache --platform linux/arm64 --pull -q --rm=false --security-opt s --shm-size 2k --squash -t r:t --target st --ulimit nofile=1:2 {at}"
    );
    let all = asked(&line);
    let (request, _) = &all[0];
    for part in [
        "POST /build?version=1&dockerfile=D&platform=linux%2Farm64&t=r:t&",
        "extrahosts=a:1.2.3.4&securityopt=s&q=1&nocache=1&forcerm=1&pull=1&squash=1&rm=0&",
        "cgroupparent=cg&cpusetcpus=0&cpusetmems=1&isolation=default&target=st&networkmode=none&",
        "cpuperiod=1&cpuquota=2&cpushares=3&memory=1024&memswap=-1&shmsize=2048&",
        "buildargs=%7B%22A%22:%22b%22%7D&labels=%7B%22k%22:%22v%22%7D&cachefrom=%5B%22c1%22%2C%22c2%22%5D&",
        "ulimits=%5B%7B%22Hard%22:2%2C%22Name%22:%22nofile%22%2C%22Soft%22:1%7D%5D",
    ] {
        assert!(request.contains(part), "{part}\n{request}");
    }
}

#[test]
fn builds_by_the_name_of_the_plugin() {
    let (engine, _) = engine();
    let mut command = engine.command(&["buildx", "build", "--secret", "src=x", "/tmp"]);
    let run = fake::finish(
        {
            command.env("DOCKER_BUILDKIT", "1");
            command
        },
        b"",
    );
    assert!(run.stderr.starts_with("ERROR: secret missing ID"), "{run:?}");
    leads_to("buildx prune -f", "POST /build/prune", &Value::Null);
}

#[test]
fn flags_of_the_other_builder_are_refused() {
    let engine = Engine::new(|request| match request.line.contains("/grpc") {
        true => Answer::Json(404, r#"{"message":"page not found"}"#),
        false => Answer::Json(200, "{}"),
    });
    for (buildkit, flags, text) in [
        ("1", "--memory 1g", "ERROR: --memory is only known to the classic builder"),
        ("1", "--squash", "ERROR: --squash is only known to the classic builder"),
        ("1", "--output type=oci", "ERROR: this engine has no BuildKit: Error response from daemon: page not found"),
        ("1", "--output dest=x", "ERROR: type is required for output"),
        ("1", "--progress fast", "ERROR: invalid progress mode fast"),
        ("1", "--progress tty", "ERROR: failed to get console"),
        ("1", "--secret src=x", "ERROR: secret missing ID"),
        ("1", "--secret id=x,src=/nonexistent", "ERROR: failed to stat /nonexistent: no such file or directory"),
        ("1", "--ssh default", "ERROR: invalid empty ssh agent socket"),
        ("1", "-f /nonexistent", "ERROR: failed to build: failed to read dockerfile: open /nonexistent"),
        ("", "", "ERROR: this engine has no BuildKit"),
        ("0", "--secret id=x", "--secret needs BuildKit, which DOCKER_BUILDKIT=0 turns off"),
        ("0", "--check", "--check needs BuildKit"),
        ("maybe", "", "DOCKER_BUILDKIT environment variable expects boolean value"),
    ] {
        let line = format!("build {flags} /tmp").replace("  ", " ");
        let mut command = engine.command(&line.split(' ').collect::<Vec<_>>());
        command.env("DOCKER_BUILDKIT", buildkit).env_remove("SSH_AUTH_SOCK").env_remove("BUILDKIT_PROGRESS");
        let run = fake::finish(command, b"");
        assert_eq!(run.code, Some(1), "{line}: {run:?}");
        assert!(run.stderr.starts_with(text), "{line}: {run:?}");
    }
}

#[test]
fn what_is_left_out_is_refused_by_name() {
    let (engine, _) = engine();
    for (line, text) in [
        ("manifest create l a", "berth: 'manifest create' is not part of Berth"),
        ("manifest annotate --os linux l a", "berth: 'manifest annotate' is not part of Berth"),
        ("manifest push -p l", "berth: 'manifest push' is not part of Berth"),
        ("manifest rm l", "berth: 'manifest rm' is not part of Berth"),
        ("service create --name s img", "berth: 'service create' is not part of Berth"),
        ("service update --image i s", "berth: 'service update' is not part of Berth"),
        ("node update --role worker n", "berth: 'node update' is not part of Berth"),
        ("stack deploy -c f s", "berth: 'stack deploy' is not part of Berth"),
        ("swarm update --autolock", "berth: 'swarm update' is not part of Berth"),
        ("swarm init --max-snapshots 3", "berth: 'swarm init --max-snapshots' is not part of Berth"),
        ("bake", "berth: 'bake' is a command of the plugin buildx"),
    ] {
        let run = engine.run(&line.split(' ').collect::<Vec<_>>());
        assert_eq!(run.code, Some(1), "{line}: {run:?}");
        assert!(run.stderr.contains(text) && run.stderr.lines().count() == 1, "{line}: {run:?}");
    }
}
