//! To come.

use std::sync::Arc;
use std::time::SystemTime;

use crate::config::Config;
use crate::store::ObjectStore;

/// To come.
pub struct BucketFs;

impl BucketFs {
    /// To come.
    #[must_use]
    pub fn new(
        _store: Arc<dyn ObjectStore>,
        _config: &Config,
        _mounted_at: SystemTime,
    ) -> Arc<Self> {
        Arc::new(Self)
    }
}
