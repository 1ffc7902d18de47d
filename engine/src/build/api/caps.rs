//! What this builder can do, by BuildKit's names.

use proto::moby::buildkit::v1::apicaps::ApiCap;

/// What frontends may ask of us.
const FRONTEND: &[&str] = &[
    "solve.base",
    "solve.inlinereturn",
    "resolveimage",
    "resolveimage.resolvemode",
    "readfile",
    "return",
    "returnmap",
    "readdir",
    "statfile",
    "importcaches",
    "proto.refarray",
    "reference.output",
    "frontend.inputs",
    "gateway.solve.metadata",
    "frontend.caps",
    "gateway.solve.evaluate",
    "gateway.warnings",
    "source.metaresolver",
];

/// What graphs may hold.
const LLB: &[&str] = &[
    "source.image",
    "source.image.resolvemode",
    "source.local",
    "source.local.unique",
    "source.local.sessionid",
    "source.local.includepatterns",
    "source.local.followpaths",
    "source.local.excludepatterns",
    "source.local.sharedkeyhint",
    "source.local.differ",
    "source.git",
    "source.git.keepgitdir",
    "source.git.fullurl",
    "source.git.httpauth",
    "source.git.knownsshhosts",
    "source.git.mountsshsock",
    "source.git.subdir",
    "source.git.checksum",
    "source.http",
    "source.http.checksum",
    "source.http.perm",
    // The name has this slip in BuildKit.
    "soruce.http.uidgid",
    "exec.meta.base",
    "exec.meta.cgroup.parent",
    "exec.meta.network",
    "exec.meta.proxyenv",
    "exec.meta.security",
    "exec.meta.security.devices.v1",
    "exec.meta.setsdefaultpath",
    "exec.meta.ulimit",
    "exec.meta.removemountstubs.recursive",
    "exec.mount.bind",
    "exec.mount.bind.readwrite-nooutput",
    "exec.mount.cache",
    "exec.mount.cache.sharing",
    "exec.mount.selector",
    "exec.mount.tmpfs",
    "exec.mount.tmpfs.size",
    "exec.mount.secret",
    "exec.mount.ssh",
    "exec.mount.cache.content",
    "exec.cgroup",
    "exec.secretenv",
    "exec.validexitcode",
    "file.base",
    "file.rm.wildcard",
    "file.rm.nofollowsymlink",
    "file.copy.includeexcludepatterns",
    "file.copy.alwaysreplaceexistingdestpaths",
    "file.copy.modestring",
    "file.symlink.create",
    "constraints",
    "platform",
    "meta.ignorecache",
    "meta.description",
    "meta.exportcache",
    "mergeop",
    "diffop",
    "exporter.image.annotations",
    "exporter.sourcedateepoch",
    "exporter.multiple",
    "gc.freespacefilter",
    "history.filter",
];

/// For frontends.
pub fn frontend() -> Vec<ApiCap> {
    FRONTEND.iter().map(|id| cap(id)).collect()
}

/// For graphs.
pub fn llb() -> Vec<ApiCap> {
    LLB.iter().map(|id| cap(id)).collect()
}

fn cap(id: &str) -> ApiCap {
    ApiCap { id: id.to_owned(), enabled: true, deprecated: id == "solve.inlinereturn", ..ApiCap::default() }
}
