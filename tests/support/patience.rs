//! Time limits of tests, which a machine that is much slower than others may stretch.

use std::sync::OnceLock;
use std::time::Duration;

/// A time limit, times `CNI_ALL_TEST_SLOWNESS` when that is set: an emulated machine needs ten times as long for anything.
pub fn patience(limit: Duration) -> Duration {
    static SLOWNESS: OnceLock<u32> = OnceLock::new();
    limit
        * *SLOWNESS.get_or_init(|| {
            let Ok(set) = std::env::var("CNI_ALL_TEST_SLOWNESS") else { return 1 };
            set.parse().unwrap_or_else(|e| panic!("CNI_ALL_TEST_SLOWNESS={set:?}: {e}"))
        })
}
