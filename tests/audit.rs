//! The audit trail: every event bound to the one before, whatever was done to it behind the service's back found, and what
//! a rule refused told of.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::TimeDelta;
use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use shared::issuer::Grant;
use shared::outbox::Event;
use shared::pb::release as pb;
use shared::time::to_proto;
use sqlx::{AssertSqlSafe, PgConnection};
use tonic::Code;

use crate::harness::shop::{create_catalog, create_release, ship};
use crate::harness::{Answer as _, Caller, Options, Stack, eventually, person};

/// Everything that the filter passes, oldest first, page by page.
pub(crate) async fn list(caller: &Caller, filter: pb::ListAuditRequest) -> Vec<pb::AuditEvent> {
    let (mut events, mut page_token) = (vec![], String::new());
    loop {
        let request = pb::ListAuditRequest { page_token, ..filter.clone() };
        let page = caller.audit().list_audit(request).await.answer();
        events.extend(page.events);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            events.reverse();
            return events;
        }
    }
}

pub(crate) async fn list_all(caller: &Caller) -> Vec<pb::AuditEvent> {
    list(caller, pb::ListAuditRequest { page_size: 1000, ..Default::default() }).await
}

async fn head(caller: &Caller) -> pb::GetAuditHeadResponse {
    caller.audit().get_audit_head(pb::GetAuditHeadRequest {}).await.answer()
}

/// How many events hold, or where the trail is broken and how.
pub(crate) async fn verify(caller: &Caller, signed_head: &str) -> Result<i64, (i64, pb::AuditFault)> {
    let (mut from_seq, mut checked) = (0, 0);
    loop {
        let request =
            pb::VerifyAuditRequest { from_seq, signed_head: signed_head.to_owned(), ..Default::default() };
        let answer = caller.audit().verify_audit(request).await.answer();
        checked += answer.checked_count;
        if let Some(broken) = answer.first_break {
            assert!(!broken.description.is_empty());
            return Err((broken.seq, broken.fault()));
        }
        from_seq = answer.next_seq;
        if from_seq == 0 {
            return Ok(checked);
        }
    }
}

/// A superuser's statements, with the guards of the table off.
async fn tamper(db: &mut PgConnection, sql: &str) {
    let sql = format!(
        "alter table release.events disable trigger user; {sql}; alter table release.events enable trigger user"
    );
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(db).await.unwrap();
}

/// As docs/security.md writes it.
fn hash_of(previous: &[u8], tenant: &str, seq: i64, record: &str) -> Vec<u8> {
    let mut bytes = previous.to_vec();
    bytes.extend(u64::try_from(tenant.len()).unwrap().to_be_bytes());
    bytes.extend(tenant.as_bytes());
    bytes.extend(seq.to_be_bytes());
    bytes.extend(Sha256::digest(record.as_bytes()));
    Sha256::digest(bytes).to_vec()
}

async fn start() -> (Stack, Caller) {
    let stack = Stack::releases();
    let caller = stack.caller(&person("ada"));
    create_catalog(&caller).await;
    (stack, caller)
}

#[tokio::test]
async fn every_event_is_bound_to_the_one_before_by_the_documented_bytes() {
    let (stack, caller) = start().await;
    ship(&caller, "1.0", &[]).await;
    let events = list(&caller, pb::ListAuditRequest { page_size: 2, ..Default::default() }).await;
    assert!(events.len() > 5, "{events:?}");
    let mut last = vec![0; 32];
    for (seq, event) in (1..).zip(&events) {
        last = hash_of(&last, "shop", seq, &event.record);
        assert_eq!((event.seq, &event.hash, event.verdict()), (seq, &last, pb::AuditVerdict::Allow));
        let record: Value = serde_json::from_str(&event.record).unwrap();
        let expected = json!({
            "tenant": "shop", "seq": seq, "kind": event.kind, "subject": event.subject,
            "principal": event.principal, "occurred_at": "2027-01-15T08:00:00.000000Z", "verdict": "ALLOW",
            "trace_parent": record["trace_parent"], "data": record["data"],
        });
        assert_eq!(record, expected);
        assert_eq!(event.occur_time, Some(to_proto(stack.now())));
    }
    let answered = head(&caller).await;
    assert_eq!((answered.seq, answered.first_seq), (events.last().unwrap().seq, 1));
    assert_eq!(answered.hash, last);
    assert_eq!(verify(&caller, &answered.signed_head).await, Ok(answered.seq));
    let piece = pb::VerifyAuditRequest { from_seq: 2, to_seq: 4, ..Default::default() };
    let piece = caller.audit().verify_audit(piece).await.answer();
    assert_eq!((piece.first_break, piece.checked_count, piece.first_seq, piece.next_seq), (None, 3, 2, 0));
}

#[tokio::test]
async fn whatever_was_done_to_the_trail_is_found_where_it_begins() {
    use pb::AuditFault::{ColumnDiffers, Edited, HeadDiffers, Missing, Reordered, SignedHeadDiffers};
    let (stack, caller) = start().await;
    ship(&caller, "1.0", &[]).await;
    let kept = head(&caller).await;
    let end = kept.seq;
    let mut db = stack.database.connect().await;
    let keep = "create table kept as select * from release.events; \
                create table kept_heads as select * from release.audit_heads";
    sqlx::raw_sql(keep).execute(&mut db).await.unwrap();
    let swap = |then: &str| {
        format!(
            "update release.events set seq = -3 where seq = 3; update release.events set seq = 3 where seq = 2; \
             update release.events set seq = 2 where seq = -3; {then}"
        )
    };
    let stray = |seq: &str| {
        format!(
            "insert into release.events (tenant_id, kind, subject, principal, occurred_at, data, trace_parent, seq, verdict, record, \
             hash) select tenant_id, kind, subject, principal, occurred_at, data, trace_parent, {seq}, verdict, record, hash \
             from release.events where seq = 1"
        )
    };
    let cut = "delete from release.events where seq > 5";
    let rehead = "update release.audit_heads as head set seq = 5, hash = event.hash \
                  from release.events as event where event.seq = 5 and event.tenant_id = head.tenant_id";
    let rewrite = "update release.audit_heads set seq = 0, hash = purged_hash; \
                   update release.events set seq = null, hash = null, record = null, verdict = null, \
                       principal = 'eve' where tenant_id = 'shop'; \
                   select release.link_event(tenant_id, event_id) from \
                       (select * from release.events order by event_id) as event";
    let cases = [
        (
            "update release.events set record = replace(record, 'ada', 'eve') where seq = 2".to_owned(),
            2,
            Edited,
        ),
        ("update release.events set hash = sha256(hash) where seq = 3".to_owned(), 3, Edited),
        ("update release.events set principal = 'eve' where seq = 4".to_owned(), 4, ColumnDiffers),
        ("update release.events set data = '{}' where seq = 1".to_owned(), 1, ColumnDiffers),
        ("delete from release.events where seq = 1".to_owned(), 1, Missing),
        ("delete from release.events where seq = 4".to_owned(), 4, Missing),
        ("update release.events set seq = seq + 100 where seq = 4".to_owned(), 4, Missing),
        (swap(""), 2, Reordered),
        (
            swap(
                "update release.events set record = replace(record, '\"seq\" : 3', '\"seq\" : 2') where seq = 2",
            ),
            2,
            Edited,
        ),
        (cut.to_owned(), 6, Missing),
        ("update release.audit_heads set seq = seq - 1".to_owned(), end, HeadDiffers),
        ("update release.audit_heads set hash = sha256(hash)".to_owned(), end, HeadDiffers),
        ("delete from release.audit_heads".to_owned(), 1, HeadDiffers),
        (stray("seq + 1000000"), end + 1, Missing),
        (stray("-seq"), end + 1, HeadDiffers),
        (format!("{cut}; {rehead}"), end, SignedHeadDiffers),
        (rewrite.to_owned(), end, SignedHeadDiffers),
    ];
    for (sql, seq, fault) in cases {
        tamper(&mut db, &sql).await;
        assert_eq!(verify(&caller, &kept.signed_head).await, Err((seq, fault)), "{sql}");
        let without = verify(&caller, "").await;
        assert_eq!(without.is_ok(), fault == SignedHeadDiffers, "{sql}");
        let restore = "truncate release.events, release.audit_heads; \
                       insert into release.events overriding system value select * from kept; \
                       insert into release.audit_heads select * from kept_heads";
        tamper(&mut db, restore).await;
        assert_eq!(verify(&caller, &kept.signed_head).await, Ok(end));
    }
}

#[tokio::test]
async fn a_long_trail_is_checked_piece_by_piece() {
    let (stack, caller) = start().await;
    let before = head(&caller).await;
    let mut db = stack.database.connect().await;
    let event = |n: i32| Event {
        tenant: "shop".parse().unwrap(),
        kind: "test.counted",
        subject: "counter".to_owned(),
        principal: "system".to_owned(),
        at: stack.now(),
        data: json!({"n": n, "text": "\u{0}\"\\ \u{fc}\u{1f6d2}\u{2028}"}),
        trace_parent: String::new(),
    };
    let events: Vec<_> = (0..2100).map(event).collect();
    release_svc::OUTBOX.append_all(&mut db, &events).await.unwrap();
    let end = before.seq + 2100;
    let first = caller.audit().verify_audit(pb::VerifyAuditRequest::default()).await.answer();
    assert_eq!((first.checked_count, first.next_seq, first.head_seq), (1000, 1001, end));
    assert_eq!(verify(&caller, &before.signed_head).await, Ok(end));
    tamper(&mut db, "delete from release.events where seq = 1001").await;
    assert_eq!(verify(&caller, "").await, Err((1001, pb::AuditFault::Missing)));
    // Also where a caller begins right after it.
    let request = pb::VerifyAuditRequest { from_seq: 1002, ..Default::default() };
    let broken = caller.audit().verify_audit(request).await.answer().first_break.unwrap();
    assert_eq!((broken.seq, broken.fault()), (1001, pb::AuditFault::Missing));
    let beyond = pb::VerifyAuditRequest { from_seq: end + 2, ..Default::default() };
    let refused = caller.audit().verify_audit(beyond).await;
    refused.refused(Code::InvalidArgument, "FIELD_INVALID");
}

#[tokio::test]
async fn a_head_is_signed_for_its_tenant_and_checked_with_the_published_keys() {
    let (stack, caller) = start().await;
    let answered = head(&caller).await;
    let keys = caller.audit().get_audit_keys(pb::GetAuditKeysRequest {}).await.answer();
    let keys: JwkSet = serde_json::from_str(&keys.jwks_json).unwrap();
    let header = jsonwebtoken::decode_header(&answered.signed_head).unwrap();
    assert_eq!((header.typ.as_deref(), header.alg), (Some("tandem-audit-head+jwt"), Algorithm::EdDSA));
    let mut validation = Validation::new(Algorithm::EdDSA);
    validation.required_spec_claims.clear();
    let key = DecodingKey::from_jwk(keys.find(&header.kid.unwrap()).unwrap()).unwrap();
    let claims: Value = jsonwebtoken::decode(&answered.signed_head, &key, &validation).unwrap().claims;
    let hash = answered
        .hash
        .iter()
        .fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
    let expected =
        json!({"tenant": "shop", "seq": answered.seq, "hash": hash, "iat": stack.now().timestamp()});
    assert_eq!(claims, expected);

    let acme = stack.caller(&Grant { tenant: "acme".to_owned(), ..person("ada") });
    let nothing = head(&acme).await;
    assert_eq!((nothing.seq, nothing.hash, nothing.first_seq), (0, vec![0; 32], 1));
    assert_eq!((verify(&acme, "").await, list_all(&acme).await), (Ok(0), vec![]));
    let signed = &answered.signed_head;
    let (start, signature) = signed.rsplit_once('.').unwrap();
    let (protected, _) = start.split_once('.').unwrap();
    let other = URL_SAFE_NO_PAD.encode(json!({"tenant": "shop", "seq": 1, "hash": hash}).to_string());
    let forged = format!("{protected}.{other}.{signature}");
    for (caller, signed_head) in [(&acme, signed), (&caller, &nothing.signed_head), (&caller, &forged)] {
        let request = pb::VerifyAuditRequest { signed_head: signed_head.clone(), ..Default::default() };
        let refused = caller.audit().verify_audit(request).await;
        refused.refused(Code::InvalidArgument, "FIELD_INVALID");
    }
}

#[tokio::test]
async fn only_the_purge_deletes_and_what_it_leaves_still_holds() {
    let (stack, caller) = start().await;
    let mut db = stack.database.connect().await;
    for sql in [
        "update release.events set principal = 'eve'",
        "update release.events set seq = seq + 1",
        "delete from release.events",
        "truncate release.events",
    ] {
        let refused = sqlx::raw_sql(sql).execute(&mut db).await.unwrap_err();
        let code = refused
            .as_database_error()
            .and_then(|error| error.code().map(std::borrow::Cow::into_owned));
        assert_eq!(code.as_deref(), Some("23001"), "{sql}: {refused}");
    }
    let early = head(&caller).await;
    stack.advance(TimeDelta::hours(2));
    create_release(&caller, "1.0").await;
    create_release(&caller, "1.1").await;
    let late = head(&caller).await;
    let hour = Options { event_retention: Some(TimeDelta::hours(1)), ..Options::default() };
    let limited = stack.release_svc(&hour);
    eventually("the older ones are purged", || async {
        (head(&caller).await.first_seq == early.seq + 1).then_some(())
    })
    .await;
    // The head of what was purged last is where the rest goes on from.
    for (signed, kept) in [("", 2), (&early.signed_head, 2), (&late.signed_head, 2)] {
        assert_eq!(verify(&caller, signed).await, Ok(kept));
    }
    create_release(&caller, "1.2").await;
    assert_eq!(list_all(&caller).await.first().unwrap().seq, early.seq + 1);
    assert_eq!(verify(&caller, &late.signed_head).await, Ok(3));
    stack.advance(TimeDelta::hours(2));
    eventually("all are purged", || async { (head(&caller).await.first_seq == late.seq + 2).then_some(()) })
        .await;
    assert_eq!(verify(&caller, "").await, Ok(0));
    let request = pb::VerifyAuditRequest { signed_head: early.signed_head.clone(), ..Default::default() };
    let refused = caller.audit().verify_audit(request).await;
    let status = refused.refused(Code::InvalidArgument, "FIELD_INVALID");
    assert!(status.message().contains("purged"), "{}", status.message());
    drop(limited);
}
