//! Buckets, as tests and the binary handle them.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::SystemTime;

use bytes::Bytes;

use crate::content;
use crate::listing::{Item, MAX_KEYS, Query};
use crate::objects::{self, Content, Object, Objects, Upload};
use crate::pattern::Pattern;

/// A bucket. Clones are the same bucket; changes are seen by the next request.
#[derive(Clone, Debug)]
pub struct Bucket {
    state: Arc<RwLock<State>>,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) objects: Objects,
    pub(crate) public: bool,
    /// The region that requests must be for; `None` if any will do.
    pub(crate) region: Option<String>,
}

/// An object without its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Its length in bytes.
    pub size: u64,
    /// Its `ETag` without the quotes: the MD5 sum of what was uploaded; of more than 64 KiB, as of
    /// a synthetic object, it looks like that of an upload in parts, which is none.
    pub etag: String,
    /// When it was written: a whole second, the same in every run.
    pub last_modified: SystemTime,
    /// Its storage class, `STANDARD` unless set.
    pub storage_class: String,
    /// Seed of a synthetic object's bytes, for [`content::fill`].
    pub seed: Option<u64>,
}

impl Bucket {
    pub(crate) fn new(region: Option<String>) -> Self {
        let state = State { region, ..State::default() };
        Self { state: Arc::new(RwLock::new(state)) }
    }

    /// Stores an object, or overwrites it.
    ///
    /// Panics if the key is not 1 to 1024 bytes long, as [`put_synthetic`](Self::put_synthetic).
    #[allow(clippy::must_use_candidate)] // it is the putting that matters
    pub fn put(&self, key: &str, bytes: impl Into<Bytes>) -> ObjectInfo {
        let upload = Upload::from(bytes.into());
        ObjectInfo::of(&self.write().objects.put(key, upload))
    }

    /// Puts an object whose bytes are computed. Overwriting one gives it other bytes.
    #[allow(clippy::must_use_candidate)]
    pub fn put_synthetic(&self, key: &str, size: u64) -> ObjectInfo {
        ObjectInfo::of(&self.write().objects.put_synthetic(key, size))
    }

    /// Puts an object whose first bytes are given and whose other bytes are computed: a file that
    /// programs can parse, of any size. Panics if the head is longer than the object.
    #[allow(clippy::must_use_candidate)]
    pub fn put_headed(&self, key: &str, size: u64, head: impl Into<Bytes>) -> ObjectInfo {
        let bytes = head.into();
        assert!(bytes.len() as u64 <= size, "{key}: the head is longer than the object");
        let info = self.put_synthetic(key, size);
        self.amend(key, |object| {
            if let Content::Synthetic { head, .. } = &mut object.content {
                *head = bytes;
            }
        });
        ObjectInfo { seed: None, ..info }
    }

    /// Puts any number of synthetic objects at the cost of one, of a [`Family`](crate::Family) or
    /// any other pattern. A key that was put or deleted by itself, before or after, stays as it is.
    pub fn put_family(&self, keys: impl Into<Pattern>) {
        self.write().objects.put_family(keys.into());
    }

    /// Deletes an object. True if there was one.
    #[allow(clippy::must_use_candidate)]
    pub fn delete(&self, key: &str) -> bool {
        self.write().objects.delete(key)
    }

    /// The keys of all objects, in order.
    #[must_use]
    pub fn keys(&self) -> Vec<String> {
        let state = self.read();
        let (mut keys, mut from) = (Vec::new(), None);
        loop {
            let query = Query { prefix: "", delimiter: "", from, max_keys: MAX_KEYS };
            let page = state.objects.page(&query);
            keys.extend(page.items.into_iter().map(|item| {
                let (Item::Object(key, _) | Item::CommonPrefix(key)) = item;
                String::from_utf8(key).expect("keys are put as text")
            }));
            from = page.next;
            if from.is_none() {
                return keys;
            }
        }
    }

    /// The object without its bytes, if it exists.
    #[must_use]
    pub fn info(&self, key: &str) -> Option<ObjectInfo> {
        self.read().objects.get(key).map(|object| ObjectInfo::of(&object))
    }

    /// The bytes that a GET of this range of an object answers; panics unless the object has them.
    #[must_use]
    pub fn bytes(&self, key: &str, range: Range<u64>) -> Bytes {
        let object = self.read().objects.get(key).expect("the bucket has the key");
        assert!(range.start <= range.end && range.end <= object.size(), "{range:?} of {key}");
        let index = |offset| usize::try_from(offset).expect("a range that fits into memory");
        match &object.content {
            Content::Stored(pieces) => objects::slice(&[pieces.concat().into()], range),
            Content::Synthetic { seed, head, .. } => {
                let mut bytes = vec![0; index(range.end - range.start)];
                content::fill(*seed, range.start, &mut bytes);
                let head = head.get(index(range.start)..).unwrap_or_default();
                for (byte, of_head) in bytes.iter_mut().zip(head) {
                    *byte = *of_head;
                }
                bytes.into()
            }
        }
    }

    /// Changes an object's storage class, as a lifecycle rule would. A GET of an object in
    /// `GLACIER` or `DEEP_ARCHIVE` is refused. Panics if there is no such object.
    pub fn set_storage_class(&self, key: &str, class: &str) {
        self.amend(key, |object| object.storage_class = class.into());
    }

    /// Makes a copy of an archived object that can be read. Panics if there is no such object.
    pub fn restore(&self, key: &str) {
        self.amend(key, |object| object.restored = true);
    }

    /// Changes an object's content type. Panics if there is no such object.
    pub fn set_content_type(&self, key: &str, content_type: &str) {
        self.amend(key, |object| object.content_type = content_type.into());
    }

    /// Adds to an object's own metadata, or changes it. Panics if there is no such object.
    pub fn set_metadata(&self, key: &str, name: &str, value: &str) {
        self.amend(key, |object| drop(object.metadata.insert(name.into(), value.into())));
    }

    /// Changes when an object says it was written. Panics if there is no such object.
    pub fn set_last_modified(&self, key: &str, time: SystemTime) {
        self.amend(key, |object| object.last_modified = time);
    }

    /// Lets requests without a signature read the bucket; off at the start.
    pub fn set_public(&self, public: bool) {
        self.write().public = public;
    }

    /// The region that requests must be signed for; at first any will do. The endpoint itself is
    /// in `us-east-1`, so requests without a signature are sent away from any other region.
    pub fn set_region(&self, region: Option<&str>) {
        self.write().region = region.map(str::to_owned);
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, State> {
        // Only a key of a wrong length panics under the lock, and before it changes anything.
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn amend(&self, key: &str, change: impl FnOnce(&mut Object)) {
        assert!(self.write().objects.amend(key, change), "the bucket has no key {key:?}");
    }
}

impl ObjectInfo {
    fn of(object: &Object) -> Self {
        Self {
            size: object.size(),
            etag: object.etag.clone(),
            last_modified: object.last_modified,
            storage_class: object.storage_class.clone(),
            seed: match object.content {
                Content::Synthetic { seed, ref head, .. } if head.is_empty() => Some(seed),
                _ => None,
            },
        }
    }
}

/// All buckets of a server.
#[derive(Debug, Default)]
pub(crate) struct Buckets(RwLock<HashMap<String, Bucket>>);

impl Buckets {
    pub(crate) fn get(&self, name: &str) -> Option<Bucket> {
        self.0.read().expect("no panic while it is held").get(name).cloned()
    }

    pub(crate) fn get_or_create(&self, name: &str, region: Option<&str>) -> Bucket {
        let mut buckets = self.0.write().expect("no panic while it is held");
        let new = || Bucket::new(region.map(str::to_owned));
        buckets.entry(name.to_owned()).or_insert_with(new).clone()
    }
}
