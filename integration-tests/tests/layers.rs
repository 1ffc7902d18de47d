//! No layer links another layer's code: they share `proto` (words) and `sys` (Linux) only, those that write specifications `spec`, and
//! the two ends of a build `filesync`. `dockerfile` and `solver` are the engine's, and know nothing of it.

use serde_json::Value;
use std::process::Command;

#[test]
fn programs_share_only_proto_and_sys() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .output()
        .unwrap();
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    assert_eq!(packages.len(), 13, "a new crate: say here what it may link");
    for package in packages {
        let name = package["name"].as_str().unwrap();
        let ours = package["dependencies"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|d| d["path"].is_string())
            // What suites share is in no program.
            .filter(|d| !(d["name"] == "testing" && (d["kind"] == "dev" || name == "integration-tests")))
            .map(|d| d["name"].as_str().unwrap());
        for dependency in ours {
            let allowed = match name {
                "proto" | "sys" | "testing" => false,
                "runtime" | "spec" => dependency == "sys",
                "dockerfile" | "solver" => dependency == "proto",
                "supervisor" => matches!(dependency, "proto" | "sys" | "spec"),
                "engine" => {
                    matches!(dependency, "proto" | "sys" | "spec" | "dockerfile" | "solver" | "filesync")
                }
                "cli" => matches!(dependency, "proto" | "sys" | "filesync"),
                _ => matches!(dependency, "proto" | "sys"),
            };
            assert!(allowed, "{name} links {dependency}");
        }
    }
}
