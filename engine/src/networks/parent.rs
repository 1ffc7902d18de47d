//! The links of the host that macvlan and ipvlan networks are on: one that is there, one that tags packets with a VLAN's number
//! on one that is there (`eth0.50`), or one to nowhere.

use super::error::NetworkError;
use super::netlink::{Batch, NetlinkError, Socket, link};

/// The number of a VLAN and the link it is on, as a name like `eth0.50` says; none for other names.
pub(super) fn vlan(name: &str) -> Option<(&str, u16)> {
    let (on, number) = name.rsplit_once('.')?;
    let number = number.parse().ok().filter(|number| (1..=4094).contains(number))?;
    (!on.is_empty()).then_some((on, number))
}

/// Makes the link unless it is there, notes whose it is, and brings it up. Gives its index.
pub(super) fn ensure(socket: &mut Socket, name: &str, dummy: bool, alias: &str) -> Result<u32, NetworkError> {
    let failed = |cause| NetworkError::Parent { name: name.to_owned(), cause };
    let missing = |name: &str| NetworkError::NoParent(name.to_owned());
    if let Some(found) = link::find(socket, name).map_err(failed)? {
        if found.alias.as_deref() == Some(alias) {
            let mut batch = Batch::new();
            link::bring_up(&mut batch, name, None);
            socket.run(&mut batch).map_err(failed)?;
        }
        return Ok(found.index);
    }
    let on = match vlan(name) {
        _ if dummy => None,
        Some((on, number)) => Some((link::find(socket, on).map_err(failed)?.ok_or_else(|| missing(on))?.index, number)),
        None => return Err(missing(name)),
    };
    let mut batch = Batch::new();
    link::create_parent(&mut batch, name, on);
    link::label(&mut batch, name, alias);
    link::bring_up(&mut batch, name, None);
    socket.run(&mut batch).map_err(failed)?;
    let found = link::find(socket, name).map_err(failed)?;
    found.map(|link| link.index).ok_or_else(|| failed(NetlinkError::Unanswered { step: format!("look up {name}") }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_vlans() {
        for (name, expected) in [
            ("eth0.50", Some(("eth0", 50))),
            ("bond0.1.7", Some(("bond0.1", 7))),
            ("eth0", None),
            ("eth0.0", None),
            ("eth0.4095", None),
            (".5", None),
        ] {
            assert_eq!(vlan(name), expected, "{name}");
        }
    }
}
