//! Entries of a span on their way to the storage: written one behind the other, and read in the order of
//! their keys.
//!
//! Must not know: what a key or a value means.

use std::ops::Range;

/// What is kept for the next batch; a larger one gives back its memory.
const KEPT_BYTES: usize = 4 << 20;

#[derive(Debug, Default)]
pub(super) struct Entries {
    bytes: Vec<u8>,
    places: Vec<Placed>,
}

#[derive(Debug, Clone)]
struct Placed {
    /// The key's first bytes, which decide between most of them without a look at the rest.
    head: u128,
    key: Range<usize>,
    /// The value begins where the key ends.
    end: usize,
}

impl Entries {
    pub(super) fn put(&mut self, key: impl FnOnce(&mut Vec<u8>), value: impl FnOnce(&mut Vec<u8>)) {
        let start = self.bytes.len();
        key(&mut self.bytes);
        let middle = self.bytes.len();
        value(&mut self.bytes);
        let head = head(&self.bytes[start..middle]);
        self.places.push(Placed { head, key: start..middle, end: self.bytes.len() });
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Keys with their values, each key once: the last of several counts.
    pub(super) fn sorted(&mut self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let bytes = &self.bytes;
        self.places.sort_by(|one, other| {
            one.head.cmp(&other.head).then_with(|| bytes[one.key.clone()].cmp(&bytes[other.key.clone()]))
        });
        let entry = |place: &Placed| (&bytes[place.key.clone()], &bytes[place.key.end..place.end]);
        let places = &self.places;
        places.iter().enumerate().filter_map(move |(index, place)| {
            let (key, value) = entry(place);
            let again =
                places.get(index + 1).is_some_and(|next| next.head == place.head && entry(next).0 == key);
            (!again).then_some((key, value))
        })
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.places.clear();
        self.bytes.shrink_to(KEPT_BYTES);
        self.places.shrink_to(KEPT_BYTES / size_of::<Placed>());
    }
}

/// Ordered as the keys are, but for keys that begin alike.
fn head(key: &[u8]) -> u128 {
    let mut head = [0; 16];
    let length = key.len().min(head.len());
    head[..length].copy_from_slice(&key[..length]);
    u128::from_be_bytes(head)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn keys_come_in_order_and_once_with_their_last_values(
            given in prop::collection::vec((prop::collection::vec(0..3u8, 0..20), any::<u8>()), 0..100),
        ) {
            let mut entries = Entries::default();
            for round in 0..2 {
                let mut expected = BTreeMap::new();
                for (key, value) in &given {
                    let value = value.wrapping_add(round);
                    entries.put(|out| out.extend_from_slice(key), |out| out.push(value));
                    expected.insert(key.clone(), vec![value]);
                }
                let found: Vec<_> = entries.sorted().map(|(key, value)| (key.to_vec(), value.to_vec())).collect();
                prop_assert_eq!(found, expected.into_iter().collect::<Vec<_>>());
                entries.clear();
                prop_assert_eq!(entries.bytes(), 0);
            }
        }
    }
}
