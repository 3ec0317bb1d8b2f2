//! Exposure as people type it, `10%` or `0.5%`, and as the services keep it: basis points.

use std::fmt;
use std::str::FromStr;

/// A share in basis points, 0.01% to 100%.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Percent(pub(crate) i32);

/// Not a share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be 0.01% to 100%, such as 10% or 0.5%")]
pub(crate) struct Malformed;

impl FromStr for Percent {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let number = text.strip_suffix('%').ok_or(Malformed)?;
        let (whole, hundredths) = number.split_once('.').unwrap_or((number, "0"));
        let digits = |text: &str| (1..=3).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(hundredths) || hundredths.len() > 2 {
            return Err(Malformed);
        }
        let parse = |text: &str| text.parse::<i32>().map_err(|_| Malformed);
        let bps = parse(whole)? * 100 + parse(&format!("{hundredths:0<2}"))?;
        if (1..=10_000).contains(&bps) { Ok(Self(bps)) } else { Err(Malformed) }
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0 / 100, self.0 % 100) {
            (whole, 0) => write!(f, "{whole}%"),
            (whole, part) if part % 10 == 0 => write!(f, "{whole}.{}%", part / 10),
            (whole, part) => write!(f, "{whole}.{part:02}%"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_read_back_what_they_write() {
        for (text, bps) in [("10%", 1000), ("0.5%", 50), ("0.01%", 1), ("12.34%", 1234), ("100%", 10_000)] {
            assert_eq!(text.parse(), Ok(Percent(bps)), "{text}");
            assert_eq!(Percent(bps).to_string(), text);
        }
        assert_eq!("0.50%".parse(), Ok(Percent(50)));
    }

    #[test]
    fn what_is_no_share_is_refused() {
        for bad in ["", "%", "10", "0%", "100.01%", "-1%", "+1%", "1.%", ".5%", "1.234%", "1000%", "ten%"] {
            assert_eq!(bad.parse::<Percent>(), Err(Malformed), "{bad}");
        }
    }
}
