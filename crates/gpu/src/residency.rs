//! Weights on the device. Several programs of one backend (plans of one model, parts of a split)
//! share a buffer when they want the same constant in the same form.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

use parking_lot::Mutex;
use sparoa_core::{
    ops::GpuConstant,
    tensor::{DType, Tensor},
};

/// A constant buffer on the device; freed with its last user.
#[derive(Debug)]
pub(crate) struct Resident<B> {
    pub(crate) buffer: B,
    pub(crate) bytes: usize,
}

/// A constant and its buffer, as long as somebody has them.
type Known<B> = (Weak<Tensor>, Weak<Resident<B>>);

/// Constants of one device, in the backend's buffers.
pub(crate) struct Residency<B> {
    by_address: Mutex<HashMap<(usize, Form), Known<B>>>,
    by_content: Mutex<HashMap<(Content, Form), Weak<Resident<B>>>>,
}

impl<B> Default for Residency<B> {
    fn default() -> Residency<B> {
        Residency { by_address: Mutex::default(), by_content: Mutex::default() }
    }
}

/// A rearrangement.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Form {
    name: &'static str,
    args: Vec<usize>,
}

/// Fingerprint of a constant's value. 128 bits over at most gigabytes: equal fingerprints mean
/// equal contents for all that is practical.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Content {
    dtype: DType,
    shape: Vec<usize>,
    fingerprint: u128,
}

impl<B> Residency<B> {
    /// The buffer of `constant`, made by `upload` from its contents unless it is there.
    pub(crate) fn get<E>(
        &self,
        constant: &GpuConstant,
        upload: impl FnOnce(&Tensor) -> Result<Resident<B>, E>,
    ) -> Result<Arc<Resident<B>>, E> {
        let form = Form { name: constant.form, args: constant.args.clone() };
        let address = (Arc::as_ptr(&constant.source).addr(), form.clone());
        if let Some((tensor, resident)) = self.by_address.lock().get(&address)
            && tensor.upgrade().is_some_and(|t| Arc::ptr_eq(&t, &constant.source))
            && let Some(resident) = resident.upgrade()
        {
            return Ok(resident);
        }
        let content = Content {
            dtype: constant.source.dtype(),
            shape: constant.source.shape().to_vec(),
            fingerprint: fingerprint(constant.source.bytes()),
        };
        let known = self.by_content.lock().get(&(content.clone(), form.clone())).cloned();
        let resident = match known.and_then(|weak| weak.upgrade()) {
            Some(resident) => resident,
            None => {
                let resident = Arc::new(upload(&constant.tensor())?);
                self.by_content.lock().insert((content, form), Arc::downgrade(&resident));
                resident
            }
        };
        let entry = (Arc::downgrade(&constant.source), Arc::downgrade(&resident));
        self.by_address.lock().insert(address, entry);
        Ok(resident)
    }

    /// Drops the entries of buffers that are gone.
    pub(crate) fn sweep(&self) {
        self.by_address.lock().retain(|_, (tensor, resident)| {
            tensor.strong_count() > 0 && resident.strong_count() > 0
        });
        self.by_content.lock().retain(|_, resident| resident.strong_count() > 0);
    }
}

/// Buffer size for `bytes` of data: whole vec4s, never empty.
pub(crate) fn padded(bytes: usize) -> usize {
    bytes.next_multiple_of(16).max(16)
}

/// 128 bits of XXH3.
fn fingerprint(bytes: &[u8]) -> u128 {
    xxhash_rust::xxh3::xxh3_128(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_tell_single_bits_and_lengths_apart() {
        let base: Vec<u8> = (0..200).map(|i| i as u8).collect();
        let mut seen = std::collections::HashSet::new();
        for bit in 0..base.len() * 8 {
            let mut changed = base.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(seen.insert(fingerprint(&changed)));
        }
        for len in 0..base.len() {
            assert!(seen.insert(fingerprint(&base[..len])));
        }
    }
}
