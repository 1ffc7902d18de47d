//! Docker's volume plugins: everything that is done with volumes, with a plugin that keeps them; and plugins that misbehave.

use crate::{
    plugin::{Mood, Plugin},
    stack::{Stack, eventually},
};
use serde_json::{Value, json};
use std::{path::Path, time::Instant};

struct Setup {
    stack: Stack,
    plugin: Plugin,
    folder: tempfile::TempDir,
}

/// A stack, and a plugin "boxes" in its only folder for plugins.
fn setup() -> Option<Setup> {
    let folder = tempfile::tempdir().unwrap();
    let config = format!("plugin-dirs = [{:?}]\n", folder.path());
    let stack = Stack::configured(&config)?;
    let plugin = Plugin::on_unix(&folder.path().join("boxes.sock"), &folder.path().join("data"));
    Some(Setup { stack, plugin, folder })
}

fn output(stack: &Stack, script: &str, host: Value) -> String {
    let id = stack.create("", &json!({"Cmd": ["sh", "-c", script], "HostConfig": host}));
    stack.start_container(&id);
    let code = stack.wait(&id, "not-running");
    let (out, err) = stack.get(&format!("/containers/{id}/logs?stdout=1&stderr=1")).streams();
    assert_eq!(code, 0, "{script}: {out}{err}");
    assert_eq!(stack.delete(&format!("/containers/{id}?v=1")).status, 204);
    out
}

fn create(stack: &Stack, body: Value) -> Value {
    let answer = stack.post("/volumes/create", &body);
    assert_eq!(answer.status, 201, "{}", answer.text());
    answer.json()
}

fn names(listed: &Value) -> Vec<&str> {
    listed["Volumes"].as_array().unwrap().iter().map(|volume| volume["Name"].as_str().unwrap()).collect()
}

fn nothing_mounted(plugin: &Plugin) {
    eventually("nothing is mounted", || match plugin.state().mounts.clone() {
        mounts if mounts.is_empty() => Ok(()),
        mounts => Err(format!("{mounts:?}")),
    });
}

#[test]
fn a_plugin_keeps_volumes() {
    let Some(Setup { stack, plugin, folder: _folder }) = setup() else { return };
    let made =
        create(&stack, json!({"Name": "data", "Driver": "boxes", "DriverOpts": {"size": "3"}, "Labels": {"a": "b"}}));
    assert_eq!(
        (&made["Driver"], &made["Scope"], &made["Options"]),
        (&json!("boxes"), &json!("global"), &json!({"size": "3"}))
    );
    assert_eq!(plugin.state().volumes["data"], json!({"size": "3"}));
    // Again: the same one.
    create(&stack, json!({"Name": "data", "Driver": "boxes"}));
    create(&stack, json!({"Name": "data"}));
    assert_eq!(plugin.calls("VolumeDriver.Create").len(), 1);
    let seen = stack.get("/volumes/data").json();
    assert_eq!((&seen["CreatedAt"], &seen["Labels"]), (&json!("2024-01-02T03:04:05Z"), &json!({"a": "b"})));
    assert_eq!(seen["Status"], json!({"mounts": 0}));
    assert_eq!(stack.get("/info").json()["Plugins"]["Volume"], json!(["local", "boxes"]));

    // A volume that only the plugin knows of is found by its name.
    plugin.state().volumes.insert("theirs".into(), json!({}));
    std::fs::create_dir(plugin.folder("theirs")).unwrap();
    create(&stack, json!({"Name": "ours"}));
    let listed = stack.get("/volumes").json();
    assert_eq!((names(&listed), &listed["Warnings"]), (vec!["data", "ours", "theirs"], &Value::Null));
    let by = |driver: &str| stack.get(&format!("/volumes?filters=%7B%22driver%22%3A%5B%22{driver}%22%5D%7D")).json();
    assert_eq!((names(&by("local")), names(&by("boxes"))), (vec!["ours"], vec!["data", "theirs"]));
    assert_eq!(stack.get("/volumes/theirs").json()["Driver"], "boxes");
    output(&stack, "echo x > /t/file", json!({"Binds": ["theirs:/t"]}));
    assert_eq!(std::fs::read_to_string(plugin.folder("theirs").join("file")).unwrap(), "x\n");

    // Filled from the image when it is empty; each use has a number of its own, which ends with it.
    let script = "cat /vol/file; echo new > /vol/mine; echo twice > /again/more";
    assert_eq!(output(&stack, script, json!({"Binds": ["data:/vol", "data:/again"]})), "from the image\n");
    nothing_mounted(&plugin);
    let (mounts, unmounts) = (plugin.calls("VolumeDriver.Mount"), plugin.calls("VolumeDriver.Unmount"));
    let ids = |calls: &[Value]| {
        let mut ids: Vec<_> = calls.iter().map(|call| call["ID"].as_str().unwrap().to_owned()).collect();
        ids.sort();
        ids
    };
    assert_eq!(ids(&mounts), ids(&unmounts));
    let mut unique = ids(&mounts);
    unique.dedup();
    assert_eq!(unique.len(), mounts.len());
    assert_eq!(output(&stack, "cat /v/mine /v/more", json!({"Binds": ["data:/v"]})), "new\ntwice\n");

    // While it is used it stays, and inspect says whose it is.
    let id = stack.create("?name=holder", &json!({"Cmd": ["sleep", "1000"], "HostConfig": {"Binds": ["data:/v:ro"]}}));
    stack.start_container(&id);
    assert_eq!(plugin.state().mounts.len(), 1);
    let mount =
        stack.inspect("holder")["Mounts"].as_array().unwrap().iter().find(|m| m["Name"] == "data").unwrap().clone();
    assert_eq!((&mount["Driver"], &mount["RW"]), (&json!("boxes"), &json!(false)));
    assert_eq!(stack.delete("/volumes/data").status, 409);
    assert_eq!(
        stack.post("/volumes/prune?filters=%7B%22all%22%3A%5B%22true%22%5D%7D", &Value::Null).json()["VolumesDeleted"],
        json!(["ours"])
    );
    assert_eq!(stack.delete("/containers/holder?force=1").status, 204);
    nothing_mounted(&plugin);
    assert_eq!(stack.delete("/volumes/data").status, 204);
    assert!(!plugin.folder("data").exists());
    assert_eq!(stack.get("/volumes/data").status, 404);
    let events = stack.past_events();
    let of = |action: &str| {
        let wanted = format!("\"Action\":\"{action}\"");
        events.lines().filter(|line| line.contains(&wanted) && line.contains("\"driver\":\"boxes\"")).count()
    };
    assert!(of("create") == 1 && of("destroy") == 1 && of("mount") >= 4, "{events}");
}

#[test]
fn containers_ask_for_a_driver() {
    let Some(Setup { stack, plugin, folder: _folder }) = setup() else { return };
    // By the host configuration: named and anonymous ones, which go with their container.
    let host = json!({"VolumeDriver": "boxes", "Binds": ["named:/n"]});
    assert_eq!(output(&stack, "echo a > /n/a; cat /vol/file", host), "from the image\n");
    assert_eq!(plugin.state().volumes.keys().collect::<Vec<_>>(), ["named"]);
    assert_eq!(plugin.calls("VolumeDriver.Create").len(), 2);
    // By the mount, with options and a path below.
    let mount = |subpath: &str| {
        json!({"Mounts": [{"Type": "volume", "Source": "opted", "Target": "/o", "VolumeOptions": {"NoCopy": true, "Subpath": subpath,
            "DriverConfig": {"Name": "boxes", "Options": {"k": "v"}}}}]})
    };
    output(&stack, "mkdir -p /o/a/b && echo deep > /o/a/b/file && ln -s /etc /o/out", mount(""));
    assert_eq!(plugin.state().volumes["opted"], json!({"k": "v"}));
    assert_eq!(output(&stack, "cat /o/file", mount("a/b")), "deep\n");
    let id = stack.create("", &json!({"Cmd": ["true"], "HostConfig": mount("out")}));
    let answer = stack.post(&format!("/containers/{id}/start"), &Value::Null);
    assert!(answer.status == 500 && answer.message().contains("cannot access path"), "{}", answer.text());
    nothing_mounted(&plugin);
    // Copied out of a container that doesn't run, and in and out as an archive.
    let id = stack.create("", &json!({"Cmd": ["true"], "HostConfig": mount("a/b")}));
    let copied = stack.get(&format!("/containers/{id}/archive?path=/o/file"));
    assert!(copied.status == 200 && copied.text().contains("deep\n"), "{}", copied.text());
    nothing_mounted(&plugin);
    let archive = stack.get("/volumes/opted/export");
    assert_eq!(archive.status, 200);
    plugin.state().volumes.insert("theirs".into(), json!({}));
    std::fs::create_dir(plugin.folder("theirs")).unwrap();
    assert_eq!(stack.request("POST", "/volumes/theirs/import", "application/x-tar", &archive.body).status, 204);
    assert_eq!(std::fs::read_to_string(plugin.folder("theirs").join("a/b/file")).unwrap(), "deep\n");
    nothing_mounted(&plugin);
    // What the plugin says is what the user reads.
    plugin.set("VolumeDriver.Mount", Some(Mood::Refuses("out of boxes".into())));
    let id = stack.create("", &json!({"Cmd": ["true"], "HostConfig": {"Binds": ["opted:/o:nocopy"]}}));
    let answer = stack.post(&format!("/containers/{id}/start"), &Value::Null);
    assert_eq!(answer.status, 500);
    assert!(
        answer.message().contains("error while mounting volume 'opted': VolumeDriver.Mount: out of boxes"),
        "{}",
        answer.text()
    );
    plugin.set("VolumeDriver.Mount", Some(Mood::Says(br#"{"Mountpoint":"../../etc"}"#.to_vec())));
    let answer = stack.post(&format!("/containers/{id}/start"), &Value::Null);
    assert!(answer.message().contains("it is not an absolute path"), "{}", answer.text());
    plugin.set("VolumeDriver.Mount", None);
    plugin.set("VolumeDriver.Create", Some(Mood::Refuses("too many".into())));
    let answer = stack.post("/volumes/create", &json!({"Name": "more", "Driver": "boxes"}));
    assert_eq!((answer.status, answer.message()), (500, "create more: VolumeDriver.Create: too many".into()));
    // A name is one driver's.
    let answer = stack.post("/volumes/create", &json!({"Name": "named", "Driver": "local"}));
    assert_eq!(answer.status, 409);
    assert!(answer.message().contains("driver 'boxes' already has volume 'named'"), "{}", answer.text());
    create(&stack, json!({"Name": "plain"}));
    assert_eq!(stack.post("/volumes/create", &json!({"Name": "plain", "Driver": "boxes"})).status, 409);
    let answer = stack.post("/volumes/create", &json!({"Name": "xx", "Driver": "nope"}));
    assert_eq!(
        (answer.status, answer.message()),
        (404, "create xx: error looking up volume plugin nope: plugin \"nope\" not found".into())
    );
}

#[test]
fn a_plugin_that_misbehaves_holds_up_nobody() {
    let Some(Setup { stack, plugin, folder }) = setup() else { return };
    create(&stack, json!({"Name": "data", "Driver": "boxes"}));
    create(&stack, json!({"Name": "plain"}));
    let listed = |words: &str| {
        let begun = Instant::now();
        let listed = stack.get("/volumes").json();
        // What is on record of it is listed all the same.
        let names = names(&listed);
        assert!(["data", "plain"].iter().all(|name| names.contains(name)), "{names:?}");
        let warnings = listed["Warnings"].as_array().unwrap().clone();
        assert!(warnings.len() == 1 && warnings[0].as_str().unwrap().contains(words), "{warnings:?}");
        assert!(begun.elapsed().as_secs() < 20, "{:?}", begun.elapsed());
    };
    plugin.set("VolumeDriver.List", Some(Mood::Hangs));
    // A list and others at the same time.
    std::thread::scope(|scope| {
        scope.spawn(|| listed("list boxes: VolumeDriver.List: unix://"));
        assert_eq!(output(&stack, "echo fine", json!({"Binds": ["plain:/p"]})), "fine\n");
        assert_eq!(stack.get("/volumes/data").json()["Driver"], "boxes");
    });
    plugin.set("VolumeDriver.List", Some(Mood::Refuses("not now".into())));
    listed("list boxes: VolumeDriver.List: not now");
    plugin.set("VolumeDriver.List", Some(Mood::Says(b"<html>".to_vec())));
    listed("answered nonsense");
    let endless = format!("{{\"Volumes\":[],\"x\":\"{}\"}}", "x".repeat(9 << 20));
    plugin.set("VolumeDriver.List", Some(Mood::Says(endless.into_bytes())));
    listed("length limit exceeded");
    // Lost by the plugin: used by nobody, it is made anew.
    plugin.set("VolumeDriver.List", None);
    plugin.state().volumes.clear();
    create(&stack, json!({"Name": "data", "Driver": "boxes"}));
    assert_eq!(plugin.calls("VolumeDriver.Create").len(), 2);
    // And while a container has it: nothing is put in its place.
    let id = stack.create("", &json!({"Cmd": ["true"], "HostConfig": {"Binds": ["data:/d:nocopy"]}}));
    plugin.state().volumes.clear();
    let answer = stack.post("/volumes/create", &json!({"Name": "data"}));
    assert!(answer.status == 409 && answer.message().contains("was not found in the driver"), "{}", answer.text());
    assert_eq!(stack.delete(&format!("/containers/{id}")).status, 204);
    // Gone altogether: forgotten by force.
    std::fs::remove_file(folder.path().join("boxes.sock")).unwrap();
    listed("plugin \"boxes\" not found");
    assert_eq!(stack.delete("/volumes/data").status, 404);
    assert_eq!(stack.delete("/volumes/data?force=1").status, 204);
    assert!(!names(&stack.get("/volumes").json()).contains(&"data"));
}

#[test]
fn plugins_at_addresses() {
    let Some(Setup { stack, plugin: _plugin, folder }) = setup() else { return };
    let (far, port) = Plugin::on_tcp(&folder.path().join("far"));
    std::fs::write(folder.path().join("far.spec"), format!("tcp://127.0.0.1:{port}\n")).unwrap();
    std::fs::write(folder.path().join("secure.json"), r#"{"Addr":"tcp://h:1","TLSConfig":{"CAFile":"/x"}}"#).unwrap();
    create(&stack, json!({"Name": "remote", "Driver": "far"}));
    output(&stack, "echo x > /r/x", json!({"Binds": ["remote:/r"]}));
    assert!(far.folder("remote").join("x").exists());
    let answer = stack.post("/volumes/create", &json!({"Name": "xx", "Driver": "secure"}));
    assert!(answer.status == 500 && answer.message().contains("TLSConfig"), "{}", answer.text());
    let warnings = stack.get("/volumes").json()["Warnings"].clone();
    assert!(warnings.to_string().contains("secure.json: TLSConfig"), "{warnings}");
}

#[test]
fn mounts_end_with_their_containers_under_another_engine_too() {
    let Some(Setup { mut stack, plugin, folder }) = setup() else { return };
    let ids: Vec<_> = ["lives", "ends"]
        .iter()
        .map(|name| {
            let script = "echo here > /d/$0; while ! test -e /d/end-$0; do usleep 1000; done";
            let host = json!({"Mounts": [{"Type": "volume", "Source": "data", "Target": "/d",
                "VolumeOptions": {"NoCopy": true, "DriverConfig": {"Name": "boxes"}}}]});
            let body = json!({"Cmd": ["sh", "-c", script, name], "HostConfig": host});
            let id = stack.create(&format!("?name={name}"), &body);
            stack.start_container(&id);
            id
        })
        .collect();
    assert_eq!(plugin.state().mounts.len(), 2);
    stack.kill_engine();
    std::fs::write(plugin.folder("data").join("end-ends"), "").unwrap();
    stack.start_engine();
    assert_eq!(stack.wait(&ids[1], "not-running"), 0);
    // The other one still needs its own.
    eventually("one is mounted", || match plugin.state().mounts.len() {
        1 => Ok(()),
        count => Err(count.to_string()),
    });
    std::fs::write(plugin.folder("data").join("end-lives"), "").unwrap();
    assert_eq!(stack.wait(&ids[0], "not-running"), 0);
    nothing_mounted(&plugin);
    assert_eq!(std::fs::read_dir(stack.run().join("engine/volume-mounts")).unwrap().count(), 0);
    drop(folder);
}

/// Starts an engine that dies at a point; its death is waited for.
fn armed(stack: &mut Stack, point: &str, mark: &Path) {
    let mut command = stack.command();
    let log = std::fs::File::options().create(true).append(true).open(stack.root().join("engine.log")).unwrap();
    command.stdout(log.try_clone().unwrap()).stderr(log).env("BERTH_FAULT", point).env("BERTH_FAULT_ONCE", mark);
    stack.stop_engine();
    stack.adopt(command.spawn().unwrap());
    let socket = stack.run().join("engine.sock");
    eventually("the armed engine serves", || {
        std::os::unix::net::UnixStream::connect(&socket).map(drop).map_err(|e| e.to_string())
    });
}

#[test]
fn killed_at_every_point() {
    let Some(Setup { mut stack, plugin, folder }) = setup() else { return };
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let points = proto::fault::points(&sources).unwrap();
    let points: Vec<_> = points.into_iter().filter(|point| point.starts_with("engine.volume_")).collect();
    assert!(points.len() >= 10, "{points:?}");
    for (round, point) in points.iter().enumerate() {
        let mark = folder.path().join(format!("mark-{round}"));
        armed(&mut stack, point, &mark);
        let (own, theirs) = (format!("own{round}"), format!("theirs{round}"));
        // Everything that is done with volumes, until the engine is gone. Answers don't matter.
        let life = || -> Option<()> {
            let ask = |method: &str, target: &str, body: &Value| stack.try_request(method, target, body);
            ask("POST", "/volumes/create", &json!({"Name": theirs, "Driver": "boxes"}))?;
            let config = json!({"Image": "test", "Cmd": ["cat", "/vol/file", "/etc/group"], "HostConfig": {
                "Binds": [format!("{own}:/vol"), format!("{theirs}:/t")],
                "Mounts": [{"Type": "volume", "Source": format!("filled{round}"), "Target": "/etc",
                    "VolumeOptions": {"DriverConfig": {"Name": "boxes"}}}]}});
            ask("POST", &format!("/containers/create?name=life{round}"), &config)?;
            ask("POST", &format!("/containers/life{round}/start"), &Value::Null)?;
            ask("POST", &format!("/containers/life{round}/wait"), &Value::Null)?;
            ask("DELETE", &format!("/containers/life{round}?force=1&v=1"), &Value::Null)?;
            ask("DELETE", &format!("/volumes/{own}"), &Value::Null)?;
            ask("DELETE", &format!("/volumes/{theirs}"), &Value::Null).map(drop)
        };
        let ended = life();
        eventually(&format!("{point} is reached"), || match mark.exists() {
            true => Ok(()),
            false => Err(format!("not reached, {ended:?}")),
        });
        stack.reap_engine();
        stack.start_engine();
        // Whatever was begun can be done again, and nothing is left in the end.
        let half = || {
            let folder = std::fs::read_dir(stack.data().join("engine/volumes")).unwrap().flatten();
            folder.map(|e| e.file_name().into_string().unwrap()).filter(|name| name.starts_with('.')).count()
        };
        assert_eq!(half(), 0, "{point}");
        let _ = stack.delete(&format!("/containers/life{round}?force=1&v=1"));
        eventually(&format!("{point}: nothing is mounted"), || match plugin.state().mounts.clone() {
            mounts if mounts.is_empty() => Ok(()),
            mounts => Err(format!("{mounts:?}")),
        });
        let host = json!({"Binds": [format!("{own}:/vol")]});
        assert_eq!(output(&stack, "cat /vol/file; ls -A /vol | wc -l", host), "from the image\n1\n", "{point}");
        let host = json!({"VolumeDriver": "boxes", "Binds": [format!("{theirs}:/vol")]});
        assert_eq!(output(&stack, "cat /vol/file; ls -A /vol | wc -l", host), "from the image\n1\n", "{point}");
        let host = json!({"Mounts": [{"Type": "volume", "Source": format!("filled{round}"), "Target": "/etc",
            "VolumeOptions": {"DriverConfig": {"Name": "boxes"}}}]});
        assert_eq!(output(&stack, "tail -1 /etc/group; test -s /etc/passwd", host), "staff:x:50:www\n", "{point}");
        for name in [own.clone(), theirs.clone(), format!("filled{round}")] {
            assert_eq!(stack.delete(&format!("/volumes/{name}")).status, 204, "{point} {name}");
        }
        nothing_mounted(&plugin);
        assert!(plugin.state().volumes.is_empty(), "{point}: {:?}", plugin.state().volumes);
        assert!(names(&stack.get("/volumes").json()).is_empty(), "{point}");
    }
}
