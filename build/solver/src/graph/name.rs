//! Names of operations, as users see them.

use proto::pb::{self, file_action::Action, op::Op};

/// What the frontend called it, else what it does, in BuildKit's words.
pub(super) fn name(op: &pb::Op, metadata: &pb::OpMetadata) -> String {
    if let Some(name) = metadata.description.get("llb.customname") {
        return name.clone();
    }
    match &op.op {
        Some(Op::Exec(exec)) => exec.meta.as_ref().map(|meta| meta.args.join(" ")).unwrap_or_default(),
        Some(Op::Source(source)) => source.identifier.clone(),
        Some(Op::File(file)) => {
            let names: Vec<_> = file.actions.iter().filter_map(|action| action.action.as_ref()).map(action).collect();
            names.join(", ")
        }
        Some(Op::Merge(_)) => "merge".into(),
        Some(Op::Diff(_)) => "diff".into(),
        Some(Op::Build(_)) | None => "unknown".into(),
    }
}

fn action(action: &Action) -> String {
    match action {
        Action::Copy(copy) => format!("copy {} {}", copy.src, copy.dest),
        Action::Mkfile(file) => format!("mkfile {}", file.path),
        Action::Mkdir(dir) => format!("mkdir {}", dir.path),
        Action::Rm(rm) => format!("rm {}", rm.path),
        Action::Symlink(link) => format!("symlink {} -> {}", link.newpath, link.oldpath),
    }
}
