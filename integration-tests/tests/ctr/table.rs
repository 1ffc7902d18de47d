//! The table: one shell line per row, and what is expected of it.

use std::fmt;

/// One row.
pub(crate) struct Row {
    /// The line; `daemon::PRELUDE` says what it may use.
    pub(crate) line: &'static str,
    code: i32,
    says: &'static [&'static str],
    /// Whether both daemons print the same.
    pub(crate) same: bool,
}

/// What came of it.
pub(crate) struct Answer {
    pub(crate) code: i32,
    pub(crate) output: String,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "(code {})\n{}", self.code, self.output)
    }
}

impl Row {
    /// What is wrong with an answer.
    pub(crate) fn fault(&self, answer: &Answer) -> Option<String> {
        if answer.code != self.code {
            return Some(format!("the code should be {}", self.code));
        }
        let missing = self.says.iter().find(|words| !answer.output.contains(**words));
        missing.map(|words| format!("{words:?} is missing"))
    }
}

/// It succeeds, and both say the same.
pub(crate) const fn same(line: &'static str) -> Row {
    Row { line, code: 0, says: &[], same: true }
}

/// It succeeds, and these words are in the output.
pub(crate) const fn says(line: &'static str, says: &'static [&'static str]) -> Row {
    Row { line, code: 0, says, same: false }
}

/// It fails with code 1, and these words are in the output.
const fn fails(line: &'static str, says: &'static [&'static str]) -> Row {
    Row { line, code: 1, says, same: false }
}

/// It ends with this code, and these words are in the output.
const fn ends(line: &'static str, code: i32, says: &'static [&'static str]) -> Row {
    Row { line, code, says, same: false }
}

/// Every row, in order: later ones stand on what earlier ones left.
pub(crate) const ROWS: &[Row] = &[
    says("ctr version", &["Client:", "Server:", "UUID: "]),
    fails("ctr pprof goroutines", &[]),
    // Namespaces.
    same("ctr namespaces create $NS-x a=b"),
    fails("ctr namespaces create $NS-x", &["already exists"]),
    same("ctr namespaces label $NS-x c=d; ctr namespaces ls | grep -e -x | tr -s ' ' '\\n' | tr , '\\n' | sort"),
    same("ctr namespaces label $NS-x c=; ctr namespaces ls | grep -e -x"),
    same("ctr namespaces ls -q | grep -c -e -x"),
    same("ctr namespaces rm $NS-x; ctr namespaces ls -q | grep -c -e -x; true"),
    same("ctr namespaces rm $NS-x"),
    // Events of everything below, looked at in the end.
    same("(command ctr -a $S -n $NS events >events 2>&1 & echo $! >events.pid); soon ctr content ls"),
    // Images.
    same("ctr images import busybox.tar | grep -o '^unpacking docker.io/library/busybox:latest'"),
    same("ctr images tag docker.io/library/busybox:latest $I"),
    fails("ctr images tag docker.io/library/busybox:latest $I", &["already exists"]),
    same("ctr images tag --force docker.io/library/busybox:latest $I"),
    same("ctr images push --plain-http $I >/dev/null"),
    fails("ctr images push --plain-http nope:1 nope:1", &["not found"]),
    same("ctr images rm --sync $I docker.io/library/busybox:latest"),
    same("ctr images ls -q; ctr content ls -q; ctr snapshots ls"),
    says("ctr images pull --plain-http $I", &["done"]),
    fails("ctr images pull --plain-http ${I%:1}:nope", &["not found"]),
    same("ctr images ls | tr -s ' '"),
    same(
        "ctr images ls name~=busybox -q; ctr images ls -q name==nothing; ctr images ls -q 'name!=x,name~=/busy.*:1$/'",
    ),
    fails("ctr images ls 'name==\"x'", &[]),
    same("ctr images label $I x=y | tr , '\\n' | sort; ctr images ls -q labels.x==y; ctr images ls -q labels.x"),
    same("ctr images label $I x=; ctr images ls -q labels.x"),
    same("ctr images check | tr -s ' '"),
    same("ctr images check -q name~=busybox"),
    same("ctr images export out.tar $I; tar tf out.tar | sort"),
    same("ctr images export --platform linux/amd64 out.tar $I; tar tf out.tar | sort"),
    fails("ctr images export no.tar nope:1", &["not found"]),
    same("mkdir m; ctr images mount $I m | grep -o '^sha256.*\\|m$'; ls m; ctr images unmount m; ls m"),
    same("ctr images mount --rw $I m | tail -1; touch m/new; ls m/new; ctr images unmount --rm m; ls m"),
    same(
        "ctr images import --snapshotter overlayfs --base-name again out.tar | grep -o '^unpacking [^ ]*' | sort; ctr images ls -q | grep -v again",
    ),
    // Content.
    same("ctr images ls | awk -v i=$I '$1 == i { print $3 }' | tee manifest"),
    same(
        "ctr leases create --id sync >/dev/null; ctr leases rm --sync sync; ctr content ls | tail -n +2 | awk '{ print $1, $2 }' | sort",
    ),
    same("ctr content get $(cat manifest) | jq -c ."),
    fails("ctr content get sha256:$(printf '0%.0s' {1..64})", &["not found"]),
    same("echo hello >h; echo sha256:$(sha256sum <h | cut -d' ' -f1) | tee hello"),
    same(
        // Nothing keeps it before it has its label: a collection may come between.
        "for i in 1 2 3; do ctr content ingest --expected-digest $(cat hello) --expected-size 6 one <h 2>/dev/null; ctr content label $(cat hello) containerd.io/gc.root=x 2>/dev/null && break; done",
    ),
    same("ctr content ingest two <h"),
    same("ctr content ls -q | grep $(cat hello); ctr content ls digest==$(cat hello) -q"),
    same("ctr content get $(cat hello)"),
    fails(
        "echo other | ctr content ingest --expected-digest sha256:$(printf '1%.0s' {1..64}) three",
        &["failed precondition"],
    ),
    fails("echo other | ctr content ingest --expected-size 99 four", &["failed to read expected number of bytes"]),
    same("ctr content active five"),
    same(
        "(echo part; sleep 3) | ctr content ingest six >/dev/null & soon sh -c \"command ctr -a $S -n $NS content active | grep ^six\"; ctr content active six | awk '/^six/ { print $1, $2 }'; wait",
    ),
    same(
        "ctr content label $(cat hello) l=m | tr , '\\n' | sort; ctr content ls -q labels.l==m; ctr content label $(cat hello) l=; ctr content ls -q labels.l==m",
    ),
    same("echo bye >bye; EDITOR='cp bye' command ctr -a $S -n $NS content edit $(cat hello) | tail -1"),
    says(
        "ctr content push-object --plain-http ${I%:1}@$(cat hello) $(cat hello) application/octet-stream",
        &["Pushed"],
    ),
    same("ctr content fetch-object --plain-http $I $(cat manifest) | jq -c ."),
    says("ctr content fetch --plain-http $I", &["manifest-sha256:", "layer-sha256:", "config-sha256:"]),
    same("ctr content prune references --dry | grep -c 'Removing label'"),
    same("ctr content rm $(cat hello); ctr content ls -q | grep -c $(cat hello); true"),
    same("ctr content rm $(cat hello)"),
    // Leases.
    same("ctr leases create --id l1 a=b"),
    fails("ctr leases create --id l1", &["already exists"]),
    same("ctr leases ls -q id==l1; ctr leases ls -q labels.a==b; ctr leases ls -q id==l2"),
    same("ctr leases ls id==l1 | awk '{ print $1 }'"),
    same("ctr leases rm --sync l1; ctr leases ls -q id==l1"),
    fails("ctr leases rm nope", &["not found"]),
    same(
        "ctr leases create --id brief --expires 1s; soon sh -c \"sleep 1; command ctr -a $S -n $NS leases create --id x; command ctr -a $S -n $NS leases rm --sync x; ! command ctr -a $S -n $NS leases ls -q | grep brief\"",
    ),
    // Snapshots.
    same("ctr snapshots ls | awk '/Committed/ { print $1 }' | tee top; ctr snapshots tree"),
    same("ctr snapshots info $(cat top) | jq -c '[.Kind, .Name, .Parent, .Labels]'"),
    same("ctr snapshots usage | awk '{ print $1, $NF }'"),
    same("ctr snapshots prepare s1 $(cat top)"),
    fails("ctr snapshots prepare s1 $(cat top)", &["already exists"]),
    fails("ctr snapshots prepare s9 nope", &["not found"]),
    says("ctr snapshots prepare --target mm s0", &["mount -t", "mm"]),
    same(
        "ctr snapshots view v1 $(cat top); ctr snapshots label v1 containerd.io/gc.root=x >/dev/null; ctr snapshots ls | tr -s ' ' | grep '^v1'",
    ),
    says("ctr snapshots mounts mt s1", &["mount -t overlay overlay mt -o", "workdir=", "upperdir=", "lowerdir="]),
    says("ctr snapshots mounts mt v1", &["mount -t bind", "mt -o ro,rbind"]),
    same("ctr snapshots ls | tr -s ' '; ctr snapshots tree"),
    same("mkdir sm; ctr snapshots mounts sm s1 | sh; echo new >sm/etc/new; rm sm/etc/group; umount sm"),
    same("command ctr -a $S -n $NS snapshots diff s1 | tar tzf - | sort"),
    same(
        "ctr snapshots diff --media-type application/vnd.oci.image.layer.v1.tar --label a=b --ref d1 --keep s1 | tar tf - | sort",
    ),
    fails("ctr snapshots diff nope", &["not found"]),
    same("ctr snapshots commit c1 s1; ctr snapshots info c1 | jq -c '[.Kind, .Name, .Parent]'"),
    fails("ctr snapshots commit c2 v1", &["failed precondition"]),
    same("ctr snapshots label c1 q=r | tr , '\\n' | grep q; ctr snapshots info c1 | jq -r .Labels.q"),
    same("ctr snapshots usage c1 | awk '{ print $1, $NF }'"),
    same("ctr snapshots prepare s2 c1; ctr snapshots tree"),
    fails("ctr snapshots rm $(cat top)", &["failed precondition"]),
    same("ctr snapshots rm s0 s2 v1 c1; ctr snapshots ls | tr -s ' '"),
    fails("ctr snapshots rm nope", &["not found"]),
    same("ctr snapshots unpack $(cat manifest) | grep -o '^unpacking.*'"),
    same(
        "ctr snapshots --snapshotter native prepare n1; ctr snapshots --snapshotter native ls | tr -s ' '; ctr snapshots --snapshotter native rm n1",
    ),
    fails("ctr snapshots --snapshotter nope ls", &["nope", "not"]),
    // A container in the foreground.
    same("ctr run --rm $I a echo hi"),
    ends("ctr run --rm $I a sh -c 'echo out; echo err >&2; exit 7'", 7, &["out", "err"]),
    fails("ctr run --rm $I a nope", &["executable file not found in $PATH"]),
    fails("ctr run --rm nope:1 a true", &["not found"]),
    fails("ctr run --rm --runtime io.containerd.nope.v1 $I a true", &["containerd-shim-nope-v1"]),
    same("ctr containers ls -q; ctr tasks ls -q"),
    // In the background, and what can be done with it.
    same("ctr run -d $I b sleep 1000"),
    fails("ctr run -d $I b sleep 1000", &["already exists"]),
    same("ctr containers ls | tr -s ' '; ctr containers ls -q; ctr containers ls -q id==b; ctr containers ls -q id==c"),
    same("ctr containers info b | jq -c '[.ID, .Image, .Runtime.Name, .Snapshotter, .SnapshotKey, .Labels]'"),
    same("ctr containers info --spec b | jq -c '[.process.args, .root.path, .ociVersion != null]'"),
    same(
        "ctr containers label b x=y | tr , '\\n' | grep x; ctr containers ls -q labels.x==y; ctr containers label b x= >/dev/null; ctr containers ls -q labels.x",
    ),
    same("ctr tasks ls | awk '{ print $1, $3 }'; ctr tasks ls -q"),
    same("ctr tasks ps b | awk '{ print NF, $2 }'"),
    same("ctr tasks exec --exec-id e1 b echo in"),
    ends("ctr tasks exec --exec-id e1 b sh -c 'exit 9'", 9, &[]),
    fails("ctr tasks exec --exec-id e1 b nope", &["executable file not found"]),
    same("echo from-stdin | ctr tasks exec --exec-id e2 b head -n1"),
    same("ctr tasks exec --cwd /tmp --exec-id e3 b pwd"),
    same("ctr tasks exec --user 1000 --exec-id e8 b id -u"),
    same(
        "ctr tasks exec -d --exec-id e4 b sleep 1000; ctr tasks ps b | tail -n +2 | wc -l; ctr tasks kill --exec-id e4 -s KILL b",
    ),
    fails("ctr tasks exec --exec-id e5 nope true", &["not found"]),
    same("ctr tasks pause b; ctr tasks ls | awk '{ print $1, $3 }'"),
    fails("ctr tasks pause b", &["pause"]),
    fails("ctr tasks exec --exec-id e6 b true", &["paused"]),
    same("ctr tasks resume b; ctr tasks ls | awk '{ print $1, $3 }'"),
    fails("ctr tasks resume b", &["resume"]),
    says("ctr tasks metrics b", &["ID ", "memory.usage_in_bytes", "cpuacct.usage"]),
    same(
        "ctr tasks metrics --format json b | jq -c '[(.pids.current), (.memory.usage.usage > 0), (.cpu.usage.total > 0)]'",
    ),
    fails("ctr containers delete b", &["non stopped"]),
    fails("ctr tasks delete b", &["must be stopped"]),
    fails("ctr tasks start b", &["already exists"]),
    same("ctr tasks kill b; ctr tasks kill -s SIGKILL b; soon stopped b; ctr tasks ls | awk '{ print $1, $3 }'"),
    fails("ctr tasks kill b", &["process already finished: not found"]),
    says("ctr tasks delete b", &["exit code 137"]),
    fails("ctr tasks delete b", &["not found"]),
    fails("ctr tasks kill b", &["not found"]),
    says("ctr tasks start -d b; ctr tasks kill -s 9 -a b; soon stopped b; ctr tasks delete b", &["exit code 137"]),
    same("ctr containers delete b; ctr containers ls -q; ctr snapshots ls | grep -c '^b '; true"),
    fails("ctr containers delete b", &["not found"]),
    // Create, start, attach.
    // The client takes a `-c` behind the image for its own.
    same(
        "ctr containers create --label l=m --env A=B --cwd /tmp $I d awk 'BEGIN { print ENVIRON[\"A\"]; exit 3 }'; ctr containers info d | jq -r .Labels.l; ctr tasks ls -q",
    ),
    fails("ctr containers create $I d true", &["already exists"]),
    ends("ctr tasks start d", 3, &["B"]),
    same("ctr containers delete d"),
    same("ctr containers create $I g sleep 1000; ctr tasks start -d g; ctr tasks ls | awk '{ print $1, $3 }'"),
    ends(
        "(soon ctr tasks exec --exec-id t1 g true; command ctr -a $S -n $NS tasks kill -s KILL g) >/dev/null & ctr tasks attach g",
        137,
        &[],
    ),
    // Who is attached deletes the task in the end.
    same("ctr tasks ls -q"),
    same("ctr containers delete g"),
    // Terminals.
    ends(
        "terminal run --rm -t $I t sh -c \"'tty; until test \\\"\\$(stty size)\\\" = \\\"33 99\\\"; do usleep 20000; done; echo sized; exit 5'\"",
        5,
        &["/dev/pts/0", "sized"],
    ),
    same("ctr run -d $I u sleep 1000"),
    ends(
        "terminal tasks exec -t --exec-id x u sh -c \"'tty; until test \\\"\\$(stty size)\\\" = \\\"33 99\\\"; do usleep 20000; done; echo sized; exit 6'\"",
        6,
        &["/dev/pts/0", "sized"],
    ),
    // A checkpoint of files and configuration.
    same("ctr containers checkpoint --rw --image u $I-cp; ctr images ls -q | grep -e -cp"),
    same(
        "ctr content get $(ctr images ls | awk -v i=$I-cp '$1 == i { print $3 }') | jq -c '[.manifests[].mediaType] | sort'",
    ),
    same("ctr tasks kill -s 9 u; soon stopped u; ctr tasks delete u; ctr containers delete u; ctr images rm $I-cp"),
    // What run can be told.
    same(
        "ctr run --rm --memory-limit 50000000 --cpus 0.5 $I k sh -c 'cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2>&1 | head -2'",
    ),
    fails("ctr run --rm --read-only $I k touch /x", &["Read-only file system"]),
    same("ctr run --rm --net-host $I k sh -c 'test -d /proc/1/net && hostname'"),
    same("ctr run --rm --privileged $I k sh -c 'grep CapEff /proc/self/status'"),
    same(
        "ctr run --rm $I k sh -c 'grep Cap /proc/self/status; grep Seccomp: /proc/self/status; grep NoNewPrivs /proc/self/status'",
    ),
    same("ctr run --rm --mount type=bind,src=/etc,dst=/mnt,options=rbind:ro $I k ls -d /mnt/passwd"),
    same("ctr run --rm --env X=Y --cwd /tmp --label q=1 --snapshotter overlayfs $I k sh -c 'pwd; echo $X'"),
    same(
        "ctr run -d --pid-file pid --null-io $I k sleep 1000; test -d /proc/$(cat pid) && echo lives; ctr tasks rm -f k; ctr containers rm k",
    ),
    same(
        "ctr run -d --log-uri file://$PWD/log1 $I k echo logged; soon stopped k; cat log1; ctr tasks delete k; ctr containers rm k",
    ),
    same(
        "mkdir -p root/bin root/proc root/dev root/sys root/run; cp /bin/busybox root/bin/sh; ctr run --rm --rootfs $PWD/root k /bin/sh -c 'echo by rootfs'",
    ),
    same("ctr run --rm --cgroup /$NS/other $I k sh -c 'grep memory /proc/self/cgroup | cut -d: -f2-'"),
    // Plugins.
    says("ctr plugins ls", &["io.containerd.snapshotter.v1", "overlayfs", "io.containerd.grpc.v1", "tasks", "ok"]),
    same(
        "ctr plugins ls -q type~=snapshotter,id==overlayfs; ctr plugins ls -q id==overlayfs; ctr plugins ls -q id==nothing",
    ),
    says("ctr plugins ls -d id==overlayfs", &["Type:", "ID:", "linux/amd64"]),
    // The end, and what was told on the way.
    same("ctr images rm --sync $(ctr images ls -q); ctr images ls -q; ctr containers ls -q; ctr tasks ls -q"),
    same("soon grep -q 'images/delete.*busybox:1\"' events; kill $(cat events.pid); grep -c /containers/create events"),
    same("grep '\"container_id\":\"b\"' events | awk '{ print $6 }' | grep -v exec | tr '\\n' ' '"),
    same("grep '\"exec_id\":\"e1\"\\|\"id\":\"e1\"' events | awk '{ print $6 }' | tr '\\n' ' '"),
    same("grep '/images/' events | awk '{ print $6, $7 }' | sort | uniq -c | tr -s ' '"),
    same("grep '\"id\":\"d\"\\|\"container_id\":\"d\"\\|\"key\":\"d\"' events | awk '{ print $6 }' | tr '\\n' ' '"),
];
