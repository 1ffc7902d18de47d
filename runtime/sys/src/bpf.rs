//! eBPF programs that decide about device access in a cgroup2 (bpf(2), program type CGROUP_DEVICE, Linux 4.15).

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

use crate::raw::{check, own};

/// One instruction of eBPF, laid out as the kernel wants it.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u8,
    /// Destination register in the low, source register in the high half.
    pub registers: u8,
    /// Jump distance or memory offset.
    pub offset: i16,
    /// Constant operand.
    pub immediate: i32,
}

const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_DETACH: libc::c_int = 9;
const PROG_GET_FD_BY_ID: libc::c_int = 13;
const PROG_QUERY: libc::c_int = 16;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 2;

#[repr(C)]
#[derive(Default)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct AttachAttr {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct QueryAttr {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    padding: u32,
}

fn bpf<T>(command: libc::c_int, attributes: &mut T) -> Result<libc::c_long, Errno> {
    // SAFETY: each command here gets a prefix of union bpf_attr of the size given; pointers inside are set by the callers.
    check(unsafe { libc::syscall(libc::SYS_bpf, command, attributes as *mut T, size_of::<T>()) })
}

/// Loads a program that decides about device access. `EINVAL` or `EACCES` when the verifier does not like it.
pub fn load_device_filter(program: &[Instruction]) -> Result<OwnedFd, Errno> {
    let license = c"Apache-2.0";
    own(bpf(
        PROG_LOAD,
        &mut LoadAttr {
            prog_type: PROG_TYPE_CGROUP_DEVICE,
            insn_cnt: program.len() as u32,
            insns: program.as_ptr() as u64,
            license: license.as_ptr() as u64,
            ..LoadAttr::default()
        },
    )?)
}

/// Puts a device filter on a cgroup2 directory. The kernel keeps it until the cgroup goes.
pub fn attach_device_filter(cgroup: impl AsFd, program: impl AsFd) -> Result<(), Errno> {
    bpf(
        PROG_ATTACH,
        &mut AttachAttr {
            target_fd: cgroup.as_fd().as_raw_fd() as u32,
            attach_bpf_fd: program.as_fd().as_raw_fd() as u32,
            attach_type: ATTACH_CGROUP_DEVICE,
            attach_flags: ALLOW_MULTI,
        },
    )
    .map(drop)
}

/// The device filters that are on a cgroup2 directory itself (at most 64 are looked at).
pub fn device_filters(cgroup: impl AsFd) -> Result<Vec<OwnedFd>, Errno> {
    let mut ids = [0_u32; 64];
    let mut query = QueryAttr {
        target_fd: cgroup.as_fd().as_raw_fd() as u32,
        attach_type: ATTACH_CGROUP_DEVICE,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: ids.len() as u32,
        ..QueryAttr::default()
    };
    bpf(PROG_QUERY, &mut query)?;
    let count = (query.prog_cnt as usize).min(ids.len());
    ids[..count]
        .iter()
        .map(|&id| {
            // The attribute is { id, next_id, open_flags }.
            let fd = bpf(PROG_GET_FD_BY_ID, &mut [id, 0, 0])?;
            // SAFETY: the call created this descriptor; bpf descriptors are always close-on-exec.
            Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
        })
        .collect()
}

/// Takes a device filter off a cgroup2 directory.
pub fn detach_device_filter(cgroup: impl AsFd, program: impl AsFd) -> Result<(), Errno> {
    bpf(
        PROG_DETACH,
        &mut AttachAttr {
            target_fd: cgroup.as_fd().as_raw_fd() as u32,
            attach_bpf_fd: program.as_fd().as_raw_fd() as u32,
            attach_type: ATTACH_CGROUP_DEVICE,
            attach_flags: 0,
        },
    )
    .map(drop)
}
