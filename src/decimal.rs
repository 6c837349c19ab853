//! Decimal numbers as text, without floating point, whose tables take 12 KB of the executable.

/// `text` × 10^`places`, cut off behind the point, and whether nothing was cut off: `("12.5", 0)` is 12 and false,
/// `("1.5e3", 0)` is 1500 and true. `None`: it is no decimal number, or the result has more than 63 bits.
pub fn scaled(text: &str, places: i32) -> Option<(i64, bool)> {
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
        None => (text, 0),
    };
    let (is_negative, mantissa) =
        mantissa.strip_prefix('-').map_or((false, mantissa), |mantissa| (true, mantissa));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = whole.len() + fraction.len();
    // How many digits are in front of the point when it has moved.
    let kept = i64::try_from(whole.len()).ok()? + i64::from(exponent) + i64::from(places);
    let (mut value, mut is_exact) = (0_i64, true);
    for (place, byte) in whole.bytes().chain(fraction.bytes()).enumerate() {
        let digit = byte.checked_sub(b'0').filter(|digit| *digit <= 9)?;
        if i64::try_from(place).ok()? < kept {
            value = value.checked_mul(10)?.checked_add(i64::from(digit))?;
        } else {
            is_exact &= digit == 0;
        }
    }
    // Zeros that are not written. A number other than 0 is too large before there are that many.
    for _ in i64::try_from(digits).ok()?..kept.min(64) {
        value = value.checked_mul(10)?;
    }
    (digits > 0).then_some((if is_negative { -value } else { value }, is_exact))
}

#[cfg(test)]
mod tests {
    use super::scaled;

    #[test]
    fn a_number_is_scaled_and_cut_off_behind_the_point() {
        for (text, places, expected) in [
            ("0", 0, (0, true)),
            ("-0.0", 0, (0, true)),
            ("12.5", 0, (12, false)),
            ("12.5", 1, (125, true)),
            ("1.5e3", 0, (1500, true)),
            ("1500E-2", 0, (15, true)),
            ("-1525e-2", 0, (-15, false)),
            ("1e18", 0, (1_000_000_000_000_000_000, true)),
            ("0e99", 9, (0, true)),
            (".5", 3, (500, true)),
            ("5.", 3, (5000, true)),
            ("0.1", 9, (100_000_000, true)),
        ] {
            assert_eq!(scaled(text, places), Some(expected), "{text} {places}");
        }
    }

    #[test]
    fn what_is_no_number_or_too_large_is_none() {
        for text in
            ["", "-", ".", "e", "1e", "x", "1.2.3", "+1", "--1", "0x1", "inf", "1e19", "9e99999999999"]
        {
            assert_eq!(scaled(text, 0), None, "{text}");
        }
        assert_eq!(scaled("10", 18), None);
        assert_eq!(scaled("1", i32::MAX), None);
        assert_eq!(scaled("1", i32::MIN), Some((0, false)));
    }
}
