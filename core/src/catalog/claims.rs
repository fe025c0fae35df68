//! Who has what that only one can have: fingerprints, aliases.

use foldhash::HashMap;
use xxhash_rust::xxh3::Xxh3;

use crate::name::ProductName;

/// Products by what they claim, as a hash of it. A product that claims something several times has
/// several claims.
#[derive(Debug, Default)]
pub(super) struct Claims(HashMap<u64, Owners>);

#[derive(Debug)]
enum Owners {
    /// Nearly always.
    One(ProductName),
    // A box: one of them in forty thousand is not to make all of them larger.
    #[allow(clippy::box_collection)]
    Many(Box<Vec<ProductName>>),
}

impl Claims {
    pub(super) fn insert(&mut self, key: u64, name: &ProductName) {
        let Some(owners) = self.0.get_mut(&key) else {
            self.0.insert(key, Owners::One(name.clone()));
            return;
        };
        match owners {
            Owners::One(one) => *owners = Owners::Many(Box::new(vec![one.clone(), name.clone()])),
            Owners::Many(many) => many.push(name.clone()),
        }
    }

    /// Takes one claim back.
    pub(super) fn remove(&mut self, key: u64, name: &ProductName) {
        let Some(Owners::Many(many)) = self.0.get_mut(&key) else {
            self.0.remove(&key);
            return;
        };
        if let Some(at) = many.iter().position(|of| of == name) {
            many.swap_remove(at);
        }
        if let [one] = &many[..] {
            let one = Owners::One(one.clone());
            self.0.insert(key, one);
        }
    }

    /// Everyone who claims this.
    pub(super) fn of(&self, key: u64) -> &[ProductName] {
        match self.0.get(&key) {
            None => &[],
            Some(Owners::One(one)) => std::slice::from_ref(one),
            Some(Owners::Many(many)) => many,
        }
    }

    /// Everyone who claims this, if there is more than one claim; else nobody.
    pub(super) fn shared(&self, key: u64) -> &[ProductName] {
        match self.0.get(&key) {
            Some(Owners::Many(many)) => many,
            _ => &[],
        }
    }
}

/// A hash of several texts.
pub(super) fn key(texts: &[&str]) -> u64 {
    let mut hasher = Xxh3::new();
    for text in texts {
        hasher.update(text.as_bytes());
        hasher.update(&[0]);
    }
    hasher.digest()
}
