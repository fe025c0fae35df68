//! Which lanes each file of a version is fed to, and what becomes of their hashes.

use std::collections::BTreeMap;

use super::Version;
use crate::Digest;
use crate::entry::{Hashes, Plan};
use crate::kind::{Client, Root};
use crate::scan::FoundFile;
use crate::sha256::Lane;
use crate::tree::join;

/// The files that are read first, and those that need what these made of their lanes.
pub(super) const ROUNDS: [for<'a> fn(&Findings, &'a Plan) -> Vec<Reading<'a>>; 2] =
    [|_, plan| metadata(plan), Findings::rest];

/// What is known of a version that is being read.
#[derive(Default)]
pub(super) struct Findings {
    pub hashes: Hashes,
    /// The hash of each metadata, and the lane that ended with it.
    states: BTreeMap<Client, (Digest, Lane)>,
}

/// A file that is to be read, once.
pub(super) struct Reading<'a> {
    pub file: &'a FoundFile,
    /// The first of them becomes the hash of the file alone.
    pub lanes: Vec<Lane>,
    role: Role,
}

enum Role {
    Metadata(Client),
    /// Behind the metadata with this hash, in this lane.
    Root(Root, Vec<(Digest, usize)>),
    Alone,
}

fn metadata(plan: &Plan) -> Vec<Reading<'_>> {
    let metadata = plan.metadata.iter();
    metadata.map(|(&client, file)| Reading::alone(file, Role::Metadata(client))).collect()
}

impl<'a> Reading<'a> {
    fn alone(file: &'a FoundFile, role: Role) -> Self {
        Self { file, lanes: vec![Lane::default()], role }
    }
}

impl Findings {
    fn rest<'a>(&self, plan: &'a Plan) -> Vec<Reading<'a>> {
        let alone = plan.unified.values().chain(plan.deltas.values());
        let alone = alone.map(|file| Reading::alone(file, Role::Alone));
        let roots = plan.roots.iter().map(|(&root, file)| self.root(root, file));
        alone.chain(roots).collect()
    }

    fn root<'a>(&self, root: Root, file: &'a FoundFile) -> Reading<'a> {
        let (mut lanes, mut behind) = (vec![Lane::default()], Vec::new());
        for (metadata, state) in self.states.values() {
            // Equal metadata, the usual case where both files are there, needs one lane.
            if behind.iter().all(|(known, _)| known != metadata) {
                behind.push((*metadata, lanes.len()));
                lanes.push(state.clone());
            }
        }
        Reading { file, lanes, role: Role::Root(root, behind) }
    }

    /// Takes what became of the reading's lanes, and their hashes.
    pub fn add(
        &mut self,
        version: &Version<'_>,
        Reading { file, role, .. }: &Reading<'_>,
        lanes: Vec<Lane>,
        digests: Vec<Digest>,
    ) {
        let (cache, attempt) = (version.context.cache, version.context.attempt);
        let Some((&digest, lane)) = digests.first().zip(lanes.into_iter().next()) else {
            return;
        };
        cache.put_file(&join(version.path, &file.name), file, digest, attempt);
        self.hashes.files.insert(file.name.clone(), digest);
        match role {
            Role::Alone => {}
            Role::Metadata(client) => drop(self.states.insert(*client, (digest, lane))),
            Role::Root(root, behind) => {
                for (&client, (metadata, _)) in &self.states {
                    let lane = behind.iter().find(|(known, _)| known == metadata);
                    if let Some(&combined) = lane.and_then(|&(_, lane)| digests.get(lane)) {
                        cache.put_pair(*metadata, (digest, file), combined, attempt);
                        self.hashes.pairs.insert((client, *root), combined);
                    }
                }
            }
        }
    }
}
