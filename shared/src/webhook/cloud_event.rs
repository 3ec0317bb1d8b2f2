//! Events as receivers get them: `CloudEvents` 1.0, JSON in structured mode.

use chrono::SecondsFormat;
use serde_json::json;

use crate::id::{TenantId, WebhookId};
use crate::outbox::Stored;
use crate::telemetry::trace_parent;
use crate::time::Time;

/// What a receiver gets to try whether it gets anything.
pub(super) fn ping(tenant: &TenantId, webhook: WebhookId, principal: &str, now: Time) -> Stored {
    Stored {
        id: now.timestamp_micros(),
        xid: 0,
        tenant: tenant.clone(),
        kind: "webhook.ping".to_owned(),
        subject: webhook.to_string(),
        principal: principal.to_owned(),
        at: now,
        data: json!({}),
        trace_parent: trace_parent(),
    }
}

/// The body of the request that tells of the event.
pub(super) fn body(schema: &str, event: &Stored) -> String {
    let mut body = json!({
        "specversion": "1.0",
        "id": event.id.to_string(),
        "source": format!("/tandem/{schema}/{}", event.tenant),
        "type": event.kind,
        "subject": event.subject,
        "time": event.at.to_rfc3339_opts(SecondsFormat::Micros, true),
        "datacontenttype": "application/json",
        "data": event.data,
        "principal": event.principal,
    });
    if !event.trace_parent.is_empty() {
        body["traceparent"] = event.trace_parent.clone().into();
    }
    body.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::at;

    #[test]
    fn an_event_is_a_cloud_event_with_every_required_attribute() {
        let event = Stored {
            id: 7,
            xid: 1,
            tenant: "shop".parse().unwrap(),
            kind: "cart.line_added".to_owned(),
            subject: "crt_1".to_owned(),
            principal: "idp|storefront".to_owned(),
            at: at(1_700_000_000),
            data: json!({"sku": "85123A"}),
            trace_parent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned(),
        };
        let told: serde_json::Value = serde_json::from_str(&body("session", &event)).unwrap();
        let expected = json!({
            "specversion": "1.0",
            "id": "7",
            "source": "/tandem/session/shop",
            "type": "cart.line_added",
            "subject": "crt_1",
            "time": "2023-11-14T22:13:20.000000Z",
            "datacontenttype": "application/json",
            "data": {"sku": "85123A"},
            "principal": "idp|storefront",
            "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        });
        assert_eq!(told, expected);
    }
}
