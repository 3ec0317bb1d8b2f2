//! How, and whether, a shopper may be written to about a cart. Addresses are not kept here, only that the shop has one.

/// A way to reach a shopper.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Channel {
    /// Electronic mail.
    Email,
    /// Text messages.
    Sms,
    /// Notifications of an app or browser.
    Push,
    /// Calls.
    Phone,
}

impl Channel {
    const ALL: [Self; 4] = [Self::Email, Self::Sms, Self::Push, Self::Phone];

    /// As it is stored and told.
    pub fn name(self) -> &'static str {
        match self {
            Self::Email => "EMAIL",
            Self::Sms => "SMS",
            Self::Push => "PUSH",
            Self::Phone => "PHONE",
        }
    }

    /// The channel of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|channel| channel.name() == name)
    }
}

/// What a shopper answered when asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Consent {
    /// Whether they agreed.
    pub granted: bool,
    /// To which text.
    pub policy_version: String,
}

/// What the shop knows of a cart's shopper.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contact {
    /// Where it has an address.
    pub channels: Vec<Channel>,
    /// None where nobody asked.
    pub consent: Option<Consent>,
}

impl Contact {
    /// Whether there is a channel, and the shopper agreed.
    pub fn is_contactable(&self) -> bool {
        !self.channels.is_empty() && self.consent.as_ref().is_some_and(|consent| consent.granted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contactable_is_who_has_an_address_and_agreed() {
        let consent = |granted| Some(Consent { granted, policy_version: "1".to_owned() });
        for (channels, consent, is_contactable) in [
            (vec![Channel::Sms], consent(true), true),
            (vec![Channel::Sms], consent(false), false),
            (vec![Channel::Sms], None, false),
            (vec![], consent(true), false),
        ] {
            assert_eq!(Contact { channels, consent }.is_contactable(), is_contactable);
        }
    }

    #[test]
    fn channels_are_found_by_their_names() {
        for channel in Channel::ALL {
            assert_eq!(Channel::from_name(channel.name()), Some(channel));
        }
        assert_eq!(Channel::from_name("email"), None);
    }
}
