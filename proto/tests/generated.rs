//! Keeps `src/gen` in step with `api/*.proto`. `BERTH_REGENERATE=1 cargo test -p proto --test generated` writes it anew.

use std::{collections::BTreeMap, fs, path::Path};

fn proto_files(folder: &Path, found: &mut Vec<std::path::PathBuf>) {
    let mut entries: Vec<_> =
        fs::read_dir(folder).expect("read api folder").map(|e| e.expect("entry").path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            proto_files(&path, found);
        } else if path.extension().is_some_and(|e| e == "proto") {
            found.push(path);
        }
    }
}

fn read_all(folder: &Path) -> BTreeMap<String, String> {
    fs::read_dir(folder)
        .expect("read folder")
        .map(|e| e.expect("entry").path())
        .map(|p| (p.file_name().expect("name").to_string_lossy().into_owned(), fs::read_to_string(&p).expect("read")))
        .collect()
}

#[test]
fn generated_code_is_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (api, committed) = (root.join("api"), root.join("src/gen"));
    let mut files = Vec::new();
    proto_files(&api, &mut files);
    let descriptors = protox::compile(&files, [&api]).expect("compile api/*.proto");
    let out = tempfile::tempdir().expect("temp dir");
    let mut messages = prost_build::Config::new();
    messages.enable_type_names();
    // An operation is named by the digest of its bytes.
    messages.btree_map([".pb"]);
    messages.bytes([".fsutil.types.Packet.data", ".moby.filesync.v1.BytesMessage.data"]);
    // Written by hand (src/cri.rs), since derived ones print what must not be in a log.
    messages.skip_debug([".runtime.v1.AuthConfig"]);
    tonic_prost_build::configure()
        .out_dir(out.path())
        .include_file("mod.rs")
        .emit_rerun_if_changed(false)
        // Task has a call named Connect, which the transport's own `connect` would clash with.
        .build_transport(false)
        .compile_fds_with_config(descriptors, messages)
        .expect("generate");
    let fresh = read_all(out.path());
    if std::env::var_os("BERTH_REGENERATE").is_some() {
        fs::remove_dir_all(&committed).expect("remove old");
        fs::create_dir_all(&committed).expect("make folder");
        for (name, text) in &fresh {
            fs::write(committed.join(name), text).expect("write");
        }
        return;
    }
    let old = read_all(&committed);
    for (name, text) in &fresh {
        assert!(
            old.get(name) == Some(text),
            "src/gen/{name} is stale: BERTH_REGENERATE=1 cargo test -p proto --test generated"
        );
    }
    assert_eq!(old.len(), fresh.len(), "src/gen holds files that nothing generates");
}
