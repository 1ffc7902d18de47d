//! The mark phase: which things are reached from the roots. Pure, tested against a simple model.

use std::collections::{HashMap, HashSet};

/// One thing that can be reached.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Node {
    /// A blob by its digest.
    Content(String),
    /// A snapshot by its snapshotter and key.
    Snapshot(String, String),
    /// An image by its name.
    Image(String),
    /// A container by its id. Never collected; back references name it.
    Container(String),
}

/// Who keeps whom in one namespace.
#[derive(Debug, Default)]
pub(crate) struct Graph {
    /// Kept by themselves, with everything they refer to.
    roots: Vec<Node>,
    /// Kept by themselves, without what their labels refer to (`gc.flat`).
    flat: Vec<Node>,
    /// What labels refer to, and an image's target.
    references: HashMap<Node, Vec<Node>>,
    /// What a snapshot stands on: kept with it in any case.
    below: HashMap<Node, Node>,
}

impl Graph {
    /// `node` stays.
    pub(crate) fn root(&mut self, node: Node) {
        self.roots.push(node);
    }

    /// `node` stays, but not what it refers to.
    pub(crate) fn flat_root(&mut self, node: Node) {
        self.flat.push(node);
    }

    /// `to` stays as long as `from` does.
    pub(crate) fn reference(&mut self, from: Node, to: Node) {
        self.references.entry(from).or_default().push(to);
    }

    /// `upper` can't be without `lower`.
    pub(crate) fn stands_on(&mut self, upper: Node, lower: Node) {
        self.below.insert(upper, lower);
    }

    /// What is reached. `go_on` is asked now and then; once it says no, the answer is `None`.
    pub(crate) fn mark(self, mut go_on: impl FnMut() -> bool) -> Option<HashSet<Node>> {
        let Self { roots, flat, references, below } = self;
        let mut marked = HashSet::new();
        let mut todo = roots;
        let mut steps = 0_u32;
        while let Some(node) = todo.pop() {
            steps += 1;
            if steps.is_multiple_of(1024) && !go_on() {
                return None;
            }
            if marked.contains(&node) {
                continue;
            }
            todo.extend(references.get(&node).into_iter().flatten().cloned());
            todo.extend(below.get(&node).cloned());
            marked.insert(node);
        }
        // Whatever is reached in the full sense is marked by now; the rest keeps only what it stands on.
        for mut node in flat {
            while marked.insert(node.clone()) {
                match below.get(&node) {
                    Some(lower) => node.clone_from(lower),
                    None => break,
                }
            }
        }
        Some(marked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn node(number: u8) -> Node {
        match number % 3 {
            0 => Node::Content(number.to_string()),
            1 => Node::Snapshot("overlayfs".into(), number.to_string()),
            _ => Node::Image(number.to_string()),
        }
    }

    /// The same, said as plainly as possible: repeat until nothing is added.
    fn model(roots: &[u8], flat: &[u8], references: &[(u8, u8)], below: &[(u8, u8)]) -> HashSet<Node> {
        let mut full: HashSet<u8> = roots.iter().copied().collect();
        let mut kept: HashSet<u8> = flat.iter().copied().collect();
        for _ in 0..=64 {
            for (from, to) in references.iter().chain(below) {
                if full.contains(from) {
                    full.insert(*to);
                }
            }
            for (upper, lower) in below {
                if kept.contains(upper) {
                    kept.insert(*lower);
                }
            }
        }
        full.union(&kept).map(|number| node(*number)).collect()
    }

    proptest! {
        #[test]
        fn marks_what_the_model_marks(
            roots in prop::collection::vec(0..32_u8, 0..4),
            flat in prop::collection::vec(0..32_u8, 0..4),
            references in prop::collection::vec((0..32_u8, 0..32_u8), 0..48),
            below in prop::collection::btree_map(0..32_u8, 0..32_u8, 0..16),
        ) {
            let below: Vec<(u8, u8)> = below.into_iter().collect();
            let mut graph = Graph::default();
            for root in &roots {
                graph.root(node(*root));
            }
            for root in &flat {
                graph.flat_root(node(*root));
            }
            for (from, to) in &references {
                graph.reference(node(*from), node(*to));
            }
            for (upper, lower) in &below {
                graph.stands_on(node(*upper), node(*lower));
            }
            prop_assert_eq!(graph.mark(|| true), Some(model(&roots, &flat, &references, &below)));
        }
    }

    #[test]
    fn a_long_mark_can_be_ended() {
        let mut graph = Graph::default();
        for number in 0..3000 {
            graph.root(Node::Content(number.to_string()));
        }
        assert_eq!(graph.mark(|| false), None);
    }
}
