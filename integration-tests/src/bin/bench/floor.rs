//! The floor below every runtime: five namespaces, four mounts, a pivot and an exec, and nothing else.

use nix::{
    mount::{MsFlags, mount},
    sched::CloneFlags,
};
use std::{ffi::CString, path::Path, process::ExitCode};

/// Runs `/bin/true` of the root filesystem given in five bare namespaces and waits for it.
pub fn run(rootfs: &str) -> ExitCode {
    let namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    let options = sys::clone::Options { namespaces: namespaces.bits() as u64, ..Default::default() };
    match sys::clone::clone(&options) {
        Ok(sys::clone::Cloned::Parent { pid, .. }) => match sys::process::wait(pid) {
            Ok(exit) if exit.status() == 0 => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        },
        Ok(sys::clone::Cloned::Child) => {
            // Only an error comes back from the child's work.
            let error = child(Path::new(rootfs)).err();
            eprintln!("floor: {error:?}");
            sys::process::exit_now(1)
        }
        Err(error) => {
            eprintln!("floor: clone: {error}");
            ExitCode::FAILURE
        }
    }
}

fn child(root: &Path) -> nix::Result<()> {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    mount(Some(root), root, none, MsFlags::MS_BIND, none)?;
    mount(Some("proc"), &root.join("proc"), Some("proc"), MsFlags::empty(), none)?;
    mount(Some("tmpfs"), &root.join("dev"), Some("tmpfs"), MsFlags::empty(), none)?;
    mount(Some("sysfs"), &root.join("sys"), Some("sysfs"), MsFlags::empty(), none)?;
    nix::unistd::chdir(root)?;
    sys::mount::pivot_to_cwd()?;
    Err(sys::process::execve(Path::new("/bin/true"), &[CString::from(c"/bin/true")], &[]))
}
