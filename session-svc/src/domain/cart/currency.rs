//! Currencies, by the list of ISO 4217.

use std::str::FromStr;

/// A currency that prices can be in (ISO 4217): one with a minor unit, or with none, but no metal, fund or test code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Currency {
    code: &'static str,
    /// Digits behind the decimal point.
    pub digits: u16,
}

/// Not a currency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be the ISO 4217 code of a currency, in upper case")]
pub struct NotACurrency;

impl FromStr for Currency {
    type Err = NotACurrency;

    fn from_str(text: &str) -> Result<Self, NotACurrency> {
        let listed = iso_currency::Currency::from_code(text).ok_or(NotACurrency)?;
        let digits = listed.exponent().ok_or(NotACurrency)?;
        if listed.is_fund() || listed.is_special() {
            return Err(NotACurrency);
        }
        Ok(Self { code: listed.code(), digits })
    }
}

impl Currency {
    /// The code.
    pub fn as_str(self) -> &'static str {
        self.code
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_currency_is_on_the_list_and_money() {
        for (code, digits) in [("EUR", 2), ("JPY", 0), ("KWD", 3), ("HUF", 2), ("CHF", 2)] {
            let currency: Currency = code.parse().unwrap();
            assert_eq!((currency.as_str(), currency.digits), (code, digits));
        }
        for bad in ["", "eur", "EURO", "E1R", "ÄÖ", "QQQ", "XXX", "XTS", "XAU", "XDR", "CHE"] {
            assert_eq!(bad.parse::<Currency>(), Err(NotACurrency), "{bad}");
        }
    }
}
