//! A container that goes on from its checkpoint, by `ctr` alone.

use crate::{
    faults,
    table::{Row, same, says},
};
use integration_tests::{programs::peer_or_skip, run};

/// What it counts is in its own layer: nothing of it may be missing, or there twice.
const ROWS: &[Row] = &[
    same("ctr images import busybox.tar | grep -c ^unpacking; ctr images tag docker.io/library/busybox:latest $I"),
    says(
        "ctr run -d --null-io $I n sh -c 'i=0; while :; do i=$((i+1)); echo $i >>/count; usleep 20000; done'; soon ctr tasks exec --exec-id e n grep -qx 5 /count && echo counts",
        &["counts"],
    ),
    same("ctr containers checkpoint --task --rw n $I-cp && ctr images ls -q | grep -e -cp"),
    same(
        "ctr content get $(ctr images ls | awk -v i=$I-cp '$1 == i { print $3 }') | jq -c '[.manifests[].mediaType] | sort'",
    ),
    says(
        "ctr tasks exec --exec-id e n tail -n 1 /count >at; ctr tasks kill -s 9 n; soon stopped n; ctr tasks delete n; ctr containers delete n; test -z \"$(ctr tasks ls -q)\" && echo none",
        &["none"],
    ),
    same("ctr containers restore --rw --live m $I-cp; ctr tasks ls | awk '{ print $1, $3 }'"),
    says("soon ctr tasks exec --exec-id e m grep -qx $(($(cat at) + 20)) /count && echo counts on", &["counts on"]),
    says(
        "ctr tasks exec --exec-id e m awk '$1 != NR { print \"gap at\", NR; exit 1 }' /count && echo whole",
        &["whole"],
    ),
    same("ctr tasks kill -s 9 m; soon stopped m; ctr tasks delete m; ctr containers delete m; ctr images rm $I-cp"),
];

#[test]
fn ctr_restores_a_task_from_its_checkpoint() {
    for peer in ["ctr", "containerd", "containerd-shim-runc-v2", "runc", "criu", "jq"] {
        if peer_or_skip(peer).is_none() {
            return;
        }
    }
    let check = run("criu", ["check"]);
    if check.code() != 0 {
        println!("skipped: criu check: {}", check.stderr().lines().next().unwrap_or_default());
        return;
    }
    let faults = faults(ROWS, "registry.test");
    assert!(faults.is_empty(), "{} of {} rows\n\n{}", faults.len(), ROWS.len(), faults.join("\n\n"));
}
