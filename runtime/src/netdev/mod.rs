//! Moves network devices of the host into the container (`linux.netDevices`): with their permanent addresses, under the name asked
//! for, and up.
//!
//! ```text
//! child: socket made in its network namespace -> parent: look in both, move, give addresses back, bring up -> child goes on
//! ```
//! A device that moves loses its addresses and goes down; what is asked for is done over the child's socket, on which the parent
//! acts with its own rights. When the container's namespace goes, the kernel gives physical devices back to the host's; those
//! that exist in software only (dummy, veth) go with it.

pub(crate) mod netlink;

use std::os::fd::OwnedFd;

use nix::unistd::Pid;
use sys::Errno;

use crate::plan::net_devices::NetDeviceStep;
use netlink::{Conversation, DUMP, Refused, attributes, push, u32_at};

/// Why a device is not in the container.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetDeviceError {
    /// No such device here.
    #[error("linux.netDevices: {0:?} is not in the runtime's network namespace")]
    Missing(String),
    /// Its name is somebody else's there.
    #[error("linux.netDevices: {from:?} cannot be {to:?}: the container's network namespace has a device of that name")]
    Taken { from: String, to: String },
    /// A step failed.
    #[error("linux.netDevices: {action} {device:?}")]
    Step {
        action: &'static str,
        device: String,
        #[source]
        cause: Refused,
    },
}

const NEW_LINK: u16 = 16;
const GET_LINK: u16 = 18;
const NEW_ADDRESS: u16 = 20;
const GET_ADDRESS: u16 = 22;

const LINK_HEADER: usize = 16;
const LINK_NAME: u16 = 3;
const LINK_NET_NS_PID: u16 = 19;

/// Moves the devices to the network namespace of a process. Looks first whether all of it can be, since what has moved is gone
/// if the container does not come to be.
pub(crate) fn move_all(steps: &[NetDeviceStep], theirs: OwnedFd, pid: Pid) -> Result<(), NetDeviceError> {
    let failed = |action, step: &NetDeviceStep| {
        let device = step.from.clone();
        move |cause| NetDeviceError::Step { action, device, cause }
    };
    let Some(first) = steps.first() else { return Ok(()) };
    let ours = netlink::open().map_err(|errno| failed("open a netlink socket for", first)(errno.into()))?;
    let (mut here, mut there) = (Conversation::new(ours), Conversation::new(theirs));
    let mut found = Vec::with_capacity(steps.len());
    for step in steps {
        match index_of(&mut here, &step.from).map_err(failed("look for", step))? {
            Some(index) => found.push(index),
            None => return Err(NetDeviceError::Missing(step.from.clone())),
        }
        if index_of(&mut there, &step.to).map_err(failed("look for the new name of", step))?.is_some() {
            return Err(NetDeviceError::Taken { from: step.from.clone(), to: step.to.clone() });
        }
    }
    for (step, index) in steps.iter().zip(found) {
        let addresses = addresses_of(&mut here, index).map_err(failed("read the addresses of", step))?;
        let mut request = link_header(index, 0, 0);
        push(&mut request, LINK_NET_NS_PID, &pid.as_raw().to_ne_bytes());
        push(&mut request, LINK_NAME, &name(&step.to));
        here.ask(NEW_LINK, 0, &request, 0).map_err(failed("move", step))?;
        let index = index_of(&mut there, &step.to)
            .and_then(|index| index.ok_or(Errno::ENODEV.into()))
            .map_err(failed("find again", step))?;
        for address in &addresses {
            add_address(&mut there, index, address).map_err(failed("give its addresses back to", step))?;
        }
        const UP: u32 = 1;
        there.ask(NEW_LINK, 0, &link_header(index, UP, UP), 0).map_err(failed("bring up", step))?;
    }
    Ok(())
}

/// struct ifinfomsg
fn link_header(index: u32, flags: u32, change: u32) -> Vec<u8> {
    let mut header = vec![0; 4];
    header.extend(index.to_ne_bytes());
    header.extend(flags.to_ne_bytes());
    header.extend(change.to_ne_bytes());
    header
}

fn name(text: &str) -> Vec<u8> {
    let mut name = text.as_bytes().to_vec();
    name.push(0);
    name
}

fn index_of(talk: &mut Conversation, device: &str) -> Result<Option<u32>, Refused> {
    let mut request = vec![0; LINK_HEADER];
    push(&mut request, LINK_NAME, &name(device));
    match talk.ask(GET_LINK, 0, &request, NEW_LINK) {
        Ok(answers) => Ok(answers.first().and_then(|link| u32_at(link, 4))),
        Err(Refused { errno: Errno::ENODEV, .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// An address as the kernel told it, to be told again.
#[derive(Debug, PartialEq, Eq)]
struct Address {
    family: u8,
    prefix: u8,
    attributes: Vec<(u16, Vec<u8>)>,
}

const ADDRESS_HEADER: usize = 8;
const ADDRESS_FLAGS: u16 = 8;
const PERMANENT: u32 = 0x80;

/// Addresses that somebody gave the device for good and for everywhere: what comes and goes by itself (autoconfiguration, link
/// local) does so in the container too.
fn addresses_of(talk: &mut Conversation, index: u32) -> Result<Vec<Address>, Refused> {
    let answers = talk.ask(GET_ADDRESS, DUMP, &[0; ADDRESS_HEADER], NEW_ADDRESS)?;
    Ok(answers.iter().filter(|answer| u32_at(answer, 4) == Some(index)).filter_map(|answer| address(answer)).collect())
}

fn address(message: &[u8]) -> Option<Address> {
    const UNIVERSE: u8 = 0;
    // Address, local, broadcast; not the label, which has the old name in it, nor the life time, which is for ever.
    const KEPT: &[u16] = &[1, 2, 4];
    // No duplicate detection, home address, temporary ones, no route for the prefix, multicast.
    const KEPT_FLAGS: u32 = 0x02 | 0x10 | 0x100 | 0x200 | 0x400;
    let &[family, prefix, flags, scope] = message.get(..4)? else { return None };
    let found: Vec<_> = attributes(message.get(ADDRESS_HEADER..)?).collect();
    let wide = found.iter().find(|(kind, _)| *kind == ADDRESS_FLAGS).and_then(|(_, value)| u32_at(value, 0));
    let flags = wide.unwrap_or(u32::from(flags));
    if scope != UNIVERSE || flags & PERMANENT == 0 {
        return None;
    }
    let mut attributes: Vec<_> =
        found.into_iter().filter(|(kind, _)| KEPT.contains(kind)).map(|(kind, value)| (kind, value.to_vec())).collect();
    attributes.push((ADDRESS_FLAGS, (flags & KEPT_FLAGS).to_ne_bytes().to_vec()));
    Some(Address { family, prefix, attributes })
}

fn add_address(talk: &mut Conversation, index: u32, address: &Address) -> Result<(), Refused> {
    const CREATE: u16 = 0x400;
    const EXCLUSIVE: u16 = 0x200;
    let mut request = vec![address.family, address.prefix, 0, 0];
    request.extend(index.to_ne_bytes());
    for (kind, value) in &address.attributes {
        push(&mut request, *kind, value);
    }
    talk.ask(NEW_ADDRESS, CREATE | EXCLUSIVE, &request, 0).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(flags: u32, scope: u8) -> Vec<u8> {
        let mut message = vec![2, 24, 0, scope, 7, 0, 0, 0];
        push(&mut message, 2, &[192, 0, 2, 1]);
        push(&mut message, 3, b"eth0\0");
        push(&mut message, ADDRESS_FLAGS, &flags.to_ne_bytes());
        message
    }

    #[test]
    fn permanent_global_addresses_are_kept_without_their_label() {
        let kept = address(&message(PERMANENT | 0x200, 0)).expect("kept");
        assert_eq!((kept.family, kept.prefix), (2, 24));
        let flags = 0x200_u32.to_ne_bytes().to_vec();
        assert_eq!(kept.attributes, [(2, vec![192, 0, 2, 1]), (ADDRESS_FLAGS, flags)]);
        assert_eq!(address(&message(0, 0)), None, "it comes and goes by itself");
        assert_eq!(address(&message(PERMANENT, 253)), None, "of the link only");
        assert_eq!(address(&[2, 24]), None);
    }
}
