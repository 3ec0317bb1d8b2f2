//! Every kind of event that session-svc tells of, beside those of webhooks.

use shared::outbox::Kind;

/// By name, each with what happened.
pub const KINDS: &[Kind] = &[
    ("cart.checkout_begun", "A cart went into checkout, which holds its visit on its releases."),
    ("cart.checkout_completed", "A cart was ordered."),
    ("cart.checkout_failed", "A checkout failed; the cart is open again."),
    ("cart.code_applied", "A code was applied to a cart. Which one, the cart knows."),
    ("cart.code_removed", "A code was taken off a cart."),
    ("cart.continued", "A cart was made of what was saved for later when the one before it was ordered."),
    ("cart.discarded", "A cart was thrown away; it is no more."),
    ("cart.line_added", "A line was added to a cart, or more of the same to a line."),
    ("cart.line_moved", "A line was saved for later, or taken back into the cart."),
    ("cart.line_removed", "A line was taken out of a cart."),
    ("cart.line_set", "A line's quantity was set."),
    ("cart.lines_merged", "A login brought another cart's lines into this one."),
    ("cart.lines_unmerged", "What a login brought into this cart was taken out again."),
    ("cart.merged", "A login brought this cart's lines into another one; it is no more."),
    ("cart.prices_refreshed", "Lines of a cart have prices observed anew."),
    ("cart.pricing_pinned", "A pricing context was pinned to a cart."),
    ("cart.unmerged", "The merge of this cart was taken back; it is open again."),
    ("session.attributes_changed", "Attributes of a session were changed."),
    ("session.authenticated", "A subject logged in to a session, again or further; its token is a new one."),
    ("session.created", "A session was made for a subject. Of anonymous ones nothing is told."),
    ("session.elevation_granted", "A session was given leave for one action."),
    ("session.elevation_leaked", "Leave for an action was used up because its token was reported."),
    ("session.elevation_redeemed", "A session's leave for an action was used."),
    ("session.pinned", "A new visit of a session has other releases than the one before."),
    ("session.revoked", "A session was ended before its time."),
    ("session.rotated", "A session's token was replaced by a new one."),
    ("session.token_used", "A rotated token was first used; the one before it is good no longer."),
    ("subject.disabled", "A subject was disabled: its sessions ended, and it can make no new ones."),
    ("subject.enabled", "A subject was enabled again."),
    ("touchpoint.created", "A touchpoint was made."),
    ("touchpoint.sessions_revoked", "All sessions of a touchpoint were ended at once."),
    ("touchpoint.updated", "A touchpoint was changed."),
];
