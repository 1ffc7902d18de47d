//! What is in an image: `docker save`'s archive, its layers put one on the other.

use crate::corpus::{CONTEXT_TIME, TIMES};
use integration_tests::images;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    io::{Cursor, Read},
};

/// Files by path, each in one line, and the configuration.
pub fn read(saved: &[u8]) -> (BTreeMap<String, String>, Value) {
    let members: BTreeMap<String, Vec<u8>> = entries(saved).into_iter().map(|entry| (entry.path, entry.data)).collect();
    let manifest: Value = serde_json::from_slice(&members["manifest.json"]).unwrap();
    let of = |value: &Value| members[value.as_str().unwrap()].clone();
    let config: Value = serde_json::from_slice(&of(&manifest[0]["Config"])).unwrap();
    let mut files = BTreeMap::new();
    for layer in manifest[0]["Layers"].as_array().unwrap() {
        apply(&mut files, &of(layer));
    }
    (files.iter().map(|(path, entry)| (path.clone(), show(path, entry, &files))).collect(), config)
}

#[derive(Debug, Clone)]
struct Entry {
    path: String,
    kind: tar::EntryType,
    mode: u32,
    owner: (u64, u64),
    time: i64,
    link: String,
    device: (u32, u32),
    xattrs: Vec<String>,
    data: Vec<u8>,
}

fn entries(archive: &[u8]) -> Vec<Entry> {
    let mut plain = Vec::new();
    let archive = if archive.starts_with(&[0x1f, 0x8b]) {
        flate2::read::MultiGzDecoder::new(archive).read_to_end(&mut plain).unwrap();
        &plain[..]
    } else {
        archive
    };
    let mut found = Vec::new();
    for entry in tar::Archive::new(Cursor::new(archive)).entries().unwrap() {
        let mut entry = entry.unwrap();
        let header = entry.header().clone();
        let path = String::from_utf8_lossy(&entry.path_bytes()).trim_start_matches("./").trim_matches('/').to_owned();
        let link = entry.link_name_bytes().map(|name| String::from_utf8_lossy(&name).into_owned()).unwrap_or_default();
        let mut xattrs = Vec::new();
        if let Some(extensions) = entry.pax_extensions().unwrap() {
            for extension in extensions.flatten() {
                let key = extension.key().unwrap_or_default();
                if key.starts_with("SCHILY.xattr.") {
                    xattrs.push(format!("{key}={:02x?}", extension.value_bytes()));
                }
            }
        }
        xattrs.sort();
        let mut data = Vec::new();
        entry.read_to_end(&mut data).unwrap();
        found.push(Entry {
            path,
            kind: header.entry_type(),
            mode: header.mode().unwrap() & 0o7777,
            owner: (header.uid().unwrap(), header.gid().unwrap()),
            time: header.mtime().unwrap().cast_signed(),
            link,
            device: (
                header.device_major().ok().flatten().unwrap_or(0),
                header.device_minor().ok().flatten().unwrap_or(0),
            ),
            xattrs,
            data,
        });
    }
    found
}

fn remove_below(files: &mut BTreeMap<String, Entry>, path: &str) {
    let below = format!("{path}/");
    files.retain(|name, _| !name.starts_with(&below) && !path.is_empty());
}

fn apply(files: &mut BTreeMap<String, Entry>, layer: &[u8]) {
    let layer = entries(layer);
    // What is deleted is what lower layers have, wherever the mark stands.
    for entry in &layer {
        let (folder, name) = entry.path.rsplit_once('/').unwrap_or(("", &entry.path));
        if name == ".wh..wh..opq" {
            remove_below(files, folder);
        } else if let Some(name) = name.strip_prefix(".wh.") {
            let path = if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") };
            remove_below(files, &path);
            files.remove(&path);
        }
    }
    for mut entry in layer {
        let name = entry.path.rsplit('/').next().unwrap_or_default();
        if name.starts_with(".wh.") || entry.path.is_empty() {
            continue;
        }
        if entry.kind != tar::EntryType::Directory {
            remove_below(files, &entry.path.clone());
        }
        if entry.kind == tar::EntryType::Link {
            let first = entry.link.trim_start_matches("./").trim_start_matches('/').to_owned();
            let target = files.get(&first).unwrap_or_else(|| panic!("{} is a link to {first}", entry.path)).clone();
            let link = if target.link.is_empty() { first } else { target.link.clone() };
            entry = Entry { path: entry.path, link, ..target };
        }
        files.insert(entry.path.clone(), entry);
    }
}

fn show(path: &str, entry: &Entry, files: &BTreeMap<String, Entry>) -> String {
    let Entry { mode, owner: (uid, gid), .. } = entry;
    let kind = match entry.kind {
        tar::EntryType::Directory => 'd',
        tar::EntryType::Symlink => 'l',
        tar::EntryType::Char => 'c',
        tar::EntryType::Block => 'b',
        tar::EntryType::Fifo => 'p',
        _ => 'f',
    };
    let mut line = format!("{kind} {mode:04o} {uid}:{gid} {path}");
    match kind {
        'l' => line += &format!(" -> {}", entry.link),
        'c' | 'b' => line += &format!(" {}:{}", entry.device.0, entry.device.1),
        'f' if entry.data.len() < 200 => line += &format!(" {:?}", String::from_utf8_lossy(&entry.data)),
        'f' => line += &format!(" {} bytes {}", entry.data.len(), &images::sha256(&entry.data)[..12]),
        _ => {}
    }
    if kind == 'f' && !entry.link.is_empty() && files.get(&entry.link).is_some_and(|first| first.data == entry.data) {
        line += &format!(" = {}", entry.link);
    }
    if (CONTEXT_TIME..CONTEXT_TIME + TIMES).contains(&entry.time) {
        line += " (time of the context)";
    }
    for xattr in &entry.xattrs {
        line += &format!(" {xattr}");
    }
    line
}
