//! The sets of links that the rules ask: which are bridges of ours, which of them are internal. Few rules do for any number of
//! networks, and a packet costs a hash look-up or two.

use nix::libc;

use super::constants::{data, datatype, set};
use super::transaction::Transaction;

/// Names are compared over their whole length.
const NAME: usize = libc::IFNAMSIZ;

/// A set of links.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LinkSet {
    /// All bridges.
    Bridges,
    /// Those that lead nowhere.
    Internal,
    /// Links that may pass packets on to a bridge: the bridge itself, and those that its network trusts.
    Pairs,
}

impl LinkSet {
    pub(super) const ALL: [Self; 3] = [Self::Bridges, Self::Internal, Self::Pairs];

    /// The set's name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Bridges => "bridges",
            Self::Internal => "internal_bridges",
            Self::Pairs => "passing_links",
        }
    }

    fn key(self) -> (u32, u32) {
        match self {
            Self::Bridges | Self::Internal => (datatype::LINK, NAME as u32),
            Self::Pairs => (datatype::LINK_LINK, 2 * NAME as u32),
        }
    }
}

/// One name, or one after the other, as registers hold them.
fn encoded(links: &[&str]) -> Vec<u8> {
    links.iter().flat_map(|link| padded(link)).collect()
}

/// A name as registers hold it.
pub(super) fn padded(link: &str) -> [u8; NAME] {
    let mut padded = [0; NAME];
    let length = link.len().min(NAME - 1);
    padded[..length].copy_from_slice(&link.as_bytes()[..length]);
    padded
}

impl Transaction<'_> {
    /// Creates a set unless it is there.
    pub(super) fn add_set(&mut self, links: LinkSet) {
        let (key_type, key_length) = links.key();
        self.message("add", links.name(), libc::NFT_MSG_NEWSET, libc::NLM_F_CREATE, |a, table| {
            a.text(set::TABLE, table)
                .text(set::NAME, links.name())
                .be32(set::FLAGS, 0)
                .be32(set::KEY_TYPE, key_type)
                .be32(set::KEY_LENGTH, key_length)
                .be32(set::ID, links as u32 + 11);
            if links != LinkSet::Pairs {
                let order = [[set::KEY_BYTE_ORDER, 4].as_slice(), &set::HOST_ORDER.to_ne_bytes()].concat();
                a.bytes(set::USERDATA, &order);
            }
        });
    }

    /// Makes these links, or pairs of links, the elements of a set.
    pub(super) fn fill_set(&mut self, links: LinkSet, elements: &[Vec<&str>]) {
        self.message("flush", links.name(), libc::NFT_MSG_DELSETELEM, 0, |a, table| {
            a.text(set::LIST_TABLE, table).text(set::LIST_SET, links.name());
        });
        for some in elements.chunks(500) {
            self.message("fill", links.name(), libc::NFT_MSG_NEWSETELEM, libc::NLM_F_CREATE, |a, table| {
                a.text(set::LIST_TABLE, table).text(set::LIST_SET, links.name()).nest(set::LIST_ELEMENTS, |list| {
                    for names in some {
                        list.nest(data::LIST_ELEMENT, |element| {
                            element.nest(set::ELEMENT_KEY, |value| {
                                value.bytes(data::VALUE, &encoded(names));
                            });
                        });
                    }
                });
            });
        }
    }
}
