//! The whole stack as a newcomer starts it: `tandem up` as a process, with services and PostgreSQL of its own, on free
//! ports and in a folder that is gone afterwards. What no test inside one process can show is shown here: signals, kills,
//! exit codes, pasted commands, and what an independent collector of telemetry sees.

mod executor;
mod fault;
mod govern;
mod harness;
mod insight;
mod lifecycle;
mod observed;
mod paste;
mod process;
#[expect(dead_code, reason = "the tests inside one process use all of it")]
#[path = "../harness/receiver.rs"]
mod receiver;
mod refusal;
mod replay;
mod rollout;
mod secret;
mod stalled;
mod telemetry;
mod webhook;
