//! A transaction: messages that nftables carries out all together or not at all.

use nix::errno::Errno;
use nix::libc;

use super::super::netlink::{Attributes, Batch, NetlinkError, Socket};
use super::constants as c;
use super::rule::Rule;

/// `NFNL_MSG_BATCH_BEGIN` and `_END`.
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// `NFNL_SUBSYS_NFTABLES`.
const NFTABLES: u16 = 10;

/// A base chain's place in the path of a packet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hook {
    pub(super) kind: &'static str,
    pub(super) number: i32,
    pub(super) priority: i32,
}

/// A transaction in the making, for one table.
#[derive(Debug)]
pub(super) struct Transaction<'a> {
    family: i32,
    table: &'a str,
    batch: Batch,
}

impl<'a> Transaction<'a> {
    /// An empty transaction for a table of this family (`NFPROTO_*`).
    pub(super) fn new(family: i32, table: &'a str) -> Self {
        let mut batch = Batch::new();
        batch.push("begin", BATCH_BEGIN, 0, &delimiter(), |_| {});
        Self { family, table, batch }
    }

    /// Carries it out.
    pub(super) fn commit(mut self, socket: &mut Socket) -> Result<(), NetlinkError> {
        self.batch.push("end", BATCH_END, 0, &delimiter(), |_| {});
        socket.run(&mut self.batch).map(drop)
    }

    /// Creates the table unless it is there.
    pub(super) fn add_table(&mut self) {
        self.message("add", "", libc::NFT_MSG_NEWTABLE, libc::NLM_F_CREATE, |a, table| {
            a.text(c::table::NAME, table);
        });
    }

    /// Creates the table, which isn't there.
    pub(super) fn add_new_table(&mut self) {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        self.message("add", "", libc::NFT_MSG_NEWTABLE, flags, |a, table| {
            a.text(c::table::NAME, table);
        });
    }

    /// Deletes the table with all that is in it.
    pub(super) fn delete_table(&mut self) {
        self.message("delete", "", libc::NFT_MSG_DELTABLE, 0, |a, table| {
            a.text(c::table::NAME, table);
        });
    }

    /// Deletes the table of this name and another family, whether it is there or not.
    pub(super) fn delete_table_of(&mut self, family: i32) {
        let own = std::mem::replace(&mut self.family, family);
        self.add_table(); // so that deleting finds one
        self.delete_table();
        self.family = own;
    }

    /// Deletes all rules of a chain.
    pub(super) fn flush_chain(&mut self, chain: &str) {
        self.message("flush rules of", chain, libc::NFT_MSG_DELRULE, 0, |a, table| {
            a.text(c::rule::TABLE, table).text(c::rule::CHAIN, chain);
        });
    }

    /// Creates a chain unless it is there.
    pub(super) fn add_chain(&mut self, name: &str, hook: Option<Hook>) {
        self.message("add", name, libc::NFT_MSG_NEWCHAIN, libc::NLM_F_CREATE, |a, table| {
            a.text(c::chain::TABLE, table).text(c::chain::NAME, name);
            if let Some(hook) = hook {
                a.nest(c::chain::HOOK, |place| {
                    place
                        .be32(c::chain::HOOK_NUMBER, hook.number as u32)
                        .be32(c::chain::HOOK_PRIORITY, hook.priority as u32);
                });
                a.be32(c::chain::POLICY, c::ACCEPT).text(c::chain::TYPE, hook.kind);
            }
        });
    }

    /// Appends a rule to a chain.
    pub(super) fn add_rule(&mut self, chain: &str, rule: &Rule) {
        self.rule("add a rule to", chain, libc::NLM_F_CREATE | libc::NLM_F_APPEND, rule);
    }

    /// Puts a rule in front of those of a chain.
    pub(super) fn insert_rule(&mut self, chain: &str, rule: &Rule) {
        self.rule("insert a rule into", chain, libc::NLM_F_CREATE, rule);
    }

    /// Deletes the rule of a chain that has this number.
    pub(super) fn delete_rule(&mut self, chain: &str, handle: u64) {
        self.message("delete a rule of", chain, libc::NFT_MSG_DELRULE, 0, |a, table| {
            a.text(c::rule::TABLE, table).text(c::rule::CHAIN, chain).bytes(c::rule::HANDLE, &handle.to_be_bytes());
        });
    }

    fn rule(&mut self, verb: &str, chain: &str, flags: i32, rule: &Rule) {
        self.message(verb, chain, libc::NFT_MSG_NEWRULE, flags, |a, table| {
            a.text(c::rule::TABLE, table)
                .text(c::rule::CHAIN, chain)
                .bytes(c::rule::EXPRESSIONS | libc::NLA_F_NESTED as u16, rule.expressions())
                .bytes(c::rule::USERDATA, &rule.userdata());
        });
    }

    /// Appends any other message about an object of the table.
    pub(super) fn message(
        &mut self,
        verb: &str,
        object: &str,
        kind: i32,
        flags: i32,
        attributes: impl FnOnce(&mut Attributes<'_>, &str),
    ) {
        let table = self.table;
        let separator = if object.is_empty() { "" } else { " " };
        let what = format!("{verb} firewall table {table}{separator}{object}");
        let family = [self.family as u8, 0, 0, 0];
        self.batch.push(what, NFTABLES << 8 | kind as u16, flags | libc::NLM_F_ACK, &family, |a| attributes(a, table));
    }
}

/// Whether a table is there.
pub(super) fn has_table(socket: &mut Socket, family: i32, name: &str) -> Result<bool, NetlinkError> {
    let mut batch = Batch::new();
    let kind = NFTABLES << 8 | libc::NFT_MSG_GETTABLE as u16;
    batch
        .push("look up a firewall table", kind, 0, &[family as u8, 0, 0, 0], |a| {
            a.text(c::table::NAME, name);
        })
        .tolerating(&[Errno::ENOENT]);
    Ok(!socket.run(&mut batch)?.is_empty())
}

/// The fixed part of the messages around a transaction: they name the subsystem.
fn delimiter() -> [u8; 4] {
    let [high, low] = NFTABLES.to_be_bytes();
    [libc::AF_UNSPEC as u8, 0, high, low]
}
