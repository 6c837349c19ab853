//! Time limits of tests, which a machine that is much slower than others may stretch.

use std::sync::OnceLock;
use std::time::Duration;

/// How many times slower than others this machine is: `CNI_ALL_TEST_SLOWNESS`, 1 unless set. An emulated machine needs ten
/// times as long for anything.
pub fn slowness() -> u32 {
    static SLOWNESS: OnceLock<u32> = OnceLock::new();
    *SLOWNESS.get_or_init(|| {
        let Ok(set) = std::env::var("CNI_ALL_TEST_SLOWNESS") else { return 1 };
        set.parse().unwrap_or_else(|e| panic!("CNI_ALL_TEST_SLOWNESS={set:?}: {e}"))
    })
}

/// A time limit, stretched by [`slowness`].
pub fn patience(limit: Duration) -> Duration {
    limit * slowness()
}
