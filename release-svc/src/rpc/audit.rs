//! `AuditService`: the audit trail to read, to sign and to check.

use std::fmt::Write as _;

use serde_json::{Value, json};
use shared::auth::Caller;
use shared::edge::Deadline;
use shared::id::TenantId;
use shared::jws::AUDIT_HEAD;
use shared::page::{self, List};
use shared::parse::{at_most, known_or_default, line, within};
use shared::pb::release as pb;
use shared::pb::release::audit_service_server::AuditService;
use shared::status::{Failure, Refusal};
use shared::time::{from_proto, to_proto};
use sqlx::PgConnection;
use tonic::{Request, Response, Status};

use super::{App, before};
use crate::domain::audit::{self, Break, Entry, Extent, Fault, Hash, Link};
use crate::store;
use crate::store::audit::Filter;

/// Events that one call checks at most.
const CHECKED_MAX: i64 = 1000;
/// Longest subject, kind or principal that is looked for, in characters.
const NAME_MAX: usize = 1000;

const ALLOW: &str = "ALLOW";
const DENY: &str = "DENY";

impl From<Entry> for pb::AuditEvent {
    fn from(entry: Entry) -> Self {
        let verdict = match entry.verdict.as_str() {
            ALLOW => pb::AuditVerdict::Allow,
            DENY => pb::AuditVerdict::Deny,
            _ => pb::AuditVerdict::Unspecified,
        };
        Self {
            seq: entry.seq,
            kind: entry.kind,
            subject: entry.subject,
            principal: entry.principal,
            occur_time: Some(to_proto(entry.at)),
            verdict: verdict.into(),
            record: entry.record,
            hash: entry.hash,
        }
    }
}

impl From<Break> for pb::AuditBreak {
    fn from(Break { seq, fault }: Break) -> Self {
        let number = match fault {
            Fault::Missing => pb::AuditFault::Missing,
            Fault::Reordered(_) => pb::AuditFault::Reordered,
            Fault::Edited => pb::AuditFault::Edited,
            Fault::ColumnDiffers(_) => pb::AuditFault::ColumnDiffers,
            Fault::HeadDiffers => pb::AuditFault::HeadDiffers,
            Fault::SignedHeadDiffers => pb::AuditFault::SignedHeadDiffers,
        };
        Self { seq, fault: number.into(), description: fault.to_string() }
    }
}

fn parse_time(
    field: &str,
    time: Option<prost_types::Timestamp>,
) -> Result<Option<shared::time::Time>, Refusal> {
    let Some(time) = time else { return Ok(None) };
    from_proto(time)
        .map(Some)
        .ok_or_else(|| Refusal::field(field, "must be a time of the years 1 to 9999"))
}

fn parse_filter(request: &pb::ListAuditRequest) -> Result<Filter, Refusal> {
    let pb::ListAuditRequest {
        subject,
        kinds,
        principal,
        verdict,
        start_time,
        end_time,
        page_size: _,
        page_token: _,
    } = request;
    at_most("kinds", kinds, 32)?;
    let text = |field: &str, text: &String| line(field, text.clone(), 0, NAME_MAX);
    let given = |text: String| Some(text).filter(|text| !text.is_empty());
    let mut kinds = kinds
        .iter()
        .map(|kind| text("kinds", kind))
        .collect::<Result<Vec<_>, Refusal>>()?;
    kinds.sort_unstable();
    Ok(Filter {
        subject: given(text("subject", subject)?),
        kinds,
        principal: given(text("principal", principal)?),
        verdict: match known_or_default("verdict", *verdict)? {
            pb::AuditVerdict::Unspecified => None,
            pb::AuditVerdict::Allow => Some(ALLOW),
            pb::AuditVerdict::Deny => Some(DENY),
        },
        from: parse_time("start_time", *start_time)?,
        before: parse_time("end_time", *end_time)?,
    })
}

/// A head that was kept elsewhere.
struct Kept {
    seq: i64,
    hash: String,
}

fn hex(hash: &[u8]) -> String {
    hash.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A piece of a trail, as one snapshot shows it.
struct Piece {
    tenant: TenantId,
    extent: Extent,
    from: i64,
    to: i64,
}

impl Piece {
    /// What its first event goes on from.
    async fn start(&self, db: &mut PgConnection) -> Result<Result<Link, Break>, Failure> {
        let seq = self.from - 1;
        if seq == self.extent.purged.seq {
            return Ok(Ok(self.extent.purged));
        }
        let stored = store::audit::find_hash(db, &self.tenant, seq).await?;
        let broken = |fault| Err(Break { seq, fault });
        let Some(stored) = stored else { return Ok(broken(Fault::Missing)) };
        Ok(Hash::try_from(stored).map_or_else(|_| broken(Fault::Edited), |hash| Ok(Link { seq, hash })))
    }

    /// Follows it for as far as one call goes, and answers how far that is.
    async fn follow(&self, db: &mut PgConnection) -> Result<Result<Link, Break>, Failure> {
        let start = match self.start(db).await? {
            Ok(start) => start,
            Err(broken) => return Ok(Err(broken)),
        };
        let entries = store::audit::list_from(db, &self.tenant, self.from, self.to, CHECKED_MAX).await?;
        let is_all = i64::try_from(entries.len()).unwrap_or(CHECKED_MAX) < CHECKED_MAX;
        let head = self.extent.head;
        let broken = |seq, fault| Err(Break { seq, fault });
        Ok(match audit::follow(&self.tenant, start, &entries) {
            Ok(end) if end.seq > head.seq => broken(head.seq + 1, Fault::HeadDiffers),
            Ok(end) if is_all && end.seq < self.last() => broken(end.seq + 1, Fault::Missing),
            Ok(end) if end.seq == head.seq && end.hash != head.hash => broken(head.seq, Fault::HeadDiffers),
            followed => followed,
        })
    }

    /// Its last event.
    fn last(&self) -> i64 {
        self.to.min(self.extent.head.seq)
    }

    /// Where the trail does not go through a head that was kept elsewhere.
    async fn check(&self, db: &mut PgConnection, kept: &Kept) -> Result<Option<Break>, Failure> {
        let purged = self.extent.purged;
        let stored = if kept.seq == purged.seq {
            Some(purged.hash.to_vec())
        } else {
            store::audit::find_hash(db, &self.tenant, kept.seq).await?
        };
        let is_same = stored.is_some_and(|hash| hex(&hash) == kept.hash);
        Ok((!is_same).then_some(Break { seq: kept.seq, fault: Fault::SignedHeadDiffers }))
    }
}

impl App {
    async fn list_audit(
        &self,
        request: Request<pb::ListAuditRequest>,
    ) -> Result<pb::ListAuditResponse, Failure> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let filter = parse_filter(&request)?;
        let text = format!("{filter:?}");
        let list = List { name: "ListAudit", tenant: &caller.tenant, filter: &text };
        let (size, before) =
            (page::size(request.page_size)?, before(list.after(&self.keys, &request.page_token)?)?);
        let mut db = self.db.connection().await?;
        let mut rows = store::audit::list(&mut db, &caller.tenant, &filter, before, size + 1).await?;
        let next_page_token =
            list.cut(&self.keys, &mut rows, size, self.clock.now(), |entry| entry.seq.to_string())?;
        Ok(pb::ListAuditResponse { events: rows.into_iter().map(Into::into).collect(), next_page_token })
    }

    async fn get_audit_head(
        &self,
        request: Request<pb::GetAuditHeadRequest>,
    ) -> Result<pb::GetAuditHeadResponse, Failure> {
        let caller = Caller::of(&request)?;
        let mut db = self.db.connection().await?;
        let Extent { purged, head } = store::audit::extent(&mut db, &caller.tenant).await?;
        let now = self.clock.now();
        let claims = json!({
            "tenant": caller.tenant.as_str(),
            "seq": head.seq,
            "hash": hex(&head.hash),
            "iat": now.timestamp(),
        });
        let signed = AUDIT_HEAD.sign(&self.keys.load(), now, &claims)?;
        Ok(pb::GetAuditHeadResponse {
            seq: head.seq,
            hash: head.hash.to_vec(),
            signed_head: signed.expose().clone(),
            first_seq: purged.seq + 1,
        })
    }

    fn kept_head(&self, tenant: &TenantId, text: &str) -> Result<Option<Kept>, Failure> {
        if text.is_empty() {
            return Ok(None);
        }
        let claims: Option<Value> = AUDIT_HEAD.open(&self.keys.load(), text)?;
        let kept = claims.filter(|claims| claims["tenant"] == tenant.as_str()).and_then(|claims| {
            Some(Kept { seq: claims["seq"].as_i64()?, hash: claims["hash"].as_str()?.to_owned() })
        });
        let invalid = || Refusal::field("signed_head", "is no head that was signed for this tenant");
        Ok(Some(kept.ok_or_else(invalid)?))
    }

    async fn verify_audit(
        &self,
        request: Request<pb::VerifyAuditRequest>,
    ) -> Result<pb::VerifyAuditResponse, Failure> {
        let (caller, deadline) = (Caller::of(&request)?, Deadline::of(&request));
        let pb::VerifyAuditRequest { from_seq, to_seq, signed_head } = request.into_inner();
        let from = within("from_seq", from_seq, 0, i64::MAX - 1)?;
        let to = match within("to_seq", to_seq, 0, i64::MAX)? {
            0 => i64::MAX,
            to => to,
        };
        let tenant = caller.tenant.clone();
        let kept = self.kept_head(&tenant, &signed_head)?;
        let mut tx = self.db.begin(deadline).await?;
        store::audit::hold_still(&mut tx).await?;
        let extent = store::audit::extent(&mut tx, &tenant).await?;
        let Extent { purged, head } = extent;
        if from > head.seq + 1 {
            return Err(Refusal::field("from_seq", format!("the trail ends with {}", head.seq)).into());
        }
        if kept.as_ref().is_some_and(|kept| kept.seq < purged.seq) {
            let problem =
                format!("the events up to {} were purged, and this is an earlier one's", purged.seq);
            return Err(Refusal::field("signed_head", problem).into());
        }
        if to < from {
            return Err(Refusal::field("to_seq", "must not be before from_seq").into());
        }
        let piece = Piece { tenant, extent, from: from.max(purged.seq + 1), to };
        let mut followed = piece.follow(&mut tx).await?;
        // Whoever follows the trail to where it ends hears of what is not on it.
        if followed.is_ok_and(|end| end.seq == head.seq)
            && store::audit::has_strays(&mut tx, &piece.tenant, &extent).await?
        {
            followed = Err(Break { seq: head.seq + 1, fault: Fault::HeadDiffers });
        }
        let holds_to = followed.map_or_else(|broken| broken.seq - 1, |end| end.seq).max(piece.from - 1);
        let first_break = match (followed, &kept) {
            (Err(broken), _) => Some(broken),
            // What comes later is another call's, unless there is none.
            (Ok(end), Some(kept)) if kept.seq <= end.seq || end.seq >= piece.last() => {
                piece.check(&mut tx, kept).await?
            }
            (Ok(_), _) => None,
        };
        tx.commit().await?;
        let is_more = first_break.is_none() && holds_to < piece.last();
        Ok(pb::VerifyAuditResponse {
            first_break: first_break.map(Into::into),
            checked_count: holds_to - piece.from + 1,
            first_seq: piece.from,
            next_seq: if is_more { holds_to + 1 } else { 0 },
            head_seq: head.seq,
        })
    }

    fn get_audit_keys(
        &self,
        request: &Request<pb::GetAuditKeysRequest>,
    ) -> Result<pb::GetAuditKeysResponse, Failure> {
        Caller::of(request)?;
        let jwks = AUDIT_HEAD.jwks(&self.keys.load())?;
        let jwks_json = serde_json::to_string(&jwks).map_err(|error| Failure::Bug(error.to_string()))?;
        Ok(pb::GetAuditKeysResponse { jwks_json })
    }
}

#[tonic::async_trait]
impl AuditService for App {
    async fn list_audit(
        &self,
        request: Request<pb::ListAuditRequest>,
    ) -> Result<Response<pb::ListAuditResponse>, Status> {
        Ok(Response::new(self.list_audit(request).await?))
    }

    async fn get_audit_head(
        &self,
        request: Request<pb::GetAuditHeadRequest>,
    ) -> Result<Response<pb::GetAuditHeadResponse>, Status> {
        Ok(Response::new(self.get_audit_head(request).await?))
    }

    async fn verify_audit(
        &self,
        request: Request<pb::VerifyAuditRequest>,
    ) -> Result<Response<pb::VerifyAuditResponse>, Status> {
        Ok(Response::new(self.verify_audit(request).await?))
    }

    async fn get_audit_keys(
        &self,
        request: Request<pb::GetAuditKeysRequest>,
    ) -> Result<Response<pb::GetAuditKeysResponse>, Status> {
        Ok(Response::new(self.get_audit_keys(&request)?))
    }
}
