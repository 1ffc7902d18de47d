//! Files in and out of containers.

use crate::{
    cases,
    run::{Run, encode, sh, waiting, with_host},
};
use integration_tests::images::add_file;
use serde_json::{Value, json};

cases!(copy_out, copy_in, stat, refusals, symlinks, mounts, read_only, stopped_and_running);

fn tar_of(files: &[(&str, &str)]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (path, text) in files {
        add_file(&mut archive, path, text.as_bytes(), 0o640);
    }
    archive.into_inner().unwrap()
}

const TAR: &str = "Content-Type: application/x-tar\r\n";

// What `X-Docker-Container-Path-Stat` says, without the moment.
fn stat_of(answer: &integration_tests::http::Answer) -> Value {
    let Some(header) = answer.header("x-docker-container-path-stat") else { return json!(null) };
    let mut stat: Value = serde_json::from_slice(&decode(header)).unwrap_or_default();
    stat["mtime"] = json!(stat["mtime"].is_string());
    if stat["mode"].as_u64().is_some_and(|mode| mode & 1 << 31 != 0) {
        stat["size"] = json!("of a folder");
    }
    stat
}

fn decode(text: &str) -> Vec<u8> {
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bits = text.bytes().filter_map(|b| alphabet.iter().position(|a| *a == b));
    let (mut kept, mut count, mut bytes) = (0_u32, 0, Vec::new());
    for value in bits {
        kept = kept << 6 | value as u32;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((kept >> count) as u8);
        }
    }
    bytes
}

fn out(run: &mut Run, name: &str, path: &str) {
    let answer = run.quietly("GET", &format!("/containers/{name}/archive?path={}", encode(path)), None);
    let mut entries = Vec::new();
    if answer.status == 200 {
        for entry in tar::Archive::new(&answer.body[..]).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut text = String::new();
            if entry.size() < 100 {
                std::io::Read::read_to_string(&mut entry, &mut text).ok();
            }
            let header = entry.header();
            let link = header.link_name().ok().flatten().map(|link| link.display().to_string());
            entries.push(json!([
                entry.path().unwrap().display().to_string(),
                header.mode().unwrap() & 0o7777,
                format!("{:?}", header.entry_type()),
                link,
                text
            ]));
        }
        entries.sort_by_key(ToString::to_string);
    }
    let stat = stat_of(&answer);
    run.note(
        &format!("archive of {path}"),
        json!({"status": answer.status, "kind": answer.header("content-type"), "stat": stat, "entries": entries}),
    );
}

fn copy_out(run: &mut Run) {
    run.runs("web", &sh("mkdir -p /d/e; echo text > /d/file; chmod 604 /d/file; ln -s file /d/link; echo deep > /d/e/deep; mkfifo /d/fifo 2>/dev/null; chmod 711 /d"));
    for path in ["/d", "/d/", "/d/.", "d", "/d/file", "/d/link", "/d/e/../file", "/d/nothing", "/", "/d/file/", ""] {
        if path != "/" {
            out(run, "web", path);
        }
    }
    run.get(404, "/containers/nobody/archive?path=/etc");
    run.get(400, "/containers/web/archive");
    run.refused(
        404,
        "GET",
        "/containers/web/archive?path=/nothing",
        None,
        "Could not find the file /nothing in container web",
    );
}

fn stat(run: &mut Run) {
    run.runs("web", &sh("mkdir -m 1777 /d; echo text > /d/file; chmod 4755 /d/file; ln -s /d/file /d/link; ln -s /nowhere /d/dangling"));
    for path in ["/d", "/d/file", "/d/link", "/d/dangling", "/dev", "/nothing", "/d/link/", "/"] {
        let answer = run.quietly("HEAD", &format!("/containers/web/archive?path={path}"), None);
        let stat = stat_of(&answer);
        run.note(&format!("stat of {path}"), json!({"status": answer.status, "stat": stat}));
    }
}

fn copy_in(run: &mut Run) {
    run.create("web", &sh("cat /tmp/a /tmp/b; ls -ln /tmp/a | awk '{print $1, $3, $4}'; ls /tmp"));
    let files = tar_of(&[("a", "one\n"), ("b", "two\n")]);
    run.send(200, "PUT", "/containers/web/archive?path=/tmp", &files, TAR);
    run.send(200, "PUT", "/containers/web/archive?path=/tmp", &tar_of(&[("a", "other\n")]), "");
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut packed, &tar_of(&[("packed", "p\n")])).unwrap();
    run.send(200, "PUT", "/containers/web/archive?path=/tmp", &packed.finish().unwrap(), TAR);
    run.send(404, "PUT", "/containers/web/archive?path=/no/such", &files, TAR);
    run.send(404, "PUT", "/containers/nobody/archive?path=/tmp", &files, TAR);
    run.send(400, "PUT", "/containers/web/archive?path=/etc/passwd", &files, TAR);
    run.send(400, "PUT", "/containers/web/archive", &files, TAR);
    run.send(500, "PUT", "/containers/web/archive?path=/tmp", b"this is no tar at all, however long it may be", TAR);
    run.send(200, "PUT", "/containers/web/archive?path=/tmp", b"", TAR);
    // A file in the place of a folder, and the reverse.
    run.send(200, "PUT", "/containers/web/archive?path=/", &tar_of(&[("root", "x\n")]), TAR);
    run.send(400, "PUT", "/containers/web/archive?path=/&noOverwriteDirNonDir=1", &tar_of(&[("etc", "x\n")]), TAR);
    run.post(204, "/containers/web/start");
    run.ended("web");
    run.output("web");
}

fn refusals(run: &mut Run) {
    run.create("web", &sh("true"));
    run.quietly("HEAD", "/containers/web/archive", None);
    let answer = run.quietly("HEAD", "/containers/nobody/archive?path=/etc", None);
    run.note("stat in nobody", json!(answer.status));
}

fn symlinks(run: &mut Run) {
    let root = run.folder().join("outside");
    std::fs::create_dir_all(&root).unwrap();
    let outside = root.display().to_string();
    run.runs(
        "web",
        &sh(&format!("ln -s {outside} /escape; ln -s ../../../../{outside} /dots; mkdir /in; ln -s /in /through")),
    );
    let files = tar_of(&[("planted", "x\n")]);
    run.send(404, "PUT", "/containers/web/archive?path=/escape", &files, TAR);
    run.send(404, "PUT", "/containers/web/archive?path=/dots", &files, TAR);
    run.send(200, "PUT", "/containers/web/archive?path=/through", &files, TAR);
    let planted = root.join("planted").exists();
    run.note("something came out", json!(planted));
    out(run, "web", "/through/");
    out(run, "web", "/in");
}

fn mounts(run: &mut Run) {
    let root = run.folder().join("archive-bind");
    std::fs::create_dir_all(&root).unwrap();
    std::fs::write(root.join("file"), "host\n").unwrap();
    let host =
        json!({"Binds": [format!("{}:/bound", root.display()), "vol:/vol", format!("{}:/ro:ro", root.display())]});
    run.create("web", &with_host(waiting(), host));
    out(run, "web", "/bound/file");
    run.send(200, "PUT", "/containers/web/archive?path=/vol", &tar_of(&[("v", "in a volume\n")]), TAR);
    run.send(200, "PUT", "/containers/web/archive?path=/bound", &tar_of(&[("b", "in a bind\n")]), TAR);
    run.send(403, "PUT", "/containers/web/archive?path=/ro", &tar_of(&[("c", "x\n")]), TAR);
    out(run, "web", "/vol/v");
    let there = std::fs::read_to_string(root.join("b")).ok();
    run.note("on the host", json!(there));
}

fn read_only(run: &mut Run) {
    let host = json!({"ReadonlyRootfs": true, "Binds": ["vol:/vol"]});
    run.start("web", &with_host(waiting(), host));
    run.send(403, "PUT", "/containers/web/archive?path=/tmp", &tar_of(&[("a", "x\n")]), TAR);
    run.send(200, "PUT", "/containers/web/archive?path=/vol", &tar_of(&[("a", "x\n")]), TAR);
}

fn stopped_and_running(run: &mut Run) {
    run.create("web", &waiting());
    run.send(200, "PUT", "/containers/web/archive?path=/tmp", &tar_of(&[("a", "early\n")]), TAR);
    run.post(204, "/containers/web/start");
    out(run, "web", "/tmp/a");
    run.send(200, "PUT", "/containers/web/archive?path=/tmp", &tar_of(&[("a", "live\n")]), TAR);
    out(run, "web", "/tmp/a");
    run.post(204, "/containers/web/stop?t=5");
    out(run, "web", "/tmp/a");
}
