//! Mounts of every type and option, looked at from inside.

use crate::stack::Stack;
use serde_json::{Value, json};
use std::{os::unix::fs::symlink, path::Path};

fn config(script: &str, host: Value) -> Value {
    json!({"Cmd": ["sh", "-c", script], "HostConfig": host})
}

fn output(stack: &Stack, script: &str, host: Value) -> String {
    let id = stack.create("", &config(script, host));
    let (code, out, err) = finish(stack, &id);
    assert_eq!(code, 0, "{script}: {out}{err}");
    out
}

fn finish(stack: &Stack, id: &str) -> (i64, String, String) {
    stack.start_container(id);
    let code = stack.wait(id, "not-running");
    let (out, err) = stack.get(&format!("/containers/{id}/logs?stdout=1&stderr=1")).streams();
    (code, out, err)
}

fn refused(stack: &Stack, host: Value) -> (u16, String) {
    let mut body = config("true", host);
    body["Image"] = "test".into();
    let answer = stack.post("/containers/create", &body);
    assert!(answer.status >= 400, "{}", answer.text());
    (answer.status, answer.message())
}

#[test]
fn volumes_of_another_container() {
    let Some(stack) = Stack::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), "host").unwrap();
    let own = json!({"Binds": [format!("{}:/bind", folder.path().display()), "named:/named"], "Tmpfs": {"/own": ""}});
    stack.create("?name=keeper", &config("echo kept > /named/file; echo kept > /vol/new", own));
    assert_eq!(finish(&stack, "keeper").0, 0);
    // The keeper does not even run.
    let seen = output(
        &stack,
        "cat /bind/file /named/file /vol/new; test -e /own || echo no; touch /named/more",
        json!({"VolumesFrom": ["keeper"]}),
    );
    assert_eq!(seen, "hostkept\nkept\nno\n");
    let id = stack.create(
        "",
        &config(
            "touch /named/x || touch /bind/x || echo read-only; cat /bind/other",
            json!({
        "VolumesFrom": ["keeper:ro"], "Mounts": [{"Type": "tmpfs", "Target": "/bind"}]}),
        ),
    );
    let (_, out, err) = finish(&stack, &id);
    // What is asked for wins over what is inherited.
    assert!(out.is_empty() && err.contains("Read-only file system") && err.contains("/bind/other"), "{out}{err}");
    let mounts = stack.inspect(&id)["Mounts"].clone();
    let named = mounts.as_array().unwrap().iter().find(|m| m["Destination"] == "/named").unwrap().clone();
    assert_eq!((&named["RW"], &named["Name"]), (&json!(false), &json!("named")));
    assert_eq!(stack.delete("/volumes/named").status, 409);
    let anonymous = mounts.as_array().unwrap().iter().find(|m| m["Destination"] == "/vol").unwrap()["Name"].clone();
    // The keeper goes, with its volumes: those that others use stay.
    assert_eq!(stack.delete("/containers/keeper?v=1").status, 204);
    assert_eq!(stack.get(&format!("/volumes/{}", anonymous.as_str().unwrap())).status, 200);
    assert_eq!(refused(&stack, json!({"VolumesFrom": ["nobody"]})), (400, "No such container: nobody".into()));
    assert_eq!(refused(&stack, json!({"VolumesFrom": [format!("{id}:xx")]})), (400, "invalid mode: xx".into()));
}

#[test]
fn images_as_folders() {
    let Some(stack) = Stack::start() else { return };
    let image = |target: &str, subpath: &str| json!({"Type": "image", "Source": "test", "Target": target, "ImageOptions": {"Subpath": subpath}});
    let host = json!({"Mounts": [image("/all", ""), image("/part", "vol"), image("/one", "etc/group")]});
    let script = "cat /all/vol/file /part/file; cat /one | tail -1; /all/bin/busybox echo runs; touch /all/x || touch /part/x || touch /one || echo read-only";
    let id = stack.create("", &config(script, host));
    let (code, out, err) = finish(&stack, &id);
    assert_eq!(code, 0, "{out}{err}");
    assert_eq!(out, "from the image\nfrom the image\nstaff:x:50:www\nruns\nread-only\n");
    let shown = stack.inspect(&id);
    assert_eq!(
        shown["Mounts"].as_array().unwrap().iter().filter(|m| m["Type"] == "image" && m["RW"] == false).count(),
        3
    );
    assert_eq!(shown["HostConfig"]["Mounts"][1]["ImageOptions"], json!({"Subpath": "vol"}));
    // Once more, and while it runs under the next engine.
    assert_eq!(finish(&stack, &id).0, 0);
    let missing = stack.create("", &config("true", json!({"Mounts": [image("/x", "no/where")]})));
    let answer = stack.post(&format!("/containers/{missing}/start"), &Value::Null);
    assert_eq!(answer.status, 500);
    assert!(answer.message().contains("no/where") && answer.message().contains("no such file"), "{}", answer.text());
    let (status, text) =
        refused(&stack, json!({"Mounts": [{"Type": "image", "Source": "nothing:here", "Target": "/x"}]}));
    assert!(status == 404 && text.contains("nothing:here"), "{status} {text}");
}

#[test]
fn paths_below_a_volume_stay_below() {
    let Some(stack) = Stack::start() else { return };
    assert_eq!(stack.post("/volumes/create", &json!({"Name": "deep"})).status, 201);
    let data = stack.get("/volumes/deep").json()["Mountpoint"].as_str().unwrap().to_owned();
    let data = Path::new(&data);
    std::fs::create_dir_all(data.join("a/b")).unwrap();
    std::fs::write(data.join("a/b/file"), "deep").unwrap();
    symlink("/etc", data.join("out")).unwrap();
    symlink("a/b", data.join("in")).unwrap();
    let mount = |subpath: &str| json!({"Mounts": [{"Type": "volume", "Source": "deep", "Target": "/x", "VolumeOptions": {"Subpath": subpath}}]});
    assert_eq!(output(&stack, "cat /x/file; echo w > /x/written", mount("a/b")), "deep");
    assert_eq!(output(&stack, "cat /x/file", mount("in")), "deep");
    assert_eq!(std::fs::read_to_string(data.join("a/b/written")).unwrap(), "w\n");
    // A link out of the volume leads to nothing of the host's.
    let id = stack.create("", &config("true", mount("out")));
    let answer = stack.post(&format!("/containers/{id}/start"), &Value::Null);
    assert!(answer.status == 500 && answer.message().contains("cannot access path"), "{}", answer.text());
    assert_eq!(refused(&stack, mount("../x")).0, 400);
}

#[test]
fn volumes_that_are_mounted_themselves() {
    let Some(stack) = Stack::start() else { return };
    let options = json!({"type": "tmpfs", "device": "tmpfs", "o": "size=1m,mode=751"});
    let made = stack.post("/volumes/create", &json!({"Name": "memory", "DriverOpts": options}));
    assert_eq!((made.status, &made.json()["Options"]), (201, &options));
    let data = made.json()["Mountpoint"].as_str().unwrap().to_owned();
    let mounted = || std::fs::read_to_string("/proc/self/mounts").unwrap().contains(&data);
    assert!(!mounted());
    let host = json!({"Binds": ["memory:/vol"]});
    // It is filled from the image where it is mounted, which ends with it.
    let id = stack.create("?name=first", &config("df /vol | tail -1; stat -c %a /vol; exec sleep 1000", host.clone()));
    assert!(!mounted());
    stack.start_container(&id);
    assert!(mounted());
    let second = output(&stack, "df /vol | grep -c 1024; mount | grep ' /vol '", host);
    assert!(second.starts_with("1\n") && second.contains("tmpfs"), "{second}");
    assert!(mounted(), "the first still needs it");
    assert_eq!(stack.post("/containers/first/kill", &Value::Null).status, 204);
    stack.wait("first", "not-running");
    crate::stack::eventually("it is unmounted", || if mounted() { Err("mounted".into()) } else { Ok(()) });

    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), "bound").unwrap();
    let bind = |options: &str| {
        json!({"Mounts": [{"Type": "volume", "Source": "bound", "Target": "/b", "VolumeOptions": {"NoCopy": true, "Labels": {"a": "b"},
            "DriverConfig": {"Name": "local", "Options": {"type": "none", "device": folder.path(), "o": options}}}}]})
    };
    let seen = output(&stack, "cat /b/file; touch /b/x 2>&1 || true", bind("bind,ro"));
    assert!(seen.starts_with("bound") && seen.contains("Read-only"), "{seen}");
    let volume = stack.get("/volumes/bound").json();
    assert_eq!((&volume["Labels"], &volume["Options"]["o"]), (&json!({"a": "b"}), &json!("bind,ro")));
    let missing = json!({"Name": "gone", "DriverOpts": {"type": "none", "device": "/no/where", "o": "bind"}});
    assert_eq!(stack.post("/volumes/create", &missing).status, 201);
    let id = stack.create("", &config("true", json!({"Binds": ["gone:/x:nocopy"]})));
    let answer = stack.post(&format!("/containers/{id}/start"), &Value::Null);
    assert_eq!(answer.status, 500);
    let text = answer.message();
    assert!(text.contains("failed to mount local volume: mount /no/where:") && text.contains("no such file"), "{text}");
    for (options, text) in [
        (json!({"foo": "x"}), "invalid option: \"foo\""),
        (json!({"type": "tmpfs"}), "missing required option: \"device\""),
    ] {
        let answer = stack.post("/volumes/create", &json!({"Name": "bad", "DriverOpts": options}));
        assert!(answer.status == 400 && answer.message().contains(text), "{}", answer.text());
    }
    let plugin = stack.post("/volumes/create", &json!({"Name": "bad", "Driver": "nope"}));
    assert_eq!(plugin.status, 404);
    assert!(plugin.message().contains("error looking up volume plugin nope: plugin \"nope\" not found"));
    assert!(
        refused(&stack, json!({"Binds": ["vv:/x"], "VolumeDriver": "nope"})).1.contains("plugin \"nope\" not found")
    );
}

#[test]
fn binds_read_only_all_the_way_down_or_not() {
    let Some(stack) = Stack::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let below = folder.path().join("below");
    std::fs::create_dir(&below).unwrap();
    nix::mount::mount(Some("tmpfs"), &below, Some("tmpfs"), nix::mount::MsFlags::empty(), None::<&str>).unwrap();
    let _unmount = Unmount(below.clone());
    std::fs::write(below.join("file"), "mounted below\n").unwrap();
    let script = "cat /b/below/file 2>/dev/null; touch /b/x 2>/dev/null && echo top; touch /b/below/x 2>/dev/null && echo below; true";
    let bind = |extra: Value| {
        let mut mount = json!({"Type": "bind", "Source": folder.path(), "Target": "/b"});
        for (key, value) in extra.as_object().unwrap() {
            mount[key] = value.clone();
        }
        json!({"Mounts": [mount]})
    };
    let text = "mounted below\n";
    assert_eq!(output(&stack, script, bind(json!({}))), format!("{text}top\nbelow\n"));
    assert_eq!(output(&stack, script, bind(json!({"ReadOnly": true}))), text);
    let not_below = json!({"ReadOnly": true, "BindOptions": {"ReadOnlyNonRecursive": true}});
    assert_eq!(output(&stack, script, bind(not_below)), format!("{text}below\n"));
    let force = json!({"ReadOnly": true, "BindOptions": {"ReadOnlyForceRecursive": true, "Propagation": "rprivate"}});
    assert_eq!(output(&stack, script, bind(force)), text);
    let alone = json!({"BindOptions": {"NonRecursive": true}});
    assert_eq!(output(&stack, script, bind(alone)), "top\nbelow\n");
    let old = json!({"Binds": [format!("{}:/b:ro,z", folder.path().display())]});
    assert_eq!(output(&stack, script, old), text);
    assert_eq!(refused(&stack, bind(json!({"BindOptions": {"ReadOnlyForceRecursive": true}}))).0, 400);
    // A source that is missing: made for -v and where that is asked for, else refused.
    let missing = folder.path().join("made/here");
    let mount = json!({"Type": "bind", "Source": missing, "Target": "/b"});
    assert!(refused(&stack, json!({"Mounts": [mount.clone()]})).1.contains("bind source path does not exist"));
    let mut made = mount;
    made["BindOptions"] = json!({"CreateMountpoint": true});
    output(&stack, "test -d /b", json!({"Mounts": [made]}));
    assert!(missing.is_dir());
}

struct Unmount(std::path::PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

#[test]
fn memory_as_a_folder() {
    let Some(stack) = Stack::start() else { return };
    let host = json!({"Mounts": [{"Type": "tmpfs", "Target": "/t", "TmpfsOptions":
        {"SizeBytes": 1_048_576, "Mode": 0o1750, "Options": [["exec"], ["uid", "33"]]}}], "Tmpfs": {"/u": "size=64k,mode=700"}});
    let id =
        stack.create("", &config("mount | grep ' /t '; stat -c '%a %u' /t; stat -c %a /u; mount | grep ' /u '", host));
    let (code, out, err) = finish(&stack, &id);
    assert_eq!(code, 0, "{out}{err}");
    let lines: Vec<_> = out.lines().collect();
    assert!(lines[0].contains("size=1024k") && lines[0].contains("nosuid") && !lines[0].contains("noexec"), "{out}");
    assert_eq!(lines[1..3], ["1750 33", "700"]);
    assert!(lines[3].contains("size=64k") && lines[3].contains("noexec"), "{out}");
    assert_eq!(
        stack.inspect(&id)["HostConfig"]["Mounts"][0]["TmpfsOptions"]["Options"],
        json!([["exec"], ["uid", "33"]])
    );
}

#[test]
fn propagation_between_host_and_container() {
    let Some(stack) = Stack::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let none = None::<&str>;
    let flags = nix::mount::MsFlags::MS_BIND;
    nix::mount::mount(Some(folder.path()), folder.path(), none, flags, none).unwrap();
    nix::mount::mount(none, folder.path(), none, nix::mount::MsFlags::MS_SHARED, none).unwrap();
    let _unmount = Unmount(folder.path().to_owned());
    std::fs::create_dir(folder.path().join("sub")).unwrap();
    let bind = |propagation: &str| json!({"Binds": [format!("{}:/b:{propagation}", folder.path().display())]});
    let script = "while ! test -e /b/go; do usleep 1000; done; grep -c ' /b/sub ' /proc/self/mountinfo; true";
    let ids: Vec<_> = ["rslave", "rprivate"].map(|p| stack.create("", &config(script, bind(p)))).into();
    for id in &ids {
        stack.start_container(id);
    }
    let sub = folder.path().join("sub");
    nix::mount::mount(Some("tmpfs"), &sub, Some("tmpfs"), nix::mount::MsFlags::empty(), none).unwrap();
    let _unmount_sub = Unmount(sub);
    std::fs::write(folder.path().join("go"), "").unwrap();
    for (id, seen) in ids.iter().zip(["1\n", "0\n"]) {
        stack.wait(id, "not-running");
        assert_eq!(stack.get(&format!("/containers/{id}/logs?stdout=1")).streams().0, seen);
    }
}
