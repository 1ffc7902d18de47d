//! The cases, by topic.

mod archive;
mod create;
mod events;
mod exec;
mod fields;
mod images;
mod life;
mod lists;
mod networks;
mod refusals;
mod streams;
mod system;
mod volumes;

use crate::run::Case;

/// Every case, in an order of rising trust.
pub fn all() -> Vec<Case> {
    [
        system::CASES,
        create::CASES,
        fields::CASES,
        life::CASES,
        lists::CASES,
        exec::CASES,
        streams::CASES,
        archive::CASES,
        images::CASES,
        volumes::CASES,
        networks::CASES,
        events::CASES,
        refusals::CASES,
    ]
    .concat()
}

/// Makes the cases of a topic from its functions.
#[macro_export]
macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        pub const CASES: &[$crate::run::Case] =
            &[$($crate::run::Case { name: concat!(module_path!(), "::", stringify!($name)), script: $name }),*];
    };
}

#[test]
fn names_are_unique() {
    let names: std::collections::BTreeSet<&str> = all().iter().map(|case| case.name).collect();
    assert_eq!(names.len(), all().len());
}
